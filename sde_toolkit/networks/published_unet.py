"""The U-Net of DDPM, DDPM++ and NCSN++, with a skip from every block on the way down to one on the way up.

References:
    Ho et al. 2020, "Denoising Diffusion Probabilistic Models", appendix B.
    Song et al. 2021, "Score-Based Generative Modeling through SDEs", appendix H.
    Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", appendix F (augmentation).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from sde_toolkit.checks import check_count, check_positive, is_number
from sde_toolkit.errors import ArgumentError
from sde_toolkit.networks.blocks import pass_through, with_skip
from sde_toolkit.networks.convolutions import channels_last
from sde_toolkit.networks.embeddings import Conditioning, ConditionLike
from sde_toolkit.networks.initialisation import SILENT, initialised
from sde_toolkit.networks.normalisation import activated
from sde_toolkit.networks.published_blocks import (
    Resampling,
    ResidualInput,
    SkipInput,
    SkipOutput,
    Style,
)
from sde_toolkit.networks.trunk import Trunk, check_choices, check_even

__all__ = ["PublishedUNet", "way_down", "way_up"]


class AnyStyle(Protocol):
    """What builds the parts of a network: :class:`Style`, or that of a network with other blocks."""

    def block(self, inputs: int, outputs: int) -> nn.Module: ...

    def attention(self, width: int) -> nn.Module: ...

    def resampler(self, width: int, resampling: Resampling) -> nn.Module: ...


INPUT_PYRAMIDS = {"residual": ResidualInput, "skip": SkipInput}


_CHOICES: dict[str, tuple[str | None, ...]] = {
    "attention_up": ("every", "last"),
    "resampling": ("convolution", "block"),
    "input_pyramid": (None, "residual", "skip"),
    "output_pyramid": (None, "skip"),
}


class PublishedUNet(Trunk):
    """The U-Net of Ho et al. 2020 and Song et al. 2021, ``(B, in_channels, *size) -> (B, out_channels, *size)``.

    Way down: ``blocks_per_level`` residual blocks per level, and a layer between levels that halves the size; the
    output of each of these is kept. Middle: block, attention, block. Way up: ``blocks_per_level + 1`` blocks per level;
    each also takes one of the kept tensors, the last one first. The weights of the last layers start close to zero, so
    that the output of a new network is of size 1e-5.

    The defaults are DDPM's on CIFAR-10; :mod:`sde_toolkit.networks.published` has the others. Sizes need not be
    multiples of ``2**(levels - 1)``: the input is padded with zeros, evenly on both sides, and the output is cropped.

    Args:
        in_channels: channels of the data.
        out_channels: channels of the output; None for ``in_channels``. Twice ``in_channels`` for a learned variance.
        widths: channels of each level, from full resolution down; each level halves the size.
        enter_width: channels of the first convolution; None for ``widths[0]``.
        blocks_per_level: residual blocks of a level on the way down; there is one more on the way up.
        attention_levels: levels with self-attention (0 is full resolution). The middle always has it.
        attention_up: on the way up, attention after "every" block of such a level (Ho et al.) or after its "last".
        attention_head_width: channels of a head, at least; None for one head of all channels, as published.
        attention_gain: variance, relative to Glorot's, of the initial weights of queries, keys and values; 0.1 in
            Song et al.
        resampling: the layer between levels: a "convolution" (Ho et al.) or a residual "block" (BigGAN).
        taps: the filter with which a block halves and doubles: (1, 1), (1, 3, 3, 1), or any even number of taps.
        skip_scale: factor on the sums of residual blocks and attention: 1, or 1/√2 (Song et al.).
        input_pyramid: how data of half, quarter, ... size enter: "residual" or "skip"; None if they do not.
        output_pyramid: "skip" for the sum of one output per level; None for the output of the finest level alone.
        embedding: "sinusoidal" (Ho et al.) or "fourier" (Song et al.).
        embedding_scale: factor on the time input, or the standard deviation of the Fourier frequencies.
        embedding_width: number of sines and cosines together, even; None for ``widths[0]``.
        time_width: width of the conditioning vector; None for ``4 * widths[0]``.
        num_classes: number of classes; label ``num_classes`` means "no class". None: no labels.
        label_place: what a class adds its row to: the conditioning "vector", or the "features" of time (Karras et al.).
        augmentation_width: length of the vector that says how a sample was augmented; None: there is no such vector.
        dims: number of spatial axes: 1, 2 or 3.
        dropout: dropout rate inside the residual blocks.
        groups: groups of the GroupNorms, at most; their number divides that of the channels.
        group_width: channels of a group, at least: fewer groups where there are few channels. 4 in Song et al. and
            Karras et al., whose narrowest layers have 16 channels.
        eps: added to the variances in the GroupNorms.
        centred: whether the data are centred on 0, as in [-1, 1]. If not, they are in [0, 1], and the network works on
            2x - 1: Song et al. under VE.
        checkpointing: whether the backward pass computes the inside of each block again instead of keeping it.

    Raises:
        ArgumentError: if an argument is out of its range; in use, if data, time or condition have a wrong shape.
    """

    sequences = (*Trunk.sequences, "taps")

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int | None = None,
        widths: Sequence[int] = (128, 256, 256, 256),
        blocks_per_level: int = 2,
        attention_levels: Sequence[int] = (1,),
        attention_up: Literal["every", "last"] = "every",
        attention_head_width: int | None = None,
        attention_gain: float = 1.0,
        resampling: Literal["convolution", "block"] = "convolution",
        taps: Sequence[float] = (1, 1),
        skip_scale: float = 1.0,
        input_pyramid: Literal["residual", "skip"] | None = None,
        output_pyramid: Literal["skip"] | None = None,
        embedding: str = "sinusoidal",
        embedding_scale: float = 1.0,
        embedding_width: int | None = None,
        time_width: int | None = None,
        num_classes: int | None = None,
        augmentation_width: int | None = None,
        dims: int = 2,
        dropout: float = 0.1,
        groups: int = 32,
        group_width: int = 2,
        eps: float = 1e-6,
        centred: bool = True,
        checkpointing: bool = False,
        enter_width: int | None = None,
        label_place: Literal["vector", "features"] = "vector",
    ) -> None:
        super().__init__(locals())
        self.centred = centred
        outputs = in_channels if out_channels is None else out_channels
        widths, style = tuple(widths), Style.of(self.hyperparameters)
        self.conditioning = _conditioning(self.hyperparameters, style.time_width)
        self.enter = style.conv(in_channels, widths[0] if enter_width is None else enter_width)
        self.down, self.shrink, kept = way_down(style, self.hyperparameters)
        self.middle = nn.ModuleList(
            [
                style.block(widths[-1], widths[-1]),
                style.attention(widths[-1]),
                style.block(widths[-1], widths[-1]),
            ]
        )
        self.up, self.grow = way_up(style, self.hyperparameters, kept)
        self.input_pyramid = (
            None if input_pyramid is None else INPUT_PYRAMIDS[input_pyramid](style, in_channels, widths)
        )
        self.output_pyramid = None if output_pyramid is None else SkipOutput(style, outputs, widths)
        if output_pyramid is None:
            self.leave_norm = style.norm(widths[0])
            self.leave = style.conv(widths[0], outputs, SILENT)
        channels_last(self, dims)

    @classmethod
    def check_arguments(cls, given: Mapping[str, Any]) -> None:
        """Refuse arguments that no published network has."""
        super().check_arguments(given)
        check_choices(given, _CHOICES)
        taps = given["taps"]
        if len(taps) < 2 or len(taps) % 2 or not all(map(is_number, taps)) or sum(taps) == 0:
            problem = "the filter needs an even number of taps, whose sum is not 0"
            raise ArgumentError("taps", taps, problem, "Use (1, 1) or (1, 3, 3, 1).")
        for name in ("skip_scale", "attention_gain", "eps"):
            check_positive(name, given[name], "Pass a finite value above 0.")
        if given["group_width"] < 1:
            problem = "a group has at least one channel"
            raise ArgumentError("group_width", given["group_width"], problem, "Pass 1, 2 or 4, for example.")
        enter = given["enter_width"]
        check_count("enter_width", 1 if enter is None else enter, "Pass None for widths[0].")
        check_even("embedding_width", given["embedding_width"])

    def entering(self, x: Tensor, condition: ConditionLike) -> Tensor:
        """Data in [−1, 1]."""
        return x if self.centred else 2 * x - 1

    def levels(self, x: Tensor, vector: Tensor) -> Tensor:
        """The way down, the middle, and the way up."""
        recompute = self.recomputing
        pyramid, h = x, self.enter(x)
        kept = [h]
        for level, stages in enumerate(self.down):
            for stage in stages:  # type: ignore[attr-defined]
                h = pass_through(stage, h, vector, checkpointing=recompute)
                kept.append(h)
            if level < len(self.shrink):
                h = pass_through([self.shrink[level]], h, vector, checkpointing=recompute)
                if self.input_pyramid is not None:
                    pyramid, h = self.input_pyramid(level, pyramid, h)
                kept.append(h)
        h = pass_through(self.middle, h, vector, checkpointing=recompute)
        out: Tensor | None = None
        for level in reversed(range(len(self.up))):
            for stage in self.up[level]:  # type: ignore[attr-defined]
                h, *skip = with_skip(h, kept.pop(), checkpointing=recompute)
                h = pass_through(stage, h, vector, *skip, checkpointing=recompute)
            if self.output_pyramid is not None:
                out = self.output_pyramid(level, out, h)
            if level > 0:
                h = pass_through([self.grow[level - 1]], h, vector, checkpointing=recompute)
        if out is None:
            out = self.leave(activated(self.leave_norm, h))
        return out


def _conditioning(given: dict[str, Any], time_width: int) -> Conditioning:
    """The conditioning of the network with these arguments, initialised as published."""
    conditioning = Conditioning(
        time_width,
        given["embedding"],
        given["embedding_scale"],
        given["num_classes"],
        features=given["widths"][0] if given["embedding_width"] is None else given["embedding_width"],
        augmentation_width=given["augmentation_width"],
        label_place=given["label_place"],
    )
    for layer in (conditioning.enter, conditioning.leave, conditioning.augmentation):
        if layer is not None:
            initialised(layer)
    return conditioning


def way_down(style: AnyStyle, given: dict[str, Any]) -> tuple[nn.ModuleList, nn.ModuleList, list[int]]:
    """The blocks of each level, the layers between levels, and the width of each tensor that is kept for the way up."""
    widths = given["widths"]
    width = widths[0] if given["enter_width"] is None else given["enter_width"]
    kept, down, shrink = [width], nn.ModuleList(), nn.ModuleList()
    for level, wide in enumerate(widths):
        stages = nn.ModuleList()
        for _ in range(given["blocks_per_level"]):
            stages.append(nn.ModuleList([style.block(width, wide)]))
            if level in given["attention_levels"]:
                stages[-1].append(style.attention(wide))  # type: ignore[operator]
            width = wide
            kept.append(width)
        down.append(stages)
        if level < len(widths) - 1:
            shrink.append(style.resampler(width, "halve"))
            kept.append(width)
    return down, shrink, kept


def way_up(style: AnyStyle, given: dict[str, Any], kept: list[int]) -> tuple[nn.ModuleList, nn.ModuleList]:
    """The blocks of each level, finest first, and the layers between levels; ``kept`` as from :func:`way_down`."""
    widths, blocks = given["widths"], given["blocks_per_level"] + 1
    width, skips = widths[-1], list(kept)
    up: list[nn.ModuleList] = []
    for level in reversed(range(len(widths))):
        stages = nn.ModuleList()
        for block in range(blocks):
            stages.append(nn.ModuleList([style.block(width + skips.pop(), widths[level])]))
            width = widths[level]
            if level in given["attention_levels"] and (given["attention_up"] == "every" or block == blocks - 1):
                stages[-1].append(style.attention(width))  # type: ignore[operator]
        up.append(stages)
    return nn.ModuleList(reversed(up)), nn.ModuleList(style.resampler(wide, "double") for wide in widths[1:])
