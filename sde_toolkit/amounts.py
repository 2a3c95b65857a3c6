"""How much is too much: more steps than can be planned, more numbers than the machine's memory holds."""

from __future__ import annotations

import functools
import os
from typing import Any

import torch

from sde_toolkit.errors import ArgumentError

__all__ = ["MOST", "check_amount", "check_countable"]

MOST = 1_000_000  # steps, evaluations, nodes: more cannot be planned, and were hardly meant


def check_countable(argument: str, value: int) -> None:
    """Refuse a number of steps, nodes or draws that would take all memory before the first of them is taken.

    Raises:
        ArgumentError: above 1,000,000.
    """
    if value > MOST:
        raise ArgumentError(argument, value, f"more than {MOST} cannot be planned", "Pass a smaller number.")


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
