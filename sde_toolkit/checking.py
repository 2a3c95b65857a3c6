"""What counts as a number and as a count when arguments are checked: never a string, a bool or NaN."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

__all__ = ["as_python", "is_count", "is_number"]


def is_number(value: Any) -> bool:
    """A finite real number, no larger than a float can be."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def is_count(value: Any, least: int = 1) -> bool:
    """A whole number, at least ``least``."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def as_python(value: Any) -> Any:
    """Arrays and tensors as the number or the nested lists of numbers that they hold; all else as it is."""
    return value.tolist() if hasattr(value, "tolist") and hasattr(value, "dtype") else value
