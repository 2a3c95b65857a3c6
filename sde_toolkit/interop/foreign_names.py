"""The name of a row that comes from another library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["row_name"]


def row_name(library: str, short: str, options: Mapping[str, Any]) -> str:
    """``library:short``, and the options that were given: ``azula:zAB[order=3]``."""
    words = ", ".join(f"{key}={getattr(value, '__name__', value)}" for key, value in options.items())
    return f"{library}:{short}[{words}]" if words else f"{library}:{short}"
