"""Tasks of a restoration: from the shape of an event to the operator that measures it.

A task of your own has ``operator(event_shape)`` and ``describe(event_shape)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from sde_toolkit.checks import check_count, check_positive, is_number
from sde_toolkit.errors import ArgumentError
from sde_toolkit.guidance.operators import LinearOperator
from sde_toolkit.guidance.pixel_operators import Blur, Downsample, Mask

__all__ = ["Deblur", "Inpaint", "InpaintRandom", "SuperResolve", "Task"]

_LARGE = 16  # elements along an axis from which on four of them are averaged by default, otherwise two


class Task(Protocol):
    """What is measured of an event."""

    def operator(self, event_shape: tuple[int, ...]) -> LinearOperator:
        """A, for events of this shape, in the model's space."""
        ...

    def describe(self, event_shape: tuple[int, ...]) -> str:
        """What A does, as half a sentence."""
        ...


@dataclass(frozen=True)
class Inpaint:
    """A box in the middle is not measured: of an image a box of its proportions, of a signal a gap.

    ``fraction``: of the elements that are in the box, above 0 and below 1. At least one element is measured, and at
    least one is not.
    """

    fraction: float = 0.25

    def __post_init__(self) -> None:
        _check_fraction(self.fraction)

    def operator(self, event_shape: tuple[int, ...]) -> LinearOperator:
        axes = _axes(self, event_shape)
        known = torch.ones(axes, dtype=torch.bool)
        known[tuple(slice((n - k) // 2, (n - k) // 2 + k) for n, k in zip(axes, self._box(axes), strict=True))] = False
        return Mask(known, event_shape)

    def describe(self, event_shape: tuple[int, ...]) -> str:
        axes = _axes(self, event_shape)
        box = self._box(axes)
        shape = "×".join(map(str, box))
        what = f"a box of {shape} pixels" if len(axes) > 1 else f"{box[0]} element{'s' * (box[0] > 1)}"
        return f"{what} in the middle {'is' if len(axes) > 1 or box[0] == 1 else 'are'} hidden"

    def _box(self, axes: tuple[int, ...]) -> tuple[int, ...]:
        side = self.fraction ** (1 / len(axes))
        box = [max(1, min(n, round(side * n))) for n in axes]
        if box == list(axes):
            box[-1] -= 1
        return tuple(box)


@dataclass(frozen=True)
class InpaintRandom:
    """Elements at random places are not measured; of an image whole pixels.

    ``fraction``: of the places that are hidden, above 0 and below 1. ``seed`` chooses them.
    """

    fraction: float = 0.7
    seed: int = 0

    def __post_init__(self) -> None:
        _check_fraction(self.fraction)
        check_count("seed", self.seed, "Use task.seed=0, for example.", least=0)

    def operator(self, event_shape: tuple[int, ...]) -> LinearOperator:
        axes = _axes(self, event_shape)
        known = torch.ones(math.prod(axes), dtype=torch.bool)
        order = torch.randperm(len(known), generator=torch.Generator().manual_seed(self.seed))
        known[order[: self._hidden(axes)]] = False
        return Mask(known.reshape(axes), event_shape)

    def describe(self, event_shape: tuple[int, ...]) -> str:
        axes = _axes(self, event_shape)
        of = f"{self._hidden(axes)} of {math.prod(axes)} {'pixels' if len(axes) > 1 else 'elements'}"
        return f"{of}, at random places, are hidden"

    def _hidden(self, axes: tuple[int, ...]) -> int:
        return max(1, min(math.prod(axes) - 1, round(self.fraction * math.prod(axes))))


@dataclass(frozen=True)
class Deblur:
    """A Gaussian blur, periodic at the edges. ``std``: its standard deviation in elements."""

    std: float = 1.5

    def __post_init__(self) -> None:
        check_positive("std", self.std, "Give task.std=1.5, for example.")

    def operator(self, event_shape: tuple[int, ...]) -> LinearOperator:
        _axes(self, event_shape)
        return Blur.gaussian(self.std, event_shape)

    def describe(self, event_shape: tuple[int, ...]) -> str:
        what = "pixels" if len(_axes(self, event_shape)) > 1 else "elements"
        return f"a Gaussian blur with a standard deviation of {self.std:g} {what}"


@dataclass(frozen=True)
class SuperResolve:
    """Means of blocks are measured. ``factor``: elements of a block along each axis.

    None: 4 where all axes have 16 elements or more, else 2.
    """

    factor: int | None = None

    def __post_init__(self) -> None:
        if self.factor is not None:
            check_count("factor", self.factor, "Give task.factor=2, for example.", least=2)

    def operator(self, event_shape: tuple[int, ...]) -> LinearOperator:
        return Downsample(self._factor(_axes(self, event_shape)), event_shape)

    def describe(self, event_shape: tuple[int, ...]) -> str:
        axes = _axes(self, event_shape)
        block = "×".join([str(self._factor(axes))] * len(axes))
        return f"means over blocks of {block} {'pixels' if len(axes) > 1 else 'elements'}"

    def _factor(self, axes: tuple[int, ...]) -> int:
        return self.factor or (4 if min(axes) >= _LARGE else 2)


def hidden_places(A: LinearOperator) -> Tensor:
    """Which elements of an event A does not see at all, a bool tensor of the shape of an event."""
    x = torch.linspace(1.0, 2.0, math.prod(A.event_shape), dtype=torch.float64).reshape(1, *A.event_shape)
    return (A.adjoint(A(x.to(A.device, A.dtype))) == 0)[0].cpu()


def _check_fraction(fraction: Any) -> None:
    if not (is_number(fraction) and 0 < fraction < 1):
        problem = "the hidden part is above 0 and below 1"
        raise ArgumentError("fraction", fraction, problem, "Give task.fraction=0.25, for example.")


def _axes(task: Any, event_shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes along which an event extends: of images the last two, of all others the last one.

    Raises:
        ArgumentError: for events of one number.
    """
    axes = event_shape[-2:] if len(event_shape) > 2 else event_shape[-1:]
    if math.prod(axes) < 2:
        problem = f"events of shape {event_shape} have no neighbours to be restored from"
        raise ArgumentError("task", type(task).__name__, problem, "Choose a model of larger events.")
    return axes
