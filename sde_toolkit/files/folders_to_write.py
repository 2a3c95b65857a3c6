"""Whether a folder can be written to: asked before the work, whose result would be lost."""

from __future__ import annotations

import errno
import os
from pathlib import Path

__all__ = ["why_not_writable"]


def why_not_writable(directory: Path) -> str:
    """The reason why a folder cannot be written to, or "". The folder need not exist yet."""
    for place in (directory, *directory.parents):
        try:
            place.lstat()
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno == errno.ENOTDIR:
                continue
            return error.strerror or str(error)
        if not place.is_dir():
            return "a file of that name is there" if place == directory else f"{place} is a file, not a folder"
        return "" if os.access(place, os.W_OK | os.X_OK) else f"{place} cannot be written to"
    return ""
