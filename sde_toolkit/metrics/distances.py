"""Distances between samples, as pure functions that return a value together with its standard error.

All take finite arrays whose first axis counts the samples; further axes are flattened. Computed in float64.

    sliced_wasserstein    Rabin et al. 2011; Bonneel et al. 2015: W_2 between projections on random lines
    kernel_distance       Binkowski et al. 2018: unbiased MMD², KID with the kernel (x·y/d + 1)³
    precision_recall      Kynkäänniemi et al. 2019: shares inside the other set's k-nearest-neighbour manifold
    rmse                  root mean square difference of paired samples
    share                 a proportion

Standard errors describe the chance of the draw of both sets (of the pairs, for ``rmse``). They come from the
delete-one jackknife where that has a closed form, from a delete-block jackknife for the sliced distance, which
has none. For two sets of the same distribution the jackknife is on the large side: it errs towards caution.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sde_toolkit.checks import check_count, check_positive
from sde_toolkit.errors import ArgumentError, DataError, MissingDependencyError

__all__ = [
    "Estimate",
    "Kernel",
    "cubic",
    "kernel_diagonal",
    "kernel_distance",
    "kernel_sums",
    "precision_recall",
    "rational_quadratic",
    "require_transport",
    "rmse",
    "share",
    "sliced_wasserstein",
    "unbiased_mmd",
    "within_sums",
]

Array = NDArray[np.float64]

Kernel = Callable[[Array, Array], Array]
"""A positive definite function of (n, d) and (m, d), with values (n, m)."""


@dataclass(frozen=True)
class Estimate:
    """A measured number and its standard error."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:.4g} ± {self.error:.1g}"


def sliced_wasserstein(
    x: ArrayLike, y: ArrayLike, *, projections: int = 128, seed: int = 0, blocks: int = 8
) -> Estimate:
    """√(mean over random directions θ of W_2²(θ·x, θ·y)), in the units of the data.

    Rabin, Peyré, Delon & Bernot 2011; Bonneel, Rabin, Peyré & Pfister 2015, computed by POT. Finite sets of
    one distribution are a positive distance apart, which shrinks as they grow: compare it only between sets
    of equal sizes, and against real-versus-real sets of those sizes.

    Args:
        x, y: (n, ...) and (m, ...), same event shape.
        projections: number of directions, shared by all comparisons with the same ``seed``.
        blocks: blocks of the delete-block jackknife over x and over y; 0 leaves the error NaN.

    Raises:
        DataError: for arrays that cannot be compared.
        MissingDependencyError: without POT.
    """
    require_transport()
    import ot

    x, y = _two_sets(x, y)
    if projections < 1:
        raise ArgumentError("projections", projections, "at least one direction is needed", "128 is usual.")
    directions = ot.sliced.get_random_projections(x.shape[1], projections, seed)

    def distance(a: Array, b: Array) -> float:
        return float(ot.sliced_wasserstein_distance(a, b, projections=directions, p=2))

    variance = _block_variance(lambda a: distance(a, y), x, blocks) + _block_variance(
        lambda b: distance(x, b), y, blocks
    )
    return Estimate(distance(x, y), math.sqrt(variance))


def require_transport() -> None:
    """Find out before the work that the package for optimal transport is missing.

    Raises:
        MissingDependencyError: without POT.
    """
    try:
        import ot  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError("POT", "the sliced Wasserstein distance", "cli", error) from None


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
        k: Array = np.zeros_like(squared)
        for c in (0.2, 0.5, 1.0, 2.0, 5.0):
            k += (1 + squared / c) ** -c
        return k

    return kernel


def kernel_distance(x: ArrayLike, y: ArrayLike, kernel: Kernel = cubic) -> Estimate:
    """The unbiased estimate of MMD²; with the cubic kernel on a network's features it is called KID.

    Gretton et al. 2012, eq. 3; Binkowski, Sutherland, Arbel & Gretton 2018. Zero on average for sets of the
    same distribution, whatever their sizes, so that single values may well be negative.

        mean_{i≠j} k(x_i, x_j) + mean_{i≠j} k(y_i, y_j) − 2 mean_{i,j} k(x_i, y_j)

    Shapes: x (n, ...), y (m, ...) with n, m >= 2.
    """
    x, y = _two_sets(x, y)
    each = np.ones((len(y), 1))
    across_x, across_y = kernel_sums(kernel, x, y, each)
    return unbiased_mmd(within_sums(kernel, x), within_sums(kernel, y), across_x[:, 0], across_y)


def kernel_sums(kernel: Kernel, x: Array, y: Array, members: Array, rows: int | None = None) -> tuple[Array, Array]:
    """Σ_j k(x_i, y_j) members_jr, (n, R), and Σ_i k(x_i, y_j), (m,), in the memory of ``rows`` rows of the kernel.

    Shapes: x (n, d), y (m, d), members (m, R), say the indicators of subsets of y. ``rows``: by default 16 MiB of them.
    """
    rows = rows or max(1, 2**21 // len(y))
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
    """:func:`kernel_distance` from sums of the kernel, for those who compare one set with many.

    The ``within_sums`` (n,) and (m,); Σ_j k(x_i, y_j) (n,) and Σ_i k(x_i, y_j) (m,). The error is NaN below three
    samples.
    """
    n, m = len(within_x), len(within_y)
    sum_x, sum_y, sum_across = within_x.sum(), within_y.sum(), across_x.sum()
    value = sum_x / (n * (n - 1)) + sum_y / (m * (m - 1)) - 2 * sum_across / (n * m)
    if n < 3 or m < 3:
        return Estimate(float(value), math.nan)
    # the same statistic without x_i, and without y_j, for all i and j at once
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
    return Estimate(float(value), math.sqrt((n - 1) * without_x.var() + (m - 1) * without_y.var()))


def rmse(x: ArrayLike, y: ArrayLike) -> Estimate:
    """√(mean of (x − y)²) over all elements of n pairs; the error by the delta method over pairs.

    Shapes: x and y (n, ...), equal.
    """
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if a.shape != b.shape or a.ndim == 0 or len(a) == 0:
        raise DataError("x, y", (a.shape, b.shape), "pairs have equal shapes (n, ...)", "Pass equal shapes.")
    squares = _finite("x - y", a - b).reshape(len(a), -1) ** 2
    per_sample = squares.mean(1)
    value = math.sqrt(per_sample.mean())
    if len(a) < 2:
        return Estimate(value, math.nan)
    error = 0.0 if value == 0 else float(per_sample.std(ddof=1)) / math.sqrt(len(a)) / (2 * value)
    return Estimate(value, error)


def share(hits: ArrayLike) -> Estimate:
    """The proportion of True in a vector, with its binomial standard error."""
    values = np.asarray(hits, np.float64)
    if values.ndim != 1 or len(values) == 0:
        raise DataError("hits", values.shape, "not a vector with entries", "Pass one truth value per sample.")
    p = float(values.mean())
    return Estimate(p, math.sqrt(p * (1 - p) / len(values)))


def _two_sets(x: ArrayLike, y: ArrayLike) -> tuple[Array, Array]:
    a, b = _flat("x", x), _flat("y", y)
    if a.shape[1] != b.shape[1]:
        problem = "their samples have different numbers of elements"
        raise DataError("x, y", (np.shape(x), np.shape(y)), problem, "Pass sets of the same event shape.")
    return a, b


def _flat(name: str, values: ArrayLike) -> Array:
    array = np.asarray(values, np.float64)
    if array.ndim == 0 or len(array) < 2:
        raise DataError(name, array.shape, "at least two samples are needed", "Pass (n, ...) with n >= 2.")
    return _finite(name, array.reshape(len(array), -1))


def _finite(name: str, array: Array) -> Array:
    if not np.isfinite(array).all():
        raise DataError(name, array.shape, "it holds NaN or infinity", "Look for the solver that diverged.")
    return array


def _block_variance(statistic: Any, values: Array, blocks: int) -> float:
    """Delete-block jackknife variance of a statistic of one set (Künsch 1989 without overlap)."""
    if blocks == 0:
        return math.nan
    if blocks < 2:
        raise ArgumentError("blocks", blocks, "a jackknife leaves out at least two blocks in turn", "8 is usual.")
    blocks = min(blocks, len(values))
    if len(values) < 3:
        return math.nan
    owner = np.arange(len(values)) * blocks // len(values)
    left_out = np.array([statistic(values[owner != block]) for block in range(blocks)])
    return float((blocks - 1) * left_out.var())


def precision_recall(
    generated: ArrayLike, real: ArrayLike, neighbours: int = 3, *, rows: int = 1024
) -> tuple[Estimate, Estimate]:
    """Improved precision and recall (Kynkäänniemi et al. 2019, eqs. 1-2): shares of one set in the other's manifold.

    A set's manifold is the union of closed balls around its points, each as large as the distance to the point's
    ``neighbours``-th nearest other point. Precision is the share of generated samples in the manifold of the real ones,
    recall the share of real samples in that of the generated ones. ``rows``: distances are computed so many rows at a
    time. Ties count as inside, up to round-off. The errors are binomial: they know nothing of the manifold's own
    chance, so that only differences well above them mean something.

    Raises:
        DataError: for sets that cannot be compared, or are no larger than ``neighbours``.
    """
    g, r = _two_sets(generated, real)
    least = min(len(g), len(r))
    check_count("neighbours", neighbours, "3 is usual.")
    if least <= neighbours:
        problem = f"a point has no {neighbours} neighbours among {least} samples"
        raise DataError("generated, real", (len(g), len(r)), problem, "Give more samples.")
    centre = r.mean(0)  # squares of distances lose digits far from the origin
    g, r = g - centre, r - centre
    return share(_inside(g, r, neighbours, rows)), share(_inside(r, g, neighbours, rows))


def _inside(points: Array, manifold: Array, k: int, rows: int) -> NDArray[np.bool_]:
    """Which of the points are within the k-nearest-neighbour radius of any point of the manifold."""
    radius, squares = np.empty(len(manifold)), (manifold**2).sum(1)
    for first in range(0, len(manifold), rows):
        apart = _squared_distances(manifold[first : first + rows], manifold, squares)
        own = np.arange(first, first + len(apart))
        apart[np.arange(len(apart)), own] = np.inf  # the k nearest others
        radius[own] = np.partition(apart, k - 1, axis=1)[:, k - 1]
    reach = radius + 1e-12 * squares.max()
    found = [
        (_squared_distances(part, manifold, squares) <= reach).any(1)
        for part in np.split(points, range(rows, len(points), rows))
    ]
    return np.concatenate(found)


def _squared_distances(a: Array, b: Array, squares: Array) -> Array:
    d: Array = (a**2).sum(1)[:, None] + squares - 2 * a @ b.T
    return np.maximum(d, 0.0)
