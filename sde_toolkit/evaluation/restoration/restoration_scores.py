"""The numbers of a restoration: how well samples fit the measurement and the truth, and whether their spread is honest.

x: samples (k, n, *event) after k measurements, in model space. Values are over all measurements together, and their
standard errors are over the measurements: samples after one measurement share its noise and its truth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.guidance.measurement import Measurement
from sde_toolkit.metrics.distances import rmse
from sde_toolkit.metrics.metric import Array, Estimate, SampleSet
from sde_toolkit.metrics.sliced import SlicedWasserstein

__all__ = ["DISTANCE", "ExactSamples", "Scores", "case_records", "mean_of", "misfit", "scores_of"]

DISTANCE = SlicedWasserstein()
_NARROWEST = 1e-4  # of the largest standard deviation: smaller ones count as this


@dataclass(frozen=True)
class Scores:
    """What was measured of samples; None where it cannot be.

    ``misfit``: root mean square of y − A x over σ_y; of y − A x itself where σ_y = 0. ``rmse``, ``psnr``: to the truth
    in data space, of each measurement's mean and of the samples. ``spread``: root mean square of the standard deviation
    of the samples, per element, in data space. ``over_confidence``: the mean's rmse over √(1 + 1/n) times the spread.
    ``distance``: whitened sliced W2 to exact posterior samples (:class:`ExactSamples`), the mean over the measurements.
    """

    misfit: Estimate
    rmse_of_mean: Estimate
    rmse_of_samples: Estimate
    psnr_of_mean: Estimate | None
    psnr_of_samples: Estimate | None
    spread: Estimate
    over_confidence: Estimate
    distance: Estimate | None = None

    def record(self) -> dict[str, float | None]:
        """Values and errors by name."""
        found: dict[str, float | None] = {}
        for field in fields(self):
            estimate = getattr(self, field.name)
            found[field.name] = None if estimate is None else estimate.value
            found[f"{field.name}_error"] = None if estimate is None else estimate.error
        return found


def scores_of(
    x: Tensor,
    data: Tensor,
    truth: Tensor,
    measurements: Sequence[Measurement],
    peak: float | None,
    distance: Estimate | None = None,
) -> Scores:
    """The scores of samples x, which are ``data`` (k, n, *event) in data space, against the ``truth`` (k, *event).

    ``peak``: the width of the range of the data, for the PSNR; None where it is not known.
    """
    values, true = _flat(data), _flat(truth.unsqueeze(1))
    k, n = values.shape[:2]
    mean = values.mean(1)
    of_mean, of_samples = (mean - true[:, 0]) ** 2, (values - true) ** 2
    std = values.std(1, ddof=1)
    return Scores(
        misfit=misfit(x, measurements),
        rmse_of_mean=rmse(mean, true[:, 0]),
        rmse_of_samples=rmse(values.reshape(k, -1), np.broadcast_to(true, values.shape).reshape(k, -1)),
        psnr_of_mean=_psnr(of_mean.mean(1), peak),
        psnr_of_samples=_psnr(of_samples.mean(2), peak),
        spread=rmse(std, np.zeros_like(std)),
        over_confidence=_ratio(of_mean.mean(1), (std**2).mean(1) * (1 + 1 / n)),
        distance=distance,
    )


def misfit(x: Tensor, measurements: Sequence[Measurement]) -> Estimate:
    """√(mean of ((y − A x)/σ_y)²) of x (k, n, *event): 1 is expected of the truth and of exact posterior samples."""
    white = _flat(torch.stack([_residual(part, m) for part, m in zip(x, measurements, strict=True)]))
    white = white.reshape(len(white), -1)
    return rmse(white, np.zeros_like(white))


def misfit_of_truth(x_0: Tensor, measurements: Sequence[Measurement]) -> Estimate:
    """The same of the truth (k, *event), with the error that it has by chance: 1/√(2 M) of M measured numbers."""
    value = misfit(x_0.unsqueeze(1), measurements).value
    M = len(x_0) * math.prod(measurements[0].A.measured_shape)
    return Estimate(value, 0.0 if measurements[0].noise_is_zero else 1 / math.sqrt(2 * M))


@dataclass(frozen=True, eq=False)
class ExactSamples:
    """Exact posterior samples (N, D) after one measurement, and the map that whitens them.

    Distances are in units of the exact standard deviation in every direction, so that a direction that the measurement
    has fixed well counts as much as one that it leaves open.
    """

    white: Array
    mean: Array
    whiten: Array

    @classmethod
    def of(cls, x: Tensor) -> ExactSamples:
        """Of exact samples (N, *event)."""
        values = _flat(x.unsqueeze(0))[0]
        mean = values.mean(0)
        variances, axes = np.linalg.eigh(np.cov(values, rowvar=False).reshape(values.shape[1], -1))
        std = np.sqrt(variances.clip(0))
        whiten = axes / std.clip(_NARROWEST * std.max())
        return cls((values - mean) @ whiten, mean, whiten)

    def distance(self, x: Tensor) -> Estimate:
        """Sliced W2 between samples (n, *event) and the exact ones, whitened."""
        return DISTANCE.compute(self._set(x), _as_set(self.white))

    def distance_alone(self, x: Tensor) -> float:
        """The same without its error."""
        return DISTANCE.value(self._set(x), _as_set(self.white))

    def _set(self, x: Tensor) -> SampleSet:
        return _as_set((_flat(x.unsqueeze(0))[0] - self.mean) @ self.whiten)


def mean_of(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of independent estimates, with its error."""
    value = float(np.mean([estimate.value for estimate in estimates]))
    return Estimate(value, math.sqrt(sum(estimate.error**2 for estimate in estimates)) / len(estimates))


def case_records(
    x: Tensor, data: Tensor, truth: Tensor, measurements: Sequence[Measurement], peak: float | None
) -> list[dict[str, float | None]]:
    """The scores after each measurement alone, as plain values."""
    found = []
    for i in range(len(x)):
        one = scores_of(x[i : i + 1], data[i : i + 1], truth[i : i + 1], measurements[i : i + 1], peak)
        record = {name: value for name, value in one.record().items() if not name.endswith("_error")}
        del record["distance"]
        found.append(record)
    return found


def _residual(x: Tensor, measurement: Measurement) -> Tensor:
    e = measurement.residual(x.double())
    return e if measurement.noise_is_zero else measurement.noise.whiten(e)


def _flat(x: Tensor) -> Array:
    """(k, n, D) in float64."""
    values: Any = x.detach().cpu().double().reshape(*x.shape[:2], -1).numpy()
    return values


def _as_set(values: Array) -> SampleSet:
    return SampleSet(torch.from_numpy(values), values)


def _psnr(mean_squares: Array, peak: float | None) -> Estimate | None:
    """The mean of 10 log10(peak²/mean square) over the measurements, (k,) or (k, n); in decibels."""
    if peak is None or not (mean_squares > 0).all():
        return None
    each = 10 * np.log10(peak**2 / mean_squares).reshape(len(mean_squares), -1).mean(1)
    error = float(each.std(ddof=1)) / math.sqrt(len(each)) if len(each) > 1 else math.nan
    return Estimate(float(each.mean()), error)


def _ratio(errors: Array, variances: Array) -> Estimate:
    """√(mean of errors/mean of variances), both (k,), with a jackknife over the measurements."""

    def ratio(keep: Any) -> float:
        below = float(variances[keep].mean())
        return math.sqrt(float(errors[keep].mean()) / below) if below > 0 else math.inf

    k = len(errors)
    if k < 2:
        return Estimate(ratio(slice(None)), math.nan)
    left_out = np.array([ratio(np.arange(k) != i) for i in range(k)])
    error = math.sqrt((k - 1) * left_out.var()) if np.isfinite(left_out).all() else math.nan
    return Estimate(ratio(slice(None)), error)
