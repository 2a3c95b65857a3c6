"""The U-Net of the package denoising-diffusion-pytorch: two blocks and an attention per level, most of them linear.

References:
    Ho et al. 2020, "Denoising Diffusion Probabilistic Models".
    Shen et al. 2021, "Efficient Attention: Attention with Linear Complexities".
    Qiao et al. 2019, "Micro-Batch Training with Batch-Channel Normalization and Weight Standardization".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, pixel_unshuffle, silu

from sde_toolkit.checks import is_count
from sde_toolkit.errors import ArgumentError
from sde_toolkit.networks.blocks import Upsample
from sde_toolkit.networks.convolutions import CONVOLUTIONS, convolution
from sde_toolkit.networks.embeddings import ConditionLike, SinusoidalEmbedding
from sde_toolkit.networks.linear_attention import ChannelLayerNorm, ChannelRMSNorm, FullAttention, LinearAttention
from sde_toolkit.networks.normalisation import GroupNorm
from sde_toolkit.networks.trunk import Trunk, check_choices, check_dropout

__all__ = ["LinearAttentionUNet"]

_NORMS = ("rms", "group", "standardised")


class LinearAttentionUNet(Trunk):
    """The U-Net of denoising-diffusion-pytorch, ``(B, in_channels, *size) -> (B, out_channels, *size)``.

    Level k on the way down: two blocks and an attention on w_k channels, where w_0 is ``enter_width`` and w_1, w_2, ...
    are ``widths``; then a layer that halves the size and leads to w_{k+1} channels. The last level keeps its size. On
    the way up, each block also takes the output of the block on the way down. The defaults are those of that package.

    Sizes need not be multiples of ``2**(levels - 1)``: the input is padded with zeros, evenly on both sides, and
    the output is cropped.

    Args:
        in_channels: channels of the data.
        out_channels: channels of the output; None for ``in_channels``.
        enter_width: channels after the first convolution.
        widths: channels after each level; each but the last halves the size.
        embedding_width: sines and cosines of the time together, even. The conditioning vector is four times as wide.
        max_period: ratio of the longest period in that embedding to the shortest.
        full_attention_levels: levels with full attention, 0 being full resolution; the others have linear attention.
            None: the last level. The middle has full attention.
        heads: heads of an attention: a number, or one per level.
        head_width: channels of a head: a number, or one per level.
        memory: keys and values of each attention that are parameters.
        norms: "rms": RMS norms over channels (versions from 2.0 on). "group": GroupNorm in blocks, RMS norms
            in attentions. "standardised": GroupNorm after convolutions of standardised weights, layer norms in
            attentions, linear attention to averaged values (versions up to 1.6).
        groups: groups of the GroupNorms.
        dims: spatial axes, 1 or 2. Signals of one axis are halved by a convolution of four taps, images by moving
            2×2 pixels into channels.
        self_conditioning: whether it takes an earlier estimate of x_0 as its condition; zeros without one.
        dropout: dropout rate inside the blocks.

    Raises:
        ArgumentError: if an argument is out of its range; in use, if data, time or condition have a wrong shape.
    """

    sequences = ("widths", "full_attention_levels", "heads", "head_width")

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int | None = None,
        enter_width: int = 64,
        widths: Sequence[int] = (64, 128, 256, 512),
        embedding_width: int = 64,
        max_period: float = 10000.0,
        full_attention_levels: Sequence[int] | None = None,
        heads: int | Sequence[int] = 4,
        head_width: int | Sequence[int] = 32,
        memory: int = 4,
        norms: Literal["rms", "group", "standardised"] = "rms",
        groups: int = 8,
        dims: int = 2,
        self_conditioning: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(locals())
        self.self_conditioning = self_conditioning
        style = _Style(self.hyperparameters)
        levels = list(zip((enter_width, *widths[:-1]), widths, strict=True))  # (channels, channels of the next level)
        last = len(levels) - 1
        self.embedding = SinusoidalEmbedding(embedding_width, max_period=max_period)
        self.time_enter = nn.Linear(embedding_width, 4 * embedding_width)
        self.time_leave = nn.Linear(4 * embedding_width, 4 * embedding_width)
        self.enter = convolution(dims, in_channels * (1 + self_conditioning), enter_width, kernel=7)
        self.down = nn.ModuleList(
            nn.ModuleList(
                [
                    style.block(fine, fine),
                    style.block(fine, fine),
                    style.attention(level, fine),
                    _Halve(dims, fine, coarse) if level < last else convolution(dims, fine, coarse),
                ]
            )
            for level, (fine, coarse) in enumerate(levels)
        )
        wide = widths[-1]
        self.middle = nn.ModuleList([style.block(wide, wide), style.attention(None, wide), style.block(wide, wide)])
        self.up = nn.ModuleList(
            nn.ModuleList(
                [
                    style.block(coarse + fine, coarse),
                    style.block(coarse + fine, coarse),
                    style.attention(level, coarse),
                    Upsample(dims, coarse, fine) if level > 0 else convolution(dims, coarse, fine),
                ]
            )
            for level, (fine, coarse) in enumerate(levels)
        )
        self.last = style.block(2 * enter_width, enter_width)
        self.leave = convolution(dims, enter_width, in_channels if out_channels is None else out_channels, kernel=1)

    @classmethod
    def check_arguments(cls, given: Mapping[str, Any]) -> None:
        """Refuse arguments that no such network can be built from."""
        levels = len(given["widths"])
        for name in ("enter_width", "in_channels", "out_channels", "groups"):
            if not (given[name] is None and name == "out_channels") and not is_count(given[name]):
                raise ArgumentError(name, given[name], "it must be at least 1", "Pass a whole number of at least 1.")
        if not levels or not all(is_count(width) for width in given["widths"]):
            raise ArgumentError(
                "widths", given["widths"], "not one width per level", "Pass (64, 128, 256), for example."
            )
        for name in _PER_LEVEL:
            values = given[name] if isinstance(given[name], list) else [given[name]] * levels
            if len(values) != levels or not all(is_count(value) for value in values):
                raise ArgumentError(
                    name, given[name], "it is a number, or one per level", f"Pass {levels} whole numbers."
                )
        if any(level not in range(levels) for level in given["full_attention_levels"] or ()):
            problem, remedy = f"the network has levels 0..{levels - 1}", "Name levels of it, 0 being full resolution."
            raise ArgumentError("full_attention_levels", given["full_attention_levels"], problem, remedy)
        check_choices(given, {"norms": _NORMS})
        if given["dims"] not in (1, 2):
            raise ArgumentError("dims", given["dims"], "it was made for signals and images", "Use 1 or 2.")
        if not is_count(given["memory"], 0):
            raise ArgumentError("memory", given["memory"], "not a number of keys", "Pass 0 for none, 4 for the usual.")
        check_dropout(given["dropout"])

    def levels(self, x: Tensor, vector: Tensor) -> Tensor:
        """The way down, the middle, and the way up."""
        h = entered = self.enter(x)
        kept = []
        part: Any
        for part in self.down:
            first, second, attention, shrink = part
            h = first(h, vector)
            kept.append(h)
            h = attention(second(h, vector), vector)
            kept.append(h)
            h = shrink(h)
        for part in self.middle:
            h = part(h, vector)
        for part in reversed(self.up):
            first, second, attention, grow = part
            h = first(torch.cat((h, kept.pop()), dim=1), vector)
            h = second(torch.cat((h, kept.pop()), dim=1), vector)
            h = grow(attention(h, vector))
        h = self.last(torch.cat((h, entered), dim=1), vector)
        out: Tensor = self.leave(h)
        return out

    def vector(self, x: Tensor, time: Tensor, condition: ConditionLike) -> Tensor:
        """The conditioning vector, (B, 4 embedding_width), of the time alone, in the dtype of the network."""
        embedded = self.embedding(time)  # refuses what is not (B,) floating point
        if time.shape[0] != x.shape[0]:
            problem, remedy = f"x has {x.shape[0]} samples", "Pass one time per sample; expand one with time.expand(B)."
            raise ArgumentError("time", tuple(time.shape), problem, remedy)
        return silu(self.time_leave(gelu(self.time_enter(embedded.to(self.time_enter.weight.dtype)))))

    def entering(self, x: Tensor, condition: ConditionLike) -> Tensor:
        """x, with ``self_conditioning`` after the estimate of x_0 that the condition is; zeros without one."""
        estimate = condition
        if not self.self_conditioning:
            if estimate is not None:
                problem = "this network was built without self-conditioning, and it has no classes"
                raise ArgumentError("condition", estimate, problem, "Call it without a condition.")
            return x
        if estimate is None:
            estimate = torch.zeros_like(x)
        if not isinstance(estimate, Tensor) or estimate.shape != x.shape:
            problem, remedy = "it is an earlier estimate of x_0", f"Pass a tensor of shape {tuple(x.shape)}, or None."
            raise ArgumentError("condition", getattr(estimate, "shape", estimate), problem, remedy)
        return torch.cat((estimate.to(x.dtype), x), dim=1)


class _Style:
    """What all blocks and attentions of a network have in common."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.given = given
        self.last = len(given["widths"]) - 1
        full = given["full_attention_levels"]
        self.full = [self.last] if full is None else full
        self.norm = ChannelLayerNorm if given["norms"] == "standardised" else ChannelRMSNorm

    def block(self, inputs: int, outputs: int) -> _Block:
        return _Block(self.given, inputs, outputs)

    def attention(self, level: int | None, width: int) -> nn.Module:
        """The attention of a level; None: of the middle, which is full and has the heads of the last level."""
        heads, wide = (_of_level(self.given[name], self.last if level is None else level) for name in _PER_LEVEL)
        arguments = (width, heads, wide, self.given["memory"], self.norm)
        if level is None or level in self.full:
            return FullAttention(*arguments)
        return LinearAttention(*arguments, average=self.given["norms"] == "standardised")


_PER_LEVEL = ("heads", "head_width")


def _of_level(value: Any, level: int) -> int:
    """The number of this level, where one per level may be given."""
    number: int = value[level] if isinstance(value, list) else value
    return number


class _Block(nn.Module):
    """SiLU(norm(conv(h))) + skip(x) of h = SiLU(norm(conv(x)) (1 + scale) + shift), (scale, shift) = linear(vector)."""

    def __init__(self, given: dict[str, Any], inputs: int, outputs: int) -> None:
        super().__init__()
        dims, standardised = given["dims"], given["norms"] == "standardised"
        conv: Any = _STANDARDISED[dims] if standardised else CONVOLUTIONS[dims]
        self.film = nn.Linear(4 * given["embedding_width"], 2 * outputs)
        self.enter, self.leave = conv(inputs, outputs, 3, padding=1), conv(outputs, outputs, 3, padding=1)
        self.enter_norm, self.leave_norm = (
            ChannelRMSNorm(outputs) if given["norms"] == "rms" else GroupNorm(given["groups"], outputs)
            for _ in range(2)
        )
        self.dropout = nn.Dropout(given["dropout"])
        self.skip = nn.Identity() if inputs == outputs else convolution(dims, inputs, outputs, kernel=1)

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        """Map ``x`` (B, inputs, *size) and ``vector`` (B, 4 embedding_width) to (B, outputs, *size)."""
        scale, shift = self.film(vector).reshape(x.shape[0], -1, *[1] * (x.ndim - 2)).chunk(2, dim=1)
        h = self.dropout(silu(self.enter_norm(self.enter(x)) * (scale + 1) + shift))
        out: Tensor = silu(self.leave_norm(self.leave(h))) + self.skip(x)
        return out


class _Halve(nn.Module):
    """Halves every spatial axis."""

    def __init__(self, dims: int, inputs: int, outputs: int) -> None:
        super().__init__()
        if dims == 1:
            self.conv: nn.Module = nn.Conv1d(inputs, outputs, 4, stride=2, padding=1)
        else:
            self.conv = convolution(dims, 4 * inputs, outputs, kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, *size) to (B, outputs, *size/2)."""
        out: Tensor = self.conv(x if x.ndim == 3 else pixel_unshuffle(x, 2))
        return out


class _Standardised(nn.Module):
    """A convolution whose weights have mean 0 and variance 1 for each output channel (Qiao et al. 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, *size) to (B, outputs, *size)."""
        weight: Any = self.weight
        eps = 1e-3 if weight.dtype in (torch.float16, torch.bfloat16) else 1e-5
        variance, mean = torch.var_mean(weight, tuple(range(1, weight.ndim)), correction=0, keepdim=True)
        out: Tensor = self._conv_forward(x, (weight - mean) * torch.rsqrt(variance + eps), self.bias)  # type: ignore[operator]
        return out


_STANDARDISED: dict[int, Any] = {
    dims: type(f"Standardised{dims}d", (_Standardised, kind), {}) for dims, kind in CONVOLUTIONS.items()
}
