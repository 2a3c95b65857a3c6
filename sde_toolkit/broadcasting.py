"""The one helper that lets a time or a coefficient act on a batch of any event shape."""

from __future__ import annotations

from torch import Tensor

from sde_toolkit.errors import ArgumentError

__all__ = ["expand_to"]


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
