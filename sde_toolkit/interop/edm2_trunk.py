"""The network of NVlabs/edm2 as :class:`~sde_toolkit.networks.EDM2UNet`: options, and tensors under our names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sde_toolkit.interop.edm_trunks import Tensors, ordered_heads
from sde_toolkit.interop.filling import filled
from sde_toolkit.networks import EDM2UNet

__all__ = ["edm2_unet"]

_DEFAULTS: dict[str, Any] = {  # what the class takes where an option is not given
    "model_channels": 192,
    "channel_mult": [1, 2, 3, 4],
    "channel_mult_noise": None,
    "channel_mult_emb": None,
    "num_blocks": 3,
    "attn_resolutions": [16, 8],
    "label_balance": 0.5,
    "concat_balance": 0.5,
    "resample_filter": [1, 1],
    "channels_per_head": 64,
    "dropout": 0,
    "res_balance": 0.3,
    "attn_balance": 0.3,
    "clip_act": 256,
}
_LAYERS = {  # of a block, theirs and ours
    "conv_res0": "enter",
    "emb_linear": "modulation",
    "conv_res1": "leave",
    "conv_skip": "skip",
    "attn_proj": "attention_leave",
}


def edm2_unet(file: Path, options: Mapping[str, Any], tensors: Tensors) -> nn.Module:
    """EDM2's UNet.

    Raises:
        ValueError: for a filter other than the mean of two neighbours.
        CheckpointError: if the tensors are not those of such a network.
    """
    given = {**_DEFAULTS, **options}
    if list(given["resample_filter"]) != [1, 1]:
        raise ValueError(f"its filter is {given['resample_filter']}, not [1, 1]")
    base, size, multiples = given["model_channels"], given["img_resolution"], given["channel_mult"]
    sizes = [size >> level for level in range(len(multiples))]

    def construct() -> EDM2UNet:
        return EDM2UNet(
            in_channels=given["img_channels"],
            widths=[base * multiple for multiple in multiples],
            blocks_per_level=given["num_blocks"],
            attention_levels=[level for level, side in enumerate(sizes) if side in given["attn_resolutions"]],
            attention_head_width=given["channels_per_head"],
            embedding_width=None if given["channel_mult_noise"] is None else base * given["channel_mult_noise"],
            time_width=None if given["channel_mult_emb"] is None else base * given["channel_mult_emb"],
            num_classes=given["label_dim"] or None,
            label_share=given["label_balance"],
            skip_share=given["concat_balance"],
            residual_share=given["res_balance"],
            attention_share=given["attn_balance"],
            limit=given["clip_act"],
            dropout=given["dropout"],
        )

    return filled(file, construct, tensors, lambda found: _Renamed(found, sizes, given).all())


@dataclass(frozen=True)
class _Renamed:
    """The tensors of EDM2's UNet under the names of an EDM2UNet. ``sizes``: of the image at each level."""

    theirs: Tensors
    sizes: list[int]
    given: Mapping[str, Any]

    def all(self) -> dict[str, Tensor]:
        """All of them."""
        sides = [f"{side}x{side}" for side in self.sizes]
        found = {"leave_gain": self.theirs["out_gain"]}
        found["conditioning.embedding.frequencies"] = self.theirs["emb_fourier.freqs"]
        found["conditioning.embedding.phases"] = self.theirs["emb_fourier.phases"]
        found |= self._layer("emb_noise", "conditioning.time") | self._layer("emb_label", "conditioning.labels")
        found |= self._layer(f"enc.{sides[0]}_conv", "enter") | self._layer("out_conv", "leave")
        for level, side in enumerate(sides):
            for block in range(self.given["num_blocks"] + 1):
                found |= self._block(f"enc.{side}_block{block}", f"down.{level}.{block}")
                found |= self._block(f"dec.{side}_block{block}", f"up.{level}.{block}")
            found |= self._block(f"enc.{side}_down", f"shrink.{level - 1}")
            found |= self._block(f"dec.{side}_up", f"grow.{level}")
        for place in (0, 1):
            found |= self._block(f"dec.{sides[-1]}_in{place}", f"middle.{place}")
        return found

    def _block(self, theirs: str, ours: str) -> dict[str, Tensor]:
        """A block, if it exists."""
        if f"{theirs}.emb_gain" not in self.theirs:
            return {}
        found = {f"{ours}.modulation_gain": self.theirs[f"{theirs}.emb_gain"]}
        for layer, name in _LAYERS.items():
            found |= self._layer(f"{theirs}.{layer}", f"{ours}.{name}")
        for name, rows in self._layer(f"{theirs}.attn_qkv", f"{ours}.attention_enter").items():
            found[name] = ordered_heads(rows, len(rows) // (3 * self.given["channels_per_head"]), "hcq")
        return found

    def _layer(self, theirs: str, ours: str) -> dict[str, Tensor]:
        """The weight of a layer, if it exists. No layer has a bias."""
        name = f"{theirs}.weight"
        return {f"{ours}.weight": self.theirs[name]} if name in self.theirs else {}
