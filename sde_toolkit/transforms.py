"""Invertible maps between data space and model space: y = (x − shift) · scale, element by element.

A model trained on y = T(x) has log p(x) = log p(y) + log|det dT/dx|, so the transform is saved beside the
weights and supplies the change of variables of every likelihood; no code assumes a range of its own.

For values that are whole grey levels, one level is ``|scale|`` wide in model space: the "+7" and "+8" found
in published bits/dim are −log2(1/127.5) ≈ 6.99 and −log2(1/255) ≈ 7.99, the step of 8-bit images mapped to
[−1, 1] and [0, 1]. (Exactly 7 and 8 belong to steps of 1/128 and 1/256.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.checks import is_number, nested_tuples
from sde_toolkit.errors import ArgumentError

__all__ = ["Affine", "Identity", "Transform", "eight_bit"]

_FAR = 4.0  # spreads between the origin of the data and their middle: float32 loses digits beyond
_MOST = 2**14  # numbers of an array; a model.yaml of twice as many is read in a second or two


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


@dataclass(frozen=True, repr=False)
class Affine:
    """y = (x − shift) · scale, with one shift and scale for all elements, or arrays of them. Negative scales mirror.

    An array (nested lists, a numpy array, a tensor) broadcasts over the event, never over the batch: (D,) is one number
    for each column of a table, (C, 1, 1) one for each channel of an image, the event shape itself one for each element.
    It is kept as nested tuples, which are saved with the model, digit by digit; at most 16,384 numbers.

    Floating dtypes are kept; 8- and 16-bit integers become float32, wider integers float64. The arithmetic is in
    float64 where the shift is much larger than the spread of the data. ``low`` and ``high`` say where the data lie, if
    that is known: samples may leave the range, but likelihoods refuse data that do.

    Raises:
        ArgumentError: for numbers that are not finite, a scale of 0, lists of unequal length, or a range that is none.
    """

    shift: Any = 0.0
    scale: Any = 1.0
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        for name in ("shift", "scale"):
            object.__setattr__(self, name, _numbers(name, getattr(self, name)))
        shift, scale = (torch.tensor(v, dtype=torch.float64) for v in (self.shift, self.scale))
        if bool((scale == 0.0).any()):
            raise ArgumentError("scale", self.scale, "the map is not invertible", "Give scales other than 0.")
        try:
            shape = np.broadcast_shapes(shift.shape, scale.shape)  # torch's imports half of its compiler
        except ValueError:
            problem = f"their shapes are {tuple(shift.shape)} and {tuple(scale.shape)}"
            raise ArgumentError("shift, scale", problem, "they do not fit", "Give one of each per column.") from None
        low, high = given = (self.low, self.high)
        bounded = low is not None and high is not None and is_number(low) and is_number(high) and low < high
        if given != (None, None) and not bounded:
            raise ArgumentError("low, high", given, "not a range", "Give both, low < high, or neither.")
        object.__setattr__(self, "_shape", tuple(shape))
        object.__setattr__(self, "_exact", bool(((shift * scale).abs() > _FAR).any()))
        object.__setattr__(self, "_placed", {})

    def forward(self, x: Tensor) -> Tensor:
        """Data to model space, (B, *event_shape); any shape where shift and scale are single numbers."""
        x = self._fitting(x)
        shift, scale = self._numbers_for(x)
        return ((x.to(self._dtype(x)) - shift) * scale).to(x.dtype)

    def inverse(self, y: Tensor) -> Tensor:
        """Model to data space, (B, *event_shape) as in :meth:`forward`; neither clipped nor rounded."""
        y = self._fitting(y)
        shift, scale = self._numbers_for(y)
        return (y.to(self._dtype(y)) / scale + shift).to(y.dtype)

    def log_abs_det(self, event_shape: Sequence[int]) -> float:
        """Σ log|scale| over the elements of ``event_shape``, in nats per sample."""
        elements = _dimension(event_shape)
        self._check_fits(tuple(event_shape))
        logs = torch.tensor(self.scale, dtype=torch.float64).abs().log()
        return elements * logs.mean().item() if logs.ndim else elements * math.log(abs(self.scale))

    @property
    def finest_scale(self) -> float:
        """The least |scale|: what one unit of the data is at least, in model space."""
        return torch.tensor(self.scale, dtype=torch.float64).abs().min().item()

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies are built anew: what lies on a device stays here."""
        return type(self), (self.shift, self.scale, self.low, self.high)

    def __repr__(self) -> str:
        given = {name: getattr(self, name) for name in ("shift", "scale", "low", "high")}
        shown = (f"{name}={_short(value)}" for name, value in given.items() if value is not None)
        return f"Affine({', '.join(shown)})"

    def _check_fits(self, event: tuple[int, ...]) -> None:
        shape: tuple[int, ...] = self._shape  # type: ignore[attr-defined]
        ends = zip(reversed(shape), reversed(event), strict=False)
        if len(shape) > len(event) or any(own not in (1, n) for own, n in ends):
            problem = f"shift and scale are arrays of shape {shape}, and samples have shape {event}"
            remedy = "Give arrays that broadcast to a sample: (D,) for a table, (C, 1, 1) for images."
            raise ArgumentError("event_shape", event, problem, remedy)

    def _fitting(self, x: Tensor) -> Tensor:
        x = _as_float(x)
        if self._shape:  # type: ignore[attr-defined]
            self._check_fits(tuple(x.shape[1:]))
        return x

    def _dtype(self, x: Tensor) -> torch.dtype:
        """float64 where float32 loses digits of the data, if the device has it."""
        exact: bool = self._exact  # type: ignore[attr-defined]
        return torch.float64 if exact and x.device.type != "mps" else x.dtype

    def _numbers_for(self, x: Tensor) -> tuple[Any, Any]:
        """Shift and scale where x is: arrays are moved there once."""
        if not self._shape:  # type: ignore[attr-defined]
            return self.shift, self.scale
        placed: dict[Any, tuple[Tensor, Tensor]] = self._placed  # type: ignore[attr-defined]
        key = (x.device, self._dtype(x))
        if key not in placed:
            with torch.inference_mode(False):  # a tensor made inside could not be trained with later
                shift, scale = (torch.tensor(v, dtype=torch.float64).to(key[1]) for v in (self.shift, self.scale))
                placed[key] = (shift.to(x.device), scale.to(x.device))
        return placed[key]


def _numbers(name: str, value: Any) -> Any:
    """A number as a float, an array of them as nested tuples of floats."""
    found = nested_tuples(value)
    if not isinstance(found, tuple):
        return _finite(name, found)
    leaves = list(_leaves(found))
    wrong = [leaf for leaf in leaves if not is_number(leaf)]
    if wrong or not leaves:
        problem = "an empty list" if not leaves else "not finite numbers, all of them"
        raise ArgumentError(name, wrong[0] if wrong else value, problem, f"Give {name} as finite floats.")
    if len(leaves) > _MOST:
        problem = f"{len(leaves):,} numbers, and at most {_MOST:,} are saved with a model"
        raise ArgumentError(name, f"{len(leaves):,} numbers", problem, "Give one for each channel, shape (C, 1, 1).")
    try:
        array = torch.tensor(found, dtype=torch.float64)
    except (ValueError, TypeError):
        raise ArgumentError(name, value, "lists of unequal length", f"Give {name} as an array.") from None
    return nested_tuples(array)


def _leaves(value: Any) -> Iterator[Any]:
    if not isinstance(value, tuple):
        yield value
        return
    for part in value:
        yield from _leaves(part)


def _short(value: Any) -> str:
    if not isinstance(value, tuple):
        return repr(value)
    array = torch.tensor(value, dtype=torch.float64)
    if array.ndim == 1 and len(array) <= 4:
        return f"[{', '.join(f'{v:.6g}' for v in value)}]"
    return f"<{tuple(array.shape)} numbers from {array.min().item():.6g} to {array.max().item():.6g}>"


def eight_bit() -> Affine:
    """Grey levels 0..255 to [−1, 1]: ``Affine(127.5, 1 / 127.5, low=0, high=255)``."""
    return Affine(127.5, 1.0 / 127.5, low=0.0, high=255.0)
