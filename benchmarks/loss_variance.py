"""What importance sampling of t saves: variance of the likelihood loss and of its gradient, uniform against g²/σ².

Song, Durkan et al. 2021, "Maximum Likelihood Training of Score-Based Diffusion Models", section 5.1 and figure 2. The
losses have the same expectation; the ratio of variances is the ratio of samples that a given accuracy of the gradient
needs. The variance of a gradient is the trace of its covariance over batches of 64 with fixed weights.

Data: the embedded digits model and its test images (VP), and a small untrained network on Gaussian data for every SDE.

    python benchmarks/loss_variance.py [--batches 100]
"""

from __future__ import annotations

import argparse

import torch

from sde_toolkit import MLP, DenoisingScoreMatching, ScoreModel, gaussian
from sde_toolkit import sde as sdes
from sde_toolkit.data import digits
from sde_toolkit.losses import LikelihoodTimes, TimeDistribution, Uniform, g_squared, low_discrepancy

LOSS = DenoisingScoreMatching("score", g_squared)
BATCH = 64


def draws(model: ScoreModel, x: torch.Tensor, times: TimeDistribution, spread: bool, generator: torch.Generator):
    """Weighted losses of one batch, its times independent or of low discrepancy."""
    x_0 = x[torch.randint(len(x), (BATCH,), generator=generator)]
    noise = torch.randn(x_0.shape, generator=generator)
    u = torch.rand(BATCH, generator=generator, dtype=torch.float64)
    u = low_discrepancy(BATCH, u[0]) if spread else u
    t, importance = times(model.sde, u, model.sde.likelihood_end)
    return importance.to(x_0.dtype) * LOSS(model, x_0, t, noise)


def variances(model: ScoreModel, x: torch.Tensor, times: TimeDistribution, spread: bool, batches: int) -> list[float]:
    """Mean of the loss, variance of a batch's mean loss, and trace of the covariance of a batch's gradient."""
    generator = torch.Generator().manual_seed(0)
    weights = [p for p in model.parameters() if p.requires_grad]
    means, gradients = [], []
    for _ in range(batches):
        loss = draws(model, x, times, spread, generator).mean()
        means.append(loss.detach().double())
        if weights:
            parts = torch.autograd.grad(loss, weights, allow_unused=True)
            gradients.append(torch.cat([p.flatten() for p in parts if p is not None]).double())
    value = torch.stack(means)
    trace = torch.stack(gradients).var(0).sum().item() if gradients else float("nan")
    return [value.mean().item(), value.var().item(), trace]


def row(name: str, model: ScoreModel, x: torch.Tensor, batches: int) -> None:
    """One line for independent times, one for low discrepancy."""
    for spread in (False, True):
        uniform, importance = (variances(model, x, times, spread, batches) for times in (Uniform(), LikelihoodTimes()))
        how = "low discrepancy" if spread else "independent"
        ratios = [a / b for a, b in zip(uniform[1:], importance[1:], strict=True)]
        means = f"{uniform[0]:10.4g} ± {(uniform[1] / batches) ** 0.5:<8.2g}"
        means += f"{importance[0]:10.4g} ± {(importance[1] / batches) ** 0.5:<8.2g}"
        print(f"{name:24s} {how:16s} {means} {ratios[0]:10.1f} {ratios[1]:10.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=100)
    batches = parser.parse_args().batches
    losses = f"{'loss, uniform':>21s} {'loss, importance':>21s}"
    print(f"{'model':24s} {'times':16s} {losses} {'loss ×':>9s} {'gradient ×':>10s}")
    model = ScoreModel.from_pretrained("digits")
    row("digits, trained", model, model.transform.forward(digits().test).float(), batches)
    torch.manual_seed(0)
    x = 0.5 * torch.randn(4096, 2)
    for name in sdes.__all__:
        kind = getattr(sdes, name)
        if not (isinstance(kind, type) and issubclass(kind, sdes.SDE) and kind is not sdes.SDE):
            continue
        path = kind()
        torch.manual_seed(0)
        network = MLP(event_shape=(2,), width=32, depth=1, embedding_scale=1000)
        torch.nn.init.normal_(network.leave.weight, std=0.1)  # a new network says 0
        row(f"{name}, new network", ScoreModel(network, path, "v"), x, batches)
        if name == "VPSDE":
            row(f"{name}, exact score", gaussian([0.0, 0.0], path, std=0.5), x, batches)


if __name__ == "__main__":
    main()
