"""What all U-Nets have in common: what they are asked, how sizes are padded, and which arguments are refused."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from sde_toolkit.errors import ArgumentError
from sde_toolkit.networks.convolutions import CONVOLUTIONS
from sde_toolkit.networks.embeddings import ConditionLike

__all__ = [
    "Trunk",
    "check_choices",
    "check_dropout",
    "check_even",
    "check_hyperparameters",
    "crop_to_size",
    "pad_to_multiple",
]


class Trunk(nn.Module):
    """A U-Net, ``(B, in_channels, *size) -> (B, out_channels, *size)``, of levels that each halve the size.

    Sizes need not be multiples of ``2**(levels - 1)``: the input is padded with zeros, evenly on both sides, and the
    output is cropped.

    A subclass calls ``super().__init__(locals())`` first, which keeps and checks its arguments; it builds its layers,
    among them ``conditioning``, and gives :meth:`levels`.
    """

    sequences: ClassVar[tuple[str, ...]] = ("widths", "attention_levels")  # arguments that are kept as lists

    conditioning: nn.Module

    def __init__(self, given: Mapping[str, Any]) -> None:
        super().__init__()
        self.hyperparameters: dict[str, Any] = {
            name: list(value) if name in self.sequences and isinstance(value, Iterable) else value
            for name, value in given.items()
            if name not in ("self", "__class__")
        }
        self.check_arguments(self.hyperparameters)
        self.in_channels: int = given["in_channels"]
        self.dims: int = given["dims"]
        self.checkpointing: bool = given.get("checkpointing", False)
        self.multiple: int = 2 ** (len(given["widths"]) - 1)

    def forward(self, x: Tensor, time: Tensor, condition: ConditionLike = None) -> Tensor:
        """Return the output, (B, out_channels, *size).

        Args:
            x: data, (B, in_channels, *size).
            time: the prepared time input, (B,).
            condition: class labels, (B,) long, a :class:`~sde_toolkit.networks.Condition`, or None.
        """
        check_input(x, self.in_channels, self.dims)
        vector = self.vector(x, time, condition)
        out = self.levels(pad_to_multiple(self.entering(x, condition), self.multiple), vector)
        return crop_to_size(out, x.shape[2:]).contiguous()

    def vector(self, x: Tensor, time: Tensor, condition: ConditionLike) -> Tensor:
        """The conditioning vector, (B, width)."""
        vector: Tensor = self.conditioning(x, time, condition)
        return vector

    def entering(self, x: Tensor, condition: ConditionLike) -> Tensor:
        """What goes through the levels, (B, channels, *size): x, unless the network says otherwise."""
        return x

    @abstractmethod
    def levels(self, x: Tensor, vector: Tensor) -> Tensor:
        """(B, channels, *size) to (B, out_channels, *size), for sizes that every level can halve."""

    @property
    def recomputing(self) -> bool:
        """Whether the backward pass computes the inside of each block again instead of keeping it."""
        return self.checkpointing and self.training and torch.is_grad_enabled()

    @classmethod
    def check_arguments(cls, given: Mapping[str, Any]) -> None:
        """Refuse arguments that no such network can be built from."""
        check_hyperparameters(given)


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


def check_hyperparameters(given: Mapping[str, Any]) -> None:
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
    check_dropout(given["dropout"])
    for name in ("in_channels", "blocks_per_level", "attention_head_width", "groups", "out_channels"):
        if given.get(name) is not None and given[name] < 1:
            raise ArgumentError(name, given[name], "it must be at least 1", "Pass a whole number of at least 1.")
    check_even("time_width", given["time_width"])


def check_dropout(rate: float) -> None:
    """Refuse what is no rate of dropout."""
    if not 0.0 <= rate < 1.0:
        raise ArgumentError("dropout", rate, "it is not a rate below 1", "Pass a number in [0, 1).")


def check_even(name: str, width: int | None) -> None:
    """Refuse a width that is not even, unless it is None."""
    if width is not None and (width < 2 or width % 2):
        raise ArgumentError(name, width, "it must be even and at least 2", "Pass an even width, such as 128.")


def check_choices(given: Mapping[str, Any], choices: Mapping[str, Sequence[str | None]]) -> None:
    """Refuse words that are none of the choices of their argument."""
    for name, known in choices.items():
        if given[name] not in known:
            raise ArgumentError(name, given[name], "there is no such choice", f"Use one of {list(known)}.")
