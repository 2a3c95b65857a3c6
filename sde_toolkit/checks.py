"""Checks of arguments: what is a number, what is a count, what is too much, and which tensors can be looked at."""

from __future__ import annotations

import functools
import inspect
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from sde_toolkit.errors import ArgumentError

__all__ = [
    "MOST",
    "all_hold",
    "as_python",
    "branches_on_data",
    "check_amount",
    "check_count",
    "check_positive",
    "is_count",
    "is_differentiated",
    "is_number",
    "nested_tuples",
    "required_arguments",
    "some_seen",
    "takes_arguments",
    "without_branches_on_data",
]

MOST = 1_000_000  # steps, evaluations, nodes: more cannot be planned, and were hardly meant


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


def nested_tuples(value: Any) -> Any:
    """Arrays, tensors and lists as nested tuples of Python's own numbers; anything else as it is."""
    value = value.tolist() if hasattr(value, "tolist") else value
    listed = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    return tuple(map(nested_tuples, value)) if listed else value


def is_differentiated(value: Tensor) -> bool:
    """Whether a derivative by ``value`` is being taken, in reverse or forward mode."""
    return value.requires_grad or forward_ad.unpack_dual(value).tangent is not None


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


_BRANCHES: ContextVar[bool] = ContextVar("branches", default=True)


def branches_on_data() -> bool:
    """Whether work may be left out where the data show that it is not needed.

    Not so in a graph, nor in the step that stands for all steps of one (:func:`without_branches_on_data`).
    """
    return not torch.compiler.is_compiling() and _BRANCHES.get()


@contextmanager
def without_branches_on_data() -> Iterator[None]:
    """Where as much work is done as in a compiled graph."""
    token = _BRANCHES.set(False)
    try:
        yield
    finally:
        _BRANCHES.reset(token)


def check_count(argument: str, value: Any, remedy: str, *, least: int = 1, most: int | None = None) -> int:
    """``value`` as an int; refuse what is not a whole number from ``least`` to ``most``.

    ``most=MOST`` is for steps, nodes and draws, which would take all memory otherwise.

    Raises:
        ArgumentError: naming the argument.
    """
    if not is_count(value, least):
        raise ArgumentError(argument, value, f"must be a whole number, at least {least}", remedy)
    if most is not None and value > most:
        raise ArgumentError(argument, value, f"more than {most} cannot be planned", "Pass a smaller number.")
    return int(value)


def check_positive(argument: str, value: Any, remedy: str) -> float:
    """``value`` as a float; refuse what is not a finite number above 0.

    Raises:
        ArgumentError: naming the argument.
    """
    if not (is_number(value) and value > 0):
        raise ArgumentError(argument, value, "must be positive and finite", remedy)
    return float(value)


def check_amount(argument: str, value: Any, numbers: int, bytes_each: int = 4) -> None:
    """Refuse what needs more memory than there is, before any of it is taken.

    Raises:
        ArgumentError: naming how much it needs, and how much there is.
    """
    needed, there = numbers * bytes_each, _memory()
    if needed > there:
        problem = f"its {numbers} numbers need {needed / 2**30:.3g} GiB, and there are {there / 2**30:.3g}"
        raise ArgumentError(argument, value, problem, "Pass a smaller number, or work in several runs.")


@functools.cache
def _memory() -> int:
    """Bytes of this machine's memory, or of a GPU if one has more; where that is not told, a tebibyte."""
    try:
        found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not a POSIX system
        found = 2**40
    if torch.cuda.is_available():
        cards = (torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count()))
        found = max(found, *(card.total_memory for card in cards))
    return int(found)


def required_arguments(function: Any) -> list[str] | None:
    """The names of the arguments that a function must be given; None if it does not say."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    varying = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in varying]


def takes_arguments(function: Any, count: int) -> bool:
    """Whether a function can be called with so many arguments by position; true if it does not say."""
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    except ValueError:
        pass
    return True
