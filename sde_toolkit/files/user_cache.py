"""The folder in which a user's programs keep what they can compute again."""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ["user_cache"]


def user_cache(*names: str) -> Path:
    """``names`` below $SDE_TOOLKIT_CACHE, or below the folder ``sde_toolkit`` of the system's usual place for caches.

    That is $XDG_CACHE_HOME or ~/.cache, ~/Library/Caches on macOS, %LOCALAPPDATA% on Windows. Nothing is created.
    """
    own = os.environ.get("SDE_TOOLKIT_CACHE")
    if own:
        return Path(own).joinpath(*names)
    usual = {"darwin": "~/Library/Caches", "win32": os.environ.get("LOCALAPPDATA") or "~/AppData/Local"}
    place = usual.get(sys.platform) or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(place).expanduser().joinpath("sde_toolkit", *names)
