"""What importance sampling of t saves: variance of the likelihood loss, uniform t over p(t) ∝ g²/σ².

    python benchmarks/loss_variance.py            # three minutes on one core

Both losses have the same expectation (Song, Durkan et al. 2021, "Maximum Likelihood Training of Score-Based Diffusion
Models", section 5.1 and figure 2). The ratio of variances is the ratio of samples that a given accuracy of the
gradient needs. The variance of a gradient is the trace of its covariance over batches of 64 with fixed weights and
independent times. The estimates at uniform t are heavy-tailed: the table gives the median, and the range, over
repeats.

Data: the embedded digits network and its test images, and a small untrained network on Gaussian data for every SDE.
"""

from __future__ import annotations

import statistics

import torch
from report import Report, parser

from sde_toolkit import MLP, DenoisingScoreMatching, ScoreModel
from sde_toolkit import sde as sdes
from sde_toolkit.data import digits
from sde_toolkit.losses import LikelihoodTimes, TimeDistribution, Uniform, g_squared

LOSS = DenoisingScoreMatching("score", g_squared)
BATCH = 64


def mean_loss(model: ScoreModel, x: torch.Tensor, times: TimeDistribution, generator: torch.Generator) -> torch.Tensor:
    """The weighted loss of one batch."""
    x_0 = x[torch.randint(len(x), (BATCH,), generator=generator)]
    noise = torch.randn(x_0.shape, generator=generator)
    u = torch.rand(BATCH, generator=generator, dtype=torch.float64)
    t, importance = times(model.sde, u, model.sde.likelihood_end)
    return (importance.to(x_0.dtype) * LOSS(model, x_0, t, noise)).mean()


def variances(model: ScoreModel, x: torch.Tensor, times: TimeDistribution, batches: int, seed: int) -> list[float]:
    """Variance of a batch's mean loss, and trace of the covariance of its gradient."""
    generator = torch.Generator().manual_seed(seed)
    weights = [p for p in model.parameters() if p.requires_grad]
    losses, gradients = [], []
    for _ in range(batches):
        loss = mean_loss(model, x, times, generator)
        losses.append(loss.detach().double())
        parts = torch.autograd.grad(loss, weights, allow_unused=True)
        gradients.append(torch.cat([p.flatten() for p in parts if p is not None]).double())
    return [torch.stack(losses).var().item(), torch.stack(gradients).var(0).sum().item()]


def row(report: Report, name: str, model: ScoreModel, x: torch.Tensor, batches: int, repeats: int) -> None:
    """Median of the ratios over repeats with other batches, and the smallest and the largest."""
    ratios = []
    for seed in range(repeats):
        uniform, importance = (variances(model, x, times, batches, seed) for times in (Uniform(), LikelihoodTimes()))
        ratios.append([a / b for a, b in zip(uniform, importance, strict=True)])
    cells = [f"{statistics.median(c):.3g} ({min(c):.3g} to {max(c):.3g})" for c in zip(*ratios, strict=True)]
    report.row(name, *cells)


def main() -> None:
    words = parser(__doc__)
    words.add_argument("--batches", type=int, default=100)
    words.add_argument("--repeats", type=int, default=5)
    given = words.parse_args()
    report = Report(
        given.results, "loss-variance", "The likelihood loss: variance at uniform t over importance-sampled t"
    )
    report.table("model", "variance of the loss", "variance of its gradient")
    model = ScoreModel.from_pretrained("digits")
    images = model.transform.forward(digits().test).float()
    row(report, "digits network, VP, trained", model, images, given.batches, given.repeats)
    x = 0.5 * torch.randn(4096, 2, generator=torch.Generator().manual_seed(0))
    for name in sdes.__all__:
        kind = getattr(sdes, name)
        if not (isinstance(kind, type) and issubclass(kind, sdes.SDE) and kind is not sdes.SDE):
            continue
        torch.manual_seed(0)
        network = MLP(event_shape=(2,), width=32, depth=1, embedding_scale=1000)
        torch.nn.init.normal_(network.leave.weight, std=0.1)  # a new network says 0
        row(report, f"new network, {name}", ScoreModel(network, kind(), "v"), x, given.batches, given.repeats)
    report.save()


if __name__ == "__main__":
    main()
