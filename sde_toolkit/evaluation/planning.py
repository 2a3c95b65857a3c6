"""From a budget to a grid: everything that can be refused is refused here, before the first evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor

from sde_toolkit import grids as grid_builders
from sde_toolkit.checks import MOST, check_amount, check_count, is_count
from sde_toolkit.equation import ReverseEquation
from sde_toolkit.errors import ArgumentError, SDEToolkitError
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.sampling.arguments import check_model
from sde_toolkit.sampling.automatic import Plan, auto
from sde_toolkit.solvers import GridBuilder, Solver

__all__ = [
    "Candidate",
    "GridBuilder",
    "Planner",
    "Run",
    "check_request",
    "named_grids",
    "named_solvers",
    "plan_all",
    "plan_run",
    "run_of",
]

Planner = Callable[[ScoreModel, int], Plan]
"""(model, budget) to solver and grid together, such as :func:`sde_toolkit.auto`."""

Candidate: TypeAlias = Solver | Planner | Plan
"""What can be compared: a solver on every grid at every budget, a planner at every budget, a plan as it is."""


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
    return _checked(model, run)


def run_of(model: ScoreModel, name: str, plan: Plan, grid_name: str) -> Run:
    """A plan as a run; its budget is what it costs.

    Raises:
        ArgumentError: if its solver cannot run on its grid.
    """
    return _checked(model, Run(name, plan.solver, grid_name, plan.grid, plan.nfe, plan.tweedie))


def _checked(model: ScoreModel, run: Run) -> Run:
    equation = ReverseEquation(model, run.solver.eta)
    try:
        run.solver.integrator.check(equation)
        run.solver.integrator.prepare(equation, run.grid)
    except SDEToolkitError as error:
        problem = f"it cannot run on the grid {run.grid_name!r} ({str(error).rstrip('.')})"
        raise ArgumentError("solver", run.name, problem, "Choose another grid, or leave the solver out.") from None
    return run


def plan_all(
    model: ScoreModel, solvers: Mapping[str, Candidate], budgets: Sequence[int], grids: Mapping[str, GridBuilder]
) -> list[Run]:
    """Every grid at every budget with every solver; then planners at every budget, plans, and adaptive solvers once."""
    known = {name: s for name, s in solvers.items() if isinstance(s, Solver)}
    fixed = {name: s for name, s in known.items() if s.integrator.evals_per_step is not None}
    runs = [
        plan_run(model, name, solver, grid_name, build, budget)
        for grid_name, build in grids.items()
        for budget in sorted(budgets)
        for name, solver in fixed.items()
    ]
    for name, given in solvers.items():
        if isinstance(given, Plan):
            runs.append(run_of(model, name, given, "its own"))
        elif not isinstance(given, Solver):
            runs += [run_of(model, name, _planned(name, given, model, budget), "its own") for budget in sorted(budgets)]
    for name, solver in known.items():
        if name not in fixed:
            runs.append(plan_run(model, name, solver, "adaptive", grid_builders.uniform, 0))
    return runs


def _planned(name: str, planner: Planner, model: ScoreModel, budget: int) -> Plan:
    plan = planner(model, budget)
    if not isinstance(plan, Plan):
        problem = f"called with a model and a budget it returned {type(plan).__name__}, not a Plan"
        raise ArgumentError(f"solvers[{name!r}]", planner, problem, "Give a solver, or a function that returns a Plan.")
    return plan


def named_solvers(solvers: Any) -> dict[str, Candidate]:
    """Solvers by name: the keys of a mapping, otherwise the own names of one solver or several. "auto" is the planner.

    Raises:
        ArgumentError: for two of one name, and for what is no solver.
    """
    if isinstance(solvers, Mapping):
        return {str(name): _candidate(name, given) for name, given in solvers.items()}
    several = list(solvers) if isinstance(solvers, list | tuple | set | frozenset) else [solvers]
    found: dict[str, Candidate] = {}
    for given in several:
        solver = _candidate(len(found), given)
        name = str(getattr(solver, "name", None) or getattr(solver, "__name__", "plan"))
        if name in found:
            remedy = 'Name them yourself: {"coarse": ddim(), ...}.'
            raise ArgumentError("solvers", several, f"two of them are called {name!r}", remedy)
        found[name] = solver
    return found


def _candidate(name: Any, given: Any) -> Candidate:
    if isinstance(given, str) and given == "auto":
        return auto
    if isinstance(given, type) or (not isinstance(given, Solver | Plan) and not callable(given)):
        raise ArgumentError(f"solvers[{name!r}]", given, "not a Solver", "Use sde_toolkit.ddim(), for example.")
    if getattr(given, "__module__", "") == Solver.__module__ and not isinstance(given, Solver):
        problem = "the function that makes a solver, not a solver"
        raise ArgumentError(f"solvers[{name!r}]", given, problem, f"Call it: {given.__name__}().")
    return given


def named_grids(grids: Any) -> dict[str, GridBuilder]:
    """Grid builders by name: of a mapping its keys, of functions of a module their own names.

    Raises:
        ArgumentError: for what is no builder: a grid that is built already, above all.
    """
    if grids is None:
        return {"uniform": grid_builders.uniform}
    if not isinstance(grids, Mapping):
        several = list(grids) if isinstance(grids, list | tuple) else [grids]
        grids = {str(getattr(build, "__name__", k)): build for k, build in enumerate(several)}
    for name, build in grids.items():
        if not callable(build):
            problem = "not a function of the SDE and a number of steps, which every budget needs"
            raise ArgumentError(f"grids[{name!r}]", build, problem, 'Pass {"karras": grids.karras}, for example.')
    if not grids:
        raise ArgumentError("grids", grids, "there is no grid", 'Pass {"karras": grids.karras}, or None for uniform.')
    return {str(name): build for name, build in grids.items()}


def check_request(
    model: ScoreModel, solvers: Mapping[str, Candidate], budgets: Sequence[int], n: int
) -> tuple[int, ...]:
    """The event shape, after everything about the request has been found in order.

    Raises:
        ArgumentError: naming the argument.
    """
    check_model(model)
    if model.event_shape is None:
        raise ArgumentError("model", type(model).__name__, "it has no event_shape", "Build it with event_shape=...")
    if not solvers:
        raise ArgumentError("solvers", dict(solvers), "there is nothing to compare", "Name at least one solver.")
    if isinstance(budgets, str) or not isinstance(budgets, Sequence):
        problem = "not a list of numbers of network evaluations"
        raise ArgumentError("budgets", budgets, problem, "Use [5, 10, 20], for example.")
    fixed = any(
        not isinstance(s, Plan) and (not isinstance(s, Solver) or s.integrator.evals_per_step is not None)
        for s in solvers.values()
    )
    whole = all(map(is_count, budgets))
    if not whole or (fixed and not budgets) or len(set(budgets)) != len(budgets):
        problem = "budgets are different whole numbers of network evaluations, at least 1"
        raise ArgumentError("budgets", list(budgets), problem, "Use [5, 10, 20], for example.")
    for budget in budgets:
        check_count("budgets", budget, "Use [5, 10, 20], for example.", most=MOST)
    check_count("n", n, "512 is the default.", least=2)
    check_amount("n", n, n * math.prod(model.event_shape))
    return model.event_shape
