"""SDA: Cov[A x_0 | x_t] is taken to be a multiple of the identity that falls with the noise.

    x̂_0 + V Aᵀ (Σ_y + γ σ²/α² I)⁻¹ e

Score-based data assimilation (Rozet & Louppe 2023, eq. 15).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.checks import check_positive
from sde_toolkit.guidance.conjugate_gradients import conjugate_gradients
from sde_toolkit.guidance.measurement import Measurement
from sde_toolkit.guidance.posterior_method import PosteriorMethod, estimate_and_covariance
from sde_toolkit.models.wrapper import Inside

__all__ = ["SDA"]


@dataclass(frozen=True)
class SDA(PosteriorMethod):
    """x̂_0 + V Aᵀ (Σ_y + γ σ²/α² I)⁻¹ e, by one evaluation and one product.

    Assumes A Cov[x_0 | x_t] Aᵀ = γ σ²/α² I, which grows without limit with the noise, where the true one tends to that
    of the data. σ_y = 0 is allowed, as long as σ > 0. Rozet & Louppe 2023, eq. 15.

    Args:
        gamma: γ > 0; the paper uses 0.01.
    """

    gamma: float = 1e-2

    def __post_init__(self) -> None:
        check_positive("gamma", self.gamma, "The paper uses 0.01.")

    def estimate(
        self, x_t: Tensor, inside: Inside, measurement: Measurement, y: Tensor | None, condition: Any
    ) -> Tensor:
        x_0, V = estimate_and_covariance(x_t, inside, condition)
        e = measurement.residual(x_0, y)
        added = self.gamma * (inside.sigma / inside.alpha) ** 2
        added = added if added.ndim == 0 else added.reshape(-1, *(1,) * (e.ndim - 1))
        return x_0 + V(measurement.A.adjoint(_solve(measurement, e, added)))


def _solve(measurement: Measurement, e: Tensor, added: Tensor) -> Tensor:
    """(Σ_y + added I)⁻¹ e."""
    if measurement.noise.is_diagonal:
        return e / (measurement.apply_covariance(torch.ones_like(e)) + added)
    return conjugate_gradients(
        lambda p: measurement.apply_covariance(p) + added * p,
        e,
        tolerance=10 * torch.finfo(e.dtype).eps,
        max_iterations=2 * math.prod(measurement.A.measured_shape),
    ).x
