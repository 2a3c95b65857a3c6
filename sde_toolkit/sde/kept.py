"""What is kept for an object for as long as it lives: nothing is written into the object itself."""

from __future__ import annotations

import weakref
from collections.abc import Hashable
from typing import Any

__all__ = ["PerObject"]


class PerObject:
    """Values by the identity of an object and a key; copies of the object start without them."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, Hashable], tuple[weakref.ref[Any], Any]] = {}

    def get(self, owner: Any, key: Hashable = None) -> Any:
        """The value, or None."""
        found = self._kept.get((id(owner), key))
        return found[1] if found is not None and found[0]() is owner else None

    def put(self, owner: Any, value: Any, key: Hashable = None) -> None:
        """Keep a value."""
        place = (id(owner), key)
        self._kept[place] = (weakref.ref(owner, lambda _: self._kept.pop(place, None)), value)
