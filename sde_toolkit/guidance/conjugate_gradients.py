"""Conjugate gradients for a batch of systems K x = b, each stopped for itself.

x ← x + a p, r ← r − a K p, p ← r' + (r'ᵀr'/rᵀr) p with a = rᵀr / pᵀK p. Hestenes and Stiefel 1952.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_toolkit.batching import expand_to
from sde_toolkit.checks import all_hold

__all__ = ["Solution", "conjugate_gradients", "inner_products"]

_LOOK_EVERY = 16  # iterations on an accelerator, between two looks at whether all systems are solved


@dataclass(frozen=True)
class Solution:
    """Solved systems.

    Attributes:
        x: (B, ...).
        iterations: (B,), the products with K that each system took.
        residual: (B,), ‖b − K x‖ / ‖b‖ as the recursion has it; 0 for b = 0.
    """

    x: Tensor
    iterations: Tensor
    residual: Tensor


def conjugate_gradients(
    apply: Callable[[Tensor], Tensor], b: Tensor, *, tolerance: float, max_iterations: int
) -> Solution:
    """x with K x = b for a symmetric positive semi-definite K, from x = 0.

    A system stops when its residual is at most ``tolerance`` ‖b‖, or after ``max_iterations``. The batch stops when all
    its systems have: that is looked at after every iteration on the CPU, and seldom on an accelerator.

    Args:
        apply: p (B, ...) to K p; one call per iteration, for all systems.
        b: (B, ...).
    """
    x, r, p = torch.zeros_like(b), b, b
    rr = inner_products(r, r)
    goal = tolerance**2 * rr
    iterations = torch.zeros(b.shape[0], dtype=torch.int64, device=b.device)
    for i in range(max_iterations):
        going = rr > goal
        if _all_done(going, i):
            break
        Kp = apply(p)
        pKp = inner_products(p, Kp)
        going = going & (pKp > 0)  # not so where round-off is all that is left
        a = torch.where(going, rr / torch.where(going, pKp, 1), 0)
        x, r = x + expand_to(a, b) * p, r - expand_to(a, b) * Kp
        new = inner_products(r, r)
        p = r + expand_to(torch.where(going, new / torch.where(going, rr, 1), 0), b) * p
        rr, iterations = new, iterations + going
    size = inner_products(b, b)
    return Solution(x, iterations, torch.where(size > 0, rr / torch.where(size > 0, size, 1), 0).sqrt())


def inner_products(u: Tensor, v: Tensor) -> Tensor:
    """uᵀv of each row, (B,)."""
    return (u * v).reshape(u.shape[0], -1).sum(1) if u.shape[0] else u.new_zeros(0)


def _all_done(going: Tensor, i: int) -> bool:
    if torch.compiler.is_compiling() or (going.device.type != "cpu" and i % _LOOK_EVERY):
        return False
    return all_hold(~going) is True
