"""From a budget to a plan: the grid that is usual for a solver, or the best solver and grid known without calibration.

:func:`usual_plan` builds the grid that a solver names, ended as usual. :func:`auto` reads a table of solvers and grids:
exponential multistep methods on a grid that is dense around the λ at which data take shape
(:func:`sde_toolkit.grids.sech`), then a Tweedie step. For the flow the table was chosen by the geometric mean of the
ratio to the best configuration, over random mixtures in 2 to 64 dimensions (``python benchmarks/choose_auto.py``) and,
up to 10 evaluations, the embedded MNIST network; for the SDE by the variance within the modes of random mixtures and
their sliced Wasserstein distance (``--eta 1``). At 8 and 10 evaluations the choice was made among the rows that are
good on the ring of benchmarks/sampling_against_peers.py, too.

The tables are for data of size σ_d = 1. For others every λ in them is moved by −log σ_d: data and noise of twice the
size get the same times, and samples of twice the size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from typing import Any

from torch import Tensor

from sde_toolkit.checks import MOST, check_count
from sde_toolkit.equation import ReverseEquation, check_eta
from sde_toolkit.errors import ArgumentError
from sde_toolkit.grids import sech, uniform
from sde_toolkit.integrators import Corrected, FrozenEDM, Integrator, Multistep
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.solvers import GridBuilder, Solver

__all__ = ["Plan", "auto", "usual_plan"]

_FIRST = -7.0  # λ, for data of size 1

Method = Callable[[float], Integrator]
"""σ_d to an integrator."""


def _edm(order: int) -> Method:
    return lambda sigma_data: Multistep(order, FrozenEDM(sigma_data))


def _corrected(order: int) -> Method:
    return lambda sigma_data: Corrected(Multistep(order, FrozenEDM(sigma_data)))


# Budget from which the row holds, method, center and width of grids.sech, and the λ at which it ends, at σ_d = 1.
_FLOW: tuple[tuple[int, Method, float, float, float], ...] = (
    (1, _corrected(2), 0.0, 1.5, 1.6),
    (8, _edm(2), 0.75, 2.5, 2.75),
    (10, _corrected(2), 0.75, 2.0, 2.75),
    (15, _corrected(3), 0.75, 2.0, 3.5),
    (20, _corrected(3), 0.75, 1.5, 4.5),
    (30, _corrected(3), 0.75, 1.5, 6.0),
    (50, _corrected(4), 0.75, 1.5, 6.0),
)
_SDE: tuple[tuple[int, Method, float, float, float], ...] = (
    (1, _edm(2), 0.0, 3.0, 3.5),
    (20, _corrected(2), 0.0, 3.0, 3.5),
    (50, _corrected(2), 1.5, 2.0, 5.0),
    (100, _corrected(2), 1.5, 2.0, 6.0),
)


@dataclass(frozen=True, eq=False)
class Plan:
    """What to run: ``sample(model, plan.solver, plan.grid, tweedie=plan.tweedie)``."""

    solver: Solver
    grid: Tensor
    tweedie: bool

    @property
    def nfe(self) -> int:
        """Evaluations per sample."""
        return (self.solver.integrator.evals_per_step or 1) * (len(self.grid) - 1) + self.tweedie


def auto(model: ScoreModel, nfe: int, eta: float = 0.0) -> Plan:
    """The best known solver and grid for at most ``nfe`` evaluations, the last of them to denoise.

    A guided model needs several evaluations of networks for one of its own (``model.evaluations_inside``).
    The grid is where the data take shape, which depends on their size: ``model.sigma_data`` should be √E[x_0²].

    η = 0 is the flow; any other η gets the table that was made for η = 1.

    Raises:
        ArgumentError: if ``nfe`` is not a whole number of at least 2, or ``eta`` is negative.
    """
    check_count("nfe", nfe, "A step and the denoising at the end take two evaluations.", least=2, most=MOST)
    check_eta(eta)
    name = "auto" if eta == 0 else f"auto[eta={eta:g}]"
    sde, inside = model.sde, model.evaluations_inside
    if nfe < 2 * inside:
        problem = f"every evaluation of this model is {inside} of networks, and two of them are needed"
        raise ArgumentError("nfe", nfe, problem, f"Pass nfe={2 * inside} or more.")
    nfe //= inside
    rows = _FLOW if eta == 0 else _SDE
    _, method, center, width, last = max((row for row in rows if row[0] <= nfe), key=lambda row: row[0])
    size = model.sigma_data
    end = sde.inverse_half_log_snr(min(last - math.log(size), sde.half_log_snr(0.0).item())).item()
    grid = sech(sde, nfe - 1, center=center, width=width, sigma_data=size, end=end)
    return Plan(Solver(name, eta, method(size)), grid, True)


def usual_plan(
    model: ScoreModel,
    solver: Solver,
    *,
    steps: int | None = None,
    nfe: int | None = None,
    build: GridBuilder | None = None,
) -> Plan:
    """A solver on the grid that is usual for it, ended as usual: the one rule from a budget to a number of steps.

    The grid runs from t = 1 to the SDE's ``sampling_end``. Where α(1) = 0 and the spacing or the integrator is infinite
    at t = 1, it starts at λ = −7 (for data of size 1) instead. A last evaluation denoises, unless the grid ends without
    noise. An integrator that chooses its own steps gets the two ends.

    Args:
        steps: of the grid; the last denoising is not one of them.
        nfe: evaluations per sample, the last denoising included. What is left over from whole steps is not spent.
        build: another grid than ``solver.usual_grid``. A function that takes no ``start`` keeps its own.

    Raises:
        ArgumentError: unless one of ``steps`` and ``nfe`` is given (neither, for an integrator that chooses its own
            steps), or if ``nfe`` is too small for one step.
        GridError: if the integrator cannot run on such a grid.
    """
    if solver.integrator.evals_per_step is None:
        if steps is not None or nfe is not None:
            problem = f"{solver.name} chooses its own steps"
            raise ArgumentError("steps, nfe", (steps, nfe), problem, "Leave both out; set its tolerances instead.")
        return _ended_as_usual(model, solver, _built(model, solver, uniform, 1))
    build = build or solver.usual_grid
    if (steps is None) == (nfe is None):
        remedy = "Pass steps=20, or nfe=20 to count evaluations, or a grid."
        raise ArgumentError("steps, nfe", (steps, nfe), "one of them says how long the grid is", remedy)
    if steps is None:
        ended = _ended_as_usual(model, solver, _built(model, solver, build, 1))
        steps = _whole_steps(solver, nfe, model.evaluations_inside, denoise=ended.tweedie)
    return _ended_as_usual(model, solver, _built(model, solver, build, steps))


def _ended_as_usual(model: ScoreModel, solver: Solver, grid: Tensor) -> Plan:
    """A plan that ends by denoising where the grid leaves noise."""
    return Plan(solver, grid, model.sde.sigma(grid[-1]).item() > 0)


def _whole_steps(solver: Solver, nfe: Any, inside: int, *, denoise: bool) -> int:
    """The largest number of steps that ``nfe`` evaluations of networks allow a solver of fixed steps.

    ``inside``: how many of them are in one evaluation of the model.
    """
    check_count("nfe", nfe, "Pass nfe=20, for example.")
    per_step = solver.integrator.evals_per_step or 1
    steps = (int(nfe) // inside - denoise) // per_step
    if steps < 1:
        least = inside * (per_step + denoise)
        problem = f"{solver.name} needs at least {least}" + ", the last one to denoise" * denoise
        raise ArgumentError("nfe", nfe, problem, f"Pass nfe={least} or more.")
    return steps


def first_time(model: ScoreModel) -> float:
    """The time of λ = −7 (for data of size 1): where grids start if σ/α is infinite at t = 1."""
    return model.sde.inverse_half_log_snr(_FIRST - math.log(model.sigma_data)).item()


def _built(model: ScoreModel, solver: Solver, build: GridBuilder, steps: int) -> Tensor:
    """The grid from t = 1, or from where it and the integrator are finite."""
    equation = ReverseEquation(model, solver.eta)
    solver.integrator.check(equation)
    try:
        grid = build(model.sde, steps)
        solver.integrator.prepare(equation, grid)
    except ArgumentError:
        if model.sde.alpha(1.0) > 0 or "start" not in signature(build).parameters:
            raise
    else:
        return grid
    grid = build(model.sde, steps, start=first_time(model))  # type: ignore[call-arg]
    solver.integrator.prepare(equation, grid)
    return grid
