"""What counts as a number and as a count when arguments are checked: never a string, a bool or NaN."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

__all__ = ["is_count", "is_number"]


def is_number(value: Any) -> bool:
    """A finite real number."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def is_count(value: Any, least: int = 1) -> bool:
    """A whole number, at least ``least``."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least
