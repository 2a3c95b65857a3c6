"""The noise of a measurement, N(0, Σ_y): the same for all elements, one per element, or with a covariance.

Each kind knows Σ_y e, Σ_y⁻¹ e, and W with W Σ_y Wᵀ = I.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.checks import is_number
from sde_toolkit.errors import ArgumentError
from sde_toolkit.guidance.constants import Constant

__all__ = ["CorrelatedNoise", "DiagonalNoise", "EqualNoise", "MeasurementNoise", "measurement_noise"]


class MeasurementNoise(ABC):
    """Σ_y. Batches ``e`` are (B, *measured).

    Attributes:
        is_zero: whether Σ_y is singular, so that nothing can be divided by it.
        is_diagonal: whether the elements are uncorrelated.
        variance: σ_y² where it is the same for all elements and uncorrelated, else None.
    """

    is_zero: bool = False
    is_diagonal: bool = True
    variance: float | None = None

    @abstractmethod
    def covariance(self, e: Tensor) -> Tensor:
        """Σ_y e."""

    @abstractmethod
    def precision(self, e: Tensor) -> Tensor:
        """Σ_y⁻¹ e."""

    @abstractmethod
    def whiten(self, e: Tensor) -> Tensor:
        """W e."""

    @abstractmethod
    def whiten_adjoint(self, e: Tensor) -> Tensor:
        """Wᵀ e."""

    @abstractmethod
    def colour(self, z: Tensor) -> Tensor:
        """W⁻¹ z: noise with the covariance Σ_y from white noise z."""

    @abstractmethod
    def log_determinant(self, elements: int) -> float:
        """log det Σ_y, for a measurement of so many elements. Not for a singular Σ_y."""


class EqualNoise(MeasurementNoise):
    """σ_y² I, from σ_y."""

    def __init__(self, std: float) -> None:
        self.std, self.variance, self.is_zero = std, std * std, std * std == 0

    def covariance(self, e: Tensor) -> Tensor:
        return e * self.std**2

    def precision(self, e: Tensor) -> Tensor:
        return e / self.std**2

    def whiten(self, e: Tensor) -> Tensor:
        return e / self.std

    def whiten_adjoint(self, e: Tensor) -> Tensor:
        return e / self.std

    def colour(self, z: Tensor) -> Tensor:
        return z * self.std

    def log_determinant(self, elements: int) -> float:
        return 2 * elements * math.log(self.std)


class DiagonalNoise(MeasurementNoise):
    """diag(std²), from a standard deviation per element (*measured)."""

    def __init__(self, std: Tensor) -> None:
        self._std, self.is_zero = Constant(std), bool((std.square() == 0).any())
        self._log_determinant = 2 * float(std.detach().to("cpu", torch.float64).log().sum())

    def std_beside(self, e: Tensor) -> Tensor:
        """The standard deviations (*measured), on the device and in the dtype of e."""
        return self._std.beside(e)

    def covariance(self, e: Tensor) -> Tensor:
        return e * self._std.beside(e) ** 2

    def precision(self, e: Tensor) -> Tensor:
        return e / self._std.beside(e) ** 2

    def whiten(self, e: Tensor) -> Tensor:
        return e / self._std.beside(e)

    def whiten_adjoint(self, e: Tensor) -> Tensor:
        return self.whiten(e)

    def colour(self, z: Tensor) -> Tensor:
        return z * self._std.beside(z)

    def log_determinant(self, elements: int) -> float:
        return self._log_determinant


class CorrelatedNoise(MeasurementNoise):
    """A full covariance (m, m) = L Lᵀ, m the number of elements of a measurement; W = L⁻¹."""

    is_diagonal = False

    def __init__(self, covariance: Tensor, factor: Tensor) -> None:
        inverse = torch.linalg.solve_triangular(factor, torch.eye(len(factor)).to(factor), upper=False)
        self._covariance, self._factor, self._inverse = map(Constant, (covariance, factor, inverse))
        self._log_determinant = 2 * float(factor.diagonal().log().sum())

    def covariance(self, e: Tensor) -> Tensor:
        return _rows_times(e, self._covariance.beside(e))

    def precision(self, e: Tensor) -> Tensor:
        return self.whiten_adjoint(self.whiten(e))

    def whiten(self, e: Tensor) -> Tensor:
        return _rows_times(e, self._inverse.beside(e).mT)

    def whiten_adjoint(self, e: Tensor) -> Tensor:
        return _rows_times(e, self._inverse.beside(e))

    def colour(self, z: Tensor) -> Tensor:
        return _rows_times(z, self._factor.beside(z).mT)

    def log_determinant(self, elements: int) -> float:
        return self._log_determinant


def _rows_times(e: Tensor, M: Tensor) -> Tensor:
    """The elements of each row of e (B, *measured) times M (m, m)."""
    return (e.reshape(e.shape[0], M.shape[0]) @ M).reshape(e.shape)


def measurement_noise(std: Any, covariance: Any, measured_shape: tuple[int, ...]) -> MeasurementNoise:
    """The noise that was given: exactly one of ``std``, a number or (*measured), and ``covariance``, (m, m).

    Raises:
        ArgumentError: for none or both; for a standard deviation that is negative or not finite; for a covariance that
            is not symmetric and positive definite; for another shape.
    """
    if (std is None) == (covariance is None):
        problem = "the noise of a measurement is needed" if std is None else "noise_covariance is given as well"
        remedy = "Pass noise_std=0.05, one number per element, or noise_covariance=(m, m)."
        raise ArgumentError("noise_std", std, problem, remedy)
    if covariance is not None:
        return _correlated(covariance, math.prod(measured_shape))
    remedy = "Pass the standard deviation of the noise, 0 or more: 0.05."
    if isinstance(std, Tensor) and std.ndim > 0:
        if tuple(std.shape) != measured_shape:
            problem = f"a measurement has shape {measured_shape}"
            wanted = "Pass a number, or one per element of A(x). A full covariance is noise_covariance."
            raise ArgumentError("noise_std", tuple(std.shape), problem, wanted)
        if std.is_complex() or not bool((std.isfinite() & (std >= 0)).all()):
            raise ArgumentError("noise_std", std, "it must be finite and not negative everywhere", remedy)
        return DiagonalNoise(std.to(torch.get_default_dtype()) if not std.is_floating_point() else std)
    number = std.item() if isinstance(std, Tensor) else std
    if not (is_number(number) and number >= 0):
        raise ArgumentError("noise_std", std, "it must be finite and not negative", remedy)
    return EqualNoise(float(number))


def _correlated(covariance: Any, m: int) -> CorrelatedNoise:
    name = "noise_covariance"
    if not isinstance(covariance, Tensor) or tuple(covariance.shape) != (m, m) or covariance.is_complex():
        found = tuple(covariance.shape) if isinstance(covariance, Tensor) else covariance
        raise ArgumentError(name, found, f"it must be a real tensor ({m}, {m})", "One row per element of A(x).")
    value = covariance.detach().to("cpu", torch.float64)
    if not bool(value.isfinite().all()):
        raise ArgumentError(name, covariance, "not all of its numbers are finite", "Pass finite numbers.")
    loose = 1e-6 if covariance.dtype != torch.float64 else 1e-12
    if float((value - value.mT).abs().max()) > loose * float(value.abs().max()):
        raise ArgumentError(name, covariance, "it is not symmetric", "Pass (C + C.mT) / 2, if that is meant.")
    value = (value + value.mT) / 2
    factor, failed = torch.linalg.cholesky_ex(value)
    if int(failed):
        problem = f"it is not positive definite: its leading {int(failed)} x {int(failed)} block has no Cholesky factor"
        raise ArgumentError(name, covariance, problem, "Add a small multiple of the identity, or pass noise_std.")
    return CorrelatedNoise(value, factor)
