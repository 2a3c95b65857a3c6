"""DDPM's β_1, ..., β_N as a continuous SDE: exact at t = i/N, log α linear in between."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from sde_toolkit.checks import as_python, is_number
from sde_toolkit.errors import ArgumentError
from sde_toolkit.sde.base import SDE, Time
from sde_toolkit.sde.derive import pick

__all__ = ["DiscreteVPSDE"]

_DDPM_BETAS = tuple(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64).tolist())


@dataclass(frozen=True)
class DiscreteVPSDE(SDE):
    """The VP SDE through a discrete schedule: α(i/N)² = ᾱ_i = Π_{j≤i} (1 − β_j), α(0) = 1.

    Between these times log α is linear. So β(t) is piecewise constant: it is −N log(1 − β_i) on ((i−1)/N, i/N]. The
    index i−1 of a network belongs to t = i/N. If β_N = 1 (zero terminal SNR), α² is linear on the last interval, and
    α(1) = 0.

    Defaults are DDPM's: β from 1e-4 to 0.02 in N = 1000 steps (Ho et al. 2020, section 4).

    Raises:
        ArgumentError: if ``betas`` is empty, or a β lies outside (0, 1); the last may be 1.
    """

    betas: tuple[float, ...] = field(default=_DDPM_BETAS, repr=False)

    def __post_init__(self) -> None:
        try:
            betas = tuple(map(as_python, as_python(self.betas)))
        except TypeError:
            raise ArgumentError("betas", self.betas, "not a sequence of numbers", "Pass β_1, ..., β_N.") from None
        object.__setattr__(self, "betas", betas)
        if not self.betas:
            raise ArgumentError("betas", self.betas, "the schedule is empty", "Pass β_1, ..., β_N.")
        last = len(self.betas) - 1
        for i, beta in enumerate(self.betas):
            if not (is_number(beta) and (0 < beta < 1 or (i == last and last > 0 and beta == 1))):
                raise ArgumentError(
                    f"betas[{i}]",
                    beta,
                    "every β must lie strictly between 0 and 1 (the last one may be 1: zero terminal SNR)",
                    "Check the schedule; DDPM's runs from 1e-4 to 0.02.",
                )

    @property
    def N(self) -> int:  # noqa: N802 - the usual letter
        """The number of discrete steps."""
        return len(self.betas)

    @cached_property
    def _log_alpha_bar(self) -> Tensor:
        """log ᾱ_0 = 0, ..., log ᾱ_N in float64."""
        betas = torch.tensor(self.betas, dtype=torch.float64)
        return F.pad(torch.log1p(-betas).cumsum(0), (1, 0))

    @property
    def _zero_terminal_snr(self) -> bool:
        return self.betas[-1] == 1

    def _locate(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The interval i in 1..N with t in ((i−1)/N, i/N], the position of t in it, from 0 to 1, and log ᾱ.

        A t within rounding of i/N counts as i/N.
        """
        position = t * self.N
        off = (position.round() - position).detach()  # detached, so that the derivative by t stays
        position = position + torch.where(off.abs() <= 1e-15 * position, off, 0.0)
        i = position.ceil().clamp(1, self.N).long()
        return i, position - (i - 1), self._log_alpha_bar.to(t.device)

    def log_alpha(self, t: Time) -> Tensor:
        i, fraction, log_alpha_bar = self._locate(t)
        left, right = pick(log_alpha_bar, i - 1), pick(log_alpha_bar, i)
        if not self._zero_terminal_snr:
            return 0.5 * (left + fraction * (right - left))
        on_last = i == self.N
        inside = left + fraction * torch.where(on_last, torch.zeros_like(right), right - left)
        return 0.5 * torch.where(on_last, left + torch.log1p(-fraction), inside)

    def sigma(self, t: Time) -> Tensor:
        return torch.sqrt(-torch.expm1(2 * self.log_alpha(t)))

    def f(self, t: Time) -> Tensor:
        i, fraction, log_alpha_bar = self._locate(t)
        rate = pick(log_alpha_bar, i) - pick(log_alpha_bar, i - 1)
        if self._zero_terminal_snr:
            rate = torch.where(i == self.N, -1 / (1 - fraction), rate)
        return 0.5 * self.N * rate

    def g(self, t: Time) -> Tensor:
        return torch.sqrt(-2 * self.f(t))

    def d_alpha(self, t: Time) -> Tensor:
        alpha, f = self.alpha(t), self.f(t)
        return torch.where(alpha > 0, f * alpha, -math.inf)

    def solve_half_log_snr(self, lambda_t: Tensor) -> Tensor:
        log_alpha_squared = -F.softplus(-2 * lambda_t, threshold=1e3)
        log_alpha_bar = self._log_alpha_bar.to(lambda_t.device)
        i = torch.searchsorted(-log_alpha_bar, -log_alpha_squared.contiguous()).clamp(1, self.N)
        left, right = pick(log_alpha_bar, i - 1), pick(log_alpha_bar, i)
        fraction = (log_alpha_squared - left) / (right - left)
        if self._zero_terminal_snr:
            fraction = torch.where(i == self.N, -torch.expm1(log_alpha_squared - left), fraction)
        return (i - 1 + fraction) / self.N
