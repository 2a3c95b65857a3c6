"""Solvers side by side: the same network, the same initial noise, the same number of network evaluations."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from sde_toolkit.evaluation.candidates import Candidate
from sde_toolkit.evaluation.comparison_batches import ComparisonBatches, planned_evaluations
from sde_toolkit.evaluation.comparison_request import BUDGETS, ComparisonRequest, named_models
from sde_toolkit.evaluation.judged_rows import endpoints_of, judged_row
from sde_toolkit.evaluation.rows import Comparison, Row
from sde_toolkit.jobs.sharing import do_parts
from sde_toolkit.jobs.store import PartStore
from sde_toolkit.jobs.team import Team
from sde_toolkit.metrics.judge import Judge
from sde_toolkit.metrics.metric import Metric
from sde_toolkit.models.declaration import warn_if_wrong
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.progress import progress_bar
from sde_toolkit.ranges import check_range
from sde_toolkit.solvers import GridBuilder

__all__ = ["Comparison", "Row", "compare_in_team", "compare_solvers", "planned_evaluations"]


def compare_solvers(
    model: ScoreModel | Mapping[str, ScoreModel],
    solvers: Mapping[str, Candidate | str] | Sequence[Candidate | str] | Candidate | str | None = None,
    budgets: Sequence[int] = BUDGETS,
    *,
    grids: Mapping[str, GridBuilder] | Sequence[GridBuilder] | GridBuilder | None = None,
    n: int = 512,
    seeds: int = 1,
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
        model: in evaluation mode, with an ``event_shape``, on ``device``; or several by their names, of the same
            events: wrapped, guided, rescheduled, clipped. Each solver then has a row for each.
        solvers: a mapping from the names of the rows, or a list or a single one, which keep their own names; a text
            names a preset. By default "auto", "dpmpp_2m", "unipc", "heun", "ddim", "ddpm", "euler_maruyama" and
            "probability_flow". A planner such as :func:`sde_toolkit.auto` and a :class:`sde_toolkit.sampling.Plan`
            bring their own grid.
        grids: all solvers run on each of these; by default each on its own usual grid.
        budgets: network evaluations per sample.
        n: samples per row.
        seed, seeds: the seeds are ``seed``, ``seed`` + 1, …; a row's value is the mean over them.
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
    first, models = named_models(model)
    request = ComparisonRequest(
        model=first,
        models=models,
        solvers=solvers,
        budgets=budgets,
        grids=grids,
        n=n,
        seed=seed,
        seeds=seeds,
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
        check_range(first.transform, judge.real, name="judge", remedy="Pass real data as the model was trained on.")
    found = compare_in_team(request, Team(), None)
    return cast(Comparison, found)  # a team of one is its own main process


def compare_in_team(request: ComparisonRequest, team: Team, store_in: str | Path | None) -> Comparison | None:
    """:func:`compare_solvers`, its batches shared by the processes of ``team``; None in all but the main one.

    Batches do not depend on the number of processes, so neither does the result, except for the seconds. ``store_in``:
    the folder for finished parts; an interrupted comparison continues from them. Only the main process needs the judge.
    """
    began = time.perf_counter()
    if request.check_declaration and request.judge is not None and request.condition is None:
        for model in request.all_models.values():  # real data have no conditions
            warn_if_wrong(model, request.judge.real)
    work = ComparisonBatches(request)
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
    endpoints = endpoints_of(request, parts)
    bar = progress_bar(len(request.runs) * request.seeds, "judging", enabled=request.progress)
    found = [
        judged_row(request, parts, k, endpoints.get(run.model_name, ()), bar) for k, run in enumerate(request.runs)
    ]
    bar.close()
    rows, samples, draws, sets = zip(*found, strict=True)
    return Comparison(
        request=request,
        rows=rows,
        samples=samples,
        draws=draws,
        sets=sets,
        endpoints=endpoints,
        seconds=time.perf_counter() - began,
        processes=team.size,
        store=store,
    )
