"""The work of a comparison in batches, which processes share: samples of the rows, and endpoints of the exact flow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sde_toolkit import grids
from sde_toolkit.errors import ForeignSolverError, MaxEvaluationsError, NonFiniteError
from sde_toolkit.evaluation.comparison_request import ComparisonRequest
from sde_toolkit.evaluation.endpoint import checked_endpoint, endpoint_cost, solve_endpoint
from sde_toolkit.jobs.fingerprints import behaviour, fingerprint_data, model_fingerprint
from sde_toolkit.jobs.sharing import Part, cut
from sde_toolkit.jobs.store import Arrays
from sde_toolkit.progress import progress_bar
from sde_toolkit.sampling.loop import rows_of
from sde_toolkit.sampling.samples import sample
from sde_toolkit.solvers import ddim

__all__ = ["ComparisonBatches", "OfFlow", "OfRow", "planned_evaluations"]


@dataclass(frozen=True)
class OfRow:
    """The samples of a run for a seed."""

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
        }
        runs = [[run.name, run.grid_name, run.settings()] for run in request.runs]
        models = {name: model_fingerprint(model) for name, model in (request.models or {}).items()}
        return {
            "work": "comparison/2",
            "model": model_fingerprint(request.model),
            "behaviour": behaviour(request.model, request.event_shape),
            "settings": fingerprint_data(settings),
            "rows": fingerprint_data(runs),
            **({"models": fingerprint_data(models)} if models else {}),
        }

    def parts(self) -> list[Part]:
        """All batches: of the endpoints, those that check them, and of the rows.

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
        return parts

    def begin(self, own: Sequence[Part], progress: bool) -> None:
        """Evaluate the network once, so that the first row's wall time has no one-time costs."""
        request = self.request
        self.bar = progress_bar(round(sum(part.cost for part in own)), "comparing solvers", enabled=progress)
        if own:
            one = min(request.n, request.batch_size or request.n)
            grid, condition = grids.uniform(request.model.sde, 1), rows_of(request.condition, 0, one)
            shape = (one, *request.event_shape)
            sample(request.model, ddim(), grid, shape=shape, condition=condition, device=request.device)

    def compute(self, part: Part) -> Arrays:
        """The arrays of a batch; for a run that fails, the reason."""
        if isinstance(part.what, OfFlow):
            return self._endpoints(part, part.what)
        if part.what.run in self.failed:
            return {"failure": np.array("an earlier batch failed")}
        try:
            return self._samples(part, part.what)
        except (NonFiniteError, MaxEvaluationsError, ForeignSolverError) as error:
            self.failed.add(part.what.run)  # its later batches are left out
            return {"failure": np.array(str(error))}

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

    def _samples(self, part: Part, what: OfRow) -> Arrays:
        request, run = self.request, self.request.runs[what.run]
        self.bar.set_postfix_str(f"{run.name}, {run.nfe} evaluations")
        done = run.draw(
            request.model_of(run),
            part.first,
            part.last,
            seed=what.seed,
            condition=rows_of(request.condition, part.first, part.last),
            device=request.device,
            callback=lambda evaluations: self.bar.update(evaluations * (part.last - part.first)),
        )
        numbers = {name: np.array(getattr(done, name)) for name in ("nfe", "seconds", "network_seconds")}
        return {"x": done.x.cpu().numpy(), **numbers}


def planned_evaluations(request: ComparisonRequest) -> int:
    """The expected number of evaluations of the network, times samples; an estimate for exact models.

    The references, which are kept, are not counted.
    """
    warm_up = min(request.n, request.batch_size or request.n)
    return warm_up + round(sum(part.cost for part in ComparisonBatches(request).parts()))
