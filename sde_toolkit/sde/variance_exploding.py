"""VE: the signal keeps its scale, and noise is added (Song et al. 2021, eq. 9 and 30)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sde_toolkit.checks import check_positive, is_number
from sde_toolkit.errors import ArgumentError
from sde_toolkit.sde.base import SDE, Time

__all__ = ["VESDE"]


@dataclass(frozen=True)
class VESDE(SDE):
    """Variance exploding: α = 1, σ = σ_min (σ_max/σ_min)^t, g = σ √(2 log(σ_max/σ_min)).

    σ(0) is σ_min, not 0. A forward simulation starts from x_0 + σ_min z. A sample at t=0 carries noise of that size,
    unless a last Tweedie step removes it.

    Raises:
        ArgumentError: unless 0 < sigma_min < sigma_max.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    sampling_end: ClassVar[float] = 1e-5

    def __post_init__(self) -> None:
        check_positive("sigma_min", self.sigma_min, "Song et al. use 0.01.")
        if not (is_number(self.sigma_max) and self.sigma_max > self.sigma_min):
            raise ArgumentError(
                "sigma_max",
                self.sigma_max,
                f"σ(1) must be finite and exceed sigma_min={self.sigma_min}",
                "Pass sigma_min < sigma_max; sigma_max is about the largest distance between two data points.",
            )

    @property
    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def alpha(self, t: Time) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Time) -> Tensor:
        return self.sigma_min * torch.exp(t * self._log_ratio)

    def f(self, t: Time) -> Tensor:
        return torch.zeros_like(t)

    def g(self, t: Time) -> Tensor:
        return self.sigma(t) * math.sqrt(2 * self._log_ratio)

    def solve_half_log_snr(self, lambda_t: Tensor) -> Tensor:
        return (-lambda_t - math.log(self.sigma_min)) / self._log_ratio
