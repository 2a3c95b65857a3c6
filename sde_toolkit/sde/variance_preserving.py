"""VP and sub-VP: the same β(t) and α, two noise levels.

With B(t) = ∫₀ᵗ β du both have α = exp(−B/2). VP has σ² = 1 − e^(−B), sub-VP has σ = 1 − e^(−B).
Both are computed with ``expm1``: the difference 1 − e^(−B) loses all digits as t → 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from sde_toolkit.checks import check_positive
from sde_toolkit.sde.base import SDE, Time

if TYPE_CHECKING:
    from sde_toolkit.sde.from_betas import DiscreteVPSDE

__all__ = ["VPSDE", "LinearBeta", "SubVPSDE"]


@dataclass(frozen=True)
class LinearBeta:
    """β(t) = β_min + t (β_max − β_min) and B(t) = ∫₀ᵗ β, with its inverse."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        for name in ("beta_min", "beta_max"):
            check_positive(name, getattr(self, name), "Song et al. use 0.1 and 20.")

    def beta(self, t: Time) -> Tensor:
        """β(t)."""
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def integrated_beta(self, t: Time) -> Tensor:
        """B(t)."""
        return t * (self.beta_min + 0.5 * t * (self.beta_max - self.beta_min))

    def solve_integrated_beta(self, B: Tensor) -> Tensor:
        """The t with B(t) = B: the root of a quadratic equation, computed without cancellation."""
        slope = self.beta_max - self.beta_min
        return 2 * B / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * slope * B))


@dataclass(frozen=True)
class VPSDE(LinearBeta, SDE):
    """Variance preserving: dx = −½β x dt + √β dw (Song et al. 2021, eq. 11, 29; DDPM's limit).

    α = exp(−B/2), σ = √(1 − e^(−B)), so that α² + σ² = 1.

    Raises:
        ArgumentError: if ``beta_min`` or ``beta_max`` is not positive and finite.
    """

    @staticmethod
    def from_betas(betas: Sequence[float] | Tensor) -> DiscreteVPSDE:
        """The continuous SDE with α = √ᾱ_i at t = i/N, as in DDPM; see :class:`DiscreteVPSDE`."""
        from sde_toolkit.sde.from_betas import DiscreteVPSDE

        return DiscreteVPSDE(tuple(betas.tolist() if isinstance(betas, Tensor) else betas))

    def log_alpha(self, t: Time) -> Tensor:
        return -0.5 * self.integrated_beta(t)

    def sigma(self, t: Time) -> Tensor:
        return torch.sqrt(-torch.expm1(-self.integrated_beta(t)))

    def f(self, t: Time) -> Tensor:
        return -0.5 * self.beta(t)

    def g(self, t: Time) -> Tensor:
        return torch.sqrt(self.beta(t))

    def solve_half_log_snr(self, lambda_t: Tensor) -> Tensor:
        return self.solve_integrated_beta(F.softplus(-2 * lambda_t, threshold=1e3))  # e^(−2λ) = e^B − 1


@dataclass(frozen=True)
class SubVPSDE(LinearBeta, SDE):
    """Sub-VP: dx = −½β x dt + √(β(1 − e^(−2B))) dw (Song et al. 2021, eq. 12 and 29).

    α = exp(−B/2), σ = 1 − e^(−B): the square of VP's σ.

    Raises:
        ArgumentError: if ``beta_min`` or ``beta_max`` is not positive and finite.
    """

    def log_alpha(self, t: Time) -> Tensor:
        return -0.5 * self.integrated_beta(t)

    def sigma(self, t: Time) -> Tensor:
        return -torch.expm1(-self.integrated_beta(t))

    def f(self, t: Time) -> Tensor:
        return -0.5 * self.beta(t)

    def g(self, t: Time) -> Tensor:
        return torch.sqrt(-self.beta(t) * torch.expm1(-2 * self.integrated_beta(t)))

    def solve_half_log_snr(self, lambda_t: Tensor) -> Tensor:
        return self.solve_integrated_beta(2 * torch.asinh(0.5 * torch.exp(-lambda_t)))  # e^(−λ) = 2 sinh(B/2)
