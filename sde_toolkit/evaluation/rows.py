"""What a comparison of solvers found: one row for each solver at each budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sde_toolkit.evaluation.endpoint import Endpoint
from sde_toolkit.jobs.store import PartStore
from sde_toolkit.metrics.distances import Estimate
from sde_toolkit.metrics.judge import Judge, Scores, at_floor, plausible_at_floor

__all__ = ["Comparison", "Row"]


@dataclass(frozen=True)
class Row:
    """One solver at one budget.

    ``solver`` and ``grid``: the names they were given. ``budget``: evaluations allowed, None for an adaptive
    solver. ``nfe``: evaluations used, counted. ``times``: the grid. ``tweedie``: whether the last evaluation
    denoises. ``rmse``: to the flow's exact endpoint, per element, model space; None for stochastic solvers.
    ``scores``: None without real data. ``seconds``, ``network_seconds``: wall time of all batches, one after the
    other, and of the network in it. ``failure``: why there are no samples, or "".
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
    processes: int = 1
    store: PartStore | None = None

    def forget_parts(self) -> None:
        """Take away the parts that the comparison could be taken up from, now that its report is there."""
        if self.store is not None:
            self.store.clear()

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
