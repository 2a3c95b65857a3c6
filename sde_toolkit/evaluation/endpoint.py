"""Where the probability flow really takes a given initial noise: the truth for deterministic solvers.

The exact score of a mixture is solved adaptively in float64. A float32 network is solved by Heun's method on
many steps: an adaptive solver chases its round-off (measured on the MNIST network: 273 evaluations at a
tolerance of 1e-5 against 101 here, for the same accuracy). In both cases some samples are solved again more finely,
and the change is reported as the reference's own error. Most of it comes from a few samples whose noise lies near the
border between two images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_toolkit import grids
from sde_toolkit.checks import check_count
from sde_toolkit.errors import ArgumentError
from sde_toolkit.integrators import TorchDiffEq
from sde_toolkit.jobs.store import Arrays
from sde_toolkit.metrics.distances import rmse
from sde_toolkit.metrics.metric import Estimate
from sde_toolkit.models.conditions import check_condition
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.noise.streams import per_sample_noise
from sde_toolkit.sampling.automatic import usual_plan
from sde_toolkit.sampling.loop import rows_of
from sde_toolkit.sampling.samples import sample
from sde_toolkit.solvers import Solver, probability_flow

__all__ = ["Endpoint", "checked_endpoint", "endpoint_cost", "endpoint_solver", "flow_endpoint", "solve_endpoint"]


CHECKED = 16  # samples that are solved again, by default


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

    @classmethod
    def of(cls, model: ScoreModel, steps: int, usual: Sequence[Arrays], finer: Arrays) -> Endpoint:
        """From what :func:`solve_endpoint` found: batch after batch, and the first samples more finely."""
        x = torch.cat([torch.from_numpy(arrays["x"]) for arrays in usual])
        check = len(finer["x"])
        seconds = sum(float(arrays["seconds"]) for arrays in (*usual, finer))
        nfe = max(int(arrays["nfe"]) for arrays in usual)
        error = rmse(x[:check], finer["x"])
        return cls(x, _method(model, steps), nfe, error, check, seconds)


def flow_endpoint(
    model: ScoreModel,
    n: int,
    *,
    seed: int = 0,
    steps: int = 50,
    check: int = CHECKED,
    batch_size: int | None = None,
    condition: Any = None,
    device: torch.device | str = "cpu",
) -> Endpoint:
    """The endpoints for the first n initial noises of ``seed``, the same that ``sample(seed=seed)`` starts from.

    Args:
        n: number of samples.
        steps: of Heun's method on the quadratic grid, for networks; the check takes three times as many.
        check: number of samples solved again.
        condition: handed to the network; tensors in it have one row per sample.
    """
    for name, value in (("n", n), ("check", check), ("steps", steps)):
        check_count(name, value, f"Pass {name}=16, for example.")
    if model.event_shape is None:
        raise ArgumentError("model", model, "it has no event_shape to start from", "Build it with event_shape=...")
    check_condition(condition, n)
    found = []
    for last, finer in ((n, False), (min(check, n), True)):
        rows = rows_of(condition, 0, last)
        options: dict[str, Any] = {
            "seed": seed,
            "steps": steps,
            "finer": finer,
            "batch_size": batch_size,
            "device": device,
        }
        x, nfe, seconds = solve_endpoint(model, 0, last, condition=rows, **options)
        found.append({"x": x.cpu().numpy(), "nfe": np.array(nfe), "seconds": np.array(seconds)})
    return Endpoint.of(model, steps, found[:1], found[1])


def solve_endpoint(
    model: ScoreModel,
    first: int,
    last: int,
    *,
    seed: int,
    steps: int,
    finer: bool,
    batch_size: int | None,
    condition: Any,
    device: torch.device | str,
) -> tuple[Tensor, int, float]:
    """The endpoints of samples ``first`` to ``last`` − 1 in model space, evaluations of each sample, and seconds."""
    solver, intervals, dtype = endpoint_solver(model, steps, finer)
    start = per_sample_noise(seed, first, (last - first, *(model.event_shape or ())), device=device)()
    exact = model.has_exact_score  # an adaptive solver in λ cannot start where α = 0
    grid = usual_plan(model, solver).grid if exact else grids.quadratic(model.sde, intervals)
    start = start * model.sde.sigma(grid[0]).to(device, start.dtype)
    done = sample(
        model, solver, grid, x_start=start, condition=condition, tweedie=True, dtype=dtype, batch_size=batch_size
    )
    return done.x, done.nfe, done.seconds


def checked_endpoint(n: int) -> int:
    """How many of n samples are solved again."""
    return min(n, CHECKED)


def endpoint_cost(model: ScoreModel, steps: int) -> tuple[int, int]:
    """How many evaluations of networks a sample takes, and how many if it is solved more finely; about, if exact."""
    inside = model.evaluations_inside
    return (300, 400) if model.has_exact_score else (inside * (2 * steps + 1), inside * (6 * steps + 1))


def endpoint_solver(model: ScoreModel, steps: int, finer: bool = False) -> tuple[Solver, int, torch.dtype]:
    """Solver, intervals of its grid, and precision."""
    if model.has_exact_score:
        tolerance = 1e-10 if finer else 1e-9
        integrator = TorchDiffEq(rtol=tolerance, max_nfe=100_000)
        return probability_flow(integrator), 1, torch.float64
    return probability_flow(), 3 * steps if finer else steps, torch.float32


def _method(model: ScoreModel, steps: int) -> str:
    if model.has_exact_score:
        return "dopri5, float64, tolerance 1e-9"
    return f"Heun, {steps} steps on the quadratic grid"
