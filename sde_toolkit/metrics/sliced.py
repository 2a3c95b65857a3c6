"""The sliced Wasserstein distance: its exact value between sets of any sizes, with errors, for one set or many.

Between sorted numbers a_1..a_n and b_1..b_m on a line W_2² is an integral over quantiles. Cut the quantiles into n
cells of equal size. With c_i the mean of b over cell i,

    W_2² = 1/n Σ_i (a_i − c_i)²  +  the spread of b inside the cells

The c_i and the spread depend on b and on n alone. They are computed once, and every further set of n samples takes a
sort and n products per direction. Samples that are left out of a sorted set leave it sorted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sde_toolkit.errors import ArgumentError
from sde_toolkit.metrics.distances import two_sets
from sde_toolkit.metrics.estimates import Array, Estimate
from sde_toolkit.metrics.jackknife import BLOCKS, Resampled, leave_blocks_out
from sde_toolkit.metrics.metric import Axis, Metric, SampleSet, library
from sde_toolkit.metrics.splits import RealParts

__all__ = ["SlicedReference", "SlicedWasserstein", "random_directions", "sliced_wasserstein"]

_AT_ONCE = 2**20  # numbers in the memory of one step of the work
_KEPT = 2**25  # numbers in cells that are kept for further sets


def sliced_wasserstein(
    x: ArrayLike, y: ArrayLike, *, projections: int = 128, seed: int = 0, blocks: int = 8
) -> Estimate:
    """√(mean over random directions θ of W_2²(θ·x, θ·y)), in the units of the data.

    Rabin, Peyré, Delon & Bernot 2011; Bonneel, Rabin, Peyré & Pfister 2015. Finite sets of one distribution have a
    positive distance, which shrinks as they grow. Compare values only between sets of equal sizes, and with the value
    of two real sets of these sizes.

    Args:
        x, y: (n, ...) and (m, ...), same event shape.
        projections: number of directions, shared by all comparisons with the same ``seed``.
        blocks: blocks of the delete-block jackknife over x and over y; 0 leaves the error NaN.

    Raises:
        DataError: for arrays that cannot be compared.
    """
    x, y = two_sets(x, y)
    if blocks == 1:
        raise ArgumentError("blocks", blocks, "a jackknife leaves out at least two blocks in turn", "8 is usual.")
    directions = random_directions(x.shape[1], projections, seed)
    reference, generated = _Reference(_Sorted.of(y, directions)), _Sorted.of(x, directions)
    value = reference.distance(generated)
    if blocks == 0:
        return Estimate(value, math.nan)
    return Estimate(value, reference.resample(generated, value, blocks).error)


def random_directions(dimension: int, count: int, seed: int) -> Array:
    """Uniform unit vectors, (count, dimension); those of POT's ``get_random_projections``.

    Raises:
        ArgumentError: for no direction.
    """
    if count < 1:
        raise ArgumentError("projections", count, "at least one direction is needed", "128 is usual.")
    normal = np.random.RandomState(seed).randn(dimension, count)
    directions: Array = np.ascontiguousarray((normal / np.sqrt((normal**2).sum(0, keepdims=True))).T)
    return directions


@dataclass(frozen=True, eq=False)
class _Sorted:
    """Samples on every line: ``values`` (P, n) in increasing order, and ``order`` (P, n), which sample each is."""

    values: Array
    order: NDArray[np.int32]

    def __len__(self) -> int:
        return self.values.shape[1]

    @classmethod
    def of(cls, samples: Array, directions: Array) -> _Sorted:
        """Samples (n, d) on lines of these directions (P, d)."""
        along = directions @ samples.T
        order = np.argsort(along, axis=1).astype(np.int32)
        return cls(np.take_along_axis(along, order, axis=1), order)

    def only(self, places: NDArray[np.int64]) -> Array:
        """The sorted values of the samples at these places, (P, how many)."""
        stays = np.zeros(len(self), np.bool_)
        stays[places] = True
        return self.values[stays[self.order]].reshape(len(self.values), -1)

    def part(self, places: NDArray[np.int64]) -> _Sorted:
        """The samples at these places; they are then numbered as they stand there."""
        number = np.full(len(self), -1, np.int32)
        number[places] = np.arange(len(places), dtype=np.int32)
        order = number[self.order]
        stays = order >= 0
        shape = (len(order), len(places))
        return _Sorted(self.values[stays].reshape(shape), order[stays].reshape(shape))


@dataclass(frozen=True, eq=False)
class _Cells:
    """A set as n samples see it: the means of its n quantile cells (P, n), and the spread inside them (P,)."""

    means: Array
    spread: Array

    @classmethod
    def of(cls, values: Array, n: int) -> _Cells:
        """Sorted values (P, m) in n cells."""
        P, m = values.shape
        if n == m:
            return cls(values, np.zeros(P))
        cuts = np.union1d(np.arange(n + 1, dtype=np.int64) * m, np.arange(m + 1, dtype=np.int64) * n)
        weights, cell, place = np.diff(cuts) / m, cuts[:-1] // m, cuts[:-1] // n  # a cell weighs 1
        first = np.searchsorted(cell, np.arange(n))
        means, spread, rows = np.empty((P, n)), np.empty(P), max(1, _AT_ONCE // len(weights))
        for begin in range(0, P, rows):
            some = slice(begin, begin + rows)
            pieces = values[some][:, place]
            means[some] = np.add.reduceat(pieces * weights, first, axis=1)
            pieces -= means[some][:, cell]
            spread[some] = (pieces**2) @ weights / n
        return cls(means, spread)

    def distance(self, values: Array) -> float:
        """To sorted values (P, n)."""
        apart = values - self.means
        squares = np.einsum("pn,pn->p", apart, apart) / values.shape[1] + self.spread
        return math.sqrt(float(squares.mean()))

    @property
    def size(self) -> int:
        return self.means.size


class _Reference:
    """A set that many sets are compared with. Its cells are kept as long as they are few."""

    def __init__(self, samples: _Sorted) -> None:
        self.samples = samples
        self._kept: dict[Hashable, _Cells] = {}

    def _cells(self, name: Hashable, make: Callable[[], _Cells]) -> _Cells:
        if name in self._kept:
            return self._kept[name]
        made = make()
        if sum(cells.size for cells in self._kept.values()) + made.size <= _KEPT:
            self._kept[name] = made
        return made

    def distance(self, generated: _Sorted) -> float:
        return self._distance(generated.values)

    def _distance(self, values: Array) -> float:
        n = values.shape[1]
        return self._cells(n, lambda: _Cells.of(self.samples.values, n)).distance(values)

    def resample(self, generated: _Sorted, value: float, blocks: int = BLOCKS) -> Resampled:
        """The value with the parts of its variance."""
        return Resampled.of(value, self._without_generated(generated, blocks), self._without_own(generated, blocks))

    def _without_generated(self, generated: _Sorted, blocks: int) -> list[float]:
        def without(places: NDArray[np.int64]) -> float:
            return self._distance(generated.only(places))

        return leave_blocks_out(without, len(generated), blocks)

    def _without_own(self, generated: _Sorted, blocks: int) -> list[float]:
        n = len(generated)

        def without(places: NDArray[np.int64]) -> float:
            name = (n, int(places[0]), len(places), int(places.sum()), blocks)
            return self._cells(name, lambda: _Cells.of(self.samples.only(places), n)).distance(generated.values)

        return leave_blocks_out(without, len(self.samples), blocks)


class SlicedReference:
    """Samples (m, ...) that many sets are compared with by :func:`sliced_wasserstein`. They are sorted once."""

    def __init__(self, samples: ArrayLike, *, projections: int = 128, seed: int = 0) -> None:
        values, _ = two_sets(samples, samples)
        self._directions = random_directions(values.shape[1], projections, seed)
        self._sorted = _Reference(_Sorted.of(values, self._directions))

    def resample(self, samples: ArrayLike, blocks: int = BLOCKS) -> Resampled:
        """The distance of samples (n, ...) with the parts of its variance."""
        values, _ = two_sets(samples, samples)
        own = _Sorted.of(values, self._directions)
        return self._sorted.resample(own, self._sorted.distance(own), blocks)


@dataclass(frozen=True)
class SlicedWasserstein(Metric):
    """:func:`sliced_wasserstein` between features."""

    projections: int = 128
    seed: int = 0

    name = "sliced_wasserstein"
    heading = "sliced W2"
    title = "sliced Wasserstein distance"
    meaning = "sliced Wasserstein distance to real data"
    axis = Axis.LOG

    @property
    def explanation(self) -> str:  # type: ignore[override]
        return (
            f"√(mean of W₂² over {self.projections} random directions, the same for all sets) (Rabin et al. 2011; "
            "Bonneel et al. 2015). Finite sets are never at distance zero: read it against the floor. Its "
            "error is a delete-block jackknife, 8 blocks of either set."
        )

    def compute(self, generated: SampleSet, reference: SampleSet) -> Estimate:
        return self._between(generated, reference, blocks=8)

    def value(self, generated: SampleSet, reference: SampleSet) -> float:
        return self._between(generated, reference, blocks=0).value

    def _between(self, a: SampleSet, b: SampleSet, blocks: int) -> Estimate:
        return sliced_wasserstein(a.features, b.features, projections=self.projections, seed=self.seed, blocks=blocks)

    def resample(self, generated: SampleSet, reference: SampleSet) -> Resampled:
        x, y = two_sets(generated.features, reference.features)
        directions = random_directions(x.shape[1], self.projections, self.seed)
        to, own = _Reference(_Sorted.of(y, directions)), _Sorted.of(x, directions)
        return to.resample(own, to.distance(own))

    def between_pairs(self, one: SampleSet, other: SampleSet) -> Resampled:
        x, y = two_sets(one.features, other.features)
        directions = random_directions(x.shape[1], self.projections, self.seed)
        a, b = _Sorted.of(x, directions), _Sorted.of(y, directions)

        def between(places: NDArray[np.int64]) -> float:
            return _Cells.of(b.only(places), len(places)).distance(a.only(places))

        return Resampled.of(_Cells.of(b.values, len(b)).distance(a.values), leave_blocks_out(between, len(a)), [])

    def prepare(self, real: RealParts) -> _SlicedParts:
        return _SlicedParts(self, real)

    def conditions(self, n: int, n_real: int) -> dict[str, Any]:
        return {"library": library(), "projections": self.projections}


class _SlicedParts:
    """The sliced distances to all splits of the real data. The real data are sorted once."""

    def __init__(self, metric: SlicedWasserstein, real: RealParts) -> None:
        values, _ = two_sets(real.whole.features, real.whole.features)
        self.directions = random_directions(values.shape[1], metric.projections, metric.seed)
        self.parts, self.n = real.parts, real.n
        self._whole = _Sorted.of(values, self.directions)

    @cached_property
    def _first(self) -> _Reference:
        """The rest of the first split, from which blocks are left out."""
        return _Reference(self._whole.part(self.parts[0][1]))

    @cached_property
    def _rests(self) -> list[_Cells]:
        """The rest of every split in cells of n samples."""
        return [_Cells.of(self._whole.only(rest), self.n) for _, rest in self.parts]

    def _sorted(self, generated: SampleSet) -> _Sorted:
        values, _ = two_sets(generated.features, generated.features)
        return _Sorted.of(values, self.directions)

    def _mean(self, generated: _Sorted) -> float:
        return float(np.mean([rest.distance(generated.values) for rest in self._rests]))

    def measure(self, generated: SampleSet) -> Estimate:
        """The mean over splits; the error is the jackknife of the first, by 8 blocks."""
        own = self._sorted(generated)
        return Estimate(self._mean(own), self._first.resample(own, 0.0, blocks=8).error)

    def resample(self, generated: SampleSet) -> Resampled:
        """The mean over splits; the parts of the variance are those of the first."""
        own = self._sorted(generated)
        return self._first.resample(own, self._mean(own))

    @cached_property
    def floor(self) -> Estimate:
        """Each split's held out part against its rest."""
        found = [rest.distance(self._whole.only(held)) for rest, (held, _) in zip(self._rests, self.parts, strict=True)]
        return Estimate(float(np.mean(found)), float(np.std(found, ddof=1)))
