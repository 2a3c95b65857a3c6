"""The networks of NVlabs/edm as networks of ours: their options, and their tensors under our names."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sde_toolkit.interop.filling import filled
from sde_toolkit.networks import ADMUNet, PublishedUNet

__all__ = ["Tensors", "dhariwal_unet", "ordered_heads", "song_unet", "swapped_halves"]

Tensors = Mapping[str, Tensor]

_BOTH: dict[str, Any] = {"label_dim": 0, "augment_dim": 0, "channel_mult_emb": 4, "dropout": 0.10, "label_dropout": 0}
_SONG: dict[str, Any] = {  # what SongUNet takes where an option is not given
    **_BOTH,
    "model_channels": 128,
    "channel_mult": [1, 2, 2, 2],
    "num_blocks": 4,
    "attn_resolutions": [16],
    "embedding_type": "positional",
    "channel_mult_noise": 1,
    "encoder_type": "standard",
    "decoder_type": "standard",
    "resample_filter": [1, 1],
}
_DHARIWAL: dict[str, Any] = {  # and DhariwalUNet
    **_BOTH,
    "model_channels": 192,
    "channel_mult": [1, 2, 3, 4],
    "num_blocks": 3,
    "attn_resolutions": [32, 16, 8],
}
_CONSTANTS = "resample_filter"  # the filters that halve and double, which the options say
_HEAD_WIDTH = 64  # of DhariwalUNet. A layer of fewer channels has no attention there.


def ordered_heads(rows: Tensor, heads: int, order: str) -> Tensor:
    """The rows of the layer that makes queries, keys and values, in our order: first these three, then the heads.

    ``order`` is that of the rows in the file, outermost first: "q" stands for which of the three, "h" for the head, "c"
    for the channel of a head.
    """
    sizes = {"q": 3, "h": heads, "c": len(rows) // (3 * heads)}
    split = rows.reshape(*(sizes[letter] for letter in order), *rows.shape[1:])
    back = [order.index(letter) for letter in "qhc"]
    return split.permute(*back, *range(3, split.ndim)).reshape(rows.shape)


def song_unet(file: Path, options: Mapping[str, Any], tensors: Tensors) -> nn.Module:
    """SongUNet (DDPM++ and NCSN++) as :class:`~sde_toolkit.networks.PublishedUNet`."""
    given = {**_SONG, **options}
    base, size = given["model_channels"], given["img_resolution"]
    sizes = [size >> level for level in range(len(given["channel_mult"]))]
    classes, augmentation = given["label_dim"] or None, given["augment_dim"] or None

    def construct() -> PublishedUNet:
        return PublishedUNet(
            in_channels=given["in_channels"],
            out_channels=given["out_channels"],
            widths=[base * multiple for multiple in given["channel_mult"]],
            enter_width=base,
            blocks_per_level=given["num_blocks"],
            attention_levels=[level for level, side in enumerate(sizes) if side in given["attn_resolutions"]],
            attention_up="last",
            attention_gain=0.1,
            resampling="block",
            taps=given["resample_filter"],
            skip_scale=math.sqrt(0.5),
            input_pyramid=None if given["encoder_type"] == "standard" else given["encoder_type"],
            output_pyramid=None if given["decoder_type"] == "standard" else given["decoder_type"],
            embedding="sinusoidal" if given["embedding_type"] == "positional" else given["embedding_type"],
            embedding_scale=16.0 if given["embedding_type"] == "fourier" else 1.0,
            embedding_width=base * given["channel_mult_noise"],
            time_width=base * given["channel_mult_emb"],
            num_classes=classes,
            label_place="features",
            augmentation_width=augmentation,
            dropout=given["dropout"],
            groups=32,
            group_width=4,
            eps=1e-6,
        )

    return filled(file, construct, tensors, lambda found: _Renamed(found, sizes, given).all(), _CONSTANTS)


def dhariwal_unet(file: Path, options: Mapping[str, Any], tensors: Tensors) -> nn.Module:
    """DhariwalUNet (ADM) as :class:`~sde_toolkit.networks.ADMUNet`."""
    given = {**_DHARIWAL, **options}
    base, size = given["model_channels"], given["img_resolution"]
    widths = [base * multiple for multiple in given["channel_mult"]]
    sizes = [size >> level for level in range(len(widths))]
    attending = {size >> k for k, width in enumerate(widths) if width >= _HEAD_WIDTH} & set(given["attn_resolutions"])

    def construct() -> ADMUNet:
        return ADMUNet(
            in_channels=given["in_channels"],
            out_channels=given["out_channels"],
            widths=widths,
            blocks_per_level=given["num_blocks"],
            attention_levels=[level for level, side in enumerate(sizes) if side in attending],
            attention_head_width=_HEAD_WIDTH,
            embedding_width=base,
            time_width=base * given["channel_mult_emb"],
            num_classes=given["label_dim"] or None,
            no_class="zero",
            augmentation_width=given["augment_dim"] or None,
            dropout=given["dropout"],
            group_width=4,
        )

    return filled(file, construct, tensors, lambda found: _RenamedADM(found, sizes, given).all(), _CONSTANTS)


@dataclass(frozen=True)
class _Renamed:
    """The tensors of a SongUNet under the names of a PublishedUNet. ``sizes``: of the image at each level."""

    theirs: Tensors
    sizes: list[int]
    given: Mapping[str, Any]

    modulation: ClassVar[str] = "shift"

    def all(self) -> dict[str, Tensor]:
        """All of them; what SongUNet has beyond these is a constant."""
        found = dict(self._conditioning())
        found |= self._conv(f"enc.{self._side(0)}_conv", "enter")
        for level in range(len(self.sizes)):
            found |= self._level(level)
        deepest = self._side(len(self.sizes) - 1)
        found |= self._block(f"dec.{deepest}_in0", "middle.0", "middle.1")
        found |= self._block(f"dec.{deepest}_in1", "middle.2")
        return found

    def _side(self, level: int) -> str:
        return f"{self.sizes[level]}x{self.sizes[level]}"

    def _level(self, level: int) -> dict[str, Tensor]:
        side, blocks = self._side(level), self.given["num_blocks"]
        found: dict[str, Tensor] = {}
        for block in range(blocks):
            ours = f"down.{level}.{block}"
            found |= self._block(f"enc.{side}_block{block}", f"{ours}.0", f"{ours}.1")
        for block in range(blocks + 1):
            ours = f"up.{level}.{block}"
            found |= self._block(f"dec.{side}_block{block}", f"{ours}.0", f"{ours}.1")
        if level > 0:
            found |= self._block(f"enc.{side}_down", f"shrink.{level - 1}", inside=".conv")
            found |= self._conv(f"enc.{side}_aux_residual", f"input_pyramid.shrink.{level - 1}.conv")
            found |= self._pointwise(f"enc.{side}_aux_skip", f"input_pyramid.join.{level - 1}")
        if level < len(self.sizes) - 1:
            found |= self._block(f"dec.{side}_up", f"grow.{level}", inside=".conv")
        return found | self._end(level)

    def _end(self, level: int) -> dict[str, Tensor]:
        """The last layers."""
        side = self._side(level)
        pyramid = self.given["decoder_type"] == "skip"
        norm, conv = (f"output_pyramid.{part}.{level}" if pyramid else part for part in _LEAVE[pyramid])
        return self._conv(f"dec.{side}_aux_norm", norm) | self._conv(f"dec.{side}_aux_conv", conv)

    def _block(self, theirs: str, ours: str, attention: str = "", inside: str = "") -> dict[str, Tensor]:
        """A block, and the attention in it; ``inside``: where the first convolution lies that resamples."""
        found = self._conv(f"{theirs}.norm0", f"{ours}.enter_norm") | self._conv(
            f"{theirs}.norm1", f"{ours}.leave_norm"
        )
        found |= self._conv(f"{theirs}.conv0", f"{ours}.enter{inside}") | self._conv(f"{theirs}.conv1", f"{ours}.leave")
        found |= self._conv(f"{theirs}.affine", f"{ours}.{self.modulation}")
        found |= self._skip(f"{theirs}.skip", f"{ours}.skip")
        found |= self._conv(f"{theirs}.norm2", f"{attention}.norm")
        found |= self._pointwise(f"{theirs}.proj", f"{attention}.leave")
        rows = self._pointwise(f"{theirs}.qkv", f"{attention}.enter")
        return found | {name: ordered_heads(tensor, self._heads(tensor), "hcq") for name, tensor in rows.items()}

    def _skip(self, theirs: str, ours: str) -> dict[str, Tensor]:
        return self._pointwise(theirs, ours)

    def _heads(self, rows: Tensor) -> int:
        return 1

    def _conv(self, theirs: str, ours: str) -> dict[str, Tensor]:
        """Weight and bias of any layer that is stored as ours is, if it exists."""
        kinds = ("weight", "bias")
        return {f"{ours}.{k}": self.theirs[f"{theirs}.{k}"] for k in kinds if f"{theirs}.{k}" in self.theirs}

    def _pointwise(self, theirs: str, ours: str) -> dict[str, Tensor]:
        """A convolution of one tap, which is a linear layer here."""
        return {name: t.flatten(1) if t.ndim > 1 else t for name, t in self._conv(theirs, ours).items()}

    def _conditioning(self) -> Iterator[tuple[str, Tensor]]:
        yield from self._conv("map_layer0", "conditioning.enter").items()
        yield from self._conv("map_layer1", "conditioning.leave").items()
        yield from self._conv("map_augment", "conditioning.augmentation").items()
        if "map_noise.freqs" in self.theirs:
            yield "conditioning.embedding.frequencies", self.theirs["map_noise.freqs"]
        if "map_label.weight" in self.theirs:
            yield "conditioning.labels.weight", self._labels()

    def _labels(self) -> Tensor:
        """A row for each class, and for "no class". The file has a linear map of √K one-hot, with a bias."""
        weight, bias = self.theirs["map_label.weight"], self.theirs["map_label.bias"]
        return torch.cat([math.sqrt(weight.shape[1]) * weight.mT + bias, bias[None]])


class _RenamedADM(_Renamed):
    """The tensors of a DhariwalUNet under the names of an ADMUNet."""

    modulation: ClassVar[str] = "modulation"

    def _end(self, level: int) -> dict[str, Tensor]:
        return self._conv("out_norm", "leave_norm") | self._conv("out_conv", "leave") if level == 0 else {}

    def _skip(self, theirs: str, ours: str) -> dict[str, Tensor]:
        return self._conv(theirs, ours)

    def _heads(self, rows: Tensor) -> int:
        return len(rows) // (3 * _HEAD_WIDTH)

    def _conditioning(self) -> Iterator[tuple[str, Tensor]]:
        found = dict(super()._conditioning())
        for name, axis in (("enter.weight", 1), ("augmentation.weight", 0)):  # its cosines come before its sines
            if f"conditioning.{name}" in found:
                found[f"conditioning.{name}"] = swapped_halves(found[f"conditioning.{name}"], axis)
        yield from found.items()

    def _labels(self) -> Tensor:
        return self.theirs["map_label.weight"].mT


def swapped_halves(tensor: Tensor, axis: int) -> Tensor:
    """The second half along ``axis``, then the first: features whose cosines come first in our order, and back."""
    return tensor.roll(tensor.shape[axis] // 2, axis)


_LEAVE = {False: ("leave_norm", "leave"), True: ("norms", "leave")}
