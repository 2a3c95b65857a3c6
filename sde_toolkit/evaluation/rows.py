"""What a comparison of solvers found: one row for each solver at each budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sde_toolkit.evaluation.endpoint import Endpoint
from sde_toolkit.evaluation.planning import ComparisonRequest
from sde_toolkit.jobs.store import PartStore
from sde_toolkit.metrics.judge import Judge
from sde_toolkit.metrics.metric import Against, Estimate, Metric

__all__ = ["Comparison", "Row"]


@dataclass(frozen=True, eq=False)
class Row:
    """One solver at one budget.

    ``solver`` and ``grid``: the names they were given. ``budget``: evaluations allowed, None for an adaptive
    solver. ``nfe``: evaluations used, counted. ``times``: the grid. ``tweedie``: whether the last evaluation
    denoises. ``measured``: by the metrics' names, of those that could be measured. ``seconds``, ``network_seconds``:
    wall time of all batches, one after the other, and of the network in it. ``failure``: why there are no samples,
    or "".
    """

    solver: str
    grid: str
    budget: int | None
    nfe: int
    times: tuple[float, ...]
    tweedie: bool
    eta: float
    integrator: str
    measured: Mapping[str, Estimate]
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
    comes from the same noise stream (seed, i), so that columns can be compared by eye. ``endpoint_data``: the exact
    endpoints of the flow, in data space.
    """

    request: ComparisonRequest
    rows: tuple[Row, ...]
    samples: tuple[Tensor, ...]
    endpoint: Endpoint | None
    endpoint_data: Tensor | None
    seconds: float
    processes: int = 1
    store: PartStore | None = None

    @property
    def judge(self) -> Judge | None:
        """What compared the samples with real data, if there were some."""
        return self.request.judge

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """What was measured, in the order of the columns."""
        return self.request.measured

    @property
    def n(self) -> int:
        """Samples per row."""
        return self.request.n

    @property
    def shown(self) -> list[Metric]:
        """The metrics with a column in the table. Without an endpoint, metrics against the flow have none."""
        return [m for m in self.metrics if m.against is not Against.FLOW or self.endpoint is not None]

    def floor(self, metric: Metric) -> Estimate | None:
        """The value of as many real samples; None without real data, or for a metric without a floor."""
        if self.judge is None or metric.against is Against.FLOW:
            return None
        return self.judge.parts.floor(metric)

    def at_floor(self, metric: Metric, row: Row) -> bool | None:
        """Whether this metric cannot tell a row from real samples; None without a value or a floor."""
        found, floor = row.measured.get(metric.name), self.floor(metric)
        return None if found is None or floor is None else metric.reaches(found, floor)

    def forget_parts(self) -> None:
        """Delete the finished parts, which an interrupted comparison continues from. Its report is there now."""
        if self.store is not None:
            self.store.clear()

    @property
    def several_grids(self) -> bool:
        return len({row.grid for row in self.rows}) > 1

    def label(self, row: Row) -> str:
        """The solver's name, with its grid where there is more than one."""
        return f"{row.solver} · {row.grid}" if self.several_grids else row.solver

    def records(self) -> list[dict[str, Any]]:
        """One flat dictionary per row: what CSV and JSON are made of."""
        return [self._record(row) for row in self.rows]

    def _record(self, row: Row) -> dict[str, Any]:
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
        for metric in self.metrics:
            estimate = row.measured.get(metric.name)
            record[metric.name] = estimate.value if estimate else None
            record[f"{metric.name}_error"] = estimate.error if estimate else None
        for metric in self.metrics:
            if self.floor(metric) is not None:
                record[f"{metric.name}_at_floor"] = self.at_floor(metric, row)
        return record | {
            "seconds": row.seconds,
            "network_seconds": row.network_seconds,
            "outside_network": row.outside,
            "failure": row.failure,
        }
