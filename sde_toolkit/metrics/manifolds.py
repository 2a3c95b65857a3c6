"""Precision and recall: how many samples lie in the manifold of the other set (Kynkäänniemi et al. 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sde_toolkit.checks import check_count
from sde_toolkit.errors import DataError
from sde_toolkit.metrics.distances import share, two_sets
from sde_toolkit.metrics.metric import Against, Array, Axis, Estimate, Metric, SampleSet, library

__all__ = ["Precision", "Recall", "precision_recall"]


def precision_recall(
    generated: ArrayLike, real: ArrayLike, neighbours: int = 3, *, rows: int = 1024
) -> tuple[Estimate, Estimate]:
    """Improved precision and recall (Kynkäänniemi et al. 2019, eqs. 1-2): shares of one set in the other's manifold.

    A set's manifold is the union of closed balls around its points, each as large as the distance to the point's
    ``neighbours``-th nearest other point. Precision is the share of generated samples in the manifold of the real ones,
    recall the share of real samples in that of the generated ones. ``rows``: distances are computed so many rows at a
    time. Ties count as inside, up to round-off. The errors are binomial. They leave out the
    randomness of the manifold itself, so only differences well above them have a meaning.

    Raises:
        DataError: for sets that cannot be compared, or are no larger than ``neighbours``.
    """
    g, r = two_sets(generated, real)
    _check_neighbours(neighbours, min(len(g), len(r)))
    centre = r.mean(0)  # squares of distances lose digits far from the origin
    g, r = g - centre, r - centre
    return share(_inside(g, r, neighbours, rows)), share(_inside(r, g, neighbours, rows))


def _check_neighbours(neighbours: int, least: int) -> None:
    check_count("neighbours", neighbours, "3 is usual.")
    if least <= neighbours:
        problem = f"a point has no {neighbours} neighbours among {least} samples"
        raise DataError("neighbours", neighbours, problem, "Give more samples.")


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


@dataclass(frozen=True)
class _InManifold(Metric):
    """A share of one set's features in the manifold of the other's."""

    neighbours: int = 3

    lower_is_better = False
    against = Against.ALL
    axis = Axis.SHARE

    def check(self, n: int, n_real: int) -> None:
        _check_neighbours(self.neighbours, min(n, n_real))

    def conditions(self, n: int, n_real: int) -> dict[str, Any]:
        return {"library": library(), "neighbours": self.neighbours}


@dataclass(frozen=True)
class Precision(_InManifold):
    """The share of generated samples in the manifold of the real ones, see :func:`precision_recall`."""

    name = "precision"
    heading = "precision"
    meaning = "share of samples in the manifold of the real data's features"

    def compute(self, generated: SampleSet, reference: SampleSet) -> Estimate:
        return precision_recall(generated.features, reference.features, self.neighbours)[0]


@dataclass(frozen=True)
class Recall(_InManifold):
    """The share of real samples in the manifold of the generated ones, see :func:`precision_recall`."""

    name = "recall"
    heading = "recall"
    meaning = "share of real samples in the manifold of the generated ones' features"

    def compute(self, generated: SampleSet, reference: SampleSet) -> Estimate:
        return precision_recall(generated.features, reference.features, self.neighbours)[1]
