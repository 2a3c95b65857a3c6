"""Which rows differ from which: paired differences of every metric at every budget.

Sample i of all rows has the same noise stream, and all rows are compared with the same real samples in the same splits.
What they share cancels in a difference, so its interval is narrower than those of the two values suggest.

    metrics against the flow          differences sample by sample, left out one at a time
    all others                        blocks left out of the generated and of the real samples, the same in all rows

Intervals hold at 95 % for one cell (Student's t). A matrix has many cells: ``sure`` holds at 95 % for all cells of a
matrix together (Holm 1979), and a claim in words is made of nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sde_toolkit.errors import ArgumentError
from sde_toolkit.metrics.jackknife import Resampled
from sde_toolkit.metrics.metric import Against, Metric, SampleSet
from sde_toolkit.metrics.splits import NO_SAMPLES
from sde_toolkit.progress import progress_bar

if TYPE_CHECKING:
    from sde_toolkit.evaluation.rows import Comparison

__all__ = ["Difference", "PairedDifferences", "PairedMatrix", "paired_differences"]

LEVEL = 0.95


@dataclass(frozen=True)
class Difference:
    """The value of one row minus that of another.

    ``low``, ``high``: the interval that holds at 95 % for this difference alone. ``p``: of no difference, two-sided;
    ``p_holm``: the same after Holm's correction over all pairs of the matrix.
    """

    value: float
    error: float
    low: float
    high: float
    p: float
    p_holm: float
    lower_is_better: bool | None

    @property
    def verdict(self) -> str:
        """``better``, ``worse``, or "" where the interval holds zero; for one cell alone."""
        return self._word(self.p)

    @property
    def sure(self) -> str:
        """The verdict that holds at 95 % for all cells of the matrix together."""
        return self._word(self.p_holm)

    def _word(self, p: float) -> str:
        if self.lower_is_better is None or not p < 1 - LEVEL:
            return ""
        return "better" if (self.value < 0) == self.lower_is_better else "worse"

    def __neg__(self) -> Difference:
        return replace(self, value=-self.value, low=-self.high, high=-self.low)


@dataclass(frozen=True, eq=False)
class PairedMatrix:
    """All differences of one metric at one budget. ``rows``: places in ``comparison.rows``. ``cells``: by places (i, j)
    with i before j."""

    metric: str
    budget: int | None
    rows: tuple[int, ...]
    cells: Mapping[tuple[int, int], Difference]

    def difference(self, i: int, j: int) -> Difference:
        """Row i minus row j.

        Raises:
            ArgumentError: for the same row twice, and for a row that is not in the matrix.
        """
        if (i, j) in self.cells:
            return self.cells[i, j]
        if (j, i) in self.cells:
            return -self.cells[j, i]
        problem = f"the matrix compares the rows {list(self.rows)} with one another"
        raise ArgumentError("i, j", (i, j), problem, "Pass two different ones of them.")

    def beaten(self, i: int) -> tuple[int, ...]:
        """The rows that are surely better than row i."""
        return tuple(j for j in self.rows if j != i and self.difference(j, i).sure == "better")

    @property
    def leaders(self) -> tuple[int, ...]:
        """The rows that no other one surely beats."""
        return tuple(i for i in self.rows if not self.beaten(i))

    def records(self) -> list[dict[str, Any]]:
        """Plain data, a dictionary for each pair."""
        about = {"metric": self.metric, "budget": self.budget}
        return [
            {**about, "row": i, "minus": j, **{name: _finite(getattr(cell, name)) for name in _NUMBERS},
             "verdict": cell.verdict, "sure": cell.sure}
            for (i, j), cell in self.cells.items()
        ]  # fmt: skip


_NUMBERS = ("value", "error", "low", "high", "p", "p_holm")


@dataclass(frozen=True, eq=False)
class PairedDifferences:
    """The matrices of a comparison, by metric and budget."""

    matrices: Mapping[tuple[str, int | None], PairedMatrix]

    @classmethod
    def of(cls, comparison: Comparison, progress: bool = False) -> PairedDifferences:
        """Every metric at every budget at which two rows were measured."""
        budgets = list(dict.fromkeys(row.budget for row in comparison.rows))
        found = {}
        bar = progress_bar(len(budgets) * len(comparison.metrics), "paired differences", enabled=progress)
        for metric in comparison.metrics:
            for budget in budgets:
                matrix = paired_differences(comparison, metric, budget)
                if matrix.cells:
                    found[metric.name, budget] = matrix
                bar.update()
        bar.close()
        return cls(found)

    def __getitem__(self, place: tuple[str, int | None]) -> PairedMatrix:
        return self.matrices[place]

    def __contains__(self, place: object) -> bool:
        return place in self.matrices

    def __iter__(self) -> Iterator[PairedMatrix]:
        return iter(self.matrices.values())

    def __len__(self) -> int:
        return len(self.matrices)

    def records(self) -> list[dict[str, Any]]:
        """Plain data, a dictionary for each pair of each matrix."""
        return [record for matrix in self for record in matrix.records()]


def paired_differences(comparison: Comparison, metric: Metric | str, budget: int | None) -> PairedMatrix:
    """The differences between all rows of a budget that have this metric.

    Raises:
        ArgumentError: for a metric that was not measured.
    """
    known = {each.name: each for each in comparison.metrics}
    name = metric if isinstance(metric, str) else metric.name
    if name not in known:
        raise ArgumentError("metric", name, "it was not measured", f"Choose from {', '.join(known)}.")
    places = [k for k, row in enumerate(comparison.rows) if row.budget == budget and name in row.measured]
    resampled = {k: _resampled(comparison, known[name], k) for k in places}
    return PairedMatrix(name, budget, tuple(places), differences(resampled, known[name].lower_is_better))


def differences(resampled: Mapping[int, Resampled], lower_is_better: bool | None) -> dict[tuple[int, int], Difference]:
    """All differences i − j, i before j, with Holm's correction over them."""
    places = list(resampled)
    cells = {
        (i, j): _difference(resampled[i] - resampled[j], lower_is_better)
        for at, i in enumerate(places)
        for j in places[at + 1 :]
    }
    corrected = holm([cell.p for cell in cells.values()])
    return {place: replace(cell, p_holm=p) for (place, cell), p in zip(cells.items(), corrected, strict=True)}


def holm(p: Sequence[float]) -> list[float]:
    """p-values corrected so that all of them hold together (Holm 1979); NaN stays, and counts as no test."""
    known = sorted((value, k) for k, value in enumerate(p) if not math.isnan(value))
    found, least = [math.nan] * len(p), 0.0
    for rank, (value, k) in enumerate(known):
        least = max(least, min(1.0, (len(known) - rank) * value))
        found[k] = least
    return found


def _difference(found: Resampled, lower_is_better: bool | None) -> Difference:
    """One difference with its interval. Without any error there is none: 0 ± 0 is no difference."""
    from scipy.special import stdtr, stdtrit

    value, error = found.value, found.error
    if math.isnan(error) or math.isnan(value):
        return Difference(value, math.nan, math.nan, math.nan, math.nan, math.nan, lower_is_better)
    if error == 0:
        p = 1.0 if value == 0 else 0.0
        return Difference(value, 0.0, value, value, p, p, lower_is_better)
    reach = float(stdtrit(found.degrees, (1 + LEVEL) / 2)) * error
    p = 2 * float(stdtr(found.degrees, -abs(value) / error))
    return Difference(value, error, value - reach, value + reach, p, p, lower_is_better)


def _resampled(comparison: Comparison, metric: Metric, k: int) -> Resampled:
    """A row's value, the mean over seeds, with the parts of its variance."""
    if metric.against is Against.FLOW:
        ends = comparison.endpoints[comparison.rows[k].model]
        found = [
            metric.resample(SampleSet(x[: end.n]), SampleSet(end.x.cpu()))
            for x, end in zip(comparison.draws[k], ends, strict=True)
        ]
    elif comparison.judge is not None:
        found = [comparison.judge.parts.resample(metric, own) for own in comparison.sets[k]]
    else:
        found = [metric.resample(own, NO_SAMPLES) for own in comparison.sets[k]]
    return Resampled.mean(found)


def _finite(value: float) -> float | None:
    """JSON knows no NaN."""
    return value if math.isfinite(value) else None
