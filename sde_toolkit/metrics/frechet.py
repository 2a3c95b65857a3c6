"""The Fréchet distance of two sets of features without some of their samples, fast: for the error of FID.

    |μ_x − μ_y|² + tr Σ_x + tr Σ_y − 2 tr (Σ_x Σ_y)^½        (Dowson & Landau 1982; Heusel et al. 2017)

The last trace is the sum of the singular values of X Yᵀ/√((n−1)(m−1)), X and Y the centred features. They are found in
the smallest space there is: that of the features (d), of the n generated samples, or of the m real ones. A set that is
left without a block of samples changes the matrices there by a few products, so that a block costs one symmetric
eigenvalue problem.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sde_toolkit.metrics.estimates import Array
from sde_toolkit.metrics.jackknife import BLOCKS, Resampled, block_owners

__all__ = ["frechet_resampled"]


def frechet_resampled(x: Array, y: Array, value: float, blocks: int = BLOCKS) -> Resampled:
    """``value``, the Fréchet distance of x (n, d) and y (m, d), with the parts of its variance.

    Fewer than four samples in a set leave the error NaN.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if min(len(x), len(y)) < 4:
        return Resampled.of(value, [math.nan] * 2, [math.nan] * 2)
    centre = y.mean(0)
    one, other = _Set(x - centre), _Set(y - centre)
    return Resampled.of(value, _without_blocks(one, other, blocks), _without_blocks(other, one, blocks))


@dataclass(frozen=True, eq=False)
class _Set:
    """Features (n, d), about centred."""

    values: Array

    def __len__(self) -> int:
        return len(self.values)

    @cached_property
    def mean(self) -> Array:
        return np.asarray(self.values.mean(0))

    @cached_property
    def scatter(self) -> Array:
        """Xᵀ X of the centred features, (d, d)."""
        apart = self.values - self.mean
        return np.asarray(apart.T @ apart)

    @cached_property
    def total(self) -> float:
        """The trace of the scatter."""
        return float(((self.values - self.mean) ** 2).sum())

    @cached_property
    def root(self) -> Array:
        """A matrix R (d, d) with R R = the scatter."""
        values, vectors = np.linalg.eigh(self.scatter)
        return np.asarray((vectors * np.sqrt(values.clip(min=0))) @ vectors.T)


def _combined(apart: Array, total: float, other_total: float, squares: Array, n: int, m: int) -> float:
    """The distance from the difference of the means, the traces, and a matrix whose eigenvalues are the squares of the
    singular values of X Yᵀ."""
    singular = np.sqrt(np.linalg.eigvalsh(squares).clip(min=0)).sum()
    traces = total / (n - 1) + other_total / (m - 1)
    return float((apart**2).sum() + traces - 2 * singular / math.sqrt((n - 1) * (m - 1)))


def _without_blocks(reduced: _Set, whole: _Set, blocks: int) -> list[float]:
    """The distance without each block of ``reduced``."""
    owners = block_owners(len(reduced), blocks)
    left_out = [np.flatnonzero(owners == block) for block in range(int(owners[-1]) + 1)]
    smallest = min(reduced.values.shape[1], len(reduced), len(whole))
    squares = _squares_in_features if smallest == reduced.values.shape[1] else _squares_in_samples
    found = []
    for places, matrix in zip(left_out, squares(reduced, whole, left_out), strict=True):
        rest = len(reduced) - len(places)
        gone = reduced.values[places] - reduced.mean
        shift = gone.sum(0) / rest  # of the mean, away from what is left out
        total = reduced.total - float((gone**2).sum()) - rest * float((shift**2).sum())
        apart = reduced.mean - shift - whole.mean
        found.append(_combined(apart, total, whole.total, matrix, rest, len(whole)))
    return found


def _squares_in_features(reduced: _Set, whole: _Set, left_out: Sequence[NDArray[np.int64]]) -> list[Array]:
    """(d, d) matrices: the scatter without each block, between two roots of the other's."""
    found = []
    for places in left_out:
        gone = reduced.values[places] - reduced.mean
        shift = gone.sum(0)
        rest = reduced.scatter - gone.T @ gone - np.outer(shift, shift) / (len(reduced) - len(places))
        found.append(whole.root @ rest @ whole.root)
    return found


def _squares_in_samples(reduced: _Set, whole: _Set, left_out: Sequence[NDArray[np.int64]]) -> list[Array]:
    """Matrices in the space of the smaller set of samples: C Cᵀ of C = X Yᵀ, without a block of rows or of columns."""
    cross = (reduced.values - reduced.mean) @ (whole.values - whole.mean).T  # (n, m)
    if len(reduced) <= len(whole):
        gram = cross @ cross.T
        return [_centred(np.delete(np.delete(gram, places, 0), places, 1)) for places in left_out]
    gram, found = cross.T @ cross, []
    for places in left_out:
        gone = cross[places]
        shift = gone.sum(0)
        found.append(gram - gone.T @ gone - np.outer(shift, shift) / (len(reduced) - len(places)))
    return found


def _centred(gram: Array) -> Array:
    """Of products of vectors those of the vectors less their mean."""
    rows = gram.mean(0)
    return np.asarray(gram - rows - rows[:, None] + rows.mean())
