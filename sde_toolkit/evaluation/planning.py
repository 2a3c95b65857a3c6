"""Solvers, grids and budgets as planned runs, before any evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from sde_toolkit.equation import ReverseEquation
from sde_toolkit.errors import ArgumentError, GridError, SDEToolkitError
from sde_toolkit.evaluation.candidates import Candidate, grid_title
from sde_toolkit.evaluation.foreign_run import plan_foreign_run
from sde_toolkit.evaluation.planned_run import USUAL, PlannedRun, SolverRun
from sde_toolkit.grids import uniform
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.sampling.automatic import Plan, usual_plan
from sde_toolkit.sampling.foreign_solver import ForeignSolver
from sde_toolkit.solvers import GridBuilder, Solver

__all__ = ["PlannedRun", "SolverRun", "plan_all", "plan_on", "plan_run", "run_of"]

OWN_GRID = "its own"  # the name of the grid of a plan


def plan_run(
    model: ScoreModel, name: str, solver: Solver, grid_name: str, build: GridBuilder, budget: int
) -> SolverRun:
    """The finest grid of this kind that ``budget`` evaluations allow, see :func:`~sde_toolkit.sampling.usual_plan`.

    The last evaluation denoises, unless the grid itself ends at the data. An adaptive solver gets the two ends.

    Raises:
        ArgumentError: if the budget is too small, or the solver cannot run on such a grid.
    """
    named, fixed = replace(solver, name=name), solver.integrator.evals_per_step is not None
    try:
        plan = usual_plan(model, named, nfe=budget, build=build) if fixed else usual_plan(model, named)
    except SDEToolkitError as error:
        if getattr(error, "argument", "") == "nfe":
            problem, remedy = str(error).partition(": ")[2].partition(". ")[0], "Raise the budget, or leave it out."
            raise ArgumentError("budget", budget, problem, remedy) from None
        raise _cannot_run(name, grid_name, error) from None
    return SolverRun(
        name=name,
        grid_name=grid_name if fixed else "adaptive",
        budget=budget if fixed else None,
        evaluations_inside=model.evaluations_inside,
        solver=solver,
        grid=plan.grid,
        denoises=plan.tweedie,
    )


def run_of(model: ScoreModel, name: str, plan: Plan, grid_name: str) -> SolverRun:
    """A plan as a run; its budget is what it costs.

    Raises:
        ArgumentError: if its solver cannot run on its grid.
    """
    equation = ReverseEquation(model, plan.solver.eta)
    try:
        plan.solver.integrator.check(equation)
        plan.solver.integrator.prepare(equation, plan.grid)
    except SDEToolkitError as error:
        raise _cannot_run(name, grid_name, error) from None
    inside = model.evaluations_inside
    return SolverRun(
        name=name,
        grid_name=grid_name,
        budget=inside * plan.nfe,
        evaluations_inside=inside,
        solver=plan.solver,
        grid=plan.grid,
        denoises=plan.tweedie,
        measuring=plan.measuring,
    )


def _cannot_run(name: str, grid_name: str, error: SDEToolkitError) -> ArgumentError:
    said = str(error).rstrip(".")
    if isinstance(error, GridError):
        problem, remedy = f"it cannot run on the grid {grid_name!r} ({said})", "Choose another grid, or leave it out."
    else:
        problem, remedy = f"it cannot sample this model ({said})", "Leave it out, or mend what stands in brackets."
    return ArgumentError("solver", name, problem, remedy)


@dataclass(frozen=True, eq=False)
class _Cell:
    """What becomes one run: a solver for a model on a grid at a budget; None where grid or budget do not matter."""

    model_name: str
    model: ScoreModel
    name: str
    given: Candidate
    grid: tuple[str, GridBuilder] | None
    grid_set: str
    budget: int | None
    crossed: bool = True  # with the other models; else its model is its own

    @property
    def planner(self) -> bool:
        """Whether a function decides what is run: it may evaluate the model to do so."""
        return not isinstance(self.given, Solver | ForeignSolver | Plan)

    def run(self) -> PlannedRun:
        """The planned run, with the model's name in its own where there is one."""
        grid_name, build = self.grid or (OWN_GRID, uniform)
        found = plan_on(self.model, self.name, self.given, grid_name, build, self.budget or 0)
        found = replace(found, grid_set=self.grid_set)
        if not self.crossed:
            return replace(found, model=self.model)
        if self.model_name == "":
            return found
        name = f"{found.name}, {self.model_name}"
        return replace(found, name=name, model=self.model, model_name=self.model_name)


def plan_all(
    models: Mapping[str, ScoreModel],
    solvers: Mapping[str, Candidate],
    budgets: Sequence[int],
    grids: Mapping[str, GridBuilder] | None,
    pairs: Mapping[str, tuple[ScoreModel, Candidate]] | None = None,
    look: Callable[[PlannedRun], object] = lambda run: None,
) -> list[PlannedRun]:
    """Every solver for every model at every budget, on its usual grid (``grids=None``) or on each of these grids.
    ``pairs``: solvers by name, each for a model of its own and on its usual grid. ``look``: may refuse a run.

    The order: models, grids, budgets, solvers. Planners bring their own grid: they stand among the others where every
    solver has its own, and else after them. Plans and adaptive solvers run once and come last. Planners are asked when
    all others are planned, since they may evaluate a model, and everything else that can be refused is refused before.

    Raises:
        SDEToolkitError: for what cannot run.
    """
    budgets = sorted(budgets)
    cells = [cell for name, model in models.items() for cell in _cells(name, model, solvers, budgets, grids)]
    for budget in budgets:
        for name, (model, given) in (pairs or {}).items():
            own = OWN_GRID if grids else USUAL
            cells.append(_Cell("", model, name, given, _usual_grid(given), own, budget, crossed=False))
    runs = {k: cell.run() for k, cell in enumerate(cells) if not cell.planner}
    for run in runs.values():
        look(run)
    runs |= {k: cell.run() for k, cell in enumerate(cells) if cell.planner}
    return [runs[k] for k in range(len(cells))]


def _cells(
    model_name: str,
    model: ScoreModel,
    solvers: Mapping[str, Candidate],
    budgets: Sequence[int],
    grids: Mapping[str, GridBuilder] | None,
) -> Iterator[_Cell]:
    """The runs of a model, in the order of the report."""
    of_model = partial(_Cell, model_name, model)
    stepping = {name: given for name, given in solvers.items() if not _runs_once(given)}
    if grids is None:
        for budget in budgets:
            yield from (of_model(name, given, _usual_grid(given), USUAL, budget) for name, given in stepping.items())
    else:
        on_grids = {name: given for name, given in stepping.items() if isinstance(given, Solver | ForeignSolver)}
        for grid in grids.items():
            for budget in budgets:
                yield from (of_model(name, given, grid, grid[0], budget) for name, given in on_grids.items())
        for name, given in stepping.items():
            if name not in on_grids:
                yield from (of_model(name, given, None, OWN_GRID, budget) for budget in budgets)
    for name, given in solvers.items():
        if _runs_once(given):
            yield of_model(name, given, None, USUAL, None)


def _runs_once(given: Candidate) -> bool:
    """Whether budgets do not matter: a plan, or a solver that chooses its own steps."""
    return isinstance(given, Plan) or (isinstance(given, Solver) and given.integrator.evals_per_step is None)


def _usual_grid(given: Candidate) -> tuple[str, GridBuilder] | None:
    """Name and builder of the grid that is usual for a solver; None for planners."""
    build: GridBuilder
    if isinstance(given, Solver):
        build = given.usual_grid
    elif isinstance(given, ForeignSolver):
        build = given.grid
    else:
        return None
    return grid_title(build) or OWN_GRID, build


def plan_on(
    model: ScoreModel, name: str, given: Candidate, grid_name: str, build: GridBuilder, budget: int
) -> PlannedRun:
    """A solver on a grid of this kind; a planner and a plan keep their own.

    Raises:
        ArgumentError: if the budget is too small, or the solver cannot run on such a grid.
    """
    if isinstance(given, ForeignSolver):
        return plan_foreign_run(model, name, given, (grid_name, build), budget)
    if isinstance(given, Solver):
        return plan_run(model, name, given, grid_name, build, budget)
    if isinstance(given, Plan):
        return run_of(model, name, given, OWN_GRID)
    return replace(run_of(model, name, _planned(name, given, model, budget), OWN_GRID), budget=budget)


def _planned(name: str, planner: Any, model: ScoreModel, budget: int) -> Plan:
    try:
        plan = planner(model, budget)
    except TypeError as error:
        if error.__traceback__ is not None and error.__traceback__.tb_next is not None:
            raise  # from inside the planner
        remedy = "Give a solver, or a function (model, nfe) that returns a Plan."
        raise ArgumentError(f"solvers[{name!r}]", planner, f"it cannot be called so ({error})", remedy) from None
    if not isinstance(plan, Plan):
        problem = f"called with a model and a budget it returned {type(plan).__name__}, not a Plan"
        raise ArgumentError(f"solvers[{name!r}]", planner, problem, "Give a solver, or a function that returns a Plan.")
    needed = model.evaluations_inside * plan.nfe
    if plan.solver.integrator.evals_per_step is not None and needed > budget:
        problem = f"called with a budget of {budget} it returned a plan of {needed} evaluations"
        raise ArgumentError(f"solvers[{name!r}]", planner, problem, "Return a plan that keeps the budget.")
    return plan
