"""Whose error is it? The distance of a row to the data, beside the parts that it is made of.

    network           the exact flow of this network (for stochastic rows its reverse SDE), against the data, less the
                      floor of two sets of real samples
    discretisation    the row's samples against that flow or SDE, truncation included
    truncation        the exact flow begun and stopped where the row begins and stops, against the whole flow
    rounding          the row in float32 against the row in float64, for a few noises

Parts are in the units of the metric. Samples of a deterministic row and of the flow belong together, one by one: their
distance is zero if the solver makes no error, however few samples there are. The noise of a stochastic row is its own.
There the SDE's samples are cut in halves at random; the part is the row's distance to one half, less that of the SDE's
own other half. For metrics where larger is better, such as shares, a part is a difference of two values.

Distances are no sums: the parts need not add up to the row's value.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.errors import SDEToolkitError
from sde_toolkit.evaluation.comparison_request import ComparisonRequest
from sde_toolkit.evaluation.planned_run import BatchRequest
from sde_toolkit.evaluation.references import References, ending_of
from sde_toolkit.metrics.estimates import Estimate
from sde_toolkit.metrics.jackknife import Resampled
from sde_toolkit.metrics.metric import Against, Metric, SampleSet
from sde_toolkit.metrics.splits import NO_SAMPLES, RealParts
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.progress import progress_bar
from sde_toolkit.sampling.loop import rows_of

if TYPE_CHECKING:
    from sde_toolkit.evaluation.rows import Comparison

__all__ = ["ErrorParts", "error_parts", "error_parts_records", "rounded_samples"]

ROUNDED = 8  # samples that are drawn again in float64
_HALVINGS = 4


@dataclass(frozen=True)
class ErrorParts:
    """The parts of one row's error in one metric; None where a part was not measured."""

    network: Estimate | None = None
    discretisation: Estimate | None = None
    truncation: Estimate | None = None
    rounding: Estimate | None = None


PARTS = ("network", "discretisation", "truncation", "rounding")


def error_parts(
    comparison: Comparison, references: Mapping[str, References] | None, progress: bool = False
) -> dict[int, dict[str, ErrorParts]]:
    """The parts of every row's error, by the row's place and the metric's name; nothing without references.

    Rows that failed have none. They are those of the first seed. ``references``: from
    :func:`~sde_toolkit.evaluation.references.solve_references`.
    """
    found: dict[int, dict[str, ErrorParts]] = {}
    sides = {name: _Side(comparison, name, own) for name, own in (references or {}).items()}
    bar = progress_bar(len(comparison.rows) * bool(sides), "parts of the error", enabled=progress and bool(sides))
    for k, row in enumerate(comparison.rows):
        if row.model in sides and not row.failure:
            found[k] = sides[row.model].parts(k)
        bar.update(bool(sides))
    bar.close()
    return found


def error_parts_records(parts: Mapping[int, Mapping[str, ErrorParts]]) -> list[dict[str, Any]]:
    """Plain data: a dictionary for each row and metric, each part as [value, error] or None."""
    return [
        {"row": k, "metric": name, **{part: _pair(getattr(found, part)) for part in PARTS}}
        for k, of_row in parts.items()
        for name, found in of_row.items()
    ]


def _pair(estimate: Estimate | None) -> list[float | None] | None:
    if estimate is None:
        return None
    return [value if math.isfinite(value) else None for value in (estimate.value, estimate.error)]


@dataclass(eq=False)
class _Side:
    """The references of one model, with their features, and what rows of this model have in common."""

    comparison: Comparison
    name: str
    references: References

    def parts(self, k: int) -> dict[str, ErrorParts]:
        """The parts of row k by the metrics' names."""
        row = self.comparison.rows[k]
        again = self._in_double(k)
        found = {}
        for metric in self.comparison.metrics:
            if metric.against is Against.FLOW:
                if row.deterministic and metric.name in row.measured:
                    found[metric.name] = self._to_the_flow(metric, k, again)
            else:
                found[metric.name] = self._to_the_data(metric, k, again)
        return found

    def _to_the_flow(self, metric: Metric, k: int, again: Tensor | None) -> ErrorParts:
        """In model space, sample by sample."""
        flow, end, x = self.references.flow, self._stopped(k), self.comparison.draws[k][0]
        truncation: Estimate | None = Estimate(0.0, 0.0)
        rounding = None
        if end is not None and flow is not None:
            images = "package" in self.references.sources.values()  # of 8 bits, too coarse to be compared one by one
            truncation = None if images else metric.compute(SampleSet(end), SampleSet(flow))
        if again is not None:
            rounding = metric.compute(SampleSet(x[: len(again)]), SampleSet(again))
        return ErrorParts(None, self.comparison.rows[k].measured[metric.name], truncation, rounding)

    def _to_the_data(self, metric: Metric, k: int, again: Tensor | None) -> ErrorParts:
        row, own = self.comparison.rows[k], self.comparison.sets[k][0]
        if not row.samples_the_model:  # there is no flow or SDE that it should follow
            return ErrorParts()
        base = self._flow if row.deterministic else self._sde
        end = self._stopped(k)
        if base is None:
            return ErrorParts()
        if len(base) < len(own):  # without real data there are as many references as endpoints
            own = own.at(np.arange(len(base)))
        if row.deterministic or metric.lower_is_better is not True or metric.against is Against.NOTHING:
            discretisation = self._apart(metric, own, base)
        else:
            discretisation = beyond_halves(metric, own, base)
        truncation = Estimate(0.0, 0.0)
        if end is not None and self._flow is not None:
            truncation = self._apart(metric, self._set(end), self._flow)
        rounding = None
        if again is not None:
            first = self.comparison.sets[k][0].at(np.arange(len(again)))
            rounding = _if_it_can(lambda: self._apart(metric, first, self._set(again, whole=False)))
        return ErrorParts(self._network(metric, row.deterministic), discretisation, truncation, rounding)

    def _network(self, metric: Metric, deterministic: bool) -> Estimate | None:
        """The value of the flow or of the SDE less the floor; None without a floor."""
        base, floor = self._flow if deterministic else self._sde, self.comparison.floor(metric)
        if base is None or floor is None or self.comparison.judge is None:
            return None
        value = self.comparison.judge.parts.measure(metric, base)
        return Estimate(value.value - floor.value, math.hypot(value.error, floor.error))

    def _apart(self, metric: Metric, one: SampleSet, other: SampleSet) -> Estimate:
        """The distance of two sets whose samples belong together; for other metrics the difference of their values."""
        if metric.lower_is_better is True and metric.against is not Against.NOTHING:
            return metric.between_pairs(one, other).estimate
        judge = self.comparison.judge
        if judge is None or len(one) < judge.n:
            reference = NO_SAMPLES if judge is None or metric.against is Against.NOTHING else judge.parts.whole
            found = [metric.resample(each, reference) for each in (one, other)]
        else:
            found = [judge.parts.resample(metric, each) for each in (one, other)]
        return (found[0] - found[1]).estimate

    def _stopped(self, k: int) -> Tensor | None:
        """The flow stopped as row k is; None where that is the whole flow."""
        request = self.comparison.request
        ending = ending_of(request.runs[k], request.all_models[self.name])
        return None if ending is None else self.references.ends.get(ending)

    @cached_property
    def _flow(self) -> SampleSet | None:
        return None if self.references.flow is None else self._set(self.references.flow)

    @cached_property
    def _sde(self) -> SampleSet | None:
        return None if self.references.sde is None else self._set(self.references.sde)

    def _set(self, x: Tensor, whole: bool = True) -> SampleSet:
        """Samples in model space as a set in data space. ``whole``: as many as the judge compares."""
        request = self.comparison.request
        data = request.all_models[self.name].transform.inverse(x.to(request.device)).cpu()
        if request.judge is None:
            return SampleSet(data)
        return request.judge.sample_set(data) if whole else request.judge.features.sample_set(data)

    @cached_property
    def _double_model(self) -> ScoreModel | None:
        """The model in float64; None where it cannot be had."""
        request = self.comparison.request
        if torch.device(request.device).type == "mps":  # it has no float64
            return None
        return _if_it_can(lambda: copy.deepcopy(request.all_models[self.name]).double())

    def _in_double(self, k: int) -> Tensor | None:
        """The first samples of a row, drawn in float64; None for solvers that cannot."""
        request, model = self.comparison.request, self._double_model
        run = request.runs[k].in_double()
        if run is None or model is None:
            return None
        n = rounded_samples(request)
        batch = BatchRequest(0, n, request.seed, rows_of(request.condition, 0, n), request.device)
        return _if_it_can(lambda: run.draw(model, batch).x.cpu())


def rounded_samples(request: ComparisonRequest) -> int:
    """How many samples of each row are drawn again in float64."""
    return min(ROUNDED, request.n if request.judge is None else request.judge.n)


def beyond_halves(metric: Metric, own: SampleSet, base: SampleSet) -> Estimate:
    """The distance of one half of a row's samples to the other half of the reference, less that of the reference."""
    halves = RealParts(base, len(base) // 2, _HALVINGS)
    values: list[float] = []
    first: Resampled | None = None
    for r, (places, _) in enumerate(halves.parts):
        rest, mine, its = halves.rest(r), own.at(places), halves.held_out(r)
        if first is None:
            first = metric.resample(mine, rest) - metric.resample(its, rest)
            values.append(first.value)
        else:
            values.append(metric.value(mine, rest) - metric.value(its, rest))
    return Estimate(float(np.mean(values)), math.nan if first is None else first.error)


def _if_it_can(compute: Callable[[], Any]) -> Any:
    """What is found, or None: some networks cannot be copied, and some metrics need more than a few samples."""
    try:
        return compute()
    except (SDEToolkitError, TypeError, ValueError, RuntimeError):
        return None
