"""The U-Net: one trunk for signals, images and volumes, and for every SDE and parameterisation.

References:
    Ho et al. 2020, "Denoising Diffusion Probabilistic Models".
    Nichol & Dhariwal 2021, "Improved Denoising Diffusion Probabilistic Models".
    Song et al. 2021, "Score-Based Generative Modeling through SDEs".
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from sde_toolkit.networks.blocks import (
    Attention,
    Downsample,
    ResidualBlock,
    Upsample,
    pass_through,
    with_skip,
    zeroed,
)
from sde_toolkit.networks.convolutions import Rows, convolution
from sde_toolkit.networks.embeddings import Conditioning
from sde_toolkit.networks.normalisation import activated, group_norm_for
from sde_toolkit.networks.trunk import Trunk

__all__ = ["UNet"]


class UNet(Trunk):
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
        super().__init__(locals())
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

    def levels(self, x: Tensor, vector: Tensor) -> Tensor:
        """The way down, the middle, and the way up."""
        recompute = self.recomputing
        h = self.enter(x)
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
        out: Tensor = self.leave(activated(self.leave_norm, h))
        return out
