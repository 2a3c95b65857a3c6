"""A time grid as unconstrained numbers: the logarithms of its steps.

    t_i = end + (start − end) Σ_{j>=i} p_j,        p = softmax(a),    i = 0 ... steps

a has one entry per step, and one for the distance from the last time to ``end``. Every a gives a strictly decreasing
grid. Near t = 0 times are sums of small numbers, so that they keep their relative precision. A grid that stops at
``end`` itself has one entry less.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["grid_of", "increments_of", "warp_modes"]


def increments_of(grid: Tensor, end: float) -> Tensor:
    """a with ``grid_of(a, grid[0], end)`` = grid."""
    steps = -grid.diff()
    left = grid[-1:] - end
    steps = torch.cat([steps, left]) if bool(left > 0) else steps
    return torch.log(steps / steps.sum())


def grid_of(a: Tensor, start: float, end: float, steps: int) -> Tensor:
    """The grid of ``steps`` + 1 times. Differentiable."""
    p = torch.softmax(a, 0)
    inner = end + (start - end) * p.flip(0).cumsum(0).flip(0)[1:]
    fixed = [a.new_full((1,), start), inner]
    if len(a) == steps:  # it stops at the end
        fixed.append(a.new_full((1,), end))
    return torch.cat(fixed)


def warp_modes(a: Tensor, steps: int, modes: int) -> Tensor:
    """Directions (modes, len(a)) along which a grid changes smoothly: cosines over the steps, and its end alone."""
    u = torch.arange(len(a), dtype=a.dtype) / max(1, steps - 1)
    smooth = [torch.cos(torch.pi * k * u) for k in range(1, modes + 1)]
    rest = torch.zeros_like(a)
    if len(a) > steps:
        rest[steps:] = 1.0
        smooth = [torch.where(rest > 0, 0.0, mode) for mode in smooth]
        smooth.insert(0, rest)
    return torch.stack(smooth)
