"""A planned run of someone else's solver."""

from __future__ import annotations

import inspect
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sde_toolkit.errors import ArgumentError, ForeignSolverError, MaxEvaluationsError, NonFiniteError, SDEToolkitError
from sde_toolkit.evaluation.planned_run import BatchRequest, DrawnBatch, PlannedRun
from sde_toolkit.jobs.fingerprints import digest, fingerprint_data
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.sampling.foreign_solver import ForeignPlan, ForeignSolver, plan_foreign, run_foreign
from sde_toolkit.solvers import GridBuilder

__all__ = ["ForeignRun", "plan_foreign_run"]


@dataclass(frozen=True, eq=False, kw_only=True)
class ForeignRun(PlannedRun):
    """A foreign solver on noise levels that its budget allows."""

    plan: ForeignPlan

    @property
    def nfe(self) -> int:
        return self.plan.nfe

    @property
    def times(self) -> tuple[float, ...]:
        """Its levels as times; the last level, σ/α = 0, is t = 0."""
        found = self.plan.times.tolist()
        return (*found, 0.0) if found[-1] > 0 else tuple(found)

    @property
    def tweedie(self) -> bool:
        return False

    @property
    def eta(self) -> float | None:
        return None if self.plan.stochastic else 0.0

    @property
    def integrator(self) -> str:
        run = self.plan.solver.run
        name = getattr(run, "__qualname__", type(run).__qualname__)
        return f"{self.plan.solver.library or 'foreign'}: {name}"

    def settings(self) -> dict[str, Any]:
        solver = self.plan.solver
        code = digest({"code": _source_of(solver.run)})
        return {"foreign": solver.run, "library": solver.library, "code": code, "sigmas": self.plan.sigmas}

    def draw(self, model: ScoreModel, batch: BatchRequest) -> DrawnBatch:
        inside = self.evaluations_inside
        try:
            done = run_foreign(
                model,
                self.plan,
                batch.first,
                batch.last,
                seed=batch.seed,
                condition=batch.condition,
                device=batch.device,
                callback=lambda: batch.callback(inside),
            )
        except (NonFiniteError, MaxEvaluationsError, MemoryError, torch.cuda.OutOfMemoryError):
            raise
        except Exception as error:
            raise ForeignSolverError(self.name, _where_and_what(error)) from error
        return DrawnBatch(done.x, done.nfe, done.seconds, done.network_seconds)


def plan_foreign_run(
    model: ScoreModel, name: str, solver: ForeignSolver, grid: tuple[str, GridBuilder], budget: int
) -> ForeignRun:
    """The most steps on this grid, (name, builder), that ``budget`` evaluations allow.

    Raises:
        ArgumentError: if the budget is too small, or the solver cannot run on such a grid.
        Exception: from the solver's own code, unchanged.
    """
    grid_name, build = grid
    try:
        plan = plan_foreign(model, solver, budget, build)
    except ArgumentError as error:
        if error.argument == "nfe" and error.problem is not None:
            remedy = "Raise the budget, or leave it out."
            raise ArgumentError("budget", budget, error.problem, remedy) from None
        raise
    return ForeignRun(
        name=name,
        grid_name=grid_name,
        budget=budget,
        evaluations_inside=model.evaluations_inside,
        plan=plan,
    )


def _source_of(run: Any) -> str:
    """The text of a function, or what is known of it instead."""
    try:
        return inspect.getsource(run if inspect.isroutine(run) else type(run))
    except (OSError, TypeError):
        return str(fingerprint_data(run))


def _where_and_what(error: Exception) -> str:
    """An error in one line, with the place in the solver's code that raised it."""
    what = " ".join(str(error).split())[:200]
    if isinstance(error, SDEToolkitError):
        return what
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {what} ({Path(place.filename).name}, line {place.lineno})"
