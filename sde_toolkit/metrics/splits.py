"""Real data in random parts, and generated samples measured against them.

N real samples are split at random, R times, into n of them and the other N − n. Generated sets have n samples too, so
all distances are between sets of the same sizes:

    a value is    mean_r D(generated, rest_r)     its error: that of D(generated, rest_1)
    the floor is  mean_r D(held out_r, rest_r)    its error: the standard deviation over r

The floor's error says by how much n *real* samples differ from one another in the same test.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from sde_toolkit.errors import ArgumentError, DataError
from sde_toolkit.metrics.estimates import Estimate
from sde_toolkit.metrics.jackknife import Resampled
from sde_toolkit.metrics.metric import Against, Metric, SampleSet

__all__ = ["NO_SAMPLES", "OnParts", "Prepared", "RealParts"]


NO_SAMPLES = SampleSet(torch.empty(0))  # the reference of a metric that has none


class Prepared(Protocol):
    """A metric with its real data: it measures generated sets, and has a floor."""

    @property
    def floor(self) -> Estimate | None:
        """The value of as many real samples; None for a metric without a floor."""

    def measure(self, generated: SampleSet) -> Estimate:
        """The value of a set of samples."""

    def resample(self, generated: SampleSet) -> Resampled:
        """The value with the parts of its variance, for differences between sets."""


class RealParts:
    """Real samples, their random splits, and the metrics that are measured against them.

    Args:
        whole: all N real samples.
        n: size of the generated sets. At most N // 2 of them are measured against parts (``self.n``).
        splits: number R of random splits.
        seed: of the splits.
    """

    def __init__(self, whole: SampleSet, n: int, splits: int = 8, seed: int = 0) -> None:
        self.whole = whole
        self.n = min(n, len(whole) // 2)
        self.splits = splits
        self.seed = seed
        self._given_n = n
        self._prepared: list[tuple[Metric, Prepared]] = []
        self._floors: dict[int, Estimate | None] = {}

    @cached_property
    def parts(self) -> list[tuple[NDArray[Any], NDArray[Any]]]:
        """For each split the places of the n held out samples, and of the rest.

        Raises:
            ArgumentError, DataError: for too few samples or splits.
        """
        if len(self.whole) < 4:
            raise DataError("real", len(self.whole), "fewer than 4 real samples", "Give more of them.")
        if self._given_n < 2:
            problem = "distances between distributions need at least two samples"
            raise ArgumentError("n", self._given_n, problem, "Raise n.")
        if self.splits < 2:
            raise ArgumentError("splits", self.splits, "the floor's error needs at least two splits", "8 is usual.")
        rng = np.random.default_rng(self.seed)
        orders = [rng.permutation(len(self.whole)) for _ in range(self.splits)]
        return [(order[: self.n], order[self.n :]) for order in orders]

    def rest(self, r: int) -> SampleSet:
        """What generated sets are compared with in split r."""
        return self.whole.at(self.parts[r][1])

    def held_out(self, r: int) -> SampleSet:
        """The n real samples of split r."""
        return self.whole.at(self.parts[r][0])

    def prepared(self, metric: Metric) -> Prepared:
        """A metric that is ready to measure against these samples; prepared once."""
        for known, ready in self._prepared:
            if known is metric:
                return ready
        self._prepared.append((metric, metric.prepare(self) or _by_kind(metric, self)))
        return self._prepared[-1][1]

    def measure(self, metric: Metric, generated: SampleSet) -> Estimate:
        """The value of a set of samples."""
        return self.prepared(metric).measure(generated)

    def resample(self, metric: Metric, generated: SampleSet) -> Resampled:
        """The value with the parts of its variance, for differences between sets."""
        return self.prepared(metric).resample(generated)

    def floor(self, metric: Metric) -> Estimate | None:
        """The value of as many real samples; None for a metric without a floor. Computed once."""
        ready = self.prepared(metric)
        if id(ready) not in self._floors:
            self._floors[id(ready)] = ready.floor
        return self._floors[id(ready)]


def _by_kind(metric: Metric, real: RealParts) -> Prepared:
    """A metric with the real data that it is measured against, by what it is compared with."""
    kinds: dict[Against, type[Any]] = {Against.PARTS: OnParts, Against.ALL: _OnAll, Against.NOTHING: _Alone}
    found: Prepared = kinds[metric.against](metric, real)
    return found


class OnParts:
    """A metric that is measured against every split in turn, with no shared work."""

    def __init__(self, metric: Metric, real: RealParts) -> None:
        self.metric, self.real = metric, real

    @property
    def floor(self) -> Estimate:
        splits = range(self.real.splits)
        values = [self.metric.value(self.real.held_out(r), self.real.rest(r)) for r in splits]
        return Estimate(float(np.mean(values)), float(np.std(values, ddof=1)))

    def measure(self, generated: SampleSet) -> Estimate:
        first = self.metric.compute(generated, self.real.rest(0))
        return Estimate(self._mean(first.value, generated), first.error, first.also)

    def resample(self, generated: SampleSet) -> Resampled:
        first = self.metric.resample(generated, self.real.rest(0))
        return first.moved_to(self._mean(first.value, generated))

    def _mean(self, first: float, generated: SampleSet) -> float:
        others = [self.metric.value(generated, self.real.rest(r)) for r in range(1, self.real.splits)]
        return float(np.mean([first, *others]))


@dataclass(frozen=True, eq=False)
class _OnAll:
    metric: Metric
    real: RealParts

    @property
    def floor(self) -> None:
        return None

    def measure(self, generated: SampleSet) -> Estimate:
        return self.metric.compute(generated, self.real.whole)

    def resample(self, generated: SampleSet) -> Resampled:
        return self.metric.resample(generated, self.real.whole)


@dataclass(frozen=True, eq=False)
class _Alone:
    metric: Metric
    real: RealParts

    @property
    def floor(self) -> Estimate:
        return self.measure(self.real.whole)

    def measure(self, generated: SampleSet) -> Estimate:
        return self.metric.compute(generated, NO_SAMPLES)

    def resample(self, generated: SampleSet) -> Resampled:
        return self.metric.resample(generated, NO_SAMPLES)
