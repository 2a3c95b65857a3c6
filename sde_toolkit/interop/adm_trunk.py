"""The network of guided-diffusion as :class:`~sde_toolkit.networks.ADMUNet`: its shape from its tensors, and these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from sde_toolkit.errors import ArgumentError, CheckpointError
from sde_toolkit.interop.edm_trunks import Tensors, ordered_heads, swapped_halves
from sde_toolkit.interop.filling import filled
from sde_toolkit.networks import ADMUNet

__all__ = ["UNetShape", "adm_unet", "shape_of"]

_ORDERS = {"old": "hqc", "new": "qhc"}


@dataclass(frozen=True)
class UNetShape:
    """What the shapes and names of the tensors say of a network; arguments of ``ADMUNet`` of nearly the same names."""

    channels: int
    outputs: int
    dims: int
    widths: list[int]
    blocks: int
    attention_levels: list[int]
    modulation: Literal["scale", "shift"]
    resampling: Literal["convolution", "block"]
    embedding_width: int
    time_width: int
    classes: int | None


def shape_of(file: Path, tensors: Tensors) -> UNetShape:
    """The shape of the network with these tensors.

    Raises:
        CheckpointError: if no such network has them; for an upsampler.
    """
    try:
        shape = _shape_of(tensors)
    except (KeyError, IndexError, ValueError) as error:
        problem = f"its tensors are not those of a U-Net of guided-diffusion ({type(error).__name__}: {error})"
        raise CheckpointError(file, problem[:300], "Classifiers are not read. Is it the file of a diffusion?") from None
    if shape.outputs not in (shape.channels, 2 * shape.channels) or shape.channels == 6:
        problem = f"{shape.channels} channels enter its network and {shape.outputs} leave it, as of an upsampler"
        remedy = "Build the upsampler yourself, with the small image in it, and pass it to ScoreModel."
        raise CheckpointError(file, problem, remedy)
    return shape


def _shape_of(tensors: Tensors) -> UNetShape:
    count = sum(name.startswith("output_blocks.") and name.endswith(".0.in_layers.2.weight") for name in tensors)
    doubling = [k for k in range(count) if any(f"output_blocks.{k}.{name}" in tensors for name in _DOUBLE)]
    stages = doubling[0] + 1 if doubling else count  # of a level on the way up
    levels = len(doubling) + 1
    if levels * stages != count or stages < 2:
        raise ValueError(f"{count} blocks on the way up, {levels} levels")
    starts = [(levels - 1 - level) * stages for level in range(levels)]
    weight, first = tensors["input_blocks.0.0.weight"], "input_blocks.1.0."
    embedding = tensors["time_embed.0.weight"]
    told = len(tensors[f"{first}emb_layers.1.weight"]) == 2 * len(tensors[f"{first}out_layers.3.weight"])
    by_convolution = any(name.startswith("output_blocks.") and name.endswith(".conv.weight") for name in tensors)
    return UNetShape(
        channels=weight.shape[1],
        outputs=len(tensors["out.2.weight"]),
        dims=weight.ndim - 2,
        widths=[len(tensors[f"output_blocks.{k}.0.out_layers.3.weight"]) for k in starts],
        blocks=stages - 1,
        attention_levels=[k for k in range(levels) if f"input_blocks.{1 + k * stages}.1.norm.weight" in tensors],
        modulation="scale" if told else "shift",
        resampling="convolution" if by_convolution else "block",
        embedding_width=embedding.shape[1],
        time_width=embedding.shape[0],
        classes=len(tensors["label_emb.weight"]) if "label_emb.weight" in tensors else None,
    )


_DOUBLE = [f"{place}.{layer}.weight" for place in (1, 2) for layer in ("conv", "in_layers.2")]


def adm_unet(
    file: Path, tensors: Tensors, shape: UNetShape, told: Mapping[str, Any], embedding_scale: float
) -> nn.Module:
    """The network; ``told``: heads or head_width, and attention_order."""

    def construct() -> ADMUNet:
        return ADMUNet(
            in_channels=shape.channels,
            out_channels=shape.outputs,
            widths=shape.widths,
            blocks_per_level=shape.blocks,
            attention_levels=shape.attention_levels,
            attention_heads=told.get("heads"),
            attention_head_width=told.get("head_width") or 64,
            modulation=shape.modulation,
            resampling=shape.resampling,
            embedding_scale=embedding_scale,
            embedding_width=shape.embedding_width,
            time_width=shape.time_width,
            num_classes=shape.classes,
            no_class="refused",
            dims=shape.dims,
            group_width=1,
            dropout=0.0,
        )

    return filled(file, construct, tensors, lambda found: _Renamed(found, shape, told).all())


@dataclass(frozen=True)
class _Renamed:
    """The tensors of guided-diffusion's UNetModel under the names of an ADMUNet."""

    theirs: Tensors
    shape: UNetShape
    told: Mapping[str, Any]

    def all(self) -> dict[str, Tensor]:
        """All of them."""
        found = self._layer("input_blocks.0.0", "enter") | self._layer("time_embed.2", "conditioning.leave")
        found |= self._layer("time_embed.0", "conditioning.enter") | self._layer("label_emb", "conditioning.labels")
        enter = "conditioning.enter.weight"
        found[enter] = swapped_halves(found[enter], 1)  # its cosines come before its sines
        for level in range(len(self.shape.widths)):
            found |= self._level(level)
        found |= self._block("middle_block.0", "middle.0") | self._block("middle_block.2", "middle.2")
        found |= self._attention("middle_block.1", "middle.1")
        return found | self._layer("out.0", "leave_norm") | self._layer("out.2", "leave")

    def _level(self, level: int) -> dict[str, Tensor]:
        stages, levels = self.shape.blocks + 1, len(self.shape.widths)
        begin, end = 1 + level * stages, (levels - 1 - level) * stages
        found: dict[str, Tensor] = {}
        for block in range(stages):
            theirs = f"input_blocks.{begin + block}"
            if block < stages - 1:
                found |= self._block(f"{theirs}.0", f"down.{level}.{block}.0")
                found |= self._attention(f"{theirs}.1", f"down.{level}.{block}.1")
            elif level < levels - 1:
                found |= self._resampler(f"{theirs}.0", f"shrink.{level}", "op")
            theirs = f"output_blocks.{end + block}"
            found |= self._block(f"{theirs}.0", f"up.{level}.{block}.0")
            found |= self._attention(f"{theirs}.1", f"up.{level}.{block}.1")
        if level > 0:
            place = 2 if level in self.shape.attention_levels else 1
            found |= self._resampler(f"output_blocks.{end + stages - 1}.{place}", f"grow.{level - 1}", "conv")
        return found

    def _resampler(self, theirs: str, ours: str, convolution: str) -> dict[str, Tensor]:
        if self.shape.resampling == "convolution":
            return self._layer(f"{theirs}.{convolution}", f"{ours}.part.conv")
        return self._block(theirs, ours, inside=".conv")

    def _block(self, theirs: str, ours: str, inside: str = "") -> dict[str, Tensor]:
        """A residual block; ``inside``: where the first convolution lies in one that resamples."""
        found = self._layer(f"{theirs}.in_layers.0", f"{ours}.enter_norm")
        found |= self._layer(f"{theirs}.in_layers.2", f"{ours}.enter{inside}")
        found |= self._layer(f"{theirs}.emb_layers.1", f"{ours}.modulation")
        found |= self._layer(f"{theirs}.out_layers.0", f"{ours}.leave_norm")
        found |= self._layer(f"{theirs}.out_layers.3", f"{ours}.leave")
        return found | self._layer(f"{theirs}.skip_connection", f"{ours}.skip")

    def _attention(self, theirs: str, ours: str) -> dict[str, Tensor]:
        if f"{theirs}.qkv.weight" not in self.theirs:
            return {}
        found = self._layer(f"{theirs}.norm", f"{ours}.norm")
        for name, tensor in self._layer(f"{theirs}.proj_out", f"{ours}.leave").items():
            found[name] = tensor.flatten(1) if tensor.ndim > 1 else tensor
        for name, tensor in self._layer(f"{theirs}.qkv", f"{ours}.enter").items():
            rows = tensor.flatten(1) if tensor.ndim > 1 else tensor
            found[name] = ordered_heads(rows, self._heads(len(rows) // 3), _ORDERS[self.told["attention_order"]])
        return found

    def _heads(self, width: int) -> int:
        name = "heads" if self.told.get("heads") else "head_width"
        if width % self.told[name]:
            problem = f"attention has {width} channels, which this does not divide"
            raise ArgumentError(name, self.told[name], problem, "Pass what the network was trained with.")
        return int(self.told[name] if name == "heads" else width // self.told[name])

    def _layer(self, theirs: str, ours: str) -> dict[str, Tensor]:
        """Weight and bias of a layer, if it exists."""
        kinds = ("weight", "bias")
        return {f"{ours}.{k}": self.theirs[f"{theirs}.{k}"] for k in kinds if f"{theirs}.{k}" in self.theirs}
