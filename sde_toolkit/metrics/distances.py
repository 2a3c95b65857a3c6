"""Distances between samples, with standard errors, and the metrics made of them.

    rmse     root mean square difference of paired samples
    share    a proportion

The functions take finite arrays whose first axis counts the samples; further axes are flattened. Computed in float64.
Standard errors describe the chance of the draw of the pairs, or of the samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from sde_toolkit.errors import ArgumentError, DataError
from sde_toolkit.metrics.estimates import Array, Estimate
from sde_toolkit.metrics.jackknife import Resampled
from sde_toolkit.metrics.metric import Against, Axis, Metric, SampleSet, library

__all__ = [
    "Estimate",
    "FlowError",
    "Plausible",
    "rmse",
    "share",
    "two_sets",
]


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

    def resample(self, generated: SampleSet, reference: SampleSet) -> Resampled:
        """Sample by sample: each leaves with its endpoint, one at a time."""
        apart = np.asarray(generated.data, np.float64) - np.asarray(reference.data, np.float64)
        squares = (apart.reshape(len(apart), -1) ** 2).mean(1)
        others = squares.sum() - squares
        left_out = np.sqrt(np.maximum(others, 0.0) / (len(squares) - 1)) if len(squares) > 2 else []
        return Resampled.of(math.sqrt(squares.mean()), left_out, [])


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
