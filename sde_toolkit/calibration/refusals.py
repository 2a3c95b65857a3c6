"""What ``calibrate`` refuses, before the first evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.calibration.distributions import BLOCKS
from sde_toolkit.checks import MOST, check_count, check_positive
from sde_toolkit.errors import ArgumentError, GridError
from sde_toolkit.grids import check_grid
from sde_toolkit.models.evaluation_mode import check_evaluation_mode
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.noise.streams import check_stream
from sde_toolkit.solvers import Solver

__all__ = ["check_calibration", "check_start_grid"]


def check_calibration(
    model: Any,
    solver: Any,
    nfe: Any,
    n: Any,
    seed: Any,
    event_shape: Any,
    strategy: Any,
    **positive: Any,
) -> tuple[list[Solver] | None, Callable[[Solver], int], tuple[int, ...]]:
    """The solvers (None: the default ones), their number of steps, and the event shape.

    Raises:
        ArgumentError: naming the argument.
    """
    if not isinstance(model, ScoreModel):
        raise ArgumentError("model", model, "not a ScoreModel", "Wrap the network: ScoreModel(network, sde, ...).")
    check_evaluation_mode(model)
    check_count("nfe", nfe, "10 is a good start.", least=2, most=MOST)
    if n is not None:
        check_count("n", n, "Leave it out, or use 64.", least=4, most=MOST)
    check_stream(seed, 0)
    for name, value in positive.items():
        check_positive(name, value, "Leave it out.")
    if strategy not in (None, "gradient", "search"):
        raise ArgumentError("strategy", strategy, "unknown", "Use 'gradient', 'search', or None for either.")
    shape = model.event_shape if event_shape is None else tuple(event_shape)
    if shape is None:
        raise ArgumentError("event_shape", None, "the model does not tell the shape of a sample", "Pass (1, 28, 28).")
    if model.event_shape is not None and shape != model.event_shape:
        raise ArgumentError("event_shape", shape, f"the model was made for {model.event_shape}", "Leave it out.")
    if not math.isfinite(model.sde.sigma(1.0).item()):
        raise ArgumentError("model", model.sde, "σ is not finite at t=1", "Use another SDE.")
    solvers = _solvers(solver, nfe)
    if solvers is not None and solvers[0].eta > 0 and n is not None and n < 4 * BLOCKS:
        problem = "distances of distributions need more samples"
        raise ArgumentError("n", n, problem, f"Use {4 * BLOCKS} at least, or leave it out.")
    return solvers, lambda s: (nfe - 1) // (s.integrator.evals_per_step or 1), shape


def _solvers(solver: Any, nfe: int) -> list[Solver] | None:
    if solver is None:
        return None
    solvers = [solver] if isinstance(solver, Solver) else list(solver) if isinstance(solver, Sequence) else [solver]
    if not solvers:
        raise ArgumentError("solver", solver, "there is none", "Leave it out for the default ones.")
    for one in solvers:
        if not isinstance(one, Solver):
            raise ArgumentError("solver", one, "not a Solver", "Use sde_toolkit.ddim(), for example.")
        per_step = one.integrator.evals_per_step
        if per_step is None:
            problem = f"{one.integrator} chooses its own steps: there is no grid to calibrate"
            raise ArgumentError("solver", one.name, problem, "Use a solver of fixed steps.")
        if nfe - 1 < per_step:
            problem = f"{one.name} needs {per_step + 1} evaluations, one of them to denoise at the end"
            raise ArgumentError("nfe", nfe, problem, "Raise nfe, or leave the solver out.")
        if one.eta > 0 and one.integrator.weak_order is None:
            problem = f"{one.integrator} integrates ODEs, and noise would break its order"
            raise ArgumentError("solver", one.name, problem, "Use eta=0, or an integrator with a weak order.")
    if len({one.eta for one in solvers}) > 1:
        problem = "they solve equations of different η, whose errors cannot be compared"
        raise ArgumentError("solver", [one.eta for one in solvers], problem, "Calibrate them one by one.")
    return solvers


def check_start_grid(grid: Tensor, nfe: int, solvers: Sequence[Solver] | None) -> Tensor:
    """The grid that was given, if every solver spends the budget on it.

    Raises:
        GridError: if its number of steps is another one.
    """
    times = check_grid(torch.as_tensor(grid))
    tweedie = times[-1].item() > 0
    for per_step in {1} if solvers is None else {s.integrator.evals_per_step or 1 for s in solvers}:
        steps = (nfe - tweedie) // per_step
        if len(times) - 1 != steps:
            problem = f"it has {len(times) - 1} steps, and {nfe} evaluations are {steps} steps"
            problem += " and one to denoise" if tweedie else ""
            raise GridError("grid", tuple(times.shape), problem, "Give a grid of as many steps, or leave it out.")
    return times
