"""Solvers side by side: the same network, the same initial noise, the same number of network evaluations."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_toolkit import grids as grid_builders
from sde_toolkit.errors import MaxEvaluationsError, NonFiniteError
from sde_toolkit.evaluation.endpoint import Endpoint, flow_endpoint
from sde_toolkit.evaluation.judging import Judge, Scores, at_floor, plausible_at_floor
from sde_toolkit.evaluation.metrics import Estimate, rmse
from sde_toolkit.evaluation.planning import Candidate, GridBuilder, Run, check_request, plan_all
from sde_toolkit.progress import progress_bar
from sde_toolkit.sampling import sample
from sde_toolkit.score_model import ScoreModel
from sde_toolkit.solvers import ddim

__all__ = ["Comparison", "Row", "compare_solvers"]


@dataclass(frozen=True)
class Row:
    """One solver at one budget.

    ``solver`` and ``grid``: the names they were given. ``budget``: evaluations allowed, None for an adaptive
    solver. ``nfe``: evaluations used, counted. ``times``: the grid. ``tweedie``: whether the last evaluation
    denoises. ``rmse``: to the flow's exact endpoint, per element, model space; None for stochastic solvers.
    ``scores``: None without real data. ``seconds``, ``network_seconds``: wall time of the run and of the
    network in it. ``failure``: why there are no samples, or "".
    """

    solver: str
    grid: str
    budget: int | None
    nfe: int
    times: tuple[float, ...]
    tweedie: bool
    eta: float
    integrator: str
    rmse: Estimate | None
    scores: Scores | None
    seconds: float
    network_seconds: float
    failure: str = ""

    @property
    def deterministic(self) -> bool:
        return self.eta == 0

    @property
    def outside(self) -> float:
        """Share of the wall time spent outside the network."""
        return 1 - self.network_seconds / self.seconds if self.seconds > 0 else float("nan")


@dataclass(frozen=True, eq=False)
class Comparison:
    """All rows and what they were measured against.

    ``samples``: for each row the samples (n, *event) in data space, empty if it failed. Sample i of every row
    comes from the same noise stream (seed, i), so that columns can be compared by eye.
    """

    rows: tuple[Row, ...]
    samples: tuple[Tensor, ...]
    endpoint: Endpoint | None
    endpoint_data: Tensor | None
    judge: Judge | None
    without_judge: str
    n: int
    seed: int
    batch_size: int | None
    device: str
    seconds: float

    @property
    def several_grids(self) -> bool:
        return len({row.grid for row in self.rows}) > 1

    def label(self, row: Row) -> str:
        """The solver's name, with its grid where there is more than one."""
        return f"{row.solver} · {row.grid}" if self.several_grids else row.solver

    def records(self) -> list[dict[str, Any]]:
        """One flat dictionary per row: what CSV, JSON and the report's table are made of."""
        return [self._record(row) for row in self.rows]

    def _record(self, row: Row) -> dict[str, Any]:
        floor = self.judge.floor if self.judge else None
        scores = row.scores
        record: dict[str, Any] = {
            "solver": row.solver,
            "grid": row.grid,
            "budget": row.budget,
            "nfe": row.nfe,
            "steps": len(row.times) - 1,
            "tweedie": row.tweedie,
            "eta": row.eta,
            "integrator": row.integrator,
        }
        measured: dict[str, Estimate | None] = {
            "rmse": row.rmse,
            "sliced_wasserstein": scores.sliced_wasserstein if scores else None,
            "kernel_distance": scores.kernel_distance if scores else None,
            "plausible": scores.plausible if scores else None,
        }
        for name, estimate in measured.items():
            record[name] = estimate.value if estimate else None
            record[f"{name}_error"] = estimate.error if estimate else None
        for name in ("sliced_wasserstein", "kernel_distance"):
            at = at_floor(getattr(scores, name), getattr(floor, name)) if scores and floor else None
            record[f"{name}_at_floor"] = at
        at = plausible_at_floor(scores.plausible, floor.plausible) if scores and floor and floor.plausible else None
        record["plausible_at_floor"] = at
        record |= {
            "seconds": row.seconds,
            "network_seconds": row.network_seconds,
            "outside_network": row.outside,
            "failure": row.failure,
        }
        return record


def compare_solvers(
    model: ScoreModel,
    solvers: Mapping[str, Candidate],
    budgets: Sequence[int],
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
    progress: bool = False,
) -> Comparison:
    """Run every solver on every grid at every budget, from the same initial noise.

    A solver takes as many steps as its budget allows after one evaluation for the final denoising step
    (which is left out where the grid itself ends at the data). Adaptive solvers have no budget and run once.

    Args:
        model: in evaluation mode, with an ``event_shape``, on ``device``.
        solvers, grids: by the name that the rows shall bear. The grid is ``uniform`` by default. A planner such as
            :func:`sde_toolkit.auto`, or a ready :class:`sde_toolkit.Plan`, brings its own grid.
        budgets: network evaluations per sample.
        n: samples per row.
        judge: real data to compare with; ``without_judge`` is the reason there is none.
        endpoint_n: samples whose exact flow endpoint is computed for deterministic solvers; 0: none.
        endpoint_steps: fineness of that solve for networks, see :func:`flow_endpoint`.
        batch_size: samples that go through the network together; wall times depend on it.

    Raises:
        SDEToolkitError: before any evaluation, for whatever does not fit together.
    """
    began = time.perf_counter()
    event_shape = check_request(model, solvers, budgets, n)
    runs = plan_all(model, solvers, budgets, grids or {"uniform": grid_builders.uniform})
    shape = (n, *event_shape)
    endpoint = None
    if endpoint_n > 0 and any(run.solver.eta == 0 for run in runs):
        endpoint = flow_endpoint(
            model,
            min(n, endpoint_n),
            seed=seed,
            steps=endpoint_steps,
            batch_size=batch_size,
            device=device,
        )
    _warm_up(model, runs[0], shape, batch_size, device)
    batches = -(-n // (batch_size or n))
    bar = progress_bar(sum(run.nfe for run in runs) * batches, "comparing solvers", enabled=progress)
    rows, samples = [], []
    for run in runs:
        bar.set_postfix_str(f"{run.name}, {run.nfe} evaluations")
        row, x = _row(model, run, shape, seed, endpoint, judge, batch_size, device, bar)
        rows.append(row)
        samples.append(x)
    bar.close()
    return Comparison(
        rows=tuple(rows),
        samples=tuple(samples),
        endpoint=endpoint,
        endpoint_data=None if endpoint is None else model.transform.inverse(endpoint.x.float()).cpu(),
        judge=judge,
        without_judge="" if judge else without_judge,
        n=n,
        seed=seed,
        batch_size=batch_size,
        device=str(device),
        seconds=time.perf_counter() - began,
    )


def _warm_up(
    model: ScoreModel, run: Run, shape: tuple[int, ...], batch_size: int | None, device: torch.device | str
) -> None:
    """One evaluation, so that the first row's wall time does not hold what happens only once."""
    one_batch = (min(shape[0], batch_size or shape[0]), *shape[1:])
    grid = run.grid[[0, -1]]
    sample(model, ddim(), grid, shape=one_batch, device=device)


def _row(
    model: ScoreModel,
    run: Run,
    shape: tuple[int, ...],
    seed: int,
    endpoint: Endpoint | None,
    judge: Judge | None,
    batch_size: int | None,
    device: torch.device | str,
    bar: Any,
) -> tuple[Row, Tensor]:
    known: dict[str, Any] = {
        "solver": run.name,
        "grid": run.grid_name,
        "budget": run.budget,
        "times": tuple(run.grid.tolist()),
        "tweedie": run.tweedie,
        "eta": run.solver.eta,
        "integrator": repr(run.solver.integrator),
    }
    try:
        done = sample(
            model,
            run.solver,
            run.grid,
            shape=shape,
            seed=seed,
            tweedie=run.tweedie,
            batch_size=batch_size,
            device=device,
            callback=lambda step: bar.update(run.evals_per_step),
        )
    except (NonFiniteError, MaxEvaluationsError) as error:
        nothing = torch.empty(0, *shape[1:])
        row = Row(**known, nfe=run.nfe, rmse=None, scores=None, seconds=0.0, network_seconds=0.0, failure=str(error))
        return row, nothing
    bar.update(run.tweedie)
    data = model.transform.inverse(done.x).cpu()
    distance = None
    if endpoint is not None and run.solver.eta == 0:
        distance = rmse(done.x[: endpoint.n].cpu(), endpoint.x.cpu())
    return (
        Row(
            **known,
            nfe=done.nfe,
            rmse=distance,
            scores=None if judge is None else judge(data),
            seconds=done.seconds,
            network_seconds=done.network_seconds,
        ),
        data,
    )
