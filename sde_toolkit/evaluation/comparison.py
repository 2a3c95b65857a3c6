"""Solvers side by side: the same network, the same initial noise, the same number of network evaluations."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.checks import check_count
from sde_toolkit.data import Dataset
from sde_toolkit.errors import ArgumentError
from sde_toolkit.evaluation.candidates import Candidate
from sde_toolkit.evaluation.comparison_batches import ComparisonBatches
from sde_toolkit.evaluation.comparison_request import (
    BUDGETS,
    POINTS,
    ComparisonRequest,
    check_judge,
    check_models,
    named_models,
)
from sde_toolkit.evaluation.error_parts import error_parts
from sde_toolkit.evaluation.evaluation_counts import planned_evaluations
from sde_toolkit.evaluation.judged_rows import endpoints_of, judged_row, points_of
from sde_toolkit.evaluation.page import require_report_packages
from sde_toolkit.evaluation.paired import PairedDifferences
from sde_toolkit.evaluation.real_samples import judge_of_data
from sde_toolkit.evaluation.references import plan_references, solve_references
from sde_toolkit.evaluation.rows import Comparison, Row
from sde_toolkit.files.folders_to_write import why_not_writable
from sde_toolkit.jobs.sharing import do_parts
from sde_toolkit.jobs.store import PartStore
from sde_toolkit.jobs.team import Team
from sde_toolkit.metrics.judge import Features, Judge
from sde_toolkit.metrics.metric import Metric
from sde_toolkit.models.declaration import warn_if_wrong
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.progress import progress_bar, require_progress
from sde_toolkit.ranges import check_range
from sde_toolkit.solvers import GridBuilder

__all__ = ["Comparison", "Row", "compare_in_team", "compare_solvers"]


def compare_solvers(
    model: ScoreModel | Mapping[str, ScoreModel],
    solvers: Mapping[str, Candidate | str] | Sequence[Candidate | str] | Candidate | str | None = None,
    budgets: Sequence[int] = BUDGETS,
    *,
    data: Tensor | np.ndarray | Dataset | None = None,
    metrics: Sequence[Metric] | Mapping[str, Callable[[Tensor, Tensor], float] | Metric] | None = None,
    to: str | Path | None = None,
    grids: Mapping[str, GridBuilder] | Sequence[GridBuilder] | GridBuilder | None = None,
    n: int = 512,
    seeds: int = 1,
    seed: int = 0,
    features: Features | str = "auto",
    judge: Judge | None = None,
    without_judge: str = "no real data were given",
    n_real: int = 2000,
    endpoint_n: int = 64,
    endpoint_steps: int = 50,
    references: bool = True,
    batch_size: int | None = 64,
    device: torch.device | str | None = None,
    condition: Any = None,
    check_declaration: bool = True,
    progress: bool = False,
) -> Comparison:
    """Run every solver at every budget, each on its usual grid, from the same initial noise.

    A solver takes as many steps as its budget allows after one evaluation for the final denoising step
    (which is left out where the grid itself ends at the data). Adaptive solvers have no budget and run once.

    Args:
        model: in evaluation mode, with an ``event_shape``; or several by their names, of the same
            events: wrapped, guided, rescheduled, clipped. Each solver then has a row for each.
        solvers: a mapping from the names of the rows, or a list or a single one, which keep their own names; a text
            names a preset. By default "auto", "dpmpp_2m", "unipc", "heun", "ddim", "ddpm", "euler_maruyama" and
            "probability_flow". A function ``run(denoise, sigmas, x, rng)`` is someone else's solver
            (:mod:`sde_toolkit.sampling.foreign_solver`). A planner such as :func:`sde_toolkit.auto` and a
            :class:`sde_toolkit.sampling.Plan` bring their own grid.
        budgets: network evaluations per sample.
        data: real samples (N, *event) in data space, a tensor, an array or a data set; without them distances to data
            are not measured.
        metrics: what is measured, a column for each. By default the error against the exact flow, and the distances
            that are usual for the data. ``{"mine": f}`` adds f(generated, real) -> float to them, tensors in data
            space; a list of metrics replaces them.
        to: a folder for the report, with the provenance of model and data.
        grids: all solvers run on each of these; by default each on its own usual grid.
        n: samples per row.
        seed, seeds: the seeds are ``seed``, ``seed`` + 1, …; a row's value is the mean over them.
        features: the space in which samples are compared: "classifier" (28x28 digits), "data", "auto", or features.
        judge: what compares samples with real data, instead of ``data`` and ``features``; ``without_judge`` is the
            reason there is none.
        n_real: at most so many of ``data`` are compared with.
        endpoint_n: samples whose exact flow endpoint is computed for deterministic solvers; 0: none.
        endpoint_steps: fineness of that solve for networks, see :func:`flow_endpoint`.
        references: solve the network's flow and reverse SDE finely, to tell its errors from the solvers'.
        batch_size: samples that go through the network together; wall times depend on it.
        device: that of the model by default.
        condition: handed to the network; tensors in it have one row for each of the n samples.
        check_declaration: warn if the model's declaration does not fit the real data (:meth:`ScoreModel.check`).

    Raises:
        SDEToolkitError: before any evaluation of the model, for arguments that do not fit together.
        Exception: before any evaluation, from a metric's or a solver's own code that fails on a first try.
    """
    if to is not None:
        check_report_folder(to)
    require_progress(progress)
    first, models = named_models(model)
    check_models({"": first, **(models or {})})
    check_count("n", n, "512 is the default.", least=2)
    if judge is None and data is not None:
        judge = judge_of_data(first, data, n, features=features, n_real=n_real, seed=seed)
    elif judge is not None:
        _check_given_judge(first, judge, data, n)
    request = ComparisonRequest(
        model=first, models=models, solvers=solvers, budgets=budgets, grids=grids, n=n, seed=seed, seeds=seeds,
        judge=judge, without_judge=without_judge, metrics=metrics, endpoint_n=endpoint_n,
        endpoint_steps=endpoint_steps, references=references, batch_size=batch_size, device=device,
        condition=condition, check_declaration=check_declaration, progress=progress, points=POINTS * (to is not None),
    )  # fmt: skip
    found = cast(Comparison, compare_in_team(request, Team(), None))  # a team of one is its own main process
    if to is not None:
        found.write(to)
    return found


def _check_given_judge(model: ScoreModel, judge: Any, data: Any, n: int) -> None:
    """Check that a judge of the caller's fits the model, and that no other data are given.

    Raises:
        SDEToolkitError: naming what does not fit.
    """
    if data is not None:
        problem = "a judge has its own real data"
        raise ArgumentError("data", type(data).__name__, problem, "Give one of judge= and data=.")
    check_judge(model, judge, n)
    check_range(model.transform, judge.real, name="judge", remedy="Pass real data as the model was trained on.")


def check_report_folder(to: Any) -> None:
    """Refuse before the work if a report cannot be written to this folder.

    Raises:
        ArgumentError: if it is not a folder that can be written to.
        MissingDependencyError: without the packages of a report.
    """
    if not isinstance(to, str | Path) or not str(to).strip():
        raise ArgumentError("to", to, "not the name of a folder", 'Pass to="report", for example.')
    problem = why_not_writable(Path(to).absolute())
    if problem:
        raise ArgumentError("to", str(to), problem, "Name another folder.")
    require_report_packages()


def compare_in_team(
    request: ComparisonRequest,
    team: Team,
    store_in: str | Path | None,
    say: Callable[[str], object] = lambda text: None,
) -> Comparison | None:
    """:func:`compare_solvers`, its batches shared by the processes of ``team``; None in all but the main one.

    Batches do not depend on the number of processes, so neither does the result, except for the seconds. ``store_in``:
    the folder for finished parts; an interrupted comparison continues from them. Only the main process needs the judge.
    ``say``: is told, in the main process, how many evaluations are to be made.
    """
    began = time.perf_counter()
    planned = plan_references(request) if team.main else None
    if team.main:
        say(str(planned_evaluations(request, planned)))
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
    references = solve_references(request, team, plan=planned, store_in=store_in, progress=request.progress)
    if parts is None:
        return None
    endpoints = endpoints_of(request, parts)
    bar = progress_bar(len(request.runs) * request.seeds, "judging", enabled=request.progress)
    found = [
        judged_row(request, parts, k, endpoints.get(run.model_name, ()), bar) for k, run in enumerate(request.runs)
    ]
    bar.close()
    rows, samples, draws, sets = zip(*found, strict=True)
    comparison = Comparison(
        request=request,
        rows=rows,
        samples=samples,
        draws=draws,
        points=tuple(points_of(request, parts, k) for k in range(len(request.runs))),
        sets=sets,
        endpoints=endpoints,
        seconds=0.0,
        processes=team.size,
        store=store,
    )
    comparison = replace(
        comparison,
        paired=PairedDifferences.of(comparison, request.progress),
        error_parts=error_parts(comparison, references, request.progress),
    )
    return replace(comparison, seconds=time.perf_counter() - began)
