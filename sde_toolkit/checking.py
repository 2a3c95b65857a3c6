"""What counts as a number and as a count when arguments are checked, and which tensors can be looked at."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

__all__ = ["all_hold", "as_python", "is_count", "is_number", "some_seen"]


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


def all_hold(condition: Tensor) -> bool | None:
    """Whether a condition holds everywhere; None under ``torch.func.vmap``, where no value can be looked at."""
    try:
        return bool(condition.all())
    except RuntimeError:
        return None


def some_seen(fault: Tensor) -> bool:
    """Whether a fault is somewhere, as far as looking is free: never on an accelerator, in a graph or under vmap."""
    if fault.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return all_hold(~fault) is False
