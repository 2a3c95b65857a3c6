"""ADM: the U-Net of Dhariwal & Nichol 2021 ("Diffusion Models Beat GANs on Image Synthesis", section 3).

It differs from :class:`~sde_toolkit.networks.PublishedUNet` in its blocks (:mod:`.adm_blocks`), its many heads, and the
frequencies of its embedding. Improved DDPM (Nichol & Dhariwal 2021) is the same with ``resampling="convolution"``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from sde_toolkit.checks import check_count, check_positive
from sde_toolkit.networks.adm_blocks import ADMStyle
from sde_toolkit.networks.blocks import pass_through, with_skip, zeroed
from sde_toolkit.networks.convolutions import channels_last, convolution
from sde_toolkit.networks.embeddings import Conditioning
from sde_toolkit.networks.normalisation import activated
from sde_toolkit.networks.published_unet import way_down, way_up
from sde_toolkit.networks.trunk import Trunk, check_choices, check_even

__all__ = ["ADMUNet"]


_CHOICES = {
    "modulation": ("scale", "shift"),
    "resampling": ("convolution", "block"),
    "no_class": ("learned", "zero", "refused"),
}


class ADMUNet(Trunk):
    """The U-Net of Dhariwal & Nichol 2021, ``(B, in_channels, *size) -> (B, out_channels, *size)``.

    Way down: ``blocks_per_level`` residual blocks per level, and a layer between levels that halves the size; the
    output of each of these is kept. Middle: block, attention, block. Way up: ``blocks_per_level + 1`` blocks per level;
    each also takes one of the kept tensors, the last one first. A new network returns exactly zero.

    The defaults are those of ADM on ImageNet 64×64, without classes. Sizes need not be multiples of
    ``2**(levels - 1)``: the input is padded with zeros, evenly on both sides, and the output is cropped.

    Args:
        in_channels: channels of the data.
        out_channels: channels of the output; None for ``in_channels``. Twice ``in_channels`` for a learned variance.
        widths: channels of each level, from full resolution down; each level halves the size.
        blocks_per_level: residual blocks of a level on the way down; there is one more on the way up.
        attention_levels: levels with self-attention (0 is full resolution). The middle always has it.
        attention_heads: number of heads; None for as many as ``attention_head_width`` says.
        attention_head_width: channels of a head.
        modulation: what the conditioning vector does to the second norm of a block: "scale" (and shift) its result, or
            "shift" its input.
        resampling: the layer between levels: a residual "block", or a "convolution" (Nichol & Dhariwal 2021).
        embedding_scale: factor on the time input.
        embedding_width: number of sines and cosines of time together, even; None for ``widths[0]``.
        time_width: width of the conditioning vector; None for ``4 * embedding_width``.
        num_classes: number of classes; label ``num_classes`` means "no class". None: no labels.
        no_class: "learned", "zero" or "refused": see :class:`~sde_toolkit.networks.embeddings.Conditioning`.
        augmentation_width: length of the vector that says how a sample was augmented; None: there is no such vector.
        dims: number of spatial axes: 1, 2 or 3.
        dropout: dropout rate inside the residual blocks.
        groups: groups of the GroupNorms, at most; their number divides that of the channels.
        group_width: channels of a group, at least.
        eps: added to the variances in the GroupNorms.
        checkpointing: whether the backward pass computes the inside of each block again instead of keeping it.

    Raises:
        ArgumentError: if an argument is out of its range; in use, if data, time or condition have a wrong shape.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int | None = None,
        widths: Sequence[int] = (192, 384, 576, 768),
        blocks_per_level: int = 3,
        attention_levels: Sequence[int] = (1, 2, 3),
        attention_heads: int | None = None,
        attention_head_width: int = 64,
        modulation: Literal["scale", "shift"] = "scale",
        resampling: Literal["convolution", "block"] = "block",
        embedding_scale: float = 1.0,
        embedding_width: int | None = None,
        time_width: int | None = None,
        num_classes: int | None = None,
        no_class: Literal["learned", "zero", "refused"] = "learned",
        augmentation_width: int | None = None,
        dims: int = 2,
        dropout: float = 0.1,
        groups: int = 32,
        group_width: int = 2,
        eps: float = 1e-5,
        checkpointing: bool = False,
    ) -> None:
        super().__init__(locals())
        features = widths[0] if embedding_width is None else embedding_width
        vector = 4 * features if time_width is None else time_width
        built = {**self.hyperparameters, "time_width": vector, "enter_width": None, "attention_up": "every"}
        style = ADMStyle.of(built)
        half = features // 2  # frequency k is 10000^(−k/half), so that the lowest is above 1/10000
        self.conditioning = Conditioning(
            vector,
            "sinusoidal",
            embedding_scale,
            num_classes,
            features=features,
            augmentation_width=augmentation_width,
            no_class=no_class,
            max_period=10000.0 ** ((half - 1) / half),
        )
        self.enter = convolution(dims, in_channels, widths[0])
        self.down, self.shrink, kept = way_down(style, built)
        deep = widths[-1]
        self.middle = nn.ModuleList([style.block(deep, deep), style.attention(deep), style.block(deep, deep)])
        self.up, self.grow = way_up(style, built, kept)
        self.leave_norm = style.norm(widths[0])
        self.leave = zeroed(convolution(dims, widths[0], in_channels if out_channels is None else out_channels))
        channels_last(self, dims)

    @classmethod
    def check_arguments(cls, given: Mapping[str, Any]) -> None:
        """Refuse arguments that no ADM network has."""
        super().check_arguments(given)
        check_choices(given, _CHOICES)
        check_positive("eps", given["eps"], "Pass a finite value above 0.")
        check_count("group_width", given["group_width"], "Pass 2 or 4, for example.")
        if given["attention_heads"] is not None:
            check_count("attention_heads", given["attention_heads"], "Pass None to give attention_head_width instead.")
        wide = given["embedding_width"]
        check_even("embedding_width", given["widths"][0] if wide is None else wide)

    def levels(self, x: Tensor, vector: Tensor) -> Tensor:
        """The way down, the middle, and the way up."""
        recompute = self.recomputing
        h = self.enter(x)
        kept = [h]
        for level, stages in enumerate(self.down):
            for stage in stages:  # type: ignore[attr-defined]
                h = pass_through(stage, h, vector, checkpointing=recompute)
                kept.append(h)
            if level < len(self.shrink):
                h = pass_through([self.shrink[level]], h, vector, checkpointing=recompute)
                kept.append(h)
        h = pass_through(self.middle, h, vector, checkpointing=recompute)
        for level in reversed(range(len(self.up))):
            for stage in self.up[level]:  # type: ignore[attr-defined]
                h, *skip = with_skip(h, kept.pop(), checkpointing=recompute)
                h = pass_through(stage, h, vector, *skip, checkpointing=recompute)
            if level > 0:
                h = pass_through([self.grow[level - 1]], h, vector, checkpointing=recompute)
        out: Tensor = self.leave(activated(self.leave_norm, h))
        return out
