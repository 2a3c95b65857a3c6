"""The parts of the U-Net, each written once for any number of spatial axes.

References:
    Ho et al. 2020, "Denoising Diffusion Probabilistic Models" (residual blocks, attention, resampling).
    Nichol & Dhariwal 2021, "Improved Denoising Diffusion Probabilistic Models" (scale and shift from time).
    Song et al. 2021, "Score-Based Generative Modeling through SDEs" (the same trunk for continuous time).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import interpolate, scaled_dot_product_attention, silu

__all__ = ["Attention", "Downsample", "ResidualBlock", "Upsample", "convolution", "normalisation", "zeroed"]

CONVOLUTIONS: dict[int, type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]] = {
    1: nn.Conv1d,
    2: nn.Conv2d,
    3: nn.Conv3d,
}


def convolution(dims: int, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Module:
    """A convolution over ``dims`` spatial axes that keeps their sizes (or divides them by ``stride``)."""
    return CONVOLUTIONS[dims](inputs, outputs, kernel, stride=stride, padding=kernel // 2)


def largest_divisor(width: int, limit: int) -> int:
    """The largest divisor of ``width`` not above ``limit`` (at least 1)."""
    return max(divisor for divisor in range(1, max(limit, 1) + 1) if width % divisor == 0)


def group_count(width: int, groups: int) -> int:
    """How many groups ``width`` channels form: at most ``groups``, and never a group of a single channel."""
    return largest_divisor(width, min(groups, width // 2))


def is_dual(x: Tensor) -> bool:
    """Whether ``x`` carries a forward-mode tangent: some of torch's fast paths have no such derivative."""
    return not torch.compiler.is_compiling() and forward_ad.unpack_dual(x).tangent is not None


class GroupNorm(nn.GroupNorm):
    """torch's; its forward derivative exists in the default memory layout only."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape (B, width, *size)."""
        return super().forward(x.contiguous() if is_dual(x) else x)


def normalisation(width: int, groups: int, affine: bool = True) -> GroupNorm:
    """GroupNorm whose group count adapts to the width."""
    return GroupNorm(group_count(width, groups), width, affine=affine)


def zeroed(layer: nn.Module) -> Any:
    """The same layer with its weights and bias set to zero, so that it starts by adding nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class ResidualBlock(nn.Module):
    """Norm, SiLU, conv; scale and shift from the conditioning vector; SiLU, dropout, zeroed conv; plus skip.

    The second normalisation has no weights of its own: its scale and shift are a linear map of the vector
    (FiLM, Nichol & Dhariwal 2021), applied as one fused multiply-add.
    """

    def __init__(self, dims: int, inputs: int, outputs: int, time_width: int, groups: int, dropout: float) -> None:
        super().__init__()
        self.enter_norm = normalisation(inputs, groups)
        self.enter = convolution(dims, inputs, outputs)
        self.film_norm = normalisation(outputs, groups, affine=False)
        self.film = nn.Linear(time_width, 2 * outputs)
        self.dropout = nn.Dropout(dropout)
        self.leave = zeroed(convolution(dims, outputs, outputs))
        self.skip = nn.Identity() if inputs == outputs else convolution(dims, inputs, outputs, kernel=1)

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        """Map ``x`` (B, inputs, *size) and ``vector`` (B, time_width) to (B, outputs, *size)."""
        h = self.enter(silu(self.enter_norm(x)))
        film = self.film(vector)
        scale, shift = film.reshape(film.shape + (1,) * (h.ndim - film.ndim)).chunk(2, dim=1)
        h = torch.addcmul(shift, self.film_norm(h), scale + 1)
        out: Tensor = self.skip(x) + self.leave(self.dropout(silu(h)))
        return out


class Attention(nn.Module):
    """Self-attention between all positions (Ho et al. 2020), ``(B, width, *size)`` to the same shape."""

    def __init__(self, width: int, head_width: int, groups: int) -> None:
        super().__init__()
        self.heads = largest_divisor(width, width // head_width)
        self.norm = normalisation(width, groups)
        self.enter = nn.Linear(width, 3 * width)
        self.leave = zeroed(nn.Linear(width, width))

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        """Attend; ``vector`` is ignored, so that attention and residual blocks are called alike."""
        tokens = self.norm(x).flatten(2).mT  # (B, positions, width)
        heads = self.enter(tokens).unflatten(2, (3, self.heads, -1)).transpose(1, 3)
        queries, keys, values = heads.unbind(2)  # each (B, heads, positions, width / heads)
        attended = attend(queries, keys, values).transpose(1, 2).flatten(2)
        return x + self.leave(attended).mT.reshape(x.shape)


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Scaled dot-product attention. Fused kernels lack a forward derivative, so a dual input avoids them."""
    if is_dual(queries):
        with sdpa_kernel(SDPBackend.MATH):
            return scaled_dot_product_attention(queries, keys, values)
    return scaled_dot_product_attention(queries, keys, values)


class Downsample(nn.Module):
    """Halves every spatial axis with a strided convolution, and changes the width."""

    def __init__(self, dims: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = convolution(dims, inputs, outputs, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, *size) to (B, outputs, *size/2)."""
        out: Tensor = self.conv(x)
        return out


class Upsample(nn.Module):
    """Doubles every spatial axis by repetition, then convolves, and changes the width."""

    def __init__(self, dims: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = convolution(dims, inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, *size) to (B, outputs, *2 size)."""
        out: Tensor = self.conv(interpolate(x, scale_factor=2.0, mode="nearest"))
        return out
