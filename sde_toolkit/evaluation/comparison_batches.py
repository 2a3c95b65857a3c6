"""The work of a comparison in batches, which processes share: samples of the rows, and endpoints of the exact flow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sde_toolkit import grids
from sde_toolkit.errors import ForeignSolverError, MaxEvaluationsError, NonFiniteError
from sde_toolkit.evaluation.comparison_request import ComparisonRequest
from sde_toolkit.evaluation.endpoint import checked_endpoint, endpoint_cost, solve_endpoint
from sde_toolkit.evaluation.planned_run import BatchRequest, SolverRun
from sde_toolkit.evaluation.planning import run_of
from sde_toolkit.jobs.fingerprints import behaviour, fingerprint_data, model_fingerprint
from sde_toolkit.jobs.sharing import Part, cut
from sde_toolkit.jobs.store import Arrays
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.progress import progress_bar
from sde_toolkit.sampling.automatic import Plan
from sde_toolkit.sampling.loop import rows_of
from sde_toolkit.sampling.samples import sample
from sde_toolkit.solvers import ddim

__all__ = ["ComparisonBatches", "OfFlow", "OfPicture", "OfRow", "warm_up", "warm_up_size"]


@dataclass(frozen=True)
class OfRow:
    """The samples of a run for a seed."""

    run: int
    seed: int


@dataclass(frozen=True)
class OfPicture:
    """Further samples of a run, for its picture alone; of the first seed."""

    run: int
    seed: int


@dataclass(frozen=True)
class OfFlow:
    """The flow's endpoints of a model for a seed; ``finer``: the first of them again, to know their error."""

    model: str
    seed: int
    finer: bool = False


@dataclass(eq=False)
class ComparisonBatches:
    """The work in batches: the rows' samples, and the flow's endpoints with their check."""

    request: ComparisonRequest
    failed: set[int] = field(default_factory=set)
    bar: Any = None

    def fingerprint(self) -> dict[str, Any]:
        """What the parts depend on."""
        request = self.request
        settings = {
            **{name: getattr(request, name) for name in ("n", "seed", "seeds", "condition", "batch_size")},
            "ends": request.endpoints,
            "steps": request.endpoint_steps,
            "points": request.points_missing,
        }
        runs = [[run.name, run.grid_name, run.settings()] for run in request.runs]
        models = {name: model_fingerprint(model) for name, model in (request.models or {}).items()}
        return {
            "work": "comparison/3",
            "model": model_fingerprint(request.model),
            "behaviour": behaviour(request.model, request.event_shape),
            "settings": fingerprint_data(settings),
            "rows": fingerprint_data(runs),
            **({"models": fingerprint_data(models)} if models else {}),
        }

    def parts(self) -> list[Part]:
        """All batches: of the endpoints, those that check them, of the rows, and of their pictures.

        Rows take turns, batch by batch, so that what else happens on the machine falls on all of them alike.
        """
        request, parts = self.request, list[Part]()

        def add(what: Any, first: int, last: int, nfe: int) -> None:
            parts.append(Part(len(parts), first, last, what, (last - first) * nfe))

        seeds = range(request.seed, request.seed + request.seeds)
        for name, n in request.endpoints.items():
            usual, finer = endpoint_cost(request.all_models[name], request.endpoint_steps)
            for seed in seeds:
                for first, last in cut(n, request.batch_size):
                    add(OfFlow(name, seed), first, last, usual)
                add(OfFlow(name, seed, finer=True), 0, checked_endpoint(n), finer)
        for seed in seeds:
            for first, last in cut(request.n, request.batch_size):
                for k, run in enumerate(request.runs):
                    add(OfRow(k, seed), first, last, run.cost)
        if request.points_missing:
            for k, run in enumerate(request.runs):
                add(OfPicture(k, request.seed), request.n, request.n + request.points_missing, run.cost)
        return parts

    def begin(self, own: Sequence[Part], progress: bool) -> None:
        """Evaluate the network once, so that the first row's wall time has no one-time costs."""
        self.bar = progress_bar(round(sum(part.cost for part in own)), "comparing solvers", enabled=progress)
        if own:
            request, one = self.request, warm_up_size(self.request)
            model, run = warm_up(request)
            shape, condition = (one, *request.event_shape), rows_of(request.condition, 0, one)
            sample(model, run.solver, run.grid, shape=shape, condition=condition, device=request.device)

    def compute(self, part: Part) -> Arrays:
        """The arrays of a batch; for a run that fails, the reason."""
        if isinstance(part.what, OfFlow):
            return self._endpoints(part, part.what)
        made = 0

        def advance(evaluations: int) -> None:
            nonlocal made
            made += evaluations * (part.last - part.first)
            self.bar.update(evaluations * (part.last - part.first))

        try:
            if part.what.run in self.failed:
                return {"failure": np.array("an earlier batch failed")}
            return self._samples(part, part.what, advance)
        except (NonFiniteError, MaxEvaluationsError, ForeignSolverError) as error:
            self.failed.add(part.what.run)  # its later batches are left out
            return {"failure": np.array(str(error))}
        finally:
            self.bar.update(round(part.cost) - made)  # of a run that failed, or that chose its own steps

    def _endpoints(self, part: Part, what: OfFlow) -> Arrays:
        request = self.request
        self.bar.set_postfix_str("the exact flow")
        x, nfe, seconds = solve_endpoint(
            request.all_models[what.model],
            part.first,
            part.last,
            seed=what.seed,
            steps=request.endpoint_steps,
            finer=what.finer,
            batch_size=request.batch_size,
            condition=rows_of(request.condition, part.first, part.last),
            device=request.device,
        )
        self.bar.update(round(part.cost))
        return {"x": x.cpu().numpy(), "nfe": np.array(nfe), "seconds": np.array(seconds)}

    def _samples(self, part: Part, what: OfRow | OfPicture, callback: Callable[[int], None]) -> Arrays:
        request, run = self.request, self.request.runs[what.run]
        self.bar.set_postfix_str(f"{run.name}, {run.nfe} evaluations")
        condition = rows_of(request.condition, part.first, part.last)
        batch = BatchRequest(part.first, part.last, what.seed, condition, request.device, callback)
        return run.draw(request.model_of(run), batch).arrays()


def warm_up(request: ComparisonRequest) -> tuple[ScoreModel, SolverRun]:
    """What is run before the first row: one step of DDIM, or of a step operator where there is nothing else."""
    if not any(run.samples_the_model for run in request.runs):
        for run in request.runs:
            if isinstance(run, SolverRun):
                return request.model_of(run), run.first_step()
    plan = Plan(ddim(), grids.uniform(request.model.sde, 1), False)
    return request.model, run_of(request.model, "the first", plan, "")


def warm_up_size(request: ComparisonRequest) -> int:
    """How many samples it has."""
    return min(request.n, request.batch_size or request.n)
