"""Halving and doubling every spatial axis with a filter, alone and together with a 3-tap convolution.

On each axis, with taps f of even length L and sum 1, and x continued by zeros:

    halved[i]  = Σ_k f[k] x[2i + k − (L − 2)/2]
    doubled[n] = 2 Σ_i f[n − 2i + (L − 2)/2] x[i]

Taps (1, 1) halve by the mean of two neighbours and double by repetition. Taps (1, 3, 3, 1) are the filter of Zhang
2019, "Making Convolutional Networks Shift-Invariant Again", which Karras et al. 2020 (StyleGAN2) and Song et al. 2021
(NCSN++) use.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sde_toolkit.networks.convolutions import CONVOLUTIONS, is_exporting
from sde_toolkit.networks.initialisation import initialised
from sde_toolkit.networks.normalisation import slow_in_half
from sde_toolkit.networks.own_precision import doubled_size

__all__ = ["Double", "DownConvolution", "FilteredStride", "Halve", "StridedConvolution", "UpConvolution"]

CONVOLVE: dict[int, Any] = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
SPREAD: dict[int, Any] = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}
POOL: dict[int, Any] = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


def outer(factors: Sequence[Tensor]) -> Tensor:
    """The outer product of tensors."""
    return reduce(lambda a, b: torch.tensordot(a, b, dims=0), factors)


class Filter(nn.Module):
    """A filter with the same taps on every axis, applied to every channel separately."""

    kernel: Tensor

    def __init__(self, dims: int, taps: Sequence[float]) -> None:
        super().__init__()
        self.dims = dims
        self.length = len(taps)
        self.is_box = self.length == 2 and taps[0] == taps[1]
        total = sum(taps)
        f = torch.tensor([float(tap) / total for tap in taps], dtype=torch.float64)
        self.register_buffer("kernel", outer([f] * dims).to(torch.float32)[None, None], persistent=False)

    def apply_by(self, operation: Callable[..., Tensor], x: Tensor, gain: float = 1.0, **options: Any) -> Tensor:
        """Apply the filter by a grouped ``operation``; on a CPU half precision is computed in float32: it is faster."""
        wide = x.float() if slow_in_half(x) else x
        width = x.shape[1]
        kernel = (gain * self.kernel).to(wide.dtype).expand(width, *self.kernel.shape[1:]).contiguous()
        with torch.autocast(x.device.type, enabled=False):
            return operation(wide, kernel, groups=width, **options).to(x.dtype)

    def extra_repr(self) -> str:
        return f"dims={self.dims}, length={self.length}"


class Halve(Filter):
    """(B, C, *size) to (B, C, *size / 2)."""

    def forward(self, x: Tensor) -> Tensor:
        """All sizes must be even."""
        if self.is_box:
            mean: Tensor = POOL[self.dims](x, 2)
            return mean
        return self.apply_by(CONVOLVE[self.dims], x, stride=2, padding=self.length // 2 - 1)


class Double(Filter):
    """(B, C, *size) to (B, C, *2 size)."""

    def forward(self, x: Tensor) -> Tensor:
        """Sizes may be any."""
        if self.is_box:
            return doubled_size(x)
        return self.apply_by(SPREAD[self.dims], x, gain=2.0**self.dims, stride=2, padding=self.length // 2 - 1)


class DownConvolution(nn.Module):
    """A 3-tap convolution of the halved signal."""

    def __init__(self, dims: int, inputs: int, outputs: int, taps: Sequence[float]) -> None:
        super().__init__()
        self.halved = Halve(dims, taps)
        self.conv = initialised(CONVOLUTIONS[dims](inputs, outputs, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, *size) to (B, outputs, *size / 2)."""
        out: Tensor = self.conv(self.halved(x))
        return out


class UpConvolution(nn.Module):
    """A 3-tap convolution of the doubled signal.

    After doubling by repetition, two of the three taps meet the same sample. A transposed convolution with the four
    taps (w₂, w₁ + w₂, w₀ + w₁, w₀) and stride 2 gives the same, also at the border, with (2/3)^dims of the
    multiplications. It is used on a CPU (other devices were not measured), from 256 positions in the batch on:
    for fewer, adding up the weights costs more than is saved.
    """

    FOLD = ((0.0, 0.0, 1.0), (0.0, 1.0, 1.0), (1.0, 1.0, 0.0), (1.0, 0.0, 0.0))
    WORTH_FOLDING = 256

    def __init__(self, dims: int, inputs: int, outputs: int, taps: Sequence[float] = (1, 1)) -> None:
        super().__init__()
        self.dims = dims
        self.doubled = Double(dims, taps)
        self.conv = initialised(CONVOLUTIONS[dims](inputs, outputs, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, *size) to (B, outputs, *2 size)."""
        samples = x.shape[0] * x.shape[2:].numel()
        # A graph for any number of samples is written without the fold.
        if self.doubled.is_box and x.device.type == "cpu" and not is_exporting() and samples >= self.WORTH_FOLDING:
            return self.folded(x)
        out: Tensor = self.conv(self.doubled(x))
        return out

    def folded(self, x: Tensor) -> Tensor:
        """The same result by one transposed convolution."""
        outputs, inputs = self.conv.weight.shape[:2]
        axes = range(2, self.dims + 2)
        once = x.new_tensor(self.FOLD, dtype=self.conv.weight.dtype)
        # (4, 3) for each axis -> (4, 4, .., 3, 3, ..) -> (4^dims, 3^dims)
        both = outer([once] * self.dims).permute(*range(0, 2 * self.dims, 2), *range(1, 2 * self.dims, 2))
        rows = self.conv.weight.permute(1, *axes, 0).reshape(inputs, 3**self.dims, outputs)
        weight = torch.matmul(both.reshape(4**self.dims, 3**self.dims), rows)
        weight = weight.reshape(inputs, *(4,) * self.dims, outputs).movedim(-1, 1)
        out: Tensor = SPREAD[self.dims](x, weight, self.conv.bias, stride=2, padding=1)
        return out


class StridedConvolution(nn.Module):
    """A 3-tap convolution at every second position; its window starts at that position (Ho et al. 2020)."""

    def __init__(self, dims: int, width: int) -> None:
        super().__init__()
        self.dims = dims
        self.conv = initialised(CONVOLUTIONS[dims](width, width, 3, stride=2))

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, *size) to (B, width, *size / 2)."""
        out: Tensor = self.conv(functional.pad(x, (0, 1) * self.dims))
        return out


class FilteredStride(Filter):
    """The filter at full resolution, followed by a 3-tap convolution of stride 2 (Karras et al. 2020)."""

    def __init__(self, dims: int, inputs: int, outputs: int, taps: Sequence[float]) -> None:
        super().__init__(dims, taps)
        self.conv = initialised(CONVOLUTIONS[dims](inputs, outputs, 3, stride=2))

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, *size) to (B, outputs, *size / 2)."""
        out: Tensor = self.conv(self.apply_by(CONVOLVE[self.dims], x, padding=self.length // 2))
        return out
