"""The other half of an SDE: quadrature from (f, g) to (α, σ), forward-mode AD from (α, σ) to (f, g).

Everything here maps float64 times to float64 values, elementwise and for any shape of ``t``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

__all__ = ["derivative", "gauss_legendre", "integral", "inverse_decreasing"]

Schedule = Callable[[Tensor], Tensor]

_NODES = 64  # Gauss-Legendre: exact to rounding for coefficients as steep as exp(20 t)


@lru_cache(maxsize=1)
def gauss_legendre() -> tuple[Tensor, Tensor]:
    """Nodes and weights on [0, 1], float64."""
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    return torch.from_numpy((nodes + 1) / 2), torch.from_numpy(weights / 2)


def integral(integrand: Schedule, t: Tensor) -> Tensor:
    """∫₀ᵗ integrand(u) du by one Gauss-Legendre rule over [0, t], for every element of ``t``.

    The factor t stands outside the sum, so that the result keeps its relative accuracy as t → 0.
    Coefficients with kinks deserve a closed form instead: override the method that needs it.
    """
    nodes, weights = (v.to(t.device) for v in gauss_legendre())
    return t * (integrand(t.unsqueeze(-1) * nodes) * weights).sum(-1)


def derivative(schedule: Schedule, t: Tensor) -> Tensor:
    """d schedule / dt by forward-mode automatic differentiation (elementwise schedules only)."""
    t = t.contiguous()  # jvp refuses expanded views
    return torch.func.jvp(schedule, (t,), (torch.ones_like(t),))[1]


def inverse_decreasing(schedule: Schedule, value: Tensor, iterations: int = 100) -> Tensor:
    """The t in [0, 1] with schedule(t) = value, for a strictly decreasing schedule, by bisection.

    A hundred halvings resolve t below 1e-29 in absolute terms, hence to rounding for any t that matters.
    """
    low, high = torch.zeros_like(value), torch.ones_like(value)
    for _ in range(iterations):
        middle = (low + high) / 2
        too_early = schedule(middle) > value
        low, high = torch.where(too_early, middle, low), torch.where(too_early, high, middle)
    return (low + high) / 2
