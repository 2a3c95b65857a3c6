"""From a budget to a grid: everything that can be refused is refused here, before the first evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from sde_toolkit import grids as grid_builders
from sde_toolkit.checking import is_count
from sde_toolkit.equation import ReverseEquation
from sde_toolkit.errors import ArgumentError, SDEToolkitError
from sde_toolkit.score_model import ScoreModel
from sde_toolkit.sde import SDE
from sde_toolkit.solvers import Solver

__all__ = ["GridBuilder", "Run", "check_request", "plan_all", "plan_run"]

GridBuilder = Callable[[SDE, int], Tensor]
"""(sde, steps) to steps + 1 decreasing times: the builders of :mod:`sde_toolkit.grids`."""


@dataclass(frozen=True, eq=False)
class Run:
    """One solver on one grid: ``nfe`` evaluations if its steps are fixed, one of them for ``tweedie``.

    ``budget`` is what it was allowed; None for an adaptive solver, which takes what it needs.
    """

    name: str
    solver: Solver
    grid_name: str
    grid: Tensor
    budget: int | None
    tweedie: bool

    @property
    def evals_per_step(self) -> int:
        """1 for adaptive solvers, whose steps nobody knows beforehand."""
        return self.solver.integrator.evals_per_step or 1

    @property
    def nfe(self) -> int:
        """Evaluations per sample that a solver of fixed steps will make."""
        return self.evals_per_step * (len(self.grid) - 1) + self.tweedie


def plan_run(model: ScoreModel, name: str, solver: Solver, grid_name: str, build: GridBuilder, budget: int) -> Run:
    """The finest grid of this kind that ``budget`` evaluations allow.

    The last of them denoises, unless the grid itself ends at the data. An adaptive solver gets the two ends.

    Raises:
        ArgumentError: if the budget is too small, or the solver cannot run on such a grid.
    """
    if solver.integrator.evals_per_step is None:
        run = Run(name, solver, "adaptive", grid_builders.uniform(model.sde, 1), None, True)
    else:
        ends_at_data = build(model.sde, 1)[-1].item() == 0 and model.sde.sigma(0.0).item() == 0
        tweedie = not ends_at_data
        steps = (budget - tweedie) // solver.integrator.evals_per_step
        if steps < 1:
            least = solver.integrator.evals_per_step + tweedie
            problem = f"{name} needs at least {least} evaluations" + ", one of them to denoise at the end" * tweedie
            raise ArgumentError("budget", budget, problem, "Raise the budget, or leave the solver out.")
        run = Run(name, solver, grid_name, build(model.sde, steps), budget, tweedie)
    equation = ReverseEquation(model, solver.eta)
    try:
        solver.integrator.check(equation)
        solver.integrator.prepare(equation, run.grid)
    except SDEToolkitError as error:
        problem = f"it cannot run on the grid {run.grid_name!r} ({str(error).rstrip('.')})"
        raise ArgumentError("solver", name, problem, "Choose another grid, or leave the solver out.") from None
    return run


def plan_all(
    model: ScoreModel, solvers: Mapping[str, Solver], budgets: Sequence[int], grids: Mapping[str, GridBuilder]
) -> list[Run]:
    """Every grid at every budget with every solver; adaptive solvers once, at the end."""
    fixed = {name: s for name, s in solvers.items() if s.integrator.evals_per_step is not None}
    runs = [
        plan_run(model, name, solver, grid_name, build, budget)
        for grid_name, build in grids.items()
        for budget in sorted(budgets)
        for name, solver in fixed.items()
    ]
    for name, solver in solvers.items():
        if name not in fixed:
            runs.append(plan_run(model, name, solver, "adaptive", grid_builders.uniform, 0))
    return runs


def check_request(model: ScoreModel, solvers: Mapping[str, Solver], budgets: Sequence[int], n: int) -> tuple[int, ...]:
    """The event shape, after everything about the request has been found in order.

    Raises:
        ArgumentError: naming the argument.
    """
    if model.event_shape is None:
        raise ArgumentError("model", type(model).__name__, "it has no event_shape", "Build it with event_shape=...")
    if not solvers:
        raise ArgumentError("solvers", dict(solvers), "there is nothing to compare", "Name at least one solver.")
    for name, solver in solvers.items():
        if not isinstance(solver, Solver):
            raise ArgumentError(f"solvers[{name!r}]", solver, "not a Solver", "Use sde_toolkit.ddim(), for example.")
    fixed = any(solver.integrator.evals_per_step is not None for solver in solvers.values())
    whole = all(map(is_count, budgets))
    if not whole or (fixed and not budgets) or len(set(budgets)) != len(budgets):
        problem = "budgets are different whole numbers of network evaluations, at least 1"
        raise ArgumentError("budgets", list(budgets), problem, "Use [5, 10, 20], for example.")
    if not is_count(n, least=2):
        raise ArgumentError("n", n, "at least two samples are needed", "512 is the default.")
    return model.event_shape
