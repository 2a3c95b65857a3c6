"""Invertible maps between data space and model space: y = (x − shift) · scale.

A model trained on y = T(x) has log p(x) = log p(y) + log|det dT/dx|, so the transform is saved beside the
weights and supplies the change of variables of every likelihood; no code assumes a range of its own.

For values that are whole grey levels, one level is ``|scale|`` wide in model space: the "+7" and "+8" found
in published bits/dim are −log2(1/127.5) ≈ 6.99 and −log2(1/255) ≈ 7.99, the step of 8-bit images mapped to
[−1, 1] and [0, 1]. (Exactly 7 and 8 belong to steps of 1/128 and 1/256.)
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from sde_toolkit.checking import is_number
from sde_toolkit.errors import ArgumentError, DataError

__all__ = ["Affine", "Identity", "Transform", "check_range", "eight_bit", "range_problems"]

_SLIVER = 0.1  # of the range: data that fill less are probably of another one
_LOOKED_AT = 1000  # samples on which two transforms are compared


@runtime_checkable
class Transform(Protocol):
    """An invertible map from data space to model space, with its log-determinant."""

    def forward(self, x: Tensor) -> Tensor:
        """Data to model space, any shape (B, *event_shape)."""
        ...

    def inverse(self, y: Tensor) -> Tensor:
        """Model to data space, any shape (B, *event_shape)."""
        ...

    def log_abs_det(self, event_shape: Sequence[int]) -> float:
        """log|det d model / d data| in nats per sample of shape ``event_shape``."""
        ...


def _as_float(x: Tensor) -> Tensor:
    """A floating tensor is kept as it is; 8- and 16-bit integers become float32, wider ones float64."""
    if not isinstance(x, Tensor) or x.is_complex():
        found = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise ArgumentError("x", found, "a transform acts on a real tensor", "Pass a real torch.Tensor.")
    if x.is_floating_point():
        return x
    return x.to(torch.float32 if x.element_size() <= 2 else torch.float64)


def _finite(name: str, value: Any) -> float:
    if not is_number(value):
        raise ArgumentError(name, value, "not a finite number", f"Give {name} as a finite float.")
    return float(value)


def _dimension(event_shape: Sequence[int]) -> int:
    shape = tuple(event_shape)
    if any(not isinstance(n, Integral) or n < 0 for n in shape):
        raise ArgumentError("event_shape", shape, "not a shape", "Give the shape of one sample, no batch axis.")
    return math.prod(shape)


@dataclass(frozen=True)
class Identity:
    """y = x. Integers become floating point (float32 up to 16 bits, float64 beyond); floats are kept."""

    def forward(self, x: Tensor) -> Tensor:
        """Data to model space, any shape."""
        return _as_float(x)

    def inverse(self, y: Tensor) -> Tensor:
        """Model to data space, any shape."""
        return _as_float(y)

    def log_abs_det(self, event_shape: Sequence[int]) -> float:
        """0 nats for every shape."""
        _dimension(event_shape)
        return 0.0


@dataclass(frozen=True)
class Affine:
    """y = (x − shift) · scale, with two scalars for all elements. A negative scale mirrors the data.

    Floating dtypes are kept; 8- and 16-bit integers become float32, wider integers float64. ``low`` and ``high`` say
    where the data lie, if that is known: samples may leave the range, but likelihoods refuse data that do.
    """

    shift: float = 0.0
    scale: float = 1.0
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "shift", _finite("shift", self.shift))
        object.__setattr__(self, "scale", _finite("scale", self.scale))
        if self.scale == 0.0:
            raise ArgumentError("scale", self.scale, "the map is not invertible", "Give a scale other than 0.")
        low, high = given = (self.low, self.high)
        bounded = low is not None and high is not None and is_number(low) and is_number(high) and low < high
        if given != (None, None) and not bounded:
            raise ArgumentError("low, high", given, "not a range", "Give both, low < high, or neither.")

    def forward(self, x: Tensor) -> Tensor:
        """Data to model space, any shape."""
        return (_as_float(x) - self.shift) * self.scale

    def inverse(self, y: Tensor) -> Tensor:
        """Model to data space, any shape; neither clipped nor rounded."""
        return _as_float(y) / self.scale + self.shift

    def log_abs_det(self, event_shape: Sequence[int]) -> float:
        """D · log|scale| nats per sample, D the number of elements of ``event_shape``."""
        return _dimension(event_shape) * math.log(abs(self.scale))


def eight_bit() -> Affine:
    """Grey levels 0..255 to [−1, 1]: ``Affine(127.5, 1 / 127.5, low=0, high=255)``."""
    return Affine(127.5, 1.0 / 127.5, low=0.0, high=255.0)


def check_range(
    transform: Transform,
    x: Tensor,
    recommended: Transform | None = None,
    *,
    name: str = "x",
    remedy: str = 'Pass data as the model was trained on, or space="model" for what is transformed already.',
    space: Literal["data", "model"] = "data",
    slack: float = 0.0,
) -> None:
    """Refuse values outside the range that a transform names; warn of values that are probably of another range.

    Half a level of 8 bits is left free below and a whole one above, for dequantised data. A warning says that all
    values fill less than a tenth of the range, that whole numbers go to the model as they are, or that the data's own
    ``recommended`` transform does something else than ``transform``.

    Args:
        transform: the model's.
        x: values, (B, *event).
        recommended: the transform that comes with the data; None and ``Identity`` recommend nothing.
        name: of the argument, in messages.
        remedy: what the caller can do, in messages.
        space: "model": x is in model space, and so is the range that it is compared with.
        slack: how far x may lie outside, in its own units: for values with noise on them.

    Raises:
        DataError: naming the values and the range.
    """
    outside, doubt = range_problems(transform, x, recommended, space=space, slack=slack)
    if outside:
        raise DataError(name, _extent(x), outside, remedy)
    if doubt:
        warnings.warn(f"{name}: {doubt}. {remedy}", UserWarning, stacklevel=3)


def range_problems(
    transform: Transform,
    x: Tensor,
    recommended: Transform | None = None,
    *,
    space: Literal["data", "model"] = "data",
    slack: float = 0.0,
) -> tuple[str, str]:
    """What :func:`check_range` refuses and what it warns of, as clauses; empty where there is nothing to say."""
    if x.numel() == 0:
        return "", ""
    least, most = _extent(x)
    low, high = (getattr(transform, name, None) for name in ("low", "high"))
    if low is not None and high is not None:
        if space == "model":
            ends = transform.forward(torch.tensor([low, high], dtype=torch.float64))
            low, high = ends.min().item(), ends.max().item()
        wide, where = high - low, "the model's data" if space == "data" else "the data in model space"
        if least < low - 0.002 * wide - slack or most > high + 0.004 * wide + slack:
            return f"{where} lie in the range [{low:g}, {high:g}]", ""
        if space == "data" and most - least < _SLIVER * wide:
            return "", (
                f"all values lie in [{least:g}, {most:g}], a small part of the range [{low:g}, {high:g}] of the "
                f"model's data; they may have been scaled already"
            )
    return "", _other_map(transform, x, recommended) if space == "data" else ""


def _other_map(transform: Transform, x: Tensor, recommended: Transform | None) -> str:
    """Whether the model sees these values as they were meant to be seen, in words."""
    some = x[: _LOOKED_AT if x.ndim else None].double()
    y = transform.forward(some)
    size = y.square().mean().sqrt().item()
    if recommended is not None and not isinstance(recommended, Identity):
        meant = recommended.forward(some)
        if (y - meant).square().mean().sqrt().item() > 0.1 * meant.square().mean().sqrt().item():
            found, wanted = (f"[{v.min().item():.4g}, {v.max().item():.4g}]" for v in (y, meant))
            return (
                f"the model's transform maps them to the range {found}, the transform that comes with the data to "
                f"{wanted}; the model's is used, which is right if it was trained on data of this range"
            )
    if not x.is_floating_point() and size > 10 and torch.equal(y, some):
        return f"whole numbers in the range {_extent(x)} go to the network as they are: the model has no transform"
    return ""


def _extent(x: Tensor) -> list[float]:
    """Least and greatest value."""
    values = x.to(torch.int64) if not x.is_floating_point() else x  # not all integers have a min in torch
    return [values.min().item(), values.max().item()]
