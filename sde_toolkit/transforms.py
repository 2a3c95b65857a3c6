"""Invertible maps between data space and model space: y = (x − shift) · scale.

A model trained on y = T(x) has log p(x) = log p(y) + log|det dT/dx|, so the transform is saved beside the
weights and supplies the change of variables of every likelihood; no code assumes a range of its own.

For values that are whole grey levels, one level is ``|scale|`` wide in model space: the "+7" and "+8" found
in published bits/dim are −log2(1/127.5) ≈ 6.99 and −log2(1/255) ≈ 7.99, the step of 8-bit images mapped to
[−1, 1] and [0, 1]. (Exactly 7 and 8 belong to steps of 1/128 and 1/256.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from sde_toolkit.checking import is_number
from sde_toolkit.errors import ArgumentError

__all__ = ["Affine", "Identity", "Transform", "check_range", "eight_bit"]


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


def check_range(transform: Transform, x: Tensor) -> None:
    """Refuse data outside the range that a transform names.

    Half a level of 8 bits is left free below and a whole one above, for dequantised data; images in [−1, 1] are
    refused where grey levels are meant.

    Raises:
        ArgumentError: naming the values and the range.
    """
    low, high = (getattr(transform, name, None) for name in ("low", "high"))
    if low is None or high is None or x.numel() == 0:
        return
    least, most = x.min().item(), x.max().item()
    if least < low - 0.002 * (high - low) or most > high + 0.004 * (high - low):
        problem = f"the model's data lie in [{low:g}, {high:g}]"
        remedy = 'Pass data as the model was trained on, or space="model" for what is transformed already.'
        raise ArgumentError("x", [least, most], problem, remedy)
