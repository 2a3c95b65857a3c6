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

from sde_toolkit.checks import is_count
from sde_toolkit.errors import ArgumentError, MaxEvaluationsError, NonFiniteError
from sde_toolkit.evaluation.endpoint import Endpoint, checked_endpoint, endpoint_cost, solve_endpoint
from sde_toolkit.evaluation.planning import (
    Candidate,
    GridBuilder,
    Run,
    check_request,
    named_grids,
    named_solvers,
    plan_all,
)
from sde_toolkit.evaluation.rows import Comparison, Row
from sde_toolkit.jobs.fingerprints import behaviour, model_fingerprint, plain
from sde_toolkit.jobs.sharing import Part, Parts, cut, do_parts
from sde_toolkit.jobs.store import Arrays, PartStore
from sde_toolkit.jobs.team import Team
from sde_toolkit.metrics.distances import rmse
from sde_toolkit.metrics.judge import Judge
from sde_toolkit.models.conditions import check_condition
from sde_toolkit.models.evaluation_mode import check_evaluation_mode
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.progress import progress_bar
from sde_toolkit.sampling.arguments import check_batches
from sde_toolkit.sampling.loop import rows_of
from sde_toolkit.sampling.samples import sample
from sde_toolkit.solvers import ddim
from sde_toolkit.transforms import check_range

__all__ = ["Comparison", "Row", "compare_in_team", "compare_solvers"]

_ADAPTIVE = 100  # evaluations, for the plan of who does what
ENDPOINT, CHECK = -1, -2  # what parts do that belong to no row


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
    endpoint_n: int = 64,
    endpoint_steps: int = 50,
    batch_size: int | None = 64,
    device: torch.device | str = "cpu",
    condition: Any = None,
    progress: bool = False,
) -> Comparison:
    """Run every solver on every grid at every budget, from the same initial noise.

    A solver takes as many steps as its budget allows after one evaluation for the final denoising step
    (which is left out where the grid itself ends at the data). Adaptive solvers have no budget and run once.

    Args:
        model: in evaluation mode, without which dropout is refused, with an ``event_shape``, on ``device``.
        solvers, grids: by the name that the rows shall bear; a list, or one alone, bears its own names. The grid is
            ``uniform`` by default. A planner such as :func:`sde_toolkit.auto` (or "auto"), or a ready
            :class:`sde_toolkit.sampling.Plan`, brings its own grid.
        budgets: network evaluations per sample.
        n: samples per row.
        judge: real data to compare with; ``without_judge`` is the reason there is none.
        endpoint_n: samples whose exact flow endpoint is computed for deterministic solvers; 0: none.
        endpoint_steps: fineness of that solve for networks, see :func:`flow_endpoint`.
        batch_size: samples that go through the network together; wall times depend on it.
        condition: handed to the network; tensors in it have one row for each of the n samples.

    Raises:
        SDEToolkitError: before any evaluation, for whatever does not fit together.
    """
    solvers, grids = named_solvers(solvers), named_grids(grids)
    if judge is not None and isinstance(model, ScoreModel):
        _check_judge(model, judge, n)
        check_range(model.transform, judge.real, name="judge", remedy="Pass real data as the model was trained on.")
    found = compare_in_team(
        model,
        solvers,
        budgets,
        Team(),
        None,
        grids=grids,
        n=n,
        seed=seed,
        judge=judge,
        without_judge=without_judge,
        endpoint_n=endpoint_n,
        endpoint_steps=endpoint_steps,
        batch_size=batch_size,
        device=device,
        condition=condition,
        progress=progress,
    )
    return cast(Comparison, found)  # a team of one is its own main process


def _check_judge(model: ScoreModel, judge: Any, n: int) -> None:
    """A judge of as many samples as there will be, of the model's shape.

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
    if is_count(n) and judge.n > n:
        problem = f"it judges {judge.n} samples, and n={n} are drawn"
        raise ArgumentError("judge", type(judge).__name__, problem, "Build it with the same n.")


def compare_in_team(
    model: ScoreModel,
    solvers: Mapping[str, Candidate],
    budgets: Sequence[int],
    team: Team,
    store_in: str | Path | None,
    *,
    grids: Mapping[str, GridBuilder] | None = None,
    n: int = 512,
    seed: int = 0,
    judge: Judge | None = None,
    without_judge: str = "no real data were given",
    endpoint_n: int = 64,
    endpoint_steps: int = 50,
    batch_size: int | None = 64,
    device: torch.device | str = "cpu",
    condition: Any = None,
    progress: bool = False,
) -> Comparison | None:
    """:func:`compare_solvers`, its batches shared by the processes of ``team``; None in all but the main one.

    Batches are those of one process: every sample is drawn beside the same others, whoever draws it, so that the result
    is the same but for the seconds. ``store_in``: the folder for finished parts, from which a comparison that was cut
    off is taken up. ``judge``: needed in the main process only.
    """
    began = time.perf_counter()
    event_shape = check_request(model, solvers, budgets, n)
    check_evaluation_mode(model)
    check_batches(batch_size, torch.float32)
    check_condition(condition, n)
    runs = plan_all(model, solvers, budgets, named_grids(grids))
    deterministic = any(run.solver.eta == 0 for run in runs)
    ends = min(n, endpoint_n) if deterministic else 0
    work = _Work(model, runs, n, event_shape, seed, condition, batch_size, device, ends, endpoint_steps)
    store = None if store_in is None else PartStore(Path(store_in), work.fingerprint(), "output")
    parts = do_parts(
        work.parts(), work.compute, store=store, team=team, begin=lambda own: work.begin(own, progress and team.main)
    )
    work.bar.close()
    if parts is None:
        return None
    endpoint = work.endpoint(parts) if ends else None
    rows, samples = zip(*(work.row(parts, k, endpoint, judge) for k in range(len(runs))), strict=True)
    return Comparison(
        rows=rows,
        samples=samples,
        endpoint=endpoint,
        endpoint_data=None if endpoint is None else model.transform.inverse(endpoint.x.float()).cpu(),
        judge=judge,
        without_judge="" if judge else without_judge,
        n=n,
        seed=seed,
        batch_size=batch_size,
        device=str(device),
        seconds=time.perf_counter() - began,
        processes=team.size,
        store=store,
    )


def planned_evaluations(
    model: ScoreModel, runs: Sequence[Run], n: int, endpoint_n: int, endpoint_steps: int, batch_size: int | None
) -> int:
    """Evaluations of the network, times samples, that a comparison is expected to make; about so for exact models."""
    ends = min(n, endpoint_n) if any(run.solver.eta == 0 for run in runs) else 0
    shape = model.event_shape or ()
    work = _Work(model, runs, n, shape, 0, None, batch_size, "cpu", ends, endpoint_steps)
    warm_up = min(n, batch_size or n)
    return warm_up + round(sum(part.cost for part in work.parts()))


@dataclass(eq=False)
class _Work:
    """All that has to be computed, cut into batches: the rows' samples, and the flow's endpoints with their check."""

    model: ScoreModel
    runs: Sequence[Run]
    n: int
    event_shape: tuple[int, ...]
    seed: int
    condition: Any
    batch_size: int | None
    device: torch.device | str
    ends: int
    steps: int
    failed: set[int] = field(default_factory=set)
    bar: Any = None

    def fingerprint(self) -> dict[str, Any]:
        """What the parts depend on."""
        settings = {name: getattr(self, name) for name in ("n", "seed", "condition", "batch_size", "ends", "steps")}
        runs = [[run.name, run.grid_name, run.grid, run.solver, run.tweedie] for run in self.runs]
        return {
            "work": "comparison/1",
            "model": model_fingerprint(self.model),
            "behaviour": behaviour(self.model, self.event_shape),
            "settings": plain(settings),
            "rows": plain(runs),
        }

    def parts(self) -> list[Part]:
        parts: list[Part] = []

        def add(what: int, n: int, nfe: int, size: int | None) -> None:
            for first, last in cut(n, size):
                parts.append(Part(len(parts), first, last, what, (last - first) * nfe))

        if self.ends:
            usual, finer = endpoint_cost(self.model, self.steps)
            add(ENDPOINT, self.ends, usual, self.batch_size)
            add(CHECK, checked_endpoint(self.ends), finer, None)
        for k, run in enumerate(self.runs):
            add(k, self.n, run.nfe if run.solver.integrator.evals_per_step else _ADAPTIVE, self.batch_size)
        return parts

    def begin(self, own: Sequence[Part], progress: bool) -> None:
        """One evaluation, so that the first row's wall time does not hold what happens only once."""
        total = sum(self.runs[part.what].nfe for part in own if part.what >= 0)
        self.bar = progress_bar(total, "comparing solvers", enabled=progress)
        if own:
            one = min(self.n, self.batch_size or self.n)
            condition = rows_of(self.condition, 0, one)
            grid = self.runs[0].grid[[0, -1]]
            sample(self.model, ddim(), grid, shape=(one, *self.event_shape), condition=condition, device=self.device)

    def compute(self, part: Part) -> Arrays:
        if part.what < 0:
            x, nfe, seconds = solve_endpoint(
                self.model,
                part.first,
                part.last,
                seed=self.seed,
                steps=self.steps,
                finer=part.what == CHECK,
                batch_size=self.batch_size,
                condition=rows_of(self.condition, part.first, part.last),
                device=self.device,
            )
            return {"x": x.cpu().numpy(), "nfe": np.array(nfe), "seconds": np.array(seconds)}
        if part.what in self.failed:
            return {"failure": np.array("an earlier batch failed")}
        run = self.runs[part.what]
        self.bar.set_postfix_str(f"{run.name}, {run.nfe} evaluations")
        try:
            done = sample(
                self.model,
                run.solver,
                run.grid,
                shape=(part.last - part.first, *self.event_shape),
                seed=self.seed,
                first_index=part.first,
                condition=rows_of(self.condition, part.first, part.last),
                tweedie=run.tweedie,
                device=self.device,
                callback=lambda step: self.bar.update(run.evals_per_step),
            )
        except (NonFiniteError, MaxEvaluationsError) as error:
            self.failed.add(part.what)  # its later batches are not worth drawing
            return {"failure": np.array(str(error))}
        self.bar.update(run.tweedie)
        numbers = {name: np.array(getattr(done, name)) for name in ("nfe", "seconds", "network_seconds")}
        return {"x": done.x.cpu().numpy(), **numbers}

    def endpoint(self, parts: Parts) -> Endpoint:
        usual, (finer,) = parts.of(ENDPOINT), parts.of(CHECK)
        return Endpoint.of(self.model, self.steps, usual, finer)

    def row(self, parts: Parts, k: int, endpoint: Endpoint | None, judge: Judge | None) -> tuple[Row, Tensor]:
        """The row of run ``k`` and its samples in data space."""
        run, own = self.runs[k], parts.of(k)
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
        if failures:  # of the first batch that failed: whoever drew it, it was not left out
            none: dict[str, Any] = {"rmse": None, "scores": None, "seconds": 0.0, "network_seconds": 0.0}
            return Row(**known, nfe=run.nfe, **none, failure=failures[0]), torch.empty(0, *self.event_shape)
        x = torch.cat([torch.from_numpy(arrays["x"]) for arrays in own])
        data = self.model.transform.inverse(x.to(self.device)).cpu()
        against = endpoint if run.solver.eta == 0 else None
        row = Row(
            **known,
            nfe=max(int(arrays["nfe"]) for arrays in own),
            rmse=None if against is None else rmse(x[: against.n], against.x.cpu()),
            scores=None if judge is None else judge(data),
            seconds=sum(float(arrays["seconds"]) for arrays in own),
            network_seconds=sum(float(arrays["network_seconds"]) for arrays in own),
        )
        return row, data
