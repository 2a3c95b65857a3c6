"""The blocks of the published networks: where time is added to the channels, and samples may be halved or doubled.

References:
    Ho et al. 2020, "Denoising Diffusion Probabilistic Models" (time added between the two convolutions).
    Brock et al. 2019, "Large Scale GAN Training" (BigGAN: a residual block that resamples both of its branches).
    Song et al. 2021, "Score-Based Generative Modeling through SDEs" (sums divided by √2; pyramids of input and output).
    Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN" (the pyramids).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import Tensor, nn

from sde_toolkit.networks.blocks import Attention, merged
from sde_toolkit.networks.convolutions import Pointwise, Rows, convolution
from sde_toolkit.networks.initialisation import SILENT, initialised
from sde_toolkit.networks.normalisation import GroupNorm, activated, normalisation
from sde_toolkit.networks.resampling import (
    Double,
    DownConvolution,
    FilteredStride,
    Halve,
    StridedConvolution,
    UpConvolution,
)

__all__ = ["Resampling", "ResidualInput", "ShiftedBlock", "SkipInput", "SkipOutput", "Style", "attention", "resampler"]

Resampling: TypeAlias = Literal["halve", "double"]


@dataclass(frozen=True)
class Style:
    """What all blocks of one network have in common."""

    dims: int
    time_width: int
    groups: int
    eps: float
    dropout: float
    scale: float
    taps: tuple[float, ...]
    head_width: int | None
    attention_gain: float

    def norm(self, width: int) -> GroupNorm:
        """A group norm of this network."""
        return normalisation(width, self.groups, eps=self.eps)

    def conv(self, inputs: int, outputs: int, gain: float = 1.0) -> nn.Module:
        """A 3-tap convolution that keeps the size."""
        layer: nn.Module = initialised(convolution(self.dims, inputs, outputs), gain)
        return layer


class ShiftedBlock(nn.Module):
    """scale (skip(x) + conv(SiLU(norm(conv(SiLU(norm(x))) + linear(vector))))), perhaps resampled on the way.

    The resampling of the main branch precedes its first convolution; the skip is a linear map of the channels where
    their number or that of the samples changes. The last convolution starts (nearly) silent.
    """

    def __init__(self, style: Style, inputs: int, outputs: int, resampling: Resampling | None = None) -> None:
        super().__init__()
        dims, taps = style.dims, style.taps
        self.scale = style.scale
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
        """Map ``x`` (B, inputs, *size) and ``vector`` (B, time_width) to (B, outputs, *size), resampled."""
        h = self.enter(activated(self.enter_norm, x))
        shift = self.shift(vector)
        h = h + shift.reshape(shift.shape + (1,) * (h.ndim - shift.ndim))
        h = self.leave(self.dropout(activated(self.leave_norm, h)))
        return merged(h, self.skip(self.resample(x)), self.scale)


def attention(style: Style, width: int) -> Attention:
    """Self-attention as published: queries, keys and values each with weights of its own, one head by default."""
    part = Attention(width, style.head_width or width, style.groups, style.eps, style.scale, Rows)
    initialised(part.enter, style.attention_gain, parts=3)
    initialised(part.leave, SILENT)
    return part


class Deaf(nn.Module):
    """A part that does not listen to the conditioning vector, called like those that do."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        """The part's own output."""
        out: Tensor = self.part(x)
        return out


def resampler(style: Style, width: int, resampling: Resampling, by_block: bool) -> nn.Module:
    """What stands between two levels: a residual block of its own, or one convolution."""
    if by_block:
        return ShiftedBlock(style, width, width, resampling)
    if resampling == "halve":
        return Deaf(StridedConvolution(style.dims, width))
    return Deaf(UpConvolution(style.dims, width, width))


class ResidualInput(nn.Module):
    """The data, filtered and halved by a convolution at each level, are added to h; the sum goes on as the pyramid."""

    def __init__(self, style: Style, channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.scale = style.scale
        steps = zip((channels, *widths[:-2]), widths[:-1], strict=True)
        self.shrink = nn.ModuleList(FilteredStride(style.dims, a, b, style.taps) for a, b in steps)

    def forward(self, level: int, pyramid: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """The pyramid and h, one level further down."""
        h = merged(self.shrink[level](pyramid), h, self.scale)
        return h, h


class SkipInput(nn.Module):
    """The data, filtered and halved at each level, are mapped to the channels of h and added."""

    def __init__(self, style: Style, channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.halved = Halve(style.dims, style.taps)
        self.join = nn.ModuleList(initialised(Pointwise(channels, width)) for width in widths[:-1])

    def forward(self, level: int, pyramid: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """The pyramid and h, one level further down."""
        pyramid = self.halved(pyramid)
        return pyramid, merged(self.join[level](pyramid), h)


class SkipOutput(nn.Module):
    """Every level says its part of the output, which is doubled and added to that of the level above."""

    def __init__(self, style: Style, channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.doubled = Double(style.dims, style.taps)
        self.norms = nn.ModuleList(style.norm(width) for width in widths)
        self.leave = nn.ModuleList(style.conv(width, channels, SILENT) for width in widths)

    def forward(self, level: int, pyramid: Tensor | None, h: Tensor) -> Tensor:
        """The output so far, at the size of this level."""
        own: Tensor = self.leave[level](activated(self.norms[level], h))  # type: ignore[arg-type]
        return own if pyramid is None else merged(own, self.doubled(pyramid))
