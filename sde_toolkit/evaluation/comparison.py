"""Solvers side by side: the same network, the same initial noise, the same number of network evaluations."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.errors import MaxEvaluationsError, NonFiniteError
from sde_toolkit.evaluation.candidates import Candidate
from sde_toolkit.evaluation.endpoint import Endpoint, checked_endpoint, endpoint_cost, solve_endpoint
from sde_toolkit.evaluation.planning import ComparisonRequest, PlannedRun
from sde_toolkit.evaluation.rows import Comparison, Row
from sde_toolkit.jobs.fingerprints import behaviour, fingerprint_data, model_fingerprint
from sde_toolkit.jobs.sharing import Part, Parts, cut, do_parts
from sde_toolkit.jobs.store import Arrays, PartStore
from sde_toolkit.jobs.team import Team
from sde_toolkit.metrics.judge import Judge
from sde_toolkit.metrics.metric import Against, Estimate, Metric, SampleSet
from sde_toolkit.metrics.splits import NO_SAMPLES
from sde_toolkit.models.declaration import warn_if_wrong
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.progress import progress_bar
from sde_toolkit.ranges import check_range
from sde_toolkit.sampling.loop import rows_of
from sde_toolkit.sampling.samples import sample
from sde_toolkit.solvers import GridBuilder, ddim

__all__ = ["Comparison", "Row", "compare_in_team", "compare_solvers", "planned_evaluations"]

_ADAPTIVE = 100  # evaluations assumed of an adaptive solver, to share the work out
ENDPOINT, CHECK = -1, -2  # the ``what`` of parts that belong to no row


def compare_solvers(
    model: ScoreModel,
    solvers: Mapping[str, Candidate | str] | Sequence[Candidate | str] | Candidate | str,
    budgets: Sequence[int],
    *,
    grids: Mapping[str, GridBuilder] | Sequence[GridBuilder] | GridBuilder | None = None,
    n: int = 512,
    seed: int = 0,
    judge: Judge | None = None,
    without_judge: str = "no real data were given",
    metrics: Sequence[Metric] | None = None,
    endpoint_n: int = 64,
    endpoint_steps: int = 50,
    batch_size: int | None = 64,
    device: torch.device | str = "cpu",
    condition: Any = None,
    check_declaration: bool = True,
    progress: bool = False,
) -> Comparison:
    """Run every solver on every grid at every budget, from the same initial noise.

    A solver takes as many steps as its budget allows after one evaluation for the final denoising step
    (which is left out where the grid itself ends at the data). Adaptive solvers have no budget and run once.

    Args:
        model: in evaluation mode, with an ``event_shape``, on ``device``.
        solvers, grids: a mapping from the names of the rows, or a list or a single one, which keep their own names.
            The grid is ``uniform`` by default. A planner such as :func:`sde_toolkit.auto` (or "auto") and a
            :class:`sde_toolkit.sampling.Plan` bring their own grid.
        budgets: network evaluations per sample.
        n: samples per row.
        judge: real data to compare with; ``without_judge`` is the reason there is none.
        metrics: what is measured, a column for each. By default the error against the exact flow, and the metrics of
            the judge. ``[FlowError(), *judge.metrics, mine]`` adds one to them.
        endpoint_n: samples whose exact flow endpoint is computed for deterministic solvers; 0: none.
        endpoint_steps: fineness of that solve for networks, see :func:`flow_endpoint`.
        batch_size: samples that go through the network together; wall times depend on it.
        condition: handed to the network; tensors in it have one row for each of the n samples.
        check_declaration: warn if the model's declaration does not fit the judge's data (:meth:`ScoreModel.check`).

    Raises:
        SDEToolkitError: before any evaluation, for arguments that do not fit together.
    """
    request = ComparisonRequest(
        model=model,
        solvers=solvers,
        budgets=budgets,
        grids=grids,
        n=n,
        seed=seed,
        judge=judge,
        without_judge=without_judge,
        metrics=metrics,
        endpoint_n=endpoint_n,
        endpoint_steps=endpoint_steps,
        batch_size=batch_size,
        device=device,
        condition=condition,
        check_declaration=check_declaration,
        progress=progress,
    )
    if judge is not None:
        check_range(model.transform, judge.real, name="judge", remedy="Pass real data as the model was trained on.")
    found = compare_in_team(request, Team(), None)
    return cast(Comparison, found)  # a team of one is its own main process


def compare_in_team(request: ComparisonRequest, team: Team, store_in: str | Path | None) -> Comparison | None:
    """:func:`compare_solvers`, its batches shared by the processes of ``team``; None in all but the main one.

    Batches do not depend on the number of processes, so neither does the result, except for the seconds. ``store_in``:
    the folder for finished parts; an interrupted comparison continues from them. Only the main process needs the judge.
    """
    began = time.perf_counter()
    if (
        request.check_declaration and request.judge is not None and request.condition is None
    ):  # real data have no conditions
        warn_if_wrong(request.model, request.judge.real)
    work = _Batches(request)
    store = None if store_in is None else PartStore(Path(store_in), work.fingerprint(), "output")
    parts = do_parts(
        work.parts(),
        work.compute,
        store=store,
        team=team,
        begin=lambda own: work.begin(own, request.progress and team.main),
    )
    work.bar.close()
    if parts is None:
        return None
    endpoint = _endpoint(request, parts) if request.endpoints else None
    rows, samples = zip(*(_row(request, parts, k, endpoint) for k in range(len(request.runs))), strict=True)
    return Comparison(
        request=request,
        rows=rows,
        samples=samples,
        endpoint=endpoint,
        endpoint_data=None if endpoint is None else request.model.transform.inverse(endpoint.x.float()).cpu(),
        seconds=time.perf_counter() - began,
        processes=team.size,
        store=store,
    )


def planned_evaluations(request: ComparisonRequest) -> int:
    """The expected number of evaluations of the network, times samples; an estimate for exact models."""
    warm_up = min(request.n, request.batch_size or request.n)
    return warm_up + round(sum(part.cost for part in _Batches(request).parts()))


@dataclass(eq=False)
class _Batches:
    """The work in batches: the rows' samples, and the flow's endpoints with their check."""

    request: ComparisonRequest
    failed: set[int] = field(default_factory=set)
    bar: Any = None

    def fingerprint(self) -> dict[str, Any]:
        """What the parts depend on."""
        request = self.request
        settings = {
            **{name: getattr(request, name) for name in ("n", "seed", "condition", "batch_size")},
            "ends": request.endpoints,
            "steps": request.endpoint_steps,
        }
        runs = [[run.name, run.grid_name, run.grid, run.solver, run.tweedie] for run in request.runs]
        models = {name: model.description() for name, model in (request.models or {}).items()}
        return {
            "work": "comparison/1",
            "model": model_fingerprint(request.model),
            "behaviour": behaviour(request.model, request.event_shape),
            "settings": fingerprint_data(settings),
            "rows": fingerprint_data(runs),
            **({"models": fingerprint_data(models)} if models else {}),
        }

    def parts(self) -> list[Part]:
        """All batches: of the endpoints, one that checks them, and of the rows."""
        request, ends, parts = self.request, self.request.endpoints, list[Part]()

        def add(what: int, n: int, nfe: int, size: int | None) -> None:
            for first, last in cut(n, size):
                parts.append(Part(len(parts), first, last, what, (last - first) * nfe))

        if ends:
            usual, finer = endpoint_cost(request.model, request.endpoint_steps)
            add(ENDPOINT, ends, usual, request.batch_size)
            add(CHECK, checked_endpoint(ends), finer, None)
        for k, run in enumerate(request.runs):
            cost = run.nfe if run.solver.integrator.evals_per_step else _ADAPTIVE
            add(k, request.n, cost, request.batch_size)
        return parts

    def begin(self, own: Sequence[Part], progress: bool) -> None:
        """Evaluate the network once, so that the first row's wall time has no one-time costs."""
        request = self.request
        total = sum(request.runs[part.what].nfe for part in own if part.what >= 0)
        self.bar = progress_bar(total, "comparing solvers", enabled=progress)
        if own:
            one = min(request.n, request.batch_size or request.n)
            grid, condition = request.runs[0].grid[[0, -1]], rows_of(request.condition, 0, one)
            shape = (one, *request.event_shape)
            sample(request.model, ddim(), grid, shape=shape, condition=condition, device=request.device)

    def compute(self, part: Part) -> Arrays:
        """The arrays of a batch; for a run that fails, the reason."""
        if part.what < 0:
            return self._endpoints(part)
        if part.what in self.failed:
            return {"failure": np.array("an earlier batch failed")}
        try:
            return self._samples(part, self.request.runs[part.what])
        except (NonFiniteError, MaxEvaluationsError) as error:
            self.failed.add(part.what)  # its later batches are left out
            return {"failure": np.array(str(error))}

    def _endpoints(self, part: Part) -> Arrays:
        request = self.request
        x, nfe, seconds = solve_endpoint(
            request.model,
            part.first,
            part.last,
            seed=request.seed,
            steps=request.endpoint_steps,
            finer=part.what == CHECK,
            batch_size=request.batch_size,
            condition=rows_of(request.condition, part.first, part.last),
            device=request.device,
        )
        return {"x": x.cpu().numpy(), "nfe": np.array(nfe), "seconds": np.array(seconds)}

    def _samples(self, part: Part, run: PlannedRun) -> Arrays:
        request = self.request
        self.bar.set_postfix_str(f"{run.name}, {run.nfe} evaluations")
        done = sample(
            request.model if run.model is None else run.model,
            run.solver,
            run.grid,
            shape=(part.last - part.first, *request.event_shape),
            seed=request.seed,
            first_index=part.first,
            condition=rows_of(request.condition, part.first, part.last),
            tweedie=run.tweedie,
            device=request.device,
            callback=lambda step: self.bar.update(run.evals_per_step),
        )
        self.bar.update(run.evaluations_inside * run.tweedie)
        numbers = {name: np.array(getattr(done, name)) for name in ("nfe", "seconds", "network_seconds")}
        return {"x": done.x.cpu().numpy(), **numbers}


def _endpoint(request: ComparisonRequest, parts: Parts) -> Endpoint:
    usual, (finer,) = parts.of(ENDPOINT), parts.of(CHECK)
    return Endpoint.of(request.model, request.endpoint_steps, usual, finer)


def _row(request: ComparisonRequest, parts: Parts, k: int, endpoint: Endpoint | None) -> tuple[Row, Tensor]:
    """The row of run ``k`` and its samples in data space."""
    run, own = request.runs[k], parts.of(k)
    known: dict[str, Any] = {
        "solver": run.name,
        "grid": run.grid_name,
        "budget": run.budget,
        "times": tuple(run.grid.tolist()),
        "tweedie": run.tweedie,
        "eta": run.solver.eta,
        "integrator": repr(run.solver.integrator),
    }
    failures = [str(arrays["failure"]) for arrays in own if "failure" in arrays]
    if failures:  # the first one is of a batch that was drawn; later batches may have been left out
        none: dict[str, Any] = {"measured": {}, "seconds": 0.0, "network_seconds": 0.0}
        return Row(**known, nfe=run.nfe, **none, failure=failures[0]), torch.empty(0, *request.event_shape)
    x = torch.cat([torch.from_numpy(arrays["x"]) for arrays in own])
    data = request.model.transform.inverse(x.to(request.device)).cpu()
    row = Row(
        **known,
        nfe=max(int(arrays["nfe"]) for arrays in own),
        measured=_measure(request, x, data, endpoint if request.has_endpoint(run) else None),
        seconds=sum(float(arrays["seconds"]) for arrays in own),
        network_seconds=sum(float(arrays["network_seconds"]) for arrays in own),
    )
    return row, data


def _measure(request: ComparisonRequest, x: Tensor, data: Tensor, endpoint: Endpoint | None) -> dict[str, Estimate]:
    """Every metric that can be measured, by its name. ``x``: samples in model space; ``data``: in data space."""
    judge = request.judge
    against_data = SampleSet(data) if judge is None else judge.sample_set(data)
    found: dict[str, Estimate] = {}
    for metric in request.measured:
        if metric.against is Against.FLOW:
            if endpoint is not None:
                reached = SampleSet(x[: endpoint.n])
                found[metric.name] = metric.compute(reached, SampleSet(endpoint.x.cpu()))
        elif judge is not None:
            found[metric.name] = judge.parts.measure(metric, against_data)
        else:
            found[metric.name] = metric.compute(against_data, NO_SAMPLES)
    return found
