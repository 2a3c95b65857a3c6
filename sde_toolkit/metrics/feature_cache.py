"""Features of real samples, kept in the user's cache folder by the data's hash and the extractor.

Only what this package extracts is kept: a module of your own may change while its weights do not.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sde_toolkit.data.reading import read_numpy
from sde_toolkit.errors import DataError
from sde_toolkit.files.user_cache import user_cache
from sde_toolkit.files.whole import write_atomically
from sde_toolkit.jobs.fingerprints import digest
from sde_toolkit.jobs.store import Arrays

__all__ = ["keep_features", "kept_features"]


def kept_features(key: Mapping[str, Any]) -> Arrays | None:
    """The arrays that were kept under this key, in the dtype in which they were; None if there are none."""
    try:
        found = {str(name): value for name, value in read_numpy(_file(key)).items()}
    except (DataError, OSError):
        return None  # none, or damaged
    return found if "features" in found else None


def keep_features(key: Mapping[str, Any], arrays: Arrays) -> None:
    """Keep arrays, ``features`` (N, d) among them; float64 that are float32 numbers take half the room.

    Nothing happens where the folder cannot be written: they will be extracted again.
    """
    features = arrays["features"]
    small = features.astype(np.float32)
    content = io.BytesIO()
    np.savez(content, **{**arrays, "features": small if np.array_equal(small, features) else features})  # type: ignore[arg-type]
    with contextlib.suppress(OSError):
        _file(key).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(_file(key), content.getvalue())


def _file(key: Mapping[str, Any]) -> Path:
    return user_cache("features") / f"{digest(key)}.npz"
