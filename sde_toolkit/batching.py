"""Batches: a time or a coefficient acts on one of any event shape."""

from __future__ import annotations

import torch
from torch import Tensor

from sde_toolkit.errors import ArgumentError

__all__ = ["as_floating", "check_same_shape", "columns_like", "expand_to"]


def as_floating(x: Tensor, name: str = "x") -> Tensor:
    """``x`` itself if it holds floating-point (or complex) numbers; integers and booleans in torch's default dtype.

    Coefficients are computed in the dtype of the data: in that of integers, 0.28 would become 0.

    Raises:
        ArgumentError: unless ``x`` is a tensor.
    """
    if not isinstance(x, Tensor):
        raise ArgumentError(name, x, "not a tensor", "Pass a tensor (B, *event).")
    return x if x.is_floating_point() or x.is_complex() else x.to(torch.get_default_dtype())


def check_same_shape(name: str, value: Tensor, of: str, x: Tensor) -> None:
    """Refuse ``value`` unless it has the shape of ``x``: what merely broadcasts would mix the samples.

    Raises:
        ArgumentError: naming both shapes.
    """
    if value.shape != x.shape:
        problem = f"{of} has shape {tuple(x.shape)}"
        raise ArgumentError(name, tuple(value.shape), problem, f"Give {name} the shape of {of}.")


def expand_to(coefficient: Tensor, x: Tensor) -> Tensor:
    """View ``coefficient`` so that it multiplies the batch ``x`` sample by sample.

    Shapes: a 0-dim coefficient stays as it is; ``(B,)`` becomes ``(B, 1, ..., 1)`` with ``x.ndim`` axes.

    Raises:
        ArgumentError: if the coefficient is neither a scalar nor one value per sample of ``x``.
    """
    if coefficient.ndim == 0:
        return coefficient
    if coefficient.ndim != 1 or x.ndim == 0 or coefficient.shape[0] not in (1, x.shape[0]):
        raise ArgumentError(
            "t",
            tuple(coefficient.shape),
            f"the shape fits neither a scalar nor one time per sample of x with shape {tuple(x.shape)}",
            "Pass a scalar t, or t of shape (B,) where B is the first axis of x.",
        )
    return coefficient.reshape(coefficient.shape + (1,) * (x.ndim - 1))


def columns_like(x: Tensor, columns: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Numbers of one time, or of one per sample, in the dtype and on the device of ``x``; bools as they are."""
    return tuple(c if c.dtype is torch.bool else c.to(x.device, x.dtype) for c in columns)
