"""``encode``: from data to noise, along the probability flow.

The flow is an ODE. A deterministic integrator on the reversed grid undoes what it does on the grid, up to its error.
Encoding is that and nothing else. With the exponential integrator it is DDIM inversion (Song et al. 2021a, section 4.3,
eq. 13); Song et al. 2021, section D.4, have it for any integrator. A round trip has the integrator's order. If x has
the model's density, its code is N(0, σ² I) noise.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from sde_toolkit.equation import ReverseEquation
from sde_toolkit.errors import ArgumentError
from sde_toolkit.grids import check_grid
from sde_toolkit.integrators import Statistics
from sde_toolkit.models.evaluation_mode import check_evaluation_mode
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.noise.streams import Noise
from sde_toolkit.ranges import check_range
from sde_toolkit.sampling.arguments import (
    check_deterministic,
    check_parts,
    check_run,
    check_shape,
    check_space,
    check_tensor,
    warn_outside,
)
from sde_toolkit.sampling.loop import Callback, no_noise, solve
from sde_toolkit.solvers import Solver

__all__ = ["Encoding", "encode"]


@dataclass(frozen=True, eq=False)
class Encoding:
    """Codes and how they came about.

    ``x``: (n, *event) in model space, states of time ``grid[0]``: what ``sample(..., grid, x_start=x)`` takes.
    ``grid``: the decreasing grid that was given. ``trajectory`` begins with the data. The rest is as in
    :class:`~sde_toolkit.sampling.Sample`.
    """

    x: Tensor
    nfe: int
    products: int
    grid: Tensor
    solver: Solver
    seconds: float
    network_seconds: float
    trajectory: Tensor | None = None
    statistics: Statistics | None = None


def encode(
    model: ScoreModel,
    solver: Solver,
    grid: Tensor,
    x: Tensor,
    *,
    space: Literal["data", "model"] = "data",
    condition: Any = None,
    batch_size: int | None = None,
    trajectory: bool = False,
    callback: Callback | None = None,
    check_finite: bool = True,
    progress: bool = False,
    compile: bool | str = False,
    differentiable: bool = False,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Encoding:
    """Carry ``x`` from ``grid[-1]`` up to ``grid[0]`` along the probability flow.

    Args:
        model: any score model, in evaluation mode.
        solver: a deterministic solver, η = 0.
        grid: decreasing times, as for ``sample``. They are followed from the last to the first.
        x: (n, *event), in data space or in model space, taken as states of time ``grid[-1]``. Above t = 0 such a state
            has noise of size σ, and data have none: ``model.sde.perturb(model.transform.forward(x), grid[-1], noise)``
            adds it, in model space. On a grid that ends at 0 the integrator evaluates ε or the drift there. A network
            that predicts ε, v or a velocity has them; one that predicts x_0 or EDM's F has not.
        space: of x: "data" goes through ``model.transform``. Codes are in model space.

    The other arguments are those of :func:`~sde_toolkit.sampling.sample`.

    Raises:
        ArgumentError: for a solver with η > 0, or whatever else does not fit together.
        GridError: where the integrator has no finite coefficients, as on some grids that end at 0.
        NonFiniteError: naming the first step and time at which the state was no longer finite.
    """
    began = time.perf_counter()
    check_parts(model, solver)
    check_evaluation_mode(model)
    check_deterministic(solver, "encoding")
    grid = check_grid(grid)
    check_space(space)
    if space == "data":
        x = _transformed(model, x)
    check_tensor("x", x)
    check_shape(model, "x", tuple(x.shape), x)
    options = check_run(
        model, solver, grid, tuple(x.shape), ("x", x), condition=condition,
        differentiable=differentiable, dtype=dtype, device=device, batch_size=batch_size,
        trajectory=trajectory, callback=callback, check_finite=check_finite, progress=progress, compile=compile,
    )  # fmt: skip
    if space == "model":
        warn_outside(model, "x", x, grid[-1])

    def start(first: int, last: int) -> tuple[Tensor, Callable[[int], Noise]]:
        return x[first:last].to(options.device, options.dtype, copy=True), lambda step: no_noise

    with torch.set_grad_enabled(differentiable):
        solved = solve(ReverseEquation(model, 0.0, condition), solver, grid.flip(0), len(x), start, options)
    return Encoding(**vars(solved), grid=grid, solver=solver, seconds=time.perf_counter() - began)


def _transformed(model: ScoreModel, x: Any) -> Tensor:
    """Data through the model's transform, in the precision that they came in."""
    if not isinstance(x, Tensor):
        raise ArgumentError("x", x, "not a tensor", "Pass a tensor (n, *event) of data.")
    if x.is_complex():
        problem, remedy = "data are real numbers", "Pass real and imaginary part as two channels, as in training."
        raise ArgumentError("x", x.dtype, problem, remedy)
    check_shape(model, "x", tuple(x.shape), x)
    check_range(model.transform, x.detach())
    return model.transform.forward(x)
