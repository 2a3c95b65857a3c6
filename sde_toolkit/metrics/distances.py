"""Distances between samples, with standard errors, and the metrics made of them.

    sliced_wasserstein    Rabin et al. 2011; Bonneel et al. 2015: W_2 between projections on random lines
    rmse                  root mean square difference of paired samples
    share                 a proportion

The functions take finite arrays whose first axis counts the samples; further axes are flattened. Computed in float64.
Standard errors describe the chance of the draw of both sets (of the pairs, for ``rmse``). The sliced distance has a
delete-block jackknife; for two sets of one distribution it is too large rather than too small.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from sde_toolkit.errors import ArgumentError, DataError, MissingDependencyError
from sde_toolkit.metrics.metric import Against, Array, Axis, Estimate, Metric, SampleSet, library

__all__ = [
    "Estimate",
    "FlowError",
    "Plausible",
    "SlicedWasserstein",
    "require_transport",
    "rmse",
    "share",
    "sliced_wasserstein",
    "two_sets",
]


def sliced_wasserstein(
    x: ArrayLike, y: ArrayLike, *, projections: int = 128, seed: int = 0, blocks: int = 8
) -> Estimate:
    """√(mean over random directions θ of W_2²(θ·x, θ·y)), in the units of the data.

    Rabin, Peyré, Delon & Bernot 2011; Bonneel, Rabin, Peyré & Pfister 2015, computed by POT. Finite sets of
    one distribution have a positive distance, which shrinks as they grow. Compare values only between sets
    of equal sizes, and with the value of two real sets of these sizes.

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

    x, y = two_sets(x, y)
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
    """Refuse before the work if the package for optimal transport is missing.

    Raises:
        MissingDependencyError: without POT.
    """
    try:
        import ot  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError("POT", "the sliced Wasserstein distance", "cli", error) from None


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


def two_sets(x: ArrayLike, y: ArrayLike) -> tuple[Array, Array]:
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
            "Bonneel et al. 2015), by POT. Finite sets are never at distance zero: read it against the floor. Its "
            "error is a delete-block jackknife, 8 blocks of either set."
        )

    def compute(self, generated: SampleSet, reference: SampleSet) -> Estimate:
        return self._between(generated, reference, blocks=8)

    def value(self, generated: SampleSet, reference: SampleSet) -> float:
        return self._between(generated, reference, blocks=0).value

    def _between(self, a: SampleSet, b: SampleSet, blocks: int) -> Estimate:
        return sliced_wasserstein(a.features, b.features, projections=self.projections, seed=self.seed, blocks=blocks)

    def check(self, n: int, n_real: int) -> None:
        require_transport()

    def conditions(self, n: int, n_real: int) -> dict[str, Any]:
        return {"library": library("POT"), "projections": self.projections}


@dataclass(frozen=True)
class FlowError(Metric):
    """:func:`rmse` to the exact endpoint of the probability flow, per element, in model space."""

    name = "rmse"
    heading = "RMSE to flow"
    title = "RMSE to the exact flow"
    meaning = "to the exact endpoint of the probability flow; deterministic solvers only"
    explanation = (
        "Root mean square difference to the exact endpoint of the probability flow, from the same initial noise "
        "(deterministic solvers; model space, per element). Its standard error is over samples."
    )
    against = Against.FLOW
    axis = Axis.LOG

    def compute(self, generated: SampleSet, reference: SampleSet) -> Estimate:
        return rmse(generated.data, reference.data)


@dataclass(frozen=True)
class Plausible(Metric):
    """The share of plausible samples. Each sample is judged alone, for example by whether it has a clear class."""

    heading: str
    meaning: str

    name = "plausible"
    lower_is_better = False
    against = Against.NOTHING
    axis = Axis.SHARE

    @property
    def title(self) -> str:  # type: ignore[override]
        return f"plausible samples ({self.heading})"

    @property
    def explanation(self) -> str:  # type: ignore[override]
        return f"{self.meaning[0].upper()}{self.meaning[1:]}. Its error is binomial."

    def compute(self, generated: SampleSet, reference: SampleSet) -> Estimate:
        if generated.plausible is None:
            problem = "these features do not tell which samples are plausible"
            raise ArgumentError("metrics", self.name, problem, "Leave the share of plausible samples out.")
        return share(generated.plausible)

    def conditions(self, n: int, n_real: int) -> dict[str, Any]:
        return {"library": library(), "meaning": self.meaning}
