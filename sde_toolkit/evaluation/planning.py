"""Solvers, grids and budgets as planned runs, before any evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sde_toolkit.equation import ReverseEquation
from sde_toolkit.errors import ArgumentError, SDEToolkitError
from sde_toolkit.evaluation.candidates import Candidate, grid_title
from sde_toolkit.evaluation.foreign_run import plan_foreign_run
from sde_toolkit.evaluation.planned_run import PlannedRun, SolverRun
from sde_toolkit.grids import uniform
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.sampling.automatic import Plan, usual_plan
from sde_toolkit.sampling.foreign_solver import ForeignSolver
from sde_toolkit.solvers import GridBuilder, Solver

__all__ = ["PlannedRun", "SolverRun", "plan_all", "plan_on", "plan_run", "run_of"]

OWN = "its own"  # the name of the grid of a plan


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
    )


def _cannot_run(name: str, grid_name: str, error: SDEToolkitError) -> ArgumentError:
    problem = f"it cannot run on the grid {grid_name!r} ({str(error).rstrip('.')})"
    return ArgumentError("solver", name, problem, "Choose another grid, or leave the solver out.")


def plan_all(
    model: ScoreModel,
    solvers: Mapping[str, Candidate],
    budgets: Sequence[int],
    grids: Mapping[str, GridBuilder] | None,
) -> list[PlannedRun]:
    """Every solver at every budget, on its usual grid (``grids=None``) or on each of these grids.

    The order: grids, budgets, solvers. Planners bring their own grid: they stand among the others where every solver
    has its own, and else after them. Plans and adaptive solvers run once and come last.
    """
    stepping = {name: given for name, given in solvers.items() if not _runs_once(given)}
    runs: list[PlannedRun] = []
    if grids is None:
        runs += [_usual_run(model, *item, budget) for budget in sorted(budgets) for item in stepping.items()]
    else:
        on_grids = {name: given for name, given in stepping.items() if isinstance(given, Solver | ForeignSolver)}
        for grid_name, build in grids.items():
            for budget in sorted(budgets):
                planned = (plan_on(model, *item, grid_name, build, budget) for item in on_grids.items())
                runs += [replace(run, grid_set=grid_name) for run in planned]
        for name, given in stepping.items():
            if name not in on_grids:
                runs += [replace(_usual_run(model, name, given, budget), grid_set=OWN) for budget in sorted(budgets)]
    for name, given in solvers.items():
        if isinstance(given, Plan):
            runs.append(run_of(model, name, given, OWN))
        elif isinstance(given, Solver) and _runs_once(given):
            runs.append(plan_run(model, name, given, "adaptive", uniform, 0))
    return runs


def _runs_once(given: Candidate) -> bool:
    """Whether budgets do not matter: a plan, or a solver that chooses its own steps."""
    return isinstance(given, Plan) or (isinstance(given, Solver) and given.integrator.evals_per_step is None)


def _usual_run(model: ScoreModel, name: str, given: Candidate, budget: int) -> PlannedRun:
    """A solver on its usual grid, or what a planner makes of the budget."""
    build: GridBuilder = uniform  # of planners, which do not use it
    if isinstance(given, Solver):
        build = given.usual_grid
    elif isinstance(given, ForeignSolver):
        build = given.grid
    return plan_on(model, name, given, grid_title(build) or OWN, build, budget)


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
        return run_of(model, name, given, OWN)
    return replace(run_of(model, name, _planned(name, given, model, budget), OWN), budget=budget)


def _planned(name: str, planner: Any, model: ScoreModel, budget: int) -> Plan:
    plan = planner(model, budget)
    if not isinstance(plan, Plan):
        problem = f"called with a model and a budget it returned {type(plan).__name__}, not a Plan"
        raise ArgumentError(f"solvers[{name!r}]", planner, problem, "Give a solver, or a function that returns a Plan.")
    needed = model.evaluations_inside * plan.nfe
    if plan.solver.integrator.evals_per_step is not None and needed > budget:
        problem = f"called with a budget of {budget} it returned a plan of {needed} evaluations"
        raise ArgumentError(f"solvers[{name!r}]", planner, problem, "Return a plan that keeps the budget.")
    return plan
