"""The blocks of ADM: the conditioning vector scales and shifts a norm; skips have weights only where widths differ.

References:
    Nichol & Dhariwal 2021, "Improved Denoising Diffusion Probabilistic Models" (scale and shift).
    Dhariwal & Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis" (blocks that resample; many heads).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sde_toolkit.networks.blocks import Attention, Downsample, Upsample, scaled_sum, zeroed
from sde_toolkit.networks.convolutions import Rows, convolution
from sde_toolkit.networks.normalisation import GroupNorm, activated, group_norm_for
from sde_toolkit.networks.published_blocks import Resampling, Unconditioned
from sde_toolkit.networks.resampling import Double, DownConvolution, Halve, UpConvolution

__all__ = ["ADMStyle", "ModulatedBlock"]

_BOX = (1.0, 1.0)


@dataclass(frozen=True)
class ADMStyle:
    """What all blocks of one ADM network have in common: the arguments of the same names of the network."""

    dims: int
    time_width: int
    groups: int
    group_width: int
    eps: float
    dropout: float
    modulation: Literal["scale", "shift"]
    attention_heads: int | None
    attention_head_width: int
    resampling: Literal["convolution", "block"]

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> ADMStyle:
        """The style of the network with these arguments, all of which are given."""
        return cls(**{field.name: given[field.name] for field in fields(cls)})

    def norm(self, width: int) -> GroupNorm:
        """A group norm over ``width`` channels."""
        return group_norm_for(width, self.groups, eps=self.eps, group_width=self.group_width)

    def block(self, inputs: int, outputs: int) -> nn.Module:
        """A residual block."""
        return ModulatedBlock(self, inputs, outputs)

    def attention(self, width: int) -> Attention:
        """Self-attention, with the given number of heads or the given width of a head."""
        head = self.attention_head_width if self.attention_heads is None else width // self.attention_heads
        return Attention(width, max(head, 1), self.groups, self.eps, 1.0, Rows, self.group_width)

    def resampler(self, width: int, resampling: Resampling) -> nn.Module:
        """The layer between two levels: a residual block that resamples, or one convolution."""
        if self.resampling == "block":
            return ModulatedBlock(self, width, width, resampling)
        part = Downsample if resampling == "halve" else Upsample
        return Unconditioned(part(self.dims, width, width))


class ModulatedNorm(nn.Module):
    """SiLU(norm(x) (1 + scale) + shift), where the norm has weights of its own."""

    def __init__(self, style: ADMStyle, width: int) -> None:
        super().__init__()
        self.norm = group_norm_for(width, style.groups, affine=False, eps=style.eps, group_width=style.group_width)
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """x (B, width, *size); scale and shift (B, width)."""
        return activated(self.norm, x, self.weight * (1 + scale), torch.addcmul(shift, self.bias, 1 + scale))


class ModulatedBlock(nn.Module):
    """A residual block in which the conditioning vector acts on the second norm; it may halve or double the size.

        h   = conv(resample(SiLU(norm(x))))
        h   = norm(h) (1 + scale) + shift                        (scale, shift) = linear(vector)
        out = conv(dropout(SiLU(h))) + skip(resample(x))

    ``modulation="shift"``: ``h = norm(h + linear(vector))`` instead. ``skip`` is the identity, or a convolution of one
    tap where the number of channels changes. The weights of the last convolution start at zero.
    """

    def __init__(self, style: ADMStyle, inputs: int, outputs: int, resampling: Resampling | None = None) -> None:
        super().__init__()
        dims, self.scaled = style.dims, style.modulation == "scale"
        self.enter_norm = style.norm(inputs)
        self.resample: nn.Module = nn.Identity()
        if resampling == "halve":
            self.enter: nn.Module = DownConvolution(dims, inputs, outputs, _BOX)
            self.resample = Halve(dims, _BOX)
        elif resampling == "double":
            self.enter = UpConvolution(dims, inputs, outputs, _BOX)
            self.resample = Double(dims, _BOX)
        else:
            self.enter = convolution(dims, inputs, outputs)
        self.modulation = nn.Linear(style.time_width, 2 * outputs if self.scaled else outputs)
        self.leave_norm: nn.Module = ModulatedNorm(style, outputs) if self.scaled else style.norm(outputs)
        self.dropout = nn.Dropout(style.dropout)
        self.leave = zeroed(convolution(dims, outputs, outputs))
        self.skip = nn.Identity() if inputs == outputs else convolution(dims, inputs, outputs, kernel=1)

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        """Map ``x`` (B, inputs, *size) and ``vector`` (B, time_width) to (B, outputs, *resampled size)."""
        h = self.enter(activated(self.enter_norm, x))
        told = self.modulation(vector)
        norm: Any = self.leave_norm
        h = norm(h, *told.chunk(2, dim=1)) if self.scaled else activated(norm, h, offset=told)
        return scaled_sum(self.leave(self.dropout(h)), self.skip(self.resample(x)))
