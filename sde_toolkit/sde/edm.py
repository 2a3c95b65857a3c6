"""EDM's SDE: the signal keeps its scale, and σ follows a power law (Karras et al. 2022, eq. 5 and table 1)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sde_toolkit.checks import check_positive, is_number
from sde_toolkit.errors import ArgumentError
from sde_toolkit.sde.base import SDE, Time

__all__ = ["EDMSDE"]


@dataclass(frozen=True)
class EDMSDE(SDE):
    """α = 1, σ = (σ_min^(1/ρ) + t (σ_max^(1/ρ) − σ_min^(1/ρ)))^ρ: equal steps in t are EDM's grid.

    The paper's time is σ. Here t is the position in its eq. 5, counted from the data. σ(0) = σ_min, so that
    everything is finite at t=0, where sampling ends by default. The paper's last step, from σ_min to 0, is the
    Tweedie step of ``sample(..., tweedie=True)``.

    Raises:
        ArgumentError: unless 0 < sigma_min < sigma_max and rho > 0.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    sampling_end: ClassVar[float] = 0.0
    likelihood_end: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        check_positive("sigma_min", self.sigma_min, "Karras et al. use 0.002.")
        if not (is_number(self.sigma_max) and self.sigma_max > self.sigma_min):
            raise ArgumentError(
                "sigma_max",
                self.sigma_max,
                f"σ(1) must be finite and exceed sigma_min={self.sigma_min}",
                "Pass sigma_min < sigma_max; Karras et al. use 80 for data of standard deviation 0.5.",
            )
        check_positive("rho", self.rho, "Karras et al. use 7.")

    @property
    def _first(self) -> float:
        return float(self.sigma_min ** (1 / self.rho))

    @property
    def _slope(self) -> float:
        """d σ^(1/ρ)/dt, accurate also where σ_min and σ_max are close together."""
        log_ratio = math.log(self.sigma_max / self.sigma_min)
        return self._first * math.expm1(log_ratio / self.rho)

    def _root(self, t: Tensor) -> Tensor:
        """σ^(1/ρ)."""
        return self._first + t * self._slope

    def alpha(self, t: Time) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Time) -> Tensor:
        return self._root(t) ** self.rho

    def f(self, t: Time) -> Tensor:
        return torch.zeros_like(t)

    def g(self, t: Time) -> Tensor:
        return torch.sqrt(2 * self.sigma(t) * self.d_sigma(t))

    def d_sigma(self, t: Time) -> Tensor:
        return self.rho * self._slope * self._root(t) ** (self.rho - 1)

    def half_log_snr(self, t: Time) -> Tensor:
        return -self.rho * torch.log(self._root(t))

    def solve_half_log_snr(self, lambda_t: Tensor) -> Tensor:
        log_gain = -lambda_t / self.rho - math.log(self._first)  # log of σ^(1/ρ) over its value at t=0
        return self._first * torch.expm1(log_gain) / self._slope
