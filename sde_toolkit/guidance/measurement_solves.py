"""(s A Aᵀ + Σ_y)⁻¹ e for one A and Σ_y and any s: what is common to all s is computed once.

A Aᵀ = g I, Σ_y diagonal                e / (s g + σ_y²)
Σ_y = σ_y² I, the SVD of A is closed    U (s S² + σ_y²)⁻¹ Uᵀ e, and e / σ_y² outside of the range of A
up to 1024 elements                     F (s Λ + I)⁻¹ Fᵀ e, with W A Aᵀ Wᵀ = Q Λ Qᵀ, W Σ_y Wᵀ = I, F = Wᵀ Q
else                                    conjugate gradients, without an evaluation of the network
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from sde_toolkit.guidance.conjugate_gradients import conjugate_gradients
from sde_toolkit.guidance.constants import Constant
from sde_toolkit.guidance.measurement_noise import MeasurementNoise
from sde_toolkit.guidance.operators import LinearOperator

__all__ = ["ScaledSolve", "scaled_solve"]

_EIGENVECTORS_TO = 1024  # elements of a measurement, up to which its eigenvectors cost less than a second
_MATRIX_TO = 4096
_MOST_ITERATIONS = 1000


class ScaledSolve(ABC):
    """How (s A Aᵀ + Σ_y)⁻¹ e is computed; ``direct``: not by iterations."""

    direct: ClassVar[bool] = True

    @abstractmethod
    def __call__(self, e: Tensor, scale: Tensor) -> Tensor:
        """``e``: (B, *measured); ``scale``: 0-dim or (B, 1, ..., 1) beside e."""


def scaled_solve(A: LinearOperator, noise: MeasurementNoise) -> ScaledSolve:
    """The cheapest exact way; where Σ_y is singular, that of the pseudo-inverse on the range of A."""
    m, D = math.prod(A.measured_shape), math.prod(A.event_shape)
    small = m <= _EIGENVECTORS_TO and D <= _MATRIX_TO
    if A.row_gram is not None and noise.is_diagonal:
        return _Elementwise(A.row_gram, noise)
    if noise.variance is not None and (A.closed_svd or (small and noise.is_zero)):
        return _InSingularVectors(A, noise.variance)
    if not noise.is_zero and (small or (not noise.is_diagonal and D <= _MATRIX_TO)):
        return _InEigenvectors(A, noise)
    return _ByConjugateGradients(A, noise)


class _Elementwise(ScaledSolve):
    def __init__(self, g: float, noise: MeasurementNoise) -> None:
        self.g, self.noise = g, noise

    def __call__(self, e: Tensor, scale: Tensor) -> Tensor:
        return e / (scale * self.g + self.noise.covariance(torch.ones_like(e)))


class _InSingularVectors(ScaledSolve):
    def __init__(self, A: LinearOperator, variance: float) -> None:
        self.A, self.svd, self.variance = A, A.svd(), variance
        self.complete = len(self.svd.s) == math.prod(A.measured_shape)

    def __call__(self, e: Tensor, scale: Tensor) -> Tensor:
        svd, c = self.svd, self.svd.to_range(e)
        s, factor = svd.s_beside(c), scale.reshape(-1, 1) if scale.ndim else scale
        inside = c / (factor * s**2 + self.variance)
        if self.variance == 0:
            inside = torch.where(s > self.A.least_singular_value(e.dtype), inside, 0)
        solved = svd.from_range(inside)
        if self.complete or self.variance == 0:
            return solved
        outside = e - svd.from_range(c)
        outside = outside - svd.from_range(svd.to_range(outside))  # again: its round-off is divided by σ_y²
        return solved + outside / self.variance


class _InEigenvectors(ScaledSolve):
    def __init__(self, A: LinearOperator, noise: MeasurementNoise) -> None:
        m = math.prod(A.measured_shape)
        with torch.inference_mode(False), torch.no_grad():
            M = A.matrix().cpu()
            whitened = noise.whiten(M.mT.reshape(-1, *A.measured_shape)).reshape(-1, m)
            eigenvalues, Q = torch.linalg.eigh(whitened.mT @ whitened)
            rows = noise.whiten_adjoint(Q.mT.reshape(-1, *A.measured_shape)).reshape(-1, m)
            self.eigenvalues, self.rows = Constant(eigenvalues.clamp_min(0)), Constant(rows)

    def __call__(self, e: Tensor, scale: Tensor) -> Tensor:
        eigenvalues, Ft = self.eigenvalues.beside(e), self.rows.beside(e)
        factor = scale.reshape(-1, 1) if scale.ndim else scale
        c = e.reshape(e.shape[0], Ft.shape[1]) @ Ft.mT
        return ((c / (factor * eigenvalues + 1)) @ Ft).reshape(e.shape)


class _ByConjugateGradients(ScaledSolve):
    direct = False

    def __init__(self, A: LinearOperator, noise: MeasurementNoise) -> None:
        self.A, self.noise = A, noise
        self.most = min(_MOST_ITERATIONS, 2 * math.prod(A.measured_shape))

    def __call__(self, e: Tensor, scale: Tensor) -> Tensor:
        A, noise, fine = self.A, self.noise, 10 * torch.finfo(e.dtype).eps
        if noise.is_zero:
            return conjugate_gradients(
                lambda p: scale * A.gram(p) + noise.covariance(p), e, tolerance=fine, max_iterations=self.most
            ).x

        def whitened(p: Tensor) -> Tensor:
            return scale * noise.whiten(A.gram(noise.whiten_adjoint(p))) + p

        found = conjugate_gradients(whitened, noise.whiten(e), tolerance=fine, max_iterations=self.most)
        return noise.whiten_adjoint(found.x)
