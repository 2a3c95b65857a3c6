"""Names that users give: made safe for file names and for labels of figures, and listed in a sentence."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

__all__ = ["file_names", "literal", "names_in_words"]

_RESERVED = re.compile(r"con|prn|aux|nul|com\d|lpt\d", re.IGNORECASE)  # by Windows
_LONGEST = 60


def file_names(names: Iterable[str]) -> dict[str, str]:
    """For each name one that every file system accepts, different for different names.

    Letters, digits, ``.``, ``-`` and ``_`` stay. Two results that would be the same get a number.
    """
    found: dict[str, str] = {}
    for name in names:
        if name in found:
            continue
        safe = re.sub(r"(?a)[^\w.-]+", "_", name)[:_LONGEST].strip("._") or "unnamed"
        safe = f"{safe}_" if _RESERVED.fullmatch(safe) else safe
        taken = {other.lower() for other in found.values()}  # some file systems ignore case
        numbered = (f"{safe}-{k}" for k in range(2, len(found) + 3))
        found[name] = safe if safe.lower() not in taken else next(n for n in numbered if n.lower() not in taken)
    return found


def literal(name: str) -> str:
    """A name as a label of matplotlib, where $ begins a formula and a leading underscore hides it; not too long."""
    short = name if len(name) <= 48 else f"{name[:32]}…{name[-15:]}"
    shown = short.replace("$", r"\$").encode("utf-8", "backslashreplace").decode()
    return f"\u200b{shown}" if shown.startswith("_") else shown


def names_in_words(names: Sequence[str], most: int = 4) -> str:
    """``a, b and c``; of more than ``most`` names the last ones as ``2 others``."""
    if len(names) > most:
        names = [*names[: most - 1], f"{len(names) - most + 1} others"]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
