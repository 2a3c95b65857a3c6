"""EDM2: the U-Net of Karras et al. 2024 ("Analyzing and Improving the Training Dynamics of Diffusion Models")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sde_toolkit.checks import check_positive
from sde_toolkit.errors import ArgumentError
from sde_toolkit.networks.edm2_blocks import (
    EDM2Block,
    EDM2Style,
    UnitConvolution,
    UnitFourier,
    joined,
    mixed,
    unit_silu,
)
from sde_toolkit.networks.embeddings import ConditionLike, augmented, check_labels, check_times, parts_of
from sde_toolkit.networks.trunk import Trunk

__all__ = ["EDM2UNet"]


class EDM2UNet(Trunk):
    """The U-Net of Karras et al. 2024, ``(B, in_channels, *size) -> (B, out_channels, *size)``.

    It has no biases and no norms with weights: all layers keep sizes (:mod:`.edm2_blocks`), and a channel of ones is
    added to the data. A new network returns exactly zero. With ``num_classes=K`` the label K, and none, mean "no
    class": zeros, as EDM2 trains it.

    The defaults are those of EDM2-S without classes. Sizes need not be multiples of ``2**(levels - 1)``: the input is
    padded with zeros, evenly on both sides, and the output is cropped.

    Args:
        in_channels: channels of the data.
        out_channels: channels of the output; None for ``in_channels``.
        widths: channels of each level, from full resolution down; each level halves the size.
        blocks_per_level: residual blocks of a level on the way down; there is one more on the way up.
        attention_levels: levels with self-attention (0 is full resolution). The middle always has it.
        attention_head_width: channels of a head.
        embedding_width: number of Fourier features of time; None for ``widths[0]``.
        time_width: width of the conditioning vector; None for the largest of ``widths``.
        num_classes: number of classes, or None.
        augmentation_width: length of the vector that says how a sample was augmented; None: there is no such vector.
        label_share, skip_share, residual_share, attention_share: weights of the class against time, of the kept tensors
            against the others, and of the inside of a block and of attention against what goes past them.
        limit: values beyond ± this are clamped after every block; None for no limit.
        dims: number of spatial axes: 1, 2 or 3.
        dropout: dropout rate inside the residual blocks.

    Raises:
        ArgumentError: if an argument is out of its range; in use, if data, time or condition have a wrong shape.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int | None = None,
        widths: Sequence[int] = (192, 384, 576, 768),
        blocks_per_level: int = 3,
        attention_levels: Sequence[int] = (2, 3),
        attention_head_width: int = 64,
        embedding_width: int | None = None,
        time_width: int | None = None,
        num_classes: int | None = None,
        augmentation_width: int | None = None,
        label_share: float = 0.5,
        skip_share: float = 0.5,
        residual_share: float = 0.3,
        attention_share: float = 0.3,
        limit: float | None = 256.0,
        dims: int = 2,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(locals())
        self.skip_share = skip_share
        features = widths[0] if embedding_width is None else embedding_width
        vector = max(widths) if time_width is None else time_width
        style = EDM2Style.of({**self.hyperparameters, "time_width": vector})
        self.conditioning = UnitConditioning(features, vector, num_classes, augmentation_width, label_share)
        self.enter = UnitConvolution(in_channels + 1, widths[0], 3, dims)
        self.down, self.shrink, self.up, self.grow = (nn.ModuleList() for _ in range(4))
        width, kept = widths[0], [widths[0]]
        for level, wide in enumerate(widths):
            if level:
                self.shrink.append(EDM2Block(style, width, width, decoder=False, resampling="halve"))
                kept.append(width)
            stages = nn.ModuleList()
            for _ in range(blocks_per_level):
                stages.append(EDM2Block(style, width, wide, decoder=False, attention=level in attention_levels))
                width = wide
                kept.append(width)
            self.down.append(stages)
        self.middle = nn.ModuleList(
            EDM2Block(style, width, width, decoder=True, attention=attention) for attention in (True, False)
        )
        for level in reversed(range(len(widths))):
            if level < len(widths) - 1:
                self.grow.insert(0, EDM2Block(style, width, width, decoder=True, resampling="double"))
            stages = nn.ModuleList()
            for _ in range(blocks_per_level + 1):
                inputs, attention = width + kept.pop(), level in attention_levels
                stages.append(EDM2Block(style, inputs, widths[level], decoder=True, attention=attention))
                width = widths[level]
            self.up.insert(0, stages)
        self.leave = UnitConvolution(width, in_channels if out_channels is None else out_channels, 3, dims)
        self.leave_gain = nn.Parameter(torch.zeros([]))

    @classmethod
    def check_arguments(cls, given: Mapping[str, Any]) -> None:
        """Refuse shares that are not between 0 and 1, and a limit that is none."""
        super().check_arguments(given)
        for name in ("label_share", "skip_share", "residual_share", "attention_share"):
            if not 0 <= given[name] <= 1:
                raise ArgumentError(name, given[name], "a share lies in [0, 1]", "Karras et al. use 0.5 and 0.3.")
        check_positive("limit", 1.0 if given["limit"] is None else given["limit"], "Pass None for no limit.")

    def levels(self, x: Tensor, vector: Tensor) -> Tensor:
        """The way down, the middle, and the way up."""
        h = self.enter(torch.cat([x, torch.ones_like(x[:, :1])], dim=1))
        kept = [h]
        for level, stages in enumerate(self.down):
            if level:
                h = self.shrink[level - 1](h, vector)
                kept.append(h)
            for stage in stages:  # type: ignore[attr-defined]
                h = stage(h, vector)
                kept.append(h)
        for part in self.middle:
            h = part(h, vector)
        for level in reversed(range(len(self.up))):
            if level < len(self.grow):
                h = self.grow[level](h, vector)
            for stage in self.up[level]:  # type: ignore[attr-defined]
                h = stage(joined(h, kept.pop(), self.skip_share), vector)
        out: Tensor = self.leave(h, self.leave_gain)
        return out


class UnitConditioning(nn.Module):
    """The conditioning vector: a class, given as √K one-hot, is mixed with time; augmentation is added to the features.

    The label K of K classes, and none, mean "no class": zeros, as EDM2 trains it.
    """

    def __init__(
        self, features: int, width: int, num_classes: int | None, augmented_by: int | None, share: float
    ) -> None:
        super().__init__()
        self.num_classes, self.share = num_classes, share
        self.embedding = UnitFourier(features)
        self.time = UnitConvolution(features, width)
        self.labels = None if num_classes is None else UnitConvolution(num_classes, width)
        self.augmentation = None if augmented_by is None else nn.Linear(augmented_by, features, bias=False)

    def forward(self, x: Tensor, time: Tensor, condition: ConditionLike) -> Tensor:
        """Return (B, width) for a batch ``x`` (B, ...), its ``time`` (B,) and its condition."""
        check_times(x, time)
        label, augmentation = parts_of(condition)
        features = self.embedding(time).to(self.time.weight.dtype)
        if augmentation is not None:
            features = features + augmented(self.augmentation, x, augmentation)
        vector = self.time(features)
        if self.labels is None or self.num_classes is None:
            if label is not None:
                remedy = "Build it with num_classes=K, or call it without labels."
                raise ArgumentError("condition", label, "this network was built without classes", remedy)
            return unit_silu(vector)
        if label is None:
            label = torch.full((len(x),), self.num_classes, device=x.device)
        check_labels(x, label, self.num_classes, self.num_classes)
        one_hot = (label[:, None] == torch.arange(self.num_classes, device=x.device)).to(vector.dtype)
        return unit_silu(mixed(vector, self.labels(one_hot * self.num_classes**0.5), self.share))
