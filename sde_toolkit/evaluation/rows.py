"""What a comparison of solvers found: one row for each solver at each budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.evaluation.comparison_request import ComparisonRequest
from sde_toolkit.evaluation.endpoint import Endpoint
from sde_toolkit.evaluation.error_parts import ErrorParts
from sde_toolkit.evaluation.paired import PairedDifferences
from sde_toolkit.evaluation.planned_run import USUAL
from sde_toolkit.jobs.fingerprints import behaviour, digest, model_fingerprint, tensor_digest
from sde_toolkit.jobs.provenance import code_identity, provenance_of
from sde_toolkit.jobs.store import PartStore
from sde_toolkit.metrics.judge import Judge
from sde_toolkit.metrics.metric import Against, Estimate, Metric, SampleSet

__all__ = ["Comparison", "Row", "Timing"]


@dataclass(frozen=True)
class Timing:
    """Wall time of a row's batches, which were drawn in turn with those of the other rows: seconds for one batch.

    The median with the lower and upper quartile, and the median of the network's time in it (NaN where it is not
    known). A row's first batch is left out if there are others, and so is a last one that is smaller.
    """

    median_seconds: float
    low: float
    high: float
    network_median: float
    batches: int

    @classmethod
    def of(cls, sizes: Sequence[int], seconds: Sequence[float], network_seconds: Sequence[float]) -> Timing | None:
        """From the sizes and times of all batches, in order; None without any."""
        if not sizes:
            return None
        rest = range(1, len(sizes)) if len(sizes) > 1 else range(1)
        largest = max(sizes[k] for k in rest)
        timed = [k for k in rest if sizes[k] == largest]
        low, median, high = (float(q) for q in np.quantile([seconds[k] for k in timed], (0.25, 0.5, 0.75)))
        return cls(median, low, high, float(np.median([network_seconds[k] for k in timed])), len(timed))


@dataclass(frozen=True, eq=False)
class Row:
    """One solver at one budget.

    ``solver`` and ``grid``: the names they were given; ``grid_set``: "usual" if each solver was given its own grid, the
    name of the grid if it was given to all. ``model``: the name of the row's model, "" if there is one model.
    ``budget``: evaluations allowed, None for an adaptive solver. ``nfe``: evaluations used, counted. ``times``: the
    grid. ``tweedie``: whether the last evaluation denoises. ``eta``: 0 for the flow, None for noise that is not that of
    the equation. ``samples_the_model``: False for step operators, which have no exact flow to be compared with.
    ``products``: products with the network's Jacobian per sample, counted; budgets leave them out. ``measured``: by the
    metrics' names, of those that could be measured, the mean over the seeds. ``seconds``, ``network_seconds``: wall
    time of all batches, one after the other, and of the network in it. ``failure``: why there are no samples, or "".
    """

    solver: str
    grid: str
    budget: int | None
    nfe: int
    times: tuple[float, ...]
    tweedie: bool
    eta: float | None
    integrator: str
    measured: Mapping[str, Estimate]
    seconds: float
    network_seconds: float
    timing: Timing | None = None
    grid_set: str = USUAL
    model: str = ""
    failure: str = ""
    products: int = 0
    samples_the_model: bool = True

    @property
    def diverged(self) -> bool:
        """Whether the row failed since its samples are not finite."""
        return "not finite" in self.failure

    @property
    def deterministic(self) -> bool:
        """Whether it solves the probability flow of the model."""
        return self.eta == 0 and self.samples_the_model

    @property
    def outside(self) -> float:
        """Share of the wall time spent outside the network."""
        return 1 - self.network_seconds / self.seconds if self.seconds > 0 else float("nan")


@dataclass(frozen=True, eq=False)
class Comparison:
    """All rows and what they were measured against.

    ``samples``: for each row the samples (n, *event) of the first seed in data space; empty if it failed. Sample i of
    every row comes from the same noise stream (seed, i), so that columns can be compared by eye. ``draws``: for each
    row and each seed the samples in model space; ``sets``: those that are judged, with their features. Both are empty
    if the row failed. ``points``: further samples of each row for its picture, in data space. ``endpoints``: the exact
    endpoints of the flow of each model, for each seed. ``paired``: the differences between rows; ``error_parts``: whose
    error it is, by the row's place and the metric's name.
    """

    request: ComparisonRequest
    rows: tuple[Row, ...]
    samples: tuple[Tensor, ...]
    draws: tuple[tuple[Tensor, ...], ...]
    sets: tuple[tuple[SampleSet, ...], ...]
    endpoints: Mapping[str, tuple[Endpoint, ...]]
    seconds: float
    points: tuple[Tensor, ...] = ()
    processes: int = 1
    store: PartStore | None = None
    paired: PairedDifferences | None = None
    error_parts: Mapping[int, Mapping[str, ErrorParts]] | None = None

    def pictured(self, k: int) -> Tensor:
        """The samples of row k that its picture shows, in data space."""
        further = self.points[k : k + 1]
        return torch.cat([self.samples[k], *further]) if further else self.samples[k]

    @property
    def endpoint(self) -> Endpoint | None:
        """The endpoints of the first model and the first seed, if there are some."""
        return next((several[0] for several in self.endpoints.values()), None)

    @cached_property
    def endpoint_data(self) -> Tensor | None:
        """The same in data space."""
        if self.endpoint is None:
            return None
        model = self.request.all_models[next(iter(self.endpoints))]
        return model.transform.inverse(self.endpoint.x.float()).cpu()

    def endpoint_of(self, row: Row) -> Endpoint | None:
        """The endpoints of the first seed that a row is held against: of its model, if it is deterministic."""
        return self.endpoints[row.model][0] if row.deterministic and row.model in self.endpoints else None

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

    def write(
        self, to: str | Path, provenance: Mapping[str, Any] | None = None, *, title: str = "Solver comparison"
    ) -> Path:
        """Write the report, see :func:`~sde_toolkit.evaluation.write_report`; by default with this provenance."""
        from sde_toolkit.evaluation.report import write_report

        return write_report(self, to, self.provenance() if provenance is None else provenance, title=title)

    def provenance(self, name: str | None = None, weights: str | None = None, command: list[str] | None = None) -> Any:
        """Plain data on the models, the machine and the versions, see :func:`~sde_toolkit.jobs.provenance_of`."""
        request = self.request
        name = name or ", ".join(request.models or [type(request.model.network).__name__])
        record = provenance_of(request.model, name, weights, seed=request.seed, command=command)
        if request.models:
            record["models"] = {name: model.description() for name, model in request.models.items()}
        return record

    def hashes(self) -> dict[str, Any]:
        """What the rows depend on: hashes of each model with its weights, of the real samples, and of the code."""
        shape = self.request.event_shape
        models = {
            name: digest({**model_fingerprint(model), "behaviour": behaviour(model, shape)})
            for name, model in (self.request.all_models or {"": self.request.model}).items()
        }
        real = None if self.judge is None else tensor_digest(self.judge.real)
        return {"models": models, "data": real, "code": code_identity()}

    def forget_parts(self) -> None:
        """Delete the finished parts, which an interrupted comparison continues from. Its report is there now."""
        if self.store is not None:
            self.store.clear()

    @property
    def several_grids(self) -> bool:
        return len({row.grid for row in self.rows}) > 1

    def label(self, row: Row) -> str:
        """The solver's name, with its grid where it has rows on more than one."""
        several = {other.grid for other in self.rows if other.solver == row.solver}
        return f"{row.solver} · {row.grid}" if len(several) > 1 else row.solver

    def records(self) -> list[dict[str, Any]]:
        """One flat dictionary per row: what CSV and JSON are made of."""
        return [self._record(row) for row in self.rows]

    def _record(self, row: Row) -> dict[str, Any]:
        record: dict[str, Any] = {
            "solver": row.solver,
            "grid": row.grid,
            "budget": row.budget,
            "nfe": row.nfe,
            "products": row.products,
            "steps": len(row.times) - 1,
            "tweedie": row.tweedie,
            "eta": row.eta,
            "integrator": row.integrator,
            "model": row.model,
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
