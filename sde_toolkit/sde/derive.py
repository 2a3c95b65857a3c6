"""Derivatives of schedules by forward-mode automatic differentiation, and the inverse of a decreasing schedule.

A schedule maps float64 times to float64 values, elementwise, for any shape of ``t``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.checks import all_hold

__all__ = ["derivative", "gauss_legendre", "inverse_decreasing", "pick"]

Schedule = Callable[[Tensor], Tensor]

_NODES = 64  # Gauss-Legendre: exact to rounding for coefficients as steep as exp(20 t)


@lru_cache(maxsize=1)
def gauss_legendre() -> tuple[Tensor, Tensor]:
    """Nodes and weights on [0, 1], float64."""
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    return torch.from_numpy((nodes + 1) / 2), torch.from_numpy(weights / 2)


def pick(values: Tensor, i: Tensor) -> Tensor:
    """``values[..., i]`` for indices i of any shape, also under vmap, where torch cannot index with a 0-dim i."""
    return values[..., i.unsqueeze(0)].squeeze(-1 - i.ndim)


def derivative(schedule: Schedule, t: Tensor) -> Tensor:
    """d schedule / dt. The schedule must be elementwise."""
    t = t.contiguous()  # jvp refuses expanded views
    return torch.func.jvp(schedule, (t,), (torch.ones_like(t),))[1]


def inverse_decreasing(schedule: Schedule, value: Tensor, iterations: int = 120) -> Tensor:
    """The t in [0, 1] with schedule(t) = value, for a strictly decreasing schedule.

    t is exact to rounding of ``value`` or of t. The method is Illinois (a variant of regula falsi); every third step
    halves the bracket on a logarithmic scale. First derivatives by ``value`` and by parameters of the schedule are
    those of the inverse function.
    """
    with torch.no_grad():
        t = _bracketed(schedule, value.detach(), iterations)
    slope = derivative(schedule, t).detach()
    inside = slope.isfinite() & (slope < 0)
    step = (value - schedule(torch.where(inside, t, 0.5))) / torch.where(inside, slope, 1.0)
    return t + torch.where(inside, step - step.detach(), 0.0)


def _bracketed(schedule: Schedule, value: Tensor, iterations: int) -> Tensor:
    enough = 4 * torch.finfo(value.dtype).eps * (1 + value.abs())
    low, high = torch.zeros_like(value), torch.ones_like(value)
    f_low, f_high = schedule(low) - value, schedule(high) - value
    at_start, at_end = ~(f_low > 0), f_high >= 0
    kept_low, kept_high = (torch.zeros_like(at_start) for _ in range(2))
    for k in range(iterations):
        halved = torch.where(low > 0, torch.sqrt(low) * torch.sqrt(high), high / 64)
        secant = low + (high - low) * (f_low / (f_low - f_high))
        middle = torch.where((secant > low) & (secant < high) & (k % 3 < 2), secant, halved)
        f = schedule(middle) - value
        above, hit = f > 0, f.abs() <= enough
        f_low = torch.where(above, f, torch.where(kept_low, f_low / 2, f_low))
        f_high = torch.where(above, torch.where(kept_high, f_high / 2, f_high), f)
        kept_low, kept_high = ~above, above
        low, high = torch.where(above | hit, middle, low), torch.where(above & ~hit, high, middle)
        if all_hold(at_start | at_end | (high - low <= 4e-16 * high)):
            break
    return torch.where(at_start, 0.0, torch.where(at_end, 1.0, (low + high) / 2))
