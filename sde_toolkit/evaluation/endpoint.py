"""Where the probability flow really takes a given initial noise: the truth for deterministic solvers.

The exact score of a mixture is solved adaptively in float64. A float32 network is solved by Heun's method on
many steps: an adaptive solver chases its round-off (measured on the MNIST network: 273 evaluations at a
tolerance of 1e-5 against 101 here, for the same accuracy). Either way a part of the samples is solved again more
finely, and what that changes is reported as the reference's own error. A few samples carry most of it: those
whose noise lies near the border between two images.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sde_toolkit import grids
from sde_toolkit.errors import ArgumentError
from sde_toolkit.evaluation.metrics import Estimate, rmse
from sde_toolkit.exact import GaussianMixture
from sde_toolkit.integrators import TorchDiffEq
from sde_toolkit.noise import per_sample_noise
from sde_toolkit.sampling import sample
from sde_toolkit.score_model import ScoreModel
from sde_toolkit.solvers import Solver, probability_flow

__all__ = ["Endpoint", "flow_endpoint"]


@dataclass(frozen=True, eq=False)
class Endpoint:
    """``x`` (n, *event) in model space: the flow's end, denoised as every solver's last state is.

    ``method``: how it was found; ``nfe``: its evaluations per sample; ``error``: root mean square change of
    ``checked`` samples when solved more finely; ``seconds``: wall time of both.
    """

    x: Tensor
    method: str
    nfe: int
    error: Estimate
    checked: int
    seconds: float

    @property
    def n(self) -> int:
        return len(self.x)


def flow_endpoint(
    model: ScoreModel,
    n: int,
    *,
    seed: int = 0,
    steps: int = 50,
    check: int = 16,
    batch_size: int | None = None,
    device: torch.device | str = "cpu",
) -> Endpoint:
    """The endpoints for the first n initial noises of ``seed``, the same that ``sample(seed=seed)`` starts from.

    Args:
        n: number of samples.
        steps: of Heun's method on the quadratic grid, for networks; the check takes three times as many.
        check: number of samples solved again.
    """
    if n < 1 or check < 1 or steps < 1:
        raise ArgumentError("n, check, steps", (n, check, steps), "each must be at least 1", "Raise it.")
    if model.event_shape is None:
        raise ArgumentError("model", model, "it has no event_shape to start from", "Build it with event_shape=...")
    start = per_sample_noise(seed, 0, (n, *model.event_shape), device=device)()
    start = start * model.sde.sigma(1.0).to(device, start.dtype)
    exact = isinstance(model, GaussianMixture)
    if exact:
        method, dtype = "dopri5, float64, rtol = atol = 1e-9", torch.float64
        coarse = (probability_flow(TorchDiffEq(rtol=1e-9, atol=1e-9, max_nfe=100_000)), 1)
        fine = (probability_flow(TorchDiffEq(rtol=1e-10, atol=1e-10, max_nfe=100_000)), 1)
    else:
        method, dtype = f"Heun, {steps} steps on the quadratic grid", torch.float32
        coarse, fine = (probability_flow(), steps), (probability_flow(), 3 * steps)

    def solve(how: tuple[Solver, int], x_start: Tensor) -> tuple[Tensor, int, float]:
        grid = grids.quadratic(model.sde, how[1])
        done = sample(model, how[0], grid, x_start=x_start, tweedie=True, dtype=dtype, batch_size=batch_size)
        return done.x, done.nfe, done.seconds

    x, nfe, seconds = solve(coarse, start)
    check = min(check, n)
    finer, _, more_seconds = solve(fine, start[:check])
    return Endpoint(x, method, nfe, rmse(x[:check].cpu(), finer.cpu()), check, seconds + more_seconds)
