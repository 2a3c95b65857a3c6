"""Values stored for an object as long as it lives, outside of the object."""

from __future__ import annotations

import weakref
from collections.abc import Hashable
from typing import Any

__all__ = ["PerObject"]


class PerObject:
    """Values by the identity of an object and a key. A copy of an object has none of its values."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, Hashable], tuple[weakref.ref[Any], Any]] = {}

    def get(self, owner: Any, key: Hashable = None) -> Any:
        """The value, or None."""
        found = self._kept.get((id(owner), key))
        return found[1] if found is not None and found[0]() is owner else None

    def put(self, owner: Any, value: Any, key: Hashable = None) -> None:
        """Store ``value`` until ``owner`` is deleted."""
        place = (id(owner), key)
        self._kept[place] = (weakref.ref(owner, lambda _: self._kept.pop(place, None)), value)
