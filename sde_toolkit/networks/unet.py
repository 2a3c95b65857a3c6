"""The U-Net: one trunk for signals, images and volumes, and for every SDE and parameterisation.

References:
    Ho et al. 2020, "Denoising Diffusion Probabilistic Models".
    Nichol & Dhariwal 2021, "Improved Denoising Diffusion Probabilistic Models".
    Song et al. 2021, "Score-Based Generative Modeling through SDEs".
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from sde_toolkit.errors import ArgumentError
from sde_toolkit.networks.blocks import (
    Attention,
    Downsample,
    ResidualBlock,
    Upsample,
    pass_through,
    with_skip,
    zeroed,
)
from sde_toolkit.networks.convolutions import CONVOLUTIONS, Rows, convolution
from sde_toolkit.networks.embeddings import Conditioning, ConditionLike
from sde_toolkit.networks.normalisation import activated, group_norm_for

__all__ = ["UNet"]


class UNet(nn.Module):
    """A DDPM-style U-Net, ``(B, in_channels, *size) -> (B, out_channels, *size)``.

    Every level has ``blocks_per_level`` residual blocks on the way down and as many on the way up. The output of a
    level on the way down is concatenated to the input of the same level on the way up. The last convolution of
    every block and of the network starts at zero, so that a new network returns exactly zero.

    Sizes need not be multiples of ``2**(levels - 1)``: the input is padded with zeros, evenly on both sides, and
    the output is cropped. (The convolutions pad with zeros, too.)

    Args:
        in_channels: channels of the data.
        widths: channels of each level, from full resolution down; each level halves the size.
        blocks_per_level: residual blocks of a level, on each way.
        attention_levels: levels with self-attention after their last block (0 is full resolution). The
            middle always has it.
        attention_head_width: channels of an attention head, at least; the number of heads divides the width.
        embedding: "sinusoidal" (Ho et al. 2020) or "fourier" (Song et al. 2021).
        embedding_scale: factor on the time input, or the standard deviation of the Fourier frequencies. 1000
            brings a time input of about 1 (t itself, ¼ log(σ/α)) to the range that sinusoids resolve well.
        time_width: width of the conditioning vector, even; ``4 * widths[0]`` by default.
        num_classes: number of classes; label ``num_classes`` means "no class". None: no labels.
        dims: number of spatial axes: 1, 2 or 3.
        dropout: dropout rate inside the residual blocks.
        groups: groups of the GroupNorms, at most; fewer where the number of channels asks for it.
        out_channels: channels of the output; None for ``in_channels``. Twice ``in_channels`` for a learned variance.
        augmentation_width: length of the vector that says how a sample was augmented (Karras et al. 2022,
            appendix F.2); None: there is no such vector.
        checkpointing: whether the backward pass computes the inside of each block again instead of keeping it.

    Raises:
        ArgumentError: if an argument is out of its range; in use, if data, time or condition have a wrong shape.
    """

    def __init__(
        self,
        in_channels: int = 1,
        widths: Sequence[int] = (16, 48, 96),
        blocks_per_level: int = 2,
        attention_levels: Sequence[int] = (2,),
        attention_head_width: int = 32,
        embedding: str = "sinusoidal",
        embedding_scale: float = 1.0,
        time_width: int | None = None,
        num_classes: int | None = None,
        dims: int = 2,
        dropout: float = 0.0,
        groups: int = 8,
        out_channels: int | None = None,
        augmentation_width: int | None = None,
        checkpointing: bool = False,
    ) -> None:
        given = {key: value for key, value in locals().items() if key not in ("self", "__class__")}
        super().__init__()
        sequences = ("widths", "attention_levels")
        self.hyperparameters: dict[str, Any] = {k: list(v) if k in sequences else v for k, v in given.items()}
        check_hyperparameters(self.hyperparameters)
        self.in_channels = in_channels
        self.dims = dims
        self.checkpointing = checkpointing
        self.multiple = 2 ** (len(widths) - 1)
        vector_width = 4 * widths[0] if time_width is None else time_width

        def stage(level: int, blocks: int, attention: bool, widening: int = 0) -> nn.ModuleList:
            """The residual blocks of one level; the first has ``widening`` more input channels."""
            width = widths[level]
            parts: list[nn.Module] = [
                ResidualBlock(dims, width + (widening if block == 0 else 0), width, vector_width, groups, dropout)
                for block in range(blocks)
            ]
            if attention:
                parts.append(Attention(width, attention_head_width, groups, linear=Rows))
            return nn.ModuleList(parts)

        levels = range(len(widths))
        steps = list(pairwise(widths))
        self.conditioning = Conditioning(
            vector_width, embedding, embedding_scale, num_classes, augmentation_width=augmentation_width
        )
        self.enter = convolution(dims, in_channels, widths[0])
        self.down = nn.ModuleList(stage(k, blocks_per_level, k in attention_levels) for k in levels)
        self.shrink = nn.ModuleList(Downsample(dims, fine, coarse) for fine, coarse in steps)
        self.middle = stage(len(widths) - 1, 1, True)
        self.grow = nn.ModuleList(Upsample(dims, coarse, fine) for fine, coarse in steps)
        self.up = nn.ModuleList(
            stage(k, blocks_per_level, k in attention_levels, widening=widths[k] if k < levels[-1] else 0)
            for k in levels
        )
        self.leave_norm = group_norm_for(widths[0], groups)
        self.leave = zeroed(convolution(dims, widths[0], in_channels if out_channels is None else out_channels))
        if dims == 2:  # the faster layout in float32, and what tensor cores want
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor, time: Tensor, condition: ConditionLike = None) -> Tensor:
        """Return the output, (B, out_channels, *size).

        Args:
            x: data, (B, in_channels, *size).
            time: the prepared time input, (B,).
            condition: class labels, (B,) long, a :class:`~sde_toolkit.networks.Condition`, or None.
        """
        check_input(x, self.in_channels, self.dims)
        recompute = self.checkpointing and self.training and torch.is_grad_enabled()
        vector = self.conditioning(x, time, condition)
        size = x.shape[2:]
        h = self.enter(pad_to_multiple(x, self.multiple))
        skips: list[Tensor] = []
        for level, stage in enumerate(self.down):
            if level > 0:
                skips.append(h)
                h = self.shrink[level - 1](h)
            h = pass_through(stage, h, vector, checkpointing=recompute)
        h = pass_through(self.middle, h, vector, checkpointing=recompute)
        h = pass_through(self.up[-1], h, vector, checkpointing=recompute)
        for level in reversed(range(len(skips))):
            h, *skip = with_skip(self.grow[level](h), skips.pop(), checkpointing=recompute)
            h = pass_through(self.up[level], h, vector, *skip, checkpointing=recompute)
        h = self.leave(activated(self.leave_norm, h))
        return crop_to_size(h, size).contiguous()


def check_input(x: Tensor, channels: int, dims: int) -> None:
    """Refuse data that are not (B, channels, *size) with ``dims`` spatial axes, none of them empty."""
    if x.ndim != dims + 2 or x.shape[1] != channels or min(x.shape[2:]) < 1:
        raise ArgumentError(
            "x",
            tuple(x.shape),
            f"this network takes (B, {channels}, ...) with {dims} spatial axes, none empty",
            "Reshape the data, or build the network with its in_channels and dims.",
        )


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Pad each spatial axis of (B, C, *size) with zeros, evenly on both sides, to the next multiple."""
    if all(length % multiple == 0 for length in x.shape[2:]):
        return x
    margins: list[int] = []
    for length in reversed(x.shape[2:]):
        extra = -length % multiple
        margins += [extra // 2, extra - extra // 2]
    return pad(x, margins)


def crop_to_size(x: Tensor, size: Sequence[int]) -> Tensor:
    """The centre of ``x`` with the given spatial size: undoes :func:`pad_to_multiple`."""
    for axis, length in enumerate(size, 2):
        if x.shape[axis] != length:
            x = x.narrow(axis, (x.shape[axis] - length) // 2, length)
    return x


def check_hyperparameters(given: dict[str, Any]) -> None:
    """Refuse arguments that no U-Net can be built from."""
    widths, levels = given["widths"], range(len(given["widths"]))
    if not widths or any(width < 2 for width in widths):
        raise ArgumentError("widths", widths, "every level needs a width of at least 2", "Pass one width per level.")
    if any(level not in levels for level in given["attention_levels"]):
        raise ArgumentError(
            "attention_levels",
            given["attention_levels"],
            f"the network has levels 0..{levels[-1]}",
            "Name levels of the network, 0 being full resolution.",
        )
    if given["dims"] not in CONVOLUTIONS:
        raise ArgumentError(
            "dims", given["dims"], "there are no convolutions of so many axes", f"Use one of {sorted(CONVOLUTIONS)}."
        )
    if not 0.0 <= given["dropout"] < 1.0:
        raise ArgumentError("dropout", given["dropout"], "it is not a rate below 1", "Pass a number in [0, 1).")
    for name in ("in_channels", "blocks_per_level", "attention_head_width", "groups", "out_channels"):
        if given[name] is not None and given[name] < 1:
            raise ArgumentError(name, given[name], "it must be at least 1", "Pass a whole number of at least 1.")
    if given["time_width"] is not None and (given["time_width"] < 2 or given["time_width"] % 2):
        problem = "it must be even and at least 2"
        raise ArgumentError("time_width", given["time_width"], problem, "Pass an even width, such as 128.")
