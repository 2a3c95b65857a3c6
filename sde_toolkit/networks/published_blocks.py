"""The blocks of the published networks: time is added to the channels, and a block may halve or double the size.

References:
    Ho et al. 2020, "Denoising Diffusion Probabilistic Models" (time added between the two convolutions).
    Brock et al. 2019, "Large Scale GAN Training" (BigGAN: a residual block that resamples both of its branches).
    Song et al. 2021, "Score-Based Generative Modeling through SDEs" (sums divided by √2; pyramids of input and output).
    Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN" (the pyramids).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn

from sde_toolkit.networks.blocks import Attention, scaled_sum
from sde_toolkit.networks.convolutions import Pointwise, Rows, convolution
from sde_toolkit.networks.initialisation import SILENT, initialised
from sde_toolkit.networks.normalisation import GroupNorm, activated, group_norm_for
from sde_toolkit.networks.resampling import (
    Double,
    DownConvolution,
    FilteredStride,
    Halve,
    StridedConvolution,
    UpConvolution,
)

__all__ = [
    "Resampling",
    "ResidualInput",
    "ShiftedBlock",
    "SkipInput",
    "SkipOutput",
    "Style",
    "Unconditioned",
]

Resampling: TypeAlias = Literal["halve", "double"]


@dataclass(frozen=True)
class Style:
    """What all blocks of one network have in common: the arguments of the same names of the network."""

    dims: int
    time_width: int
    groups: int
    group_width: int
    eps: float
    dropout: float
    skip_scale: float
    taps: tuple[float, ...]
    attention_head_width: int | None
    attention_gain: float
    resampling: Literal["convolution", "block"]

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Style:
        """The style of the network with these arguments; ``time_width`` is 4 times the first width by default."""
        style = {field.name: given[field.name] for field in fields(cls)}
        if style["time_width"] is None:
            style["time_width"] = 4 * given["widths"][0]
        return cls(**{**style, "taps": tuple(style["taps"])})

    def norm(self, width: int) -> GroupNorm:
        """A group norm over ``width`` channels."""
        return group_norm_for(width, self.groups, eps=self.eps, group_width=self.group_width)

    def conv(self, inputs: int, outputs: int, gain: float = 1.0) -> nn.Module:
        """A 3-tap convolution that keeps the size; ``gain`` scales the variance of its initial weights."""
        layer: nn.Module = initialised(convolution(self.dims, inputs, outputs), gain)
        return layer

    def block(self, inputs: int, outputs: int) -> nn.Module:
        """A residual block."""
        return ShiftedBlock(self, inputs, outputs)

    def attention(self, width: int) -> Attention:
        """Self-attention as published: one head by default, and separately initialised queries, keys and values."""
        head_width = self.attention_head_width or width
        layer = Attention(width, head_width, self.groups, self.eps, self.skip_scale, Rows, self.group_width)
        initialised(layer.enter, self.attention_gain, parts=3)
        initialised(layer.leave, SILENT)
        return layer

    def resampler(self, width: int, resampling: Resampling) -> nn.Module:
        """The layer between two levels: a residual block that resamples, or one convolution."""
        if self.resampling == "block":
            return ShiftedBlock(self, width, width, resampling)
        if resampling == "halve":
            return Unconditioned(StridedConvolution(self.dims, width))
        return Unconditioned(UpConvolution(self.dims, width, width))


class ShiftedBlock(nn.Module):
    """A residual block in which the conditioning vector shifts the channels; it may halve or double the size.

        out = skip_scale (skip(x) + conv(dropout(SiLU(norm(conv(SiLU(norm(x))) + linear(vector))))))

    ``resampling``: both branches are halved or doubled, the main branch just before its first convolution. The skip is
    the identity, or a linear map of the channels where their number or the size changes. The weights of the last
    convolution start close to zero.
    """

    def __init__(self, style: Style, inputs: int, outputs: int, resampling: Resampling | None = None) -> None:
        super().__init__()
        dims, taps = style.dims, style.taps
        self.scale = style.skip_scale
        self.enter_norm = style.norm(inputs)
        self.skip: nn.Module = nn.Identity()
        self.resample: nn.Module = nn.Identity()
        if resampling == "halve":
            self.enter: nn.Module = DownConvolution(dims, inputs, outputs, taps)
            self.resample = Halve(dims, taps)
        elif resampling == "double":
            self.enter = UpConvolution(dims, inputs, outputs, taps)
            self.resample = Double(dims, taps)
        else:
            self.enter = style.conv(inputs, outputs)
        self.shift = initialised(nn.Linear(style.time_width, outputs))
        self.leave_norm = style.norm(outputs)
        self.dropout = nn.Dropout(style.dropout)
        self.leave = style.conv(outputs, outputs, SILENT)
        if inputs != outputs or resampling is not None:
            self.skip = initialised(Pointwise(inputs, outputs))

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        """Map ``x`` (B, inputs, *size) and ``vector`` (B, time_width) to (B, outputs, *resampled size)."""
        h = self.enter(activated(self.enter_norm, x))
        h = self.leave(self.dropout(activated(self.leave_norm, h, offset=self.shift(vector))))
        return scaled_sum(h, self.skip(self.resample(x)), self.scale)


class Unconditioned(nn.Module):
    """A layer that does not use the conditioning vector, called like the blocks that do."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        """The output of the layer for ``x``."""
        out: Tensor = self.part(x)
        return out


class ResidualInput(nn.Module):
    """At each level a filtered convolution halves the pyramid, and h is added: the sum is both the new h and pyramid.

    The pyramid starts as the data ("residual" progressive input of Song et al. 2021).
    """

    def __init__(self, style: Style, channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.scale = style.skip_scale
        steps = zip((channels, *widths[:-2]), widths[:-1], strict=True)
        self.shrink = nn.ModuleList(FilteredStride(style.dims, a, b, style.taps) for a, b in steps)

    def forward(self, level: int, pyramid: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """The pyramid and h, one level further down."""
        h = scaled_sum(self.shrink[level](pyramid), h, self.scale)
        return h, h


class SkipInput(nn.Module):
    """At each level the data are filtered and halved once more, mapped to the channels of h, and added to h."""

    def __init__(self, style: Style, channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.halved = Halve(style.dims, style.taps)
        self.join = nn.ModuleList(initialised(Pointwise(channels, width)) for width in widths[:-1])

    def forward(self, level: int, pyramid: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """The pyramid and h, one level further down."""
        pyramid = self.halved(pyramid)
        return pyramid, scaled_sum(self.join[level](pyramid), h)


class SkipOutput(nn.Module):
    """Every level computes an output at its size; it is added to the doubled output of the coarser levels."""

    def __init__(self, style: Style, channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.doubled = Double(style.dims, style.taps)
        self.norms = nn.ModuleList(style.norm(width) for width in widths)
        self.leave = nn.ModuleList(style.conv(width, channels, SILENT) for width in widths)

    def forward(self, level: int, pyramid: Tensor | None, h: Tensor) -> Tensor:
        """The output of this level and all coarser ones; ``pyramid`` is that of the coarser ones, or None."""
        own: Tensor = self.leave[level](activated(self.norms[level], h))  # type: ignore[arg-type]
        return own if pyramid is None else scaled_sum(own, self.doubled(pyramid))
