"""Convolutions over one, two or three spatial axes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear

__all__ = ["CONVOLUTIONS", "Pointwise", "Rows", "channels_last", "convolution", "is_exporting", "mapped"]

CONVOLUTIONS: dict[int, type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]] = {
    1: nn.Conv1d,
    2: nn.Conv2d,
    3: nn.Conv3d,
}


def convolution(dims: int, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Module:
    """A convolution over ``dims`` spatial axes that keeps their sizes (or divides them by ``stride``)."""
    classes = ONE_TAP if kernel == stride == 1 else CONVOLUTIONS
    return classes[dims](inputs, outputs, kernel, stride=stride, padding=kernel // 2)


IMAGES, WIDE = 16, 128

is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)  # since torch 2.7
"""Whether ``torch.export`` traces: what is written then must not depend on the number of samples."""


def suits_convolution(rows: Tensor, width: int) -> bool:
    """Whether :func:`mapped` computes by a convolution."""
    if is_exporting():
        return False
    count = rows.shape[:-1].numel()
    return rows.device.type == "cpu" and rows.dtype == torch.float32 and width >= WIDE and count > 0 == count % IMAGES


def mapped(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear map of every row of a tensor, (..., inputs) to (..., outputs).

    On a CPU torch multiplies float32 matrices with MKL, which runs at half speed on processors that are not Intel's.
    Convolutions of one tap over 16 or more images use oneDNN, which is faster there. So the rows are passed to it as
    16 images, where their number allows it.
    """
    if not suits_convolution(rows, weight.shape[1]):
        return linear(rows, weight, bias)
    images = rows.reshape(IMAGES, 1, -1, weight.shape[1]).movedim(-1, 1)
    out = conv2d(images, weight[:, :, None, None], bias)
    return out.movedim(1, -1).reshape(*rows.shape[:-1], weight.shape[0])


class Rows(nn.Linear):
    """torch's linear layer, computed by :func:`mapped`."""

    def forward(self, rows: Tensor) -> Tensor:
        """(..., inputs) to (..., outputs)."""
        return mapped(rows, self.weight, self.bias)


class Pointwise(nn.Linear):
    """A linear map of the channels at every position: a convolution of one tap."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, *size) to (B, outputs, *size), channels last in memory."""
        return mapped(x.movedim(1, -1), self.weight, self.bias).movedim(-1, 1)


class OneTap(nn.Module):
    """torch's convolution of one tap, computed by :func:`mapped` where that is faster."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, *size) to (B, outputs, *size)."""
        rows = x.movedim(1, -1)
        if not suits_convolution(rows, x.shape[1]):
            out: Tensor = super().forward(x)
            return out
        weight: Any = self.weight
        bias: Any = self.bias
        return mapped(rows, weight.flatten(1), bias).movedim(-1, 1)


ONE_TAP: dict[int, Any] = {dims: type(f"OneTap{dims}d", (OneTap, kind), {}) for dims, kind in CONVOLUTIONS.items()}


def channels_last(network: nn.Module, dims: int) -> None:
    """Keep the weights of 2-D and 3-D networks with the channels last: the faster layout on every device."""
    layout = {2: torch.channels_last, 3: torch.channels_last_3d}.get(dims)
    if layout is not None:
        network.to(memory_format=layout)  # type: ignore[call-overload]
