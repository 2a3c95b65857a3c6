"""The request for a comparison: checked and planned before any evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from sde_toolkit import grids as grid_builders
from sde_toolkit.checks import MOST, check_amount, check_count, is_count
from sde_toolkit.equation import ReverseEquation
from sde_toolkit.errors import ArgumentError, SDEToolkitError
from sde_toolkit.evaluation.candidates import Candidate, Planner, named_grids, named_solvers
from sde_toolkit.metrics.distances import FlowError
from sde_toolkit.metrics.judge import Judge
from sde_toolkit.metrics.metric import Against, Metric, check_metrics
from sde_toolkit.models.conditions import check_condition
from sde_toolkit.models.evaluation_mode import check_evaluation_mode
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.sampling.arguments import check_batches, check_model
from sde_toolkit.sampling.automatic import Plan, usual_plan
from sde_toolkit.solvers import GridBuilder, Solver

__all__ = [
    "ComparisonRequest",
    "PlannedRun",
    "check_comparison",
    "plan_all",
    "plan_run",
    "run_of",
]

RESERVED_COLUMNS = (
    "solver", "grid", "budget", "nfe", "steps", "tweedie", "eta", "integrator", "seconds", "network_seconds",
    "outside_network", "failure",
)  # fmt: skip
"""Columns of a comparison's CSV. No metric may have one of these names."""


@dataclass(frozen=True, eq=False)
class PlannedRun:
    """One solver on one grid: ``nfe`` evaluations if its steps are fixed, one of them for ``tweedie``.

    ``name``, ``grid_name``: of solver and grid in the report. ``budget``: evaluations allowed; None for an adaptive
    solver, which takes what it needs. ``model``: the row's own; None for that of the comparison.
    ``evaluations_inside``: of that model.
    """

    name: str
    solver: Solver
    grid_name: str
    grid: Tensor
    budget: int | None
    tweedie: bool
    evaluations_inside: int = 1
    model: ScoreModel | None = None

    @property
    def evals_per_step(self) -> int:
        """Of networks; those of one evaluation for adaptive solvers, whose number of steps is not known beforehand."""
        return self.evaluations_inside * (self.solver.integrator.evals_per_step or 1)

    @property
    def nfe(self) -> int:
        """Evaluations per sample that a solver of fixed steps will make."""
        return self.evals_per_step * (len(self.grid) - 1) + self.evaluations_inside * self.tweedie


def plan_run(
    model: ScoreModel, name: str, solver: Solver, grid_name: str, build: GridBuilder, budget: int
) -> PlannedRun:
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
    if not fixed:
        return PlannedRun(name, solver, "adaptive", plan.grid, None, plan.tweedie, model.evaluations_inside)
    return PlannedRun(name, solver, grid_name, plan.grid, budget, plan.tweedie, model.evaluations_inside)


def run_of(model: ScoreModel, name: str, plan: Plan, grid_name: str) -> PlannedRun:
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
    return PlannedRun(name, plan.solver, grid_name, plan.grid, inside * plan.nfe, plan.tweedie, inside)


def _cannot_run(name: str, grid_name: str, error: SDEToolkitError) -> ArgumentError:
    problem = f"it cannot run on the grid {grid_name!r} ({str(error).rstrip('.')})"
    return ArgumentError("solver", name, problem, "Choose another grid, or leave the solver out.")


def plan_all(
    model: ScoreModel, solvers: Mapping[str, Candidate], budgets: Sequence[int], grids: Mapping[str, GridBuilder]
) -> list[PlannedRun]:
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


def check_comparison(
    model: ScoreModel, solvers: Mapping[str, Candidate], budgets: Sequence[int], n: int
) -> tuple[int, ...]:
    """Check model, solvers, budgets and n, and return the event shape.

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


@dataclass(frozen=True, eq=False)
class ComparisonRequest:
    """The request for a comparison, see :func:`~sde_toolkit.compare_solvers`. It is checked when it is built.

    ``models``: other models of the same events and path, such as the model under several guidances. Then every row is
    one of them instead, and has its name: "ddim, guidance=3". The exact flow is that of ``model``, and only rows of
    ``model`` itself are held against it. ``runs``: the planned runs, in order; ``event_shape``: of a sample.

    Raises:
        SDEToolkitError: for settings that do not fit together.
    """

    model: ScoreModel
    solvers: Any
    budgets: Sequence[int]
    grids: Any = None
    n: int = 512
    seed: int = 0
    judge: Judge | None = None
    without_judge: str = "no real data were given"
    metrics: Sequence[Metric] | None = None
    endpoint_n: int = 64
    endpoint_steps: int = 50
    batch_size: int | None = 64
    device: torch.device | str = "cpu"
    condition: Any = None
    check_declaration: bool = True
    progress: bool = False
    models: Mapping[str, ScoreModel] | None = None
    runs: tuple[PlannedRun, ...] = field(init=False)
    event_shape: tuple[int, ...] = field(init=False)
    measured: tuple[Metric, ...] = field(init=False)

    def __post_init__(self) -> None:
        solvers, grids = named_solvers(self.solvers), named_grids(self.grids)
        event_shape = check_comparison(self.model, solvers, self.budgets, self.n)
        check_evaluation_mode(self.model)
        check_batches(self.batch_size, torch.float32)
        check_condition(self.condition, self.n)
        if self.judge is not None:
            _check_judge(self.model, self.judge, self.n)
        runs = tuple(plan_all(self.model, solvers, self.budgets, grids))
        if self.models is not None:
            runs = tuple(
                replace(run, name=f"{run.name}, {name}", model=model)
                for name, model in self.models.items()
                for run in plan_all(model, solvers, self.budgets, grids)
            )
        for name, value in (("runs", runs), ("event_shape", event_shape), ("measured", self._metrics())):
            object.__setattr__(self, name, value)

    def _metrics(self) -> tuple[Metric, ...]:
        if self.metrics is None:
            usual = () if self.judge is None else self.judge.metrics
            return check_metrics((FlowError(), *usual), RESERVED_COLUMNS)
        chosen = check_metrics(self.metrics, RESERVED_COLUMNS)
        for metric in chosen:
            if metric.against in (Against.PARTS, Against.ALL) and self.judge is None:
                problem = "it compares samples with real data, and there are none"
                remedy = "Pass judge=Judge(real, n, features), from sde_toolkit.evaluation."
                raise ArgumentError("metrics", metric.name, problem, remedy)
            metric.check(self.n, 0 if self.judge is None else len(self.judge.real))
        return chosen

    @property
    def endpoints(self) -> int:
        """How many exact endpoints of the flow are computed: none without a deterministic solver."""
        return min(self.n, self.endpoint_n) if any(map(self.has_endpoint, self.runs)) else 0

    def has_endpoint(self, run: PlannedRun) -> bool:
        """Whether a run is held against the exact flow: it is deterministic, and a run of ``model``."""
        return run.solver.eta == 0 and (run.model is None or run.model is self.model)


def _check_judge(model: ScoreModel, judge: Any, n: int) -> None:
    """Check that a judge takes at most n samples, of the model's shape.

    Raises:
        ArgumentError: for anything else, such as the real samples themselves.
    """
    if not isinstance(judge, Judge):
        remedy = "Pass Judge(real, n, flat_features(model.transform, real)), from sde_toolkit.evaluation."
        raise ArgumentError("judge", type(judge).__name__, "not a Judge", remedy)
    shape = tuple(judge.real.shape[1:])
    if model.event_shape is not None and shape != tuple(model.event_shape):
        problem = f"it judges samples of shape {shape}, the model's have {tuple(model.event_shape)}"
        raise ArgumentError("judge", type(judge).__name__, problem, "Give it real data of the model's shape.")
    if judge.n > n:
        problem = f"it judges {judge.n} samples, and n={n} are drawn"
        raise ArgumentError("judge", type(judge).__name__, problem, "Build it with the same n.")
