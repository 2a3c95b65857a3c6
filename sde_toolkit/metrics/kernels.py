"""Kernel distances: the unbiased estimate of MMD² and its kernels.

    kernel_distance       Gretton et al. 2012; Binkowski et al. 2018: KID with the kernel (x·y/d + 1)³

Samples are the first axis of finite arrays; further axes are flattened. Computed in float64. Standard errors come from
the delete-one jackknife over both sets. For two sets of one distribution it is too large rather than too
small.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import ArrayLike

from sde_toolkit.checks import check_positive
from sde_toolkit.errors import DataError
from sde_toolkit.metrics.distances import two_sets
from sde_toolkit.metrics.estimates import Array, Estimate
from sde_toolkit.metrics.jackknife import Resampled
from sde_toolkit.metrics.metric import Axis, Metric, SampleSet, library
from sde_toolkit.metrics.splits import RealParts

__all__ = [
    "Kernel",
    "KernelDistance",
    "cubic",
    "kernel_diagonal",
    "kernel_distance",
    "kernel_resampled",
    "kernel_sums",
    "paired_kernel_distance",
    "rational_quadratic",
    "unbiased_mmd",
    "within_sums",
]

Kernel = Callable[[Array, Array], Array]
"""A positive definite function of (n, d) and (m, d), with values (n, m)."""


def cubic(a: Array, b: Array) -> Array:
    """KID's kernel (a·b/d + 1)³. It sees moments up to the third and no more."""
    k: Array = (a @ b.T / a.shape[1] + 1.0) ** 3
    return k


def rational_quadratic(scale: float) -> Kernel:
    """Σ_c (1 + |a − b|²/(2 c scale²))^(−c), c = 0.2, 0.5, 1, 2, 5 (Binkowski et al. 2018, section 3.1).

    A characteristic kernel: its MMD vanishes for equal distributions only. ``scale`` is a length, such as the
    median distance between data.
    """
    check_positive("scale", scale, "Pass a typical distance.")

    def kernel(a: Array, b: Array) -> Array:
        squared = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
        squared = np.maximum(squared, 0.0) / (2 * scale**2)
        two, five = 1 + squared / 2, 1 + squared / 5
        k: Array = np.exp(-0.2 * np.log1p(5 * squared))  # products and roots, which are faster than powers
        k += 1 / np.sqrt(1 + 2 * squared)
        k += 1 / (1 + squared)
        k += 1 / (two * two)
        squared_five = five * five
        k += 1 / (squared_five * squared_five * five)
        return k

    return kernel


def kernel_distance(x: ArrayLike, y: ArrayLike, kernel: Kernel = cubic) -> Estimate:
    """The unbiased estimate of MMD²; with the cubic kernel on a network's features it is called KID.

    Gretton et al. 2012, eq. 3; Binkowski, Sutherland, Arbel & Gretton 2018. Zero on average for sets of the
    same distribution, whatever their sizes, so single values may be negative.

        mean_{i≠j} k(x_i, x_j) + mean_{i≠j} k(y_i, y_j) − 2 mean_{i,j} k(x_i, y_j)

    Shapes: x (n, ...), y (m, ...) with n, m >= 2.
    """
    x, y = two_sets(x, y)
    each = np.ones((len(y), 1))
    across_x, across_y = kernel_sums(kernel, x, y, each)
    return unbiased_mmd(within_sums(kernel, x), within_sums(kernel, y), across_x[:, 0], across_y)


def kernel_sums(kernel: Kernel, x: Array, y: Array, members: Array, rows: int | None = None) -> tuple[Array, Array]:
    """Σ_j k(x_i, y_j) members_jr, (n, R), and Σ_i k(x_i, y_j), (m,), in the memory of ``rows`` rows of the kernel.

    Shapes: x (n, d), y (m, d), members (m, R), say the indicators of subsets of y. ``rows``: by default 1 MiB of them.
    """
    rows = rows or max(1, 2**17 // len(y))
    sums, totals = np.empty((len(x), members.shape[1])), np.zeros(len(y))
    for first in range(0, len(x), rows):
        k = kernel(x[first : first + rows], y)
        sums[first : first + rows] = k @ members
        totals += k.sum(0)
    return sums, totals


def kernel_diagonal(kernel: Kernel, x: Array) -> Array:
    """k(x_i, x_i), (n,)."""
    parts = np.split(x, range(64, len(x), 64))
    return np.concatenate([np.diag(kernel(part, part)) for part in parts])


def within_sums(kernel: Kernel, x: Array) -> Array:
    """Σ_{j≠i} k(x_i, x_j), (n,)."""
    return kernel_sums(kernel, x, x, np.zeros((len(x), 0)))[1] - kernel_diagonal(kernel, x)


def unbiased_mmd(within_x: Array, within_y: Array, across_x: Array, across_y: Array) -> Estimate:
    """:func:`kernel_distance` from sums of the kernel, for the comparison of one set with many.

    The ``within_sums`` (n,) and (m,); Σ_j k(x_i, y_j) (n,) and Σ_i k(x_i, y_j) (m,). The error is NaN below three
    samples.
    """
    value, without_x, without_y = _mmd_without_each(within_x, within_y, across_x, across_y)
    n, m = len(within_x), len(within_y)
    return Estimate(value, math.sqrt((n - 1) * without_x.var() + (m - 1) * without_y.var()))


def _mmd_without_each(within_x: Array, within_y: Array, across_x: Array, across_y: Array) -> tuple[float, Array, Array]:
    """The unbiased MMD², and the same without each x_i (n,) and without each y_j (m,); NaN below three samples."""
    n, m = len(within_x), len(within_y)
    sum_x, sum_y, sum_across = within_x.sum(), within_y.sum(), across_x.sum()
    value = float(sum_x / (n * (n - 1)) + sum_y / (m * (m - 1)) - 2 * sum_across / (n * m))
    if n < 3 or m < 3:
        return value, np.full(n, math.nan), np.full(m, math.nan)
    without_x = (
        (sum_x - 2 * within_x) / ((n - 1) * (n - 2))
        + sum_y / (m * (m - 1))
        - 2 * (sum_across - across_x) / ((n - 1) * m)
    )
    without_y = (
        sum_x / (n * (n - 1))
        + (sum_y - 2 * within_y) / ((m - 1) * (m - 2))
        - 2 * (sum_across - across_y) / (n * (m - 1))
    )
    return value, without_x, without_y


def kernel_resampled(x: ArrayLike, y: ArrayLike, kernel: Kernel = cubic) -> Resampled:
    """:func:`kernel_distance` with the parts of its variance: every sample of either set is left out in turn."""
    x, y = two_sets(x, y)
    across_x, across_y = kernel_sums(kernel, x, y, np.ones((len(y), 1)))
    sums = within_sums(kernel, x), within_sums(kernel, y), across_x[:, 0], across_y
    return Resampled.of(*_mmd_without_each(*sums))


def paired_kernel_distance(x: ArrayLike, y: ArrayLike, kernel: Kernel = cubic) -> Resampled:
    """The unbiased MMD² of pairs (x_i, y_i) that may depend on one another; zero for x = y.

        mean_{i≠j} k(x_i, x_j) + k(y_i, y_j) − k(x_i, y_j) − k(x_j, y_i)          (Gretton et al. 2012, eq. 4)

    A pair leaves as a whole. Shapes: x and y (n, ...), equal.

    Raises:
        DataError: for sets of different sizes.
    """
    x, y = two_sets(x, y)
    n = len(x)
    if len(y) != n:
        raise DataError("x, y", (n, len(y)), "pairs have equal numbers of samples", "Pass sets of equal sizes.")
    across_x, across_y = kernel_sums(kernel, x, y, np.ones((n, 1)))
    own = np.concatenate([np.diag(kernel(x[i : i + 64], y[i : i + 64])) for i in range(0, n, 64)])
    of_pair = within_sums(kernel, x) + within_sums(kernel, y) - across_x[:, 0] - across_y + 2 * own
    total = of_pair.sum()
    without = (total - 2 * of_pair) / ((n - 1) * (n - 2)) if n > 2 else np.full(n, math.nan)
    return Resampled.of(float(total / (n * (n - 1))), without, [])


@dataclass(frozen=True)
class KernelDistance(Metric):
    """:func:`kernel_distance` between features; ``kernel_name`` is its formula, for reports."""

    kernel: Kernel = cubic
    kernel_name: str = "(x·y/d + 1)³"

    name = "kernel_distance"
    heading = "kernel distance"
    title = "kernel distance (unbiased MMD²)"
    meaning = "unbiased MMD² to real data"
    axis = Axis.SIGNED
    unbiased = True

    @property
    def explanation(self) -> str:  # type: ignore[override]
        return (
            f"Unbiased MMD² (Gretton et al. 2012; Bińkowski et al. 2018) with the kernel {self.kernel_name}. Zero on "
            "average for real data, hence sometimes negative. Its error is a delete-one jackknife over both sets."
        )

    def compute(self, generated: SampleSet, reference: SampleSet) -> Estimate:
        return kernel_distance(generated.features, reference.features, self.kernel)

    def resample(self, generated: SampleSet, reference: SampleSet) -> Resampled:
        return kernel_resampled(generated.features, reference.features, self.kernel)

    def between_pairs(self, one: SampleSet, other: SampleSet) -> Resampled:
        return paired_kernel_distance(one.features, other.features, self.kernel)

    def prepare(self, parts: RealParts) -> KernelSums:
        return KernelSums(self.kernel, parts)

    def conditions(self, n: int, n_real: int) -> dict[str, Any]:
        return {"library": library(), "kernel": self.kernel_name}


class KernelSums:
    """The kernel distances to all splits of the real data, from one pass over the kernel.

    The numbers are those of :func:`kernel_distance` for each split, without the matrix of all pairs.
    """

    def __init__(self, kernel: Kernel, real: RealParts) -> None:
        self.kernel = kernel
        self.values = real.whole.features
        self.parts = real.parts
        self._known: WeakKeyDictionary[SampleSet, tuple[Array, Array, Array]] = WeakKeyDictionary()
        places = np.arange(len(self.values))
        self._rest = np.stack([1.0 - np.isin(places, a) for a, _ in self.parts], axis=1)  # (N, splits)
        self._first, totals = kernel_sums(kernel, self.values, self.values, 1 - self._rest)
        self._to_rest, self._own = totals[:, None] - self._first, kernel_diagonal(kernel, self.values)
        self._within = [self._to_rest[b, r] - self._own[b] for r, (_, b) in enumerate(self.parts)]

    def measure(self, generated: SampleSet) -> Estimate:
        """The mean over splits; the error is the jackknife of the first."""
        found = [unbiased_mmd(*sums) for sums in self._sums(generated)]
        return Estimate(float(np.mean([e.value for e in found])), found[0].error)

    def resample(self, generated: SampleSet) -> Resampled:
        """The mean over splits; the parts of the variance are those of the first."""
        sums = self._sums(generated)
        mean = float(np.mean([unbiased_mmd(*each).value for each in sums]))
        return Resampled.of(*_mmd_without_each(*sums[0])).moved_to(mean)

    def _sums(self, generated: SampleSet) -> list[tuple[Array, Array, Array, Array]]:
        """What :func:`unbiased_mmd` takes, for each split; computed once for each set."""
        if generated not in self._known:
            within = within_sums(self.kernel, generated.features)
            self._known[generated] = within, *kernel_sums(self.kernel, generated.features, self.values, self._rest)
        within, to_rest, to_values = self._known[generated]
        return [(within, self._within[r], to_rest[:, r], to_values[b]) for r, (_, b) in enumerate(self.parts)]

    @cached_property
    def floor(self) -> Estimate:
        """Each split's held out part against its rest."""
        found = [
            unbiased_mmd(self._first[a, r] - self._own[a], self._within[r], self._to_rest[a, r], self._first[b, r])
            for r, (a, b) in enumerate(self.parts)
        ]
        values = [e.value for e in found]
        return Estimate(float(np.mean(values)), float(np.std(values, ddof=1)))
