"""Log-likelihoods by other libraries, each in its own language, from the same score model, points and probe.

The equation is the probability flow from t = END to 1 and the prior N(0, σ_1² I) everywhere; state in float32.

    flow_matching   ODESolver.compute_likelihood, dopri5 in its time s, t = 1 − (1 − END) s; exact trace or one probe
    zuko            FreeFormJacobianTransform, its Dormand-Prince in t; exact trace or one probe
    k-diffusion     log_likelihood, dopri5 in σ/α on x/α; one probe
    score_sde       its algorithm, written anew: scipy's RK45 in t over state and log-density together, the drift and
                    one Rademacher probe's divergence evaluated apart; 1e-5 are its tolerances

Whoever draws a probe gets ours, so that all of them solve the same equation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

import torch
from flow_matching.solver import ODESolver
from peers.with_kdiffusion import sampling
from scipy.integrate import solve_ivp
from torch import Tensor
from zuko.transforms import FreeFormJacobianTransform

from sde_toolkit import ScoreModel

__all__ = ["END", "PEERS", "Answer", "Task"]

END = 1e-5


@dataclass(frozen=True)
class Answer:
    """``nats`` (B,) in model space, without the transform; evaluations of the field and of its divergence."""

    nats: Tensor
    field: int
    divergence: int


@dataclass
class Task:
    """A model, points in model space (B, *event) float32, one Rademacher probe of the same shape; calls are counted.

    The steps of a peer may reach beyond t = 1 and come back by interpolation. The model's own time is t/span, so that
    an exact score goes on smoothly there; a network is asked at t = 1.
    """

    model: ScoreModel
    x: Tensor
    probe: Tensor
    span: float = 1.0
    calls: int = 0
    negated: bool = False

    def velocity(self, x: Tensor, t: float) -> Tensor:
        """dx/dt = f x − ½ g² score."""
        self.calls += 1
        time, sde = self._own(t), self.model.sde
        f, g = sde.f(time).item(), sde.g(time).item()
        return (f * x - 0.5 * g**2 * self.model(x, time).score) / self.span

    def denoised(self, y: Tensor, ratio: float) -> Tensor:
        """x̂_0 from y = x/α; under VP α is 1/√(1 + ratio²)."""
        self.calls += 1
        sde, lambda_t = self.model.sde, torch.tensor(-math.log(ratio), dtype=torch.float64)
        time = sde.inverse_half_log_snr(lambda_t.clamp(min=sde.half_log_snr(self._own(self.span)).item()))
        return self.model(y / math.sqrt(1 + ratio**2), time).x_0

    def ratio(self, t: float) -> float:
        return math.exp(-self.model.sde.half_log_snr(self._own(t)).item())

    def prior(self, x: Tensor) -> Tensor:
        return self.model.sde.prior_logp(x.double(), 1 / self.span)

    def _own(self, t: float) -> Tensor:
        return torch.tensor(t / self.span, dtype=torch.float64).clamp(0.0, 1.0)

    @contextmanager
    def probes(self) -> Iterator[None]:
        """What torch draws is the probe: k-diffusion takes 2 b − 1 of b in {0, 1}, flow_matching 1 − 2 [g ≥ 0]."""

        def normal(like: Tensor, **_: object) -> Tensor:
            return -self.probe.reshape(like.shape) if self.negated else self.probe.reshape(like.shape)

        bits = (self.probe + 1) / 2
        with (
            mock.patch.object(torch, "randn_like", normal),
            mock.patch.object(torch, "randint_like", return_value=bits),
        ):
            yield


def flow_matching(task: Task, tolerance: float, exact: bool) -> Answer:
    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return -(1 - END) * task.velocity(x, 1 - (1 - END) * t.item())

    task.calls, task.negated = 0, True
    options = {"step_size": None, "method": "dopri5", "rtol": tolerance, "atol": tolerance, "exact_divergence": exact}
    with task.probes():
        _, nats = ODESolver(velocity).compute_likelihood(task.x, task.prior, **options)
    task.negated = False
    return Answer(nats.detach(), task.calls, task.calls)


def zuko(task: Task, tolerance: float, exact: bool) -> Answer:
    def velocity(t: Tensor, x: Tensor) -> Tensor:
        return task.velocity(x.reshape(task.x.shape), float(t)).reshape(x.shape)

    task.calls = 0
    tolerances = {"rtol": tolerance, "atol": tolerance}
    with task.probes(), torch.no_grad():
        flow = FreeFormJacobianTransform(velocity, END, 1.0, exact=exact, **tolerances)
        latent, growth = flow.call_and_ladj(task.x.flatten(1))
    return Answer(task.prior(latent.reshape(task.x.shape)) + growth, task.calls, task.calls)


def k_diffusion(task: Task, tolerance: float, exact: bool) -> Answer:
    if exact:
        raise ValueError("it has no exact trace")
    task.calls = 0
    low, high = task.ratio(END), task.ratio(1.0)
    alpha = 1 / math.sqrt(1 + low**2)
    with task.probes():
        nats, _ = sampling.log_likelihood(
            lambda y, sigma: task.denoised(y, sigma[0].item()),
            task.x / alpha,
            low,
            high,
            rtol=tolerance,
            atol=tolerance,
        )
    return Answer(nats - task.x[0].numel() * math.log(alpha), task.calls, task.calls)


def score_sde(task: Task, tolerance: float, exact: bool) -> Answer:
    if exact:
        raise ValueError("it has no exact trace")
    task.calls, shape, B = 0, task.x.shape, len(task.x)

    def slope(t: float, state: object) -> object:
        x = torch.as_tensor(state)[:-B].reshape(shape).float()
        with torch.no_grad():
            drift = task.velocity(x, t)
        with torch.enable_grad():
            x.requires_grad_()
            product = torch.autograd.grad((task.velocity(x, t) * task.probe).sum(), x)[0]
        divergence = (product * task.probe).flatten(1).sum(1)
        return torch.cat([drift.flatten(), divergence]).double().numpy()

    start = torch.cat([task.x.flatten(), torch.zeros(B)]).double().numpy()
    solution = solve_ivp(slope, (END, 1.0), start, method="RK45", rtol=tolerance, atol=tolerance)
    last = torch.as_tensor(solution.y[:, -1])
    return Answer(task.prior(last[:-B].reshape(shape)) + last[-B:], task.calls - solution.nfev, solution.nfev)


# name: (function, has an exact trace)
PEERS: dict[str, tuple[Callable[[Task, float, bool], Answer], bool]] = {
    "flow_matching": (flow_matching, True),
    "zuko": (zuko, True),
    "k-diffusion": (k_diffusion, False),
    "score_sde": (score_sde, False),
}
