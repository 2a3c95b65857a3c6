"""Products of rows with matrices whose derivatives are cheap in many directions, for exact models."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["row_products", "with_derivatives_of"]


def row_products(v: Tensor, M: Tensor) -> Tensor:
    """v_b M_b for rows v (B, n) and constant matrices M (B, n, m): (B, m).

    Derivatives are taken by v alone. Many directions at once are the rows of one product for each sample; the rule
    that vmap itself has would copy M for each direction.
    """
    if torch.compiler.is_compiling():  # a graph takes no derivative rules from outside
        return _RowProducts.forward(v, M)
    product: Tensor = _RowProducts.apply(v, M)
    return product


def with_derivatives_of(value: Tensor, polynomial: Tensor) -> Tensor:
    """A tensor equal to ``value`` whose derivatives are those of ``polynomial``."""
    return value.detach() + (polynomial - polynomial.detach())


class _RowProducts(torch.autograd.Function):
    """See :func:`row_products`."""

    @staticmethod
    def forward(v: Tensor, M: Tensor) -> Tensor:
        return (v.unsqueeze(1) @ M).squeeze(1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.save_for_forward(inputs[1])

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return _RowProducts.apply(g, ctx.saved_tensors[0].mT), None

    @staticmethod
    def jvp(ctx: Any, v: Tensor, M: Tensor | None) -> Tensor:
        return _RowProducts.apply(v, ctx.saved_tensors[0])

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, int | None], v: Tensor, M: Tensor) -> tuple[Tensor, int]:
        of_v, of_M = in_dims
        if of_M is None and of_v is not None:
            return (v.movedim(of_v, 1) @ M), 1
        v, M = (a if d is None else a.movedim(d, 0) for a, d in ((v, of_v), (M, of_M)))
        return (v.unsqueeze(-2) @ M).squeeze(-2), 0
