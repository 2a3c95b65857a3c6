"""The cosine schedule in continuous time (Nichol & Dhariwal 2021, "Improved DDPM", eq. 17).

    ᾱ(t) = cos²θ / cos²θ_0,    θ = (t + s)/(1 + s) · π/2,    θ_0 = θ(0)

δ = θ − θ_0 and φ = π/2 − θ are linear in t. With them no digits are lost at either end of time:

    α = cos δ − sin δ tan θ_0 = sin φ / cos θ_0        σ² = sin δ sin(δ + 2θ_0) / cos²θ_0

At t=1 no signal is left: α(1) = 0 and λ(1) = −∞. The paper instead limits its discrete β to 0.999; for N = 1000 that
schedule ends at λ = −9.9. It is :func:`sde_toolkit.sde.beta_schedules.cosine_betas`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_toolkit.checks import is_number
from sde_toolkit.errors import ArgumentError
from sde_toolkit.sde.base import SDE, Time

__all__ = ["CosineVPSDE"]


@dataclass(frozen=True)
class CosineVPSDE(SDE):
    """Variance preserving with ᾱ a squared cosine: α² + σ² = 1, β = π tan θ / (1 + s).

    Args:
        s: offset of the angle θ, at least 0.
        end_half_log_snr: the λ at which the schedule ends. None: the formula as it is, with α(1) = 0 and f and g
            infinite at t=1. Then networks must predict v, x0, edm or velocity; ε and score are refused, because they
            do not determine x_0 at t=1. A number, −9.9 for example: the curve is cut off at this λ and stretched to
            [0, 1] (for −9.9 by 5e-5). Then everything is finite, and networks may predict ε.

    Raises:
        ArgumentError: if ``s`` is negative, or ``end_half_log_snr`` is neither None nor in [−300, 0).
    """

    s: float = 0.008
    end_half_log_snr: float | None = None

    def __post_init__(self) -> None:
        if not (is_number(self.s) and self.s >= 0):
            raise ArgumentError("s", self.s, "the offset must be finite and not negative", "The paper uses 0.008.")
        end = self.end_half_log_snr
        if end is not None and not (is_number(end) and -300 <= end < 0):
            raise ArgumentError(
                "end_half_log_snr",
                end,
                "the schedule must end at a λ between -300 and 0, where there is more noise than signal",
                "Use -9.9, where the paper's clipped schedule ends, or None for α(1) = 0.",
            )

    @property
    def _theta_0(self) -> float:
        return self.s / (1 + self.s) * math.pi / 2

    @property
    def _phi_1(self) -> float:
        """φ(1): 0 unless the schedule is cut off."""
        if self.end_half_log_snr is None:
            return 0.0
        alpha = math.exp(-0.5 * math.log1p(math.exp(-2 * self.end_half_log_snr)))
        return math.asin(alpha * math.cos(self._theta_0))

    @property
    def _width(self) -> float:
        """θ(1) − θ(0)."""
        return math.pi / 2 / (1 + self.s) - self._phi_1

    def _phi(self, t: Tensor) -> Tensor:
        return self._phi_1 + (1 - t) * self._width

    def alpha(self, t: Time) -> Tensor:
        delta = t * self._width
        early = torch.cos(delta) - torch.sin(delta) * math.tan(self._theta_0)
        return torch.where(t < 0.5, early, torch.sin(self._phi(t)) / math.cos(self._theta_0))

    def log_alpha(self, t: Time) -> Tensor:
        delta = t * self._width
        lost = 2 * torch.sin(delta / 2) ** 2 + torch.sin(delta) * math.tan(self._theta_0)  # 1 − α
        late = torch.log(torch.sin(self._phi(t)) / math.cos(self._theta_0))
        return torch.where(t < 0.5, torch.log1p(-lost.clamp(max=0.999)), late)

    def sigma(self, t: Time) -> Tensor:
        delta = t * self._width
        variance = torch.sin(delta) * torch.sin(delta + 2 * self._theta_0)
        return torch.sqrt(variance) / math.cos(self._theta_0)

    def f(self, t: Time) -> Tensor:
        early = torch.tan(t * self._width + self._theta_0)
        return -self._width * torch.where(t < 0.5, early, 1 / torch.tan(self._phi(t)))

    def g(self, t: Time) -> Tensor:
        return torch.sqrt(-2 * self.f(t))

    def d_alpha(self, t: Time) -> Tensor:
        return -self._width * torch.cos(self._phi(t)) / math.cos(self._theta_0)

    def d_sigma(self, t: Time) -> Tensor:
        phi = self._phi(t)
        return self._width * torch.sin(phi) * torch.cos(phi) / (math.cos(self._theta_0) ** 2 * self.sigma(t))

    def solve_half_log_snr(self, lambda_t: Tensor) -> Tensor:
        # δ from its sine and cosine, with σ² = sigmoid(−2λ) where 1 − α² would cancel.
        cos_0, sin_0 = math.cos(self._theta_0), math.sin(self._theta_0)
        variance = torch.sigmoid(-2 * lambda_t)
        cos = cos_0 * torch.sqrt(torch.sigmoid(2 * lambda_t))
        sin = torch.sqrt(sin_0**2 + cos_0**2 * variance)
        sin_delta = cos_0**2 * variance / (sin * cos_0 + cos * sin_0).clamp(min=1e-300)
        return torch.atan2(sin_delta, cos * cos_0 + sin * sin_0) / self._width
