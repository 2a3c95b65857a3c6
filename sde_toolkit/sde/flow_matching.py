"""Flow matching's straight path between data and noise (Lipman et al. 2023, eq. 22-23 with σ_min = 0; rectified
flow, Liu et al. 2023, eq. 1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sde_toolkit.sde.base import SDE, Time

__all__ = ["FlowMatching"]


@dataclass(frozen=True)
class FlowMatching(SDE):
    """α = 1 − t, σ = t: x_t = (1 − t) x_0 + t ε, with the velocity ε − x_0 at every time.

    The data are at t=0, as everywhere in this package. Papers that have the data at t=1 call 1 − t the time.

    At t=1, α = 0, and f = −1/(1 − t) and g² = 2t/(1 − t) are infinite. Networks predict velocity, v, x0 or edm. Only
    the probability flow and the exponential integrators can start at t=1. The flow is finite everywhere, so that a
    velocity network can be sampled from t=1 down to t=0: ``grids.uniform(sde, n, end=0.0)``.
    """

    def alpha(self, t: Time) -> Tensor:
        return 1 - t

    def log_alpha(self, t: Time) -> Tensor:
        return torch.log1p(-t)

    def sigma(self, t: Time) -> Tensor:
        return 1 * t

    def f(self, t: Time) -> Tensor:
        return -1 / (1 - t)

    def g(self, t: Time) -> Tensor:
        return torch.sqrt(2 * t / (1 - t))

    def d_alpha(self, t: Time) -> Tensor:
        return -torch.ones_like(t)

    def d_sigma(self, t: Time) -> Tensor:
        return torch.ones_like(t)

    def solve_half_log_snr(self, lambda_t: Tensor) -> Tensor:
        return torch.sigmoid(-lambda_t)
