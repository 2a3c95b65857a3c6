"""The networks of score_sde as networks of ours: what their keys and shapes say, and their tensors under our names.

DDPM and NCSNpp keep all layers in one list, ``all_modules``, in the order in which they act. So a layer is known by its
place, and the place of every other layer follows from a walk along the list.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from sde_toolkit.errors import CheckpointError

__all__ = ["OTHER_NETWORKS", "Structure", "layers_of", "structure_of"]

Layer = Mapping[str, Tensor]
"""The tensors of one of ``all_modules``, by their names inside it."""

OTHER_NETWORKS = "Networks of score_sde's classes DDPM and NCSNpp are read. Build any other, and pass it to ScoreModel."
"""The remedy for a file with another network."""

_BLOCK = {"GroupNorm_0": "enter_norm", "Conv_0": "enter", "Dense_0": "shift", "GroupNorm_1": "leave_norm"}
_BLOCK |= {"Conv_1": "leave", "Conv_2": "skip", "NIN_0": "skip"}  # the last two in other blocks
_PARTS: dict[str, dict[str, str]] = {
    "frequencies": {"": "conditioning.embedding"},
    "linear": {"": ""},
    "norm": {"": ""},
    "convolution": {"": ""},
    "block": _BLOCK,
    "resampling block": {**_BLOCK, "Conv_0": "enter.conv"},
    "attention": {"GroupNorm_0": "norm", "NIN_0": "enter", "NIN_1": "enter", "NIN_2": "enter", "NIN_3": "leave"},
    "filtered convolution": {"Conv2d_0": "conv"},
    "resampling convolution": {"Conv_0": "part.conv"},
    "pointwise convolution": {"Conv_0": ""},
}
"""By the kind of a layer: its parts, and what we call them."""


def layers_of(file: Path, state: Mapping[str, Tensor]) -> list[Layer]:
    """The layers in the state dict of a file, in their order. The names may have the prefix of DataParallel.

    Raises:
        CheckpointError: if there are none, or one of them has no tensors.
    """
    layers: dict[int, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        found = re.fullmatch(r"(?:module\.)?all_modules\.(\d{1,6})\.(.+)", name)
        if found is None and name.removeprefix("module.") != "sigmas":
            raise CheckpointError(file, f"its network has {name!r}", OTHER_NETWORKS)
        if found is not None:
            layers.setdefault(int(found[1]), {})[found[2]] = tensor
    if sorted(layers) != list(range(len(layers))) or not layers:
        problem = "some of its layers have no weights, as with resamp_with_conv = False"
        raise CheckpointError(file, problem if layers else "its network has no layers", OTHER_NETWORKS)
    return [layers[i] for i in range(len(layers))]


def _kind(layer: Layer) -> str:
    """What a layer is, by the names and shapes of its tensors."""
    conv, single = layer.get("Conv_0.weight"), layer.get("weight")
    if single is not None:
        return {1: "norm", 2: "linear", 4: "convolution"}.get(single.ndim, "unknown")
    if "Conv_1.weight" in layer and conv is not None and conv.ndim == 4:
        return "resampling block" if "Conv_2.weight" in layer and conv.shape[0] == conv.shape[1] else "block"
    if conv is not None:
        return "pointwise convolution" if tuple(conv.shape[2:]) == (1, 1) else "resampling convolution"
    marks = {"W": "frequencies", "NIN_3.W": "attention", "Conv2d_0.weight": "filtered convolution"}
    return next((kind for mark, kind in marks.items() if mark in layer), "unknown")


@dataclass(frozen=True)
class Structure:
    """What keys and shapes say of a network.

    Attributes:
        kind: "ddpm" (class DDPM), or of class NCSNpp "ddpmpp" (no pyramid of inputs), "ncsnpp" (such a pyramid) or
            "ncsnpp of large images" (skip pyramids of inputs and outputs).
        fourier: whether time is embedded by random frequencies of log σ, not by sinusoids of an index.
        arguments: of :class:`~sde_toolkit.networks.PublishedUNet`, as far as they are known.
        tensors: the weights, by our names.
    """

    kind: Literal["ddpm", "ddpmpp", "ncsnpp", "ncsnpp of large images"]
    fourier: bool
    arguments: dict[str, Any]
    tensors: dict[str, Tensor]


def structure_of(file: Path, layers: list[Layer]) -> Structure:
    """The structure of the network with these layers.

    Raises:
        CheckpointError: if it is none of the four kinds, naming the first layer that is out of place.
    """
    walk = _Walk(file, layers)
    fourier = walk.next_is("frequencies")
    if fourier:
        walk.take("frequencies", "")
    if not walk.next_is("linear"):
        problem = "its network is not told the time (conditional = False)"
        raise CheckpointError(file, problem, OTHER_NETWORKS)
    time_width, features = walk.take("linear", "conditioning.enter")["weight"].shape
    walk.take("linear", "conditioning.leave")
    width, channels = walk.take("convolution", "enter")["weight"].shape[:2]
    arguments: dict[str, Any] = {
        "in_channels": channels,
        "time_width": time_width,
        "embedding_width": features,
        "embedding": "fourier" if fourier else "sinusoidal",
        **walk.levels(),
    }
    if arguments["widths"][0] != width:
        arguments["enter_width"] = width
    return Structure(walk.shape.kind, fourier, arguments, walk.found)


class _Counts:
    """How many levels there are, how many blocks in each, and which pyramids: found by counting kinds of layers."""

    def __init__(self, file: Path, layers: list[Layer], kinds: list[str]) -> None:
        convolutions, blocks = kinds.count("resampling convolution"), kinds.count("resampling block")
        plain = any("NIN_0.W" in layer and "Conv_1.weight" in layer for layer in layers)  # as DDPM's blocks have
        self.resampling = "convolution" if plain else "block"
        self.levels, odd = divmod(convolutions + blocks + 2, 2)
        self.input_pyramid = {"filtered convolution": "residual", "pointwise convolution": "skip"}
        self.pyramid = next((kind for kind in self.input_pyramid if kind in kinds), None)
        self.skips_out = kinds.count("norm") > 1
        self.blocks, rest = divmod(kinds.count("block") - 2 - self.levels, 2 * self.levels)
        if odd or rest or self.blocks < 1 or (blocks if plain else convolutions):
            raise CheckpointError(file, "its blocks do not form the levels of a U-Net", OTHER_NETWORKS)

    @property
    def kind(self) -> Any:
        """As in :class:`Structure`."""
        if self.resampling == "convolution":
            return "ddpm"
        if self.pyramid == "pointwise convolution" and self.skips_out:
            return "ncsnpp of large images"
        return "ddpmpp" if self.pyramid is None else "ncsnpp"


class _Walk:
    """A walk along the layers. Each is taken at its place; its tensors are kept under our names in ``found``."""

    def __init__(self, file: Path, layers: list[Layer]) -> None:
        self.file, self.layers, self.place = file, layers, 0
        self.kinds = [_kind(layer) for layer in layers]
        self.shape = _Counts(file, layers, self.kinds)
        self.found: dict[str, Tensor] = {}

    def next_is(self, kind: str) -> bool:
        """Whether the next layer is of that kind."""
        return self.place < len(self.kinds) and self.kinds[self.place] == kind

    def take(self, kind: str, ours: str) -> Layer:
        """The next layer, which has to be of that kind; its tensors are kept under the prefix ``ours``."""
        if not self.next_is(kind):
            there = self.kinds[self.place] if self.place < len(self.kinds) else "the end"
            problem = f"its layer {self.place} is not a {kind}, as in these networks, but {there}"
            raise CheckpointError(self.file, problem, OTHER_NETWORKS)
        layer, parts = self.layers[self.place], _PARTS[kind]
        self.place += 1
        for name, tensor in sorted(layer.items()):  # queries before keys before values
            part, _, last = name.rpartition(".")
            if part not in parts or last not in ("weight", "bias", "W", "b"):
                problem = f"its layer {self.place - 1}, a {kind}, has {name!r}"
                raise CheckpointError(self.file, problem, OTHER_NETWORKS)
            self._keep(".".join(filter(None, (ours, parts[part]))), last, tensor)
        return layer

    def _keep(self, ours: str, last: str, tensor: Tensor) -> None:
        """One tensor: NIN holds the transpose of a linear map; queries, keys and values are one map of ours."""
        if ours == "conditioning.embedding":
            name = f"{ours}.frequencies"
        else:
            name = f"{ours}.{'weight' if last in ('weight', 'W') else 'bias'}"
        tensor = tensor.mT if last == "W" and tensor.ndim == 2 else tensor
        linear = ours.endswith(".skip") or ".join." in ours
        tensor = tensor.flatten(1) if linear and tensor.ndim == 4 else tensor
        before = self.found.get(name)
        fits = before is not None and 0 < before.ndim == tensor.ndim and before.shape[1:] == tensor.shape[1:]
        self.found[name] = torch.cat([before, tensor]) if before is not None and fits else tensor

    def levels(self) -> dict[str, Any]:
        """All that follows the first convolution; the arguments of our network that it shows."""
        shape, widths, attended = self.shape, [], []
        resampling = f"resampling {shape.resampling}"
        for level in range(shape.levels):
            widths.append(0)
            for block in range(shape.blocks):
                widths[-1] = len(self.take("block", f"down.{level}.{block}.0").get("Conv_0.weight", ()))
                if self.next_is("attention"):
                    attended.append(level)
                    self.take("attention", f"down.{level}.{block}.1")
            if level < shape.levels - 1:
                self.take(resampling, f"shrink.{level}")
                if shape.pyramid is not None:
                    part = "shrink" if shape.pyramid == "filtered convolution" else "join"
                    self.take(shape.pyramid, f"input_pyramid.{part}.{level}")
        for i, kind in enumerate(("block", "attention", "block")):
            self.take(kind, f"middle.{i}")
        for level in reversed(range(shape.levels)):
            self._up(level, resampling)
        if not shape.skips_out:
            self._leave("leave_norm", "leave")
        if self.place < len(self.layers):
            problem = f"its layer {self.place} follows the last one of these networks"
            raise CheckpointError(self.file, problem, OTHER_NETWORKS)
        return {
            "widths": widths,
            "blocks_per_level": shape.blocks,
            "attention_levels": sorted(set(attended)),
            "attention_up": "last",
            "resampling": shape.resampling,
            "input_pyramid": None if shape.pyramid is None else shape.input_pyramid[shape.pyramid],
            "output_pyramid": "skip" if shape.skips_out else None,
        }

    def _up(self, level: int, resampling: str) -> None:
        for block in range(self.shape.blocks + 1):
            self.take("block", f"up.{level}.{block}.0")
        if self.next_is("attention"):
            self.take("attention", f"up.{level}.{self.shape.blocks}.1")
        if self.shape.skips_out:
            self._leave(f"output_pyramid.norms.{level}", f"output_pyramid.leave.{level}")
        if level > 0:
            self.take(resampling, f"grow.{level - 1}")

    def _leave(self, norm: str, convolution: str) -> None:
        self.take("norm", norm)
        self.take("convolution", convolution)
