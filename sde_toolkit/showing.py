"""Any value as a short text for an error message. The work is bounded, however large the value is."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from itertools import islice
from typing import Any

__all__ = ["shown"]

_ITEMS = 8  # of a container that are spelled out
_LEVELS = 3  # of containers inside one another
_BITS = 400  # of a whole number that is spelled out


def shown(value: Any, limit: int = 120) -> str:
    """The value as Python writes it, cut to ``limit`` characters.

    Only the beginning of a container or a long string is looked at. Of tensors and arrays with more than a few numbers
    the shape and the dtype are shown, of networks the class.
    """
    try:
        text = _text(value, _LEVELS)
    except Exception:  # of a value's own __repr__, which must not hide the error that is being reported
        text = f"<{type(value).__name__}>"
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def _text(value: Any, levels: int) -> str:
    if isinstance(value, (str, bytes, bytearray)):
        return repr(value) if len(value) <= 200 else repr(value[:200])
    if isinstance(value, int) and type(value).__repr__ is int.__repr__ and value.bit_length() > _BITS:
        return f"<a whole number of {value.bit_length()} bits>"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return _array(value)
    if isinstance(value, Mapping):
        inside = (f"{_text(k, levels - 1)}: {_text(v, levels - 1)}" for k, v in islice(value.items(), _ITEMS))
        return _brackets("{", inside, "}", len(value), levels)
    kinds: Any = ((list, "[", "]"), (tuple, "(", ")"), ((set, frozenset), "{", "}"))
    for kind, opening, closing in kinds:
        if isinstance(value, kind) and value and not hasattr(value, "_fields"):
            return _sequence(value, opening, closing, levels)
    if dataclasses.is_dataclass(value) and not isinstance(value, type) and _is_generated(type(value).__repr__):
        named = [f.name for f in dataclasses.fields(value) if f.repr]
        inside = (f"{name}={_text(getattr(value, name), levels - 1)}" for name in named[:_ITEMS])
        return _brackets(f"{type(value).__qualname__}(", inside, ")", len(named), levels)
    if inspect.isfunction(value):  # its repr has an address
        return f"<function {value.__qualname__}>"
    if hasattr(value, "named_parameters"):  # a network: its repr names every layer
        return f"{type(value).__name__}(...)"
    return repr(value)


def _sequence(value: Any, opening: str, closing: str, levels: int) -> str:
    inside = (_text(item, levels - 1) for item in islice(value, _ITEMS))
    if isinstance(value, tuple) and len(value) == 1:
        closing = ",)"
    return _brackets(opening, inside, closing, len(value), levels)


def _brackets(opening: str, inside: Any, closing: str, count: int, levels: int) -> str:
    if levels <= 0 and count:
        return f"{opening}...{closing}"
    return opening + ", ".join(inside) + (", ..." if count > _ITEMS else "") + closing


def _array(value: Any) -> str:
    """A few numbers as they are; of more numbers the shape and the dtype."""
    shape = tuple(value.shape)
    if isinstance(value, type) or str(getattr(value, "device", "cpu")) != "cpu" or _count(shape) > _ITEMS:
        return f"<{type(value).__name__} of shape {shape}, {value.dtype}>"
    return " ".join(repr(value).split())


def _count(shape: tuple[int, ...]) -> int:
    product = 1
    for length in shape:
        product *= length
    return product


def _is_generated(function: Any) -> bool:
    """Whether it is the ``__repr__`` that dataclass writes."""
    return hasattr(function, "__wrapped__")
