"""Reading ``.npy``, ``.npz`` and IDX files, without unpickling; whatever is wrong becomes a `DataError`.

An IDX file is: two zero bytes, a type code (8 = unsigned byte), the number of axes, each axis length as a
big-endian uint32, then the values in C order. It may be gzipped.
"""

from __future__ import annotations

import gzip
import io
import math
import mmap
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import IO

import numpy as np

from sde_toolkit.errors import DataError

__all__ = ["announce", "map_numpy", "packaged_npz", "read_idx", "read_numpy"]

# What numpy, zipfile and gzip raise on damaged files (TokenError and SyntaxError: a garbled .npy header).
_DAMAGED = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    TypeError,
    OverflowError,
    MemoryError,
    RuntimeError,
    SyntaxError,
    tokenize.TokenError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


def read_numpy(path: str | Path) -> dict[str | None, np.ndarray]:
    """The arrays of a file: ``{key: array}`` of an ``.npz``, ``{None: array}`` of an ``.npy``."""
    file = Path(path)
    if not file.is_file():
        raise DataError("path", str(path), "there is no such file", "Give the path of an .npy or .npz file.")
    try:
        stream = file.open("rb")
    except OSError as error:
        raise DataError("path", str(path), f"cannot be opened ({error})", "Check its permissions.") from error
    with stream:
        return _load(stream, str(path))


def map_numpy(path: str | Path) -> np.ndarray:
    """The array of an ``.npy`` file, mapped read-only: its values are read from disk when they are used.

    Nothing is read ahead of them; :func:`announce` asks for the rows that are needed next.
    """
    file = Path(path)
    if not file.is_file():
        raise DataError("path", str(path), "there is no such file", "Give the path of an .npy file.")
    try:
        mapped = np.load(file, mmap_mode="r", allow_pickle=False)
    except PermissionError as error:
        raise DataError("path", str(path), "it may not be read", "Check its permissions.") from error
    except _DAMAGED as error:
        raise _unreadable(str(path), error) from error
    if not isinstance(mapped, np.ndarray):
        mapped.close()
        problem = "an .npz (or other zip) file cannot be mapped into memory"
        raise DataError("path", str(path), problem, "Save the array with numpy.save, or use array().")
    if isinstance(mapped.base, mmap.mmap) and hasattr(mmap, "MADV_RANDOM"):
        mapped.base.madvise(mmap.MADV_RANDOM)
    return mapped


def announce(rows: np.ndarray, indices: Sequence[int]) -> None:
    """Have the operating system fetch these rows of a mapped array, and nothing else, all at once.

    Left to itself it fetches what lies around each row, megabytes of it on some machines; with a file larger than
    memory, that is for nothing. Does nothing where the system takes no advice.
    """
    mapping = rows.base
    if not isinstance(mapping, mmap.mmap) or not hasattr(mmap, "MADV_WILLNEED") or len(indices) == 0:
        return
    first, size = getattr(rows, "offset", 0) % mmap.ALLOCATIONGRANULARITY, rows.strides[0]
    order = np.unique(indices)
    breaks = np.flatnonzero(np.diff(order) != 1) + 1
    for run in np.split(order, breaks):
        begin, end = first + int(run[0]) * size, first + (int(run[-1]) + 1) * size
        for place in range(begin - begin % mmap.PAGESIZE, end, _AT_ONCE):
            mapping.madvise(mmap.MADV_WILLNEED, place, min(_AT_ONCE, end - place))


_AT_ONCE = 2**17  # bytes: of a longer piece, some systems fetch the beginning only


def packaged_npz(name: str) -> dict[str | None, np.ndarray]:
    """The arrays of ``sde_toolkit/data/files/<name>``, found wherever the package is installed."""
    try:
        content = (resources.files("sde_toolkit.data") / "files" / name).read_bytes()
    except OSError as error:
        raise DataError("name", name, "the packaged file is missing", "Reinstall sde-toolkit.") from error
    return _load(io.BytesIO(content), name)


def _load(stream: IO[bytes], shown: str) -> dict[str | None, np.ndarray]:
    try:
        loaded = np.load(stream, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {None: loaded}
        with loaded:
            members = {key: loaded[key] for key in loaded.files}
    except _DAMAGED as error:
        raise _unreadable(shown, error) from error
    arrays: dict[str | None, np.ndarray] = {
        key: value for key, value in members.items() if isinstance(value, np.ndarray)
    }
    if not arrays:  # any other zip file, a .pt of torch for one: its members are bytes to numpy
        raise DataError("path", shown, "it holds no numpy arrays", "Save the data with numpy.save or savez.")
    return arrays


def _unreadable(shown: str, error: BaseException) -> DataError:
    return DataError(
        "path",
        shown,
        f"not a readable .npy or .npz file of plain numbers ({type(error).__name__}: {error})",
        "If it is truncated, fetch it again; if it holds objects or pickles, save it anew with "
        "numpy.save as a numeric array.",
    )


def read_idx(path: str | Path, ndim: int) -> np.ndarray:
    """A uint8 array with ``ndim`` axes from an IDX file, plain or gzipped (told apart by content)."""
    file = Path(path)
    again = "Fetch the file again."
    try:
        content = file.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except FileNotFoundError as error:
        raise DataError("path", str(path), "there is no such file", "Give the path of an IDX file.") from error
    except _DAMAGED as error:
        raise DataError("path", str(path), f"cannot be read ({type(error).__name__}: {error})", again) from error
    header = 4 + 4 * ndim
    magic = bytes((0, 0, 8, ndim))
    if content[:4] != magic:
        raise DataError(
            "path",
            str(path),
            f"not an IDX file of unsigned bytes with {ndim} axes: it begins with {content[:4].hex()!r} and "
            f"should begin with {magic.hex()!r}",
            "Check that images and labels are not exchanged; otherwise fetch the file again.",
        )
    if len(content) < header:
        raise DataError("path", str(path), f"truncated: {len(content)} bytes, the header has {header}", again)
    shape = struct.unpack(f">{ndim}I", content[4:header])
    if len(content) != header + math.prod(shape):
        raise DataError(
            "path",
            str(path),
            f"truncated or too long: {len(content) - header} bytes for an array of shape {shape}",
            again,
        )
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape).copy()
