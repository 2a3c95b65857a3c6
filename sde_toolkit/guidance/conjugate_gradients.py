"""Conjugate gradients for a batch of systems K x = b, each stopped for itself.

x ← x + a p, r ← r − a K p, z = M⁻¹ r, p ← z' + (r'ᵀz'/rᵀz) p with a = rᵀz / pᵀK p. Hestenes and Stiefel 1952; with the
preconditioner M: Concus, Golub and O'Leary 1976.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from sde_toolkit.batching import expand_to
from sde_toolkit.checks import all_hold, branches_on_data

__all__ = ["Solution", "conjugate_gradients"]

_LOOK_EVERY = 16  # iterations on an accelerator, between two looks at whether all systems are solved

Product: TypeAlias = Callable[[Tensor], Tensor | tuple[Tensor, Tensor]]
"""p to K p; or to (K p, L p) with another linear map L."""


@dataclass(frozen=True)
class Solution:
    """Solved systems.

    Attributes:
        x: (B, ...).
        image: L x where each product came as (K p, L p), without a product of its own; else None.
        iterations: (B,), the products with K that each system took.
        residual: (B,), the norm of b − K x over that of b, as the recursion has it; 0 for b = 0. The norm is
            √(rᵀM⁻¹r), the Euclidean one without a preconditioner.
        indefinite: (B,), whether a system stopped at a p with pᵀK p < 0, which no K has that is a covariance.
    """

    x: Tensor
    image: Tensor | None
    iterations: Tensor
    residual: Tensor
    indefinite: Tensor


def conjugate_gradients(
    apply: Product,
    b: Tensor,
    *,
    tolerance: float,
    max_iterations: int,
    precondition: Callable[[Tensor], Tensor] | None = None,
    look_every: int = _LOOK_EVERY,
) -> Solution:
    """x with K x = b for a symmetric positive semi-definite K, from x = 0.

    A system stops when its residual is at most ``tolerance`` times that of x = 0, after ``max_iterations``, or where K
    is found not to be positive. A system that has stopped does not change any more, whatever the others do. The batch
    stops when all its systems have: that is looked at after every iteration on the CPU, and every ``look_every`` on an
    accelerator.

    Args:
        apply: p (B, ...) to K p; one call per iteration, for all systems.
        b: (B, ...).
        precondition: r to M⁻¹ r, M symmetric, positive and similar to K.
    """
    x, r, image = torch.zeros_like(b), b, None
    z = p = b if precondition is None else precondition(b)
    start = rz = _inner(r, z)
    goal = tolerance**2 * rz
    iterations = torch.zeros(b.shape[0], dtype=torch.int64, device=b.device)
    going = rz > goal
    indefinite = torch.zeros_like(going)
    for i in range(max_iterations):
        if _all_done(going, i, look_every):
            break
        answer = apply(p)
        Kp, Lp = answer if isinstance(answer, tuple) else (answer, None)
        pKp = _inner(p, Kp)
        indefinite = indefinite | (going & (pKp < 0))
        going = going & (pKp > 0)  # not so where round-off is all that is left
        a = torch.where(going, rz / torch.where(going, pKp, 1), 0)
        x, r = x + expand_to(a, b) * p, r - expand_to(a, b) * Kp
        if Lp is not None:
            image = expand_to(a, Lp) * Lp if image is None else image + expand_to(a, Lp) * Lp
        z = r if precondition is None else precondition(r)
        new = _inner(r, z)
        p = z + expand_to(torch.where(going, new / torch.where(going, rz, 1), 0), b) * p
        rz, iterations = torch.where(going, new, rz), iterations + going
        going = going & (rz > goal)
    left = torch.where(start > 0, rz / torch.where(start > 0, start, 1), 0).clamp_min(0)
    return Solution(x, image, iterations, left.sqrt(), indefinite)


def _inner(u: Tensor, v: Tensor) -> Tensor:
    """(B,)."""
    return (u * v).reshape(u.shape[0], -1).sum(1) if u.shape[0] else u.new_zeros(0)


def _all_done(going: Tensor, i: int, look_every: int) -> bool:
    if not branches_on_data() or (going.device.type != "cpu" and i % look_every):
        return False
    return all_hold(~going) is True
