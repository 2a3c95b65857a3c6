"""The U-Net of DDPM, DDPM++ and NCSN++, in which every block on the way down has its skip to one on the way up.

References:
    Ho et al. 2020, "Denoising Diffusion Probabilistic Models", appendix B.
    Song et al. 2021, "Score-Based Generative Modeling through SDEs", appendix H.
    Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", appendix F (augmentation).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sde_toolkit.checks import check_positive, is_number
from sde_toolkit.errors import ArgumentError
from sde_toolkit.networks.blocks import beside, run
from sde_toolkit.networks.embeddings import Conditioning, ConditionLike
from sde_toolkit.networks.initialisation import SILENT, initialised
from sde_toolkit.networks.normalisation import activated
from sde_toolkit.networks.published_blocks import (
    ResidualInput,
    ShiftedBlock,
    SkipInput,
    SkipOutput,
    Style,
    attention,
    resampler,
)
from sde_toolkit.networks.unet import check_data, check_hyperparameters, crop_to_size, pad_to_multiple

__all__ = ["PublishedUNet"]

INPUTS = {"residual": ResidualInput, "skip": SkipInput}


class PublishedUNet(nn.Module):
    """The U-Net of Ho et al. 2020 and Song et al. 2021, ``(B, in_channels, *size) -> (B, out_channels, *size)``.

    Way down: ``blocks_per_level`` residual blocks a level, and a halving between levels, each of whose outputs is kept.
    Middle: block, attention, block. Way up: ``blocks_per_level + 1`` blocks a level, each of which takes in one of the
    kept tensors, last first. The last layers start (nearly) silent, so that a new network returns about 1e-5.

    The defaults are DDPM's on CIFAR-10; :mod:`sde_toolkit.networks.published` names the others. Sizes need not divide
    by ``2**(levels - 1)``: the input is padded with zeros, evenly on both sides, and the output is cropped.

    Args:
        in_channels: channels of the data.
        out_channels: channels of the output; None for ``in_channels``. Twice as many hold a learned variance.
        widths: channels of each level, from full resolution down; each level halves the size.
        blocks_per_level: residual blocks of a level on the way down; one more on the way up.
        attention_levels: levels with self-attention (0 is full resolution). The middle always has it.
        attention_up: on the way up, attention after "every" block of such a level (Ho et al.) or after its "last".
        attention_head_width: channels of a head, at least; None for one head of all channels, as published.
        attention_gain: variance, relative to Glorot's, of the initial queries, keys and values; Song et al. have 0.1.
        resampling: between levels "convolution" (Ho et al.) or a residual "block" (BigGAN).
        taps: the filter by which a block halves and doubles: (1, 1) or (1, 3, 3, 1), any even number of taps.
        skip_scale: factor on the sums of residual blocks and attention: 1, or 1/√2 (Song et al.).
        input_pyramid: None, or how data of half, quarter, ... size enter: "residual" or "skip".
        output_pyramid: None, or "skip": every level says its part of the output.
        embedding: "sinusoidal" (Ho et al.) or "fourier" (Song et al.).
        embedding_scale: factor on the time input, or the standard deviation of the Fourier frequencies.
        embedding_width: number of sines and cosines, even; None for ``widths[0]``.
        time_width: width of the conditioning vector; None for ``4 * widths[0]``.
        num_classes: number of classes; label ``num_classes`` means "no class". None: no labels.
        augmentation_width: length of the vector that tells how a sample was augmented; None: the network is not told.
        dims: number of spatial axes: 1, 2 or 3.
        dropout: dropout rate inside the residual blocks.
        groups: groups of the GroupNorms, at most; the count adapts to the width.
        eps: added to the variances in the GroupNorms.
        checkpointing: whether training computes the inside of each block a second time instead of keeping it.

    Raises:
        ArgumentError: for what no such network can be built from; in use, for data, time or condition of a wrong shape.
    """

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
        eps: float = 1e-6,
        checkpointing: bool = False,
    ) -> None:
        given = {key: value for key, value in locals().items() if key not in ("self", "__class__")}
        super().__init__()
        sequences = ("widths", "attention_levels", "taps")
        self.hyperparameters: dict[str, Any] = {k: list(v) if k in sequences else v for k, v in given.items()}
        check_hyperparameters(self.hyperparameters)
        check_published(self.hyperparameters)
        self.in_channels = in_channels
        self.dims = dims
        self.checkpointing = checkpointing
        self.multiple = 2 ** (len(widths) - 1)
        outputs = in_channels if out_channels is None else out_channels
        width, widths = widths[0], tuple(widths)
        vector_width = 4 * width if time_width is None else time_width
        style = Style(
            dims, vector_width, groups, eps, dropout, skip_scale, tuple(taps), attention_head_width, attention_gain
        )
        self.conditioning = Conditioning(
            vector_width,
            embedding,
            embedding_scale,
            num_classes,
            features=width if embedding_width is None else embedding_width,
            augmentation_width=augmentation_width,
        )
        for layer in (self.conditioning.enter, self.conditioning.leave, self.conditioning.augmentation):
            if layer is not None:
                initialised(layer)
        self.enter = style.conv(in_channels, width)

        by_block, last = resampling == "block", len(widths) - 1
        kept = [width]
        self.down = nn.ModuleList()
        self.shrink = nn.ModuleList()
        for level, wide in enumerate(widths):
            stages = nn.ModuleList()
            for _ in range(blocks_per_level):
                stages.append(nn.ModuleList([ShiftedBlock(style, width, wide)]))
                if level in attention_levels:
                    stages[-1].append(attention(style, wide))  # type: ignore[operator]
                width = wide
                kept.append(width)
            self.down.append(stages)
            if level < last:
                self.shrink.append(resampler(style, width, "halve", by_block))
                kept.append(width)
        self.middle = nn.ModuleList(
            [ShiftedBlock(style, width, width), attention(style, width), ShiftedBlock(style, width, width)]
        )
        up: list[nn.ModuleList] = []
        for level in reversed(range(len(widths))):
            stages = nn.ModuleList()
            for block in range(blocks_per_level + 1):
                stages.append(nn.ModuleList([ShiftedBlock(style, width + kept.pop(), widths[level])]))
                width = widths[level]
                if level in attention_levels and (attention_up == "every" or block == blocks_per_level):
                    stages[-1].append(attention(style, width))  # type: ignore[operator]
            up.append(stages)
        self.up = nn.ModuleList(reversed(up))
        self.grow = nn.ModuleList(resampler(style, wide, "double", by_block) for wide in widths[1:])
        self.input_pyramid = None if input_pyramid is None else INPUTS[input_pyramid](style, in_channels, widths)
        self.output_pyramid = None if output_pyramid is None else SkipOutput(style, outputs, widths)
        if output_pyramid is None:
            self.leave_norm = style.norm(width)
            self.leave = style.conv(width, outputs, SILENT)
        layout = {2: torch.channels_last, 3: torch.channels_last_3d}.get(dims)
        if layout is not None:  # the faster layout on every device
            self.to(memory_format=layout)  # type: ignore[call-overload]

    def forward(self, x: Tensor, time: Tensor, condition: ConditionLike = None) -> Tensor:
        """Return a tensor of the batch and size of ``x``.

        Args:
            x: data, (B, in_channels, *size).
            time: the prepared time input, (B,).
            condition: class labels, (B,) long, a :class:`~sde_toolkit.networks.Condition`, or None.
        """
        check_data(x, self.in_channels, self.dims)
        again = self.checkpointing and self.training and torch.is_grad_enabled()
        vector = self.conditioning(x, time, condition)
        size = x.shape[2:]
        pyramid = pad_to_multiple(x, self.multiple)
        h = self.enter(pyramid)
        kept = [h]
        for level, stages in enumerate(self.down):
            for stage in stages:  # type: ignore[attr-defined]
                h = run(stage, h, vector, checkpointing=again)
                kept.append(h)
            if level < len(self.shrink):
                h = run([self.shrink[level]], h, vector, checkpointing=again)
                if self.input_pyramid is not None:
                    pyramid, h = self.input_pyramid(level, pyramid, h)
                kept.append(h)
        h = run(self.middle, h, vector, checkpointing=again)
        out: Tensor | None = None
        for level in reversed(range(len(self.up))):
            for stage in self.up[level]:  # type: ignore[attr-defined]
                h, *skip = beside(h, kept.pop(), apart=again)
                h = run(stage, h, vector, *skip, checkpointing=again)
            if self.output_pyramid is not None:
                out = self.output_pyramid(level, out, h)
            if level > 0:
                h = run([self.grow[level - 1]], h, vector, checkpointing=again)
        if out is None:
            out = self.leave(activated(self.leave_norm, h))
        return crop_to_size(out, size).contiguous()


def check_published(given: dict[str, Any]) -> None:
    """Refuse what is no choice of a published network."""
    choices: dict[str, tuple[str | None, ...]] = {
        "attention_up": ("every", "last"),
        "resampling": ("convolution", "block"),
        "input_pyramid": (None, "residual", "skip"),
        "output_pyramid": (None, "skip"),
    }
    for name, known in choices.items():
        if given[name] not in known:
            raise ArgumentError(name, given[name], "there is no such choice", f"Use one of {list(known)}.")
    taps = given["taps"]
    if len(taps) < 2 or len(taps) % 2 or not all(map(is_number, taps)) or sum(taps) == 0:
        problem = "a filter that halves has an even number of taps, whose sum is not 0"
        raise ArgumentError("taps", taps, problem, "Use (1, 1) or (1, 3, 3, 1).")
    for name in ("skip_scale", "attention_gain", "eps"):
        check_positive(name, given[name], "Pass a finite value above 0.")
    wide = given["embedding_width"]
    if wide is not None and (wide < 2 or wide % 2):
        raise ArgumentError("embedding_width", wide, "it must be even", "Pass an even width of at least 2.")
