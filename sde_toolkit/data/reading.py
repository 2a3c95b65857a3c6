"""Reading ``.npy``, ``.npz`` and IDX files, without unpickling; any error becomes a `DataError`.

An IDX file is: two zero bytes, a type code (8 = unsigned byte), the number of axes, each axis length as a
big-endian uint32, then the values in C order. It may be gzipped.
"""

from __future__ import annotations

import gzip
import io
import math
import mmap
import os
import struct
import zipfile
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np

from sde_toolkit.data.opening import inflated_limit, open_regular, or_data_error
from sde_toolkit.errors import DataError

__all__ = ["map_numpy", "packaged_npz", "prefetch_rows", "read_idx", "read_numpy"]

_UNREADABLE = "not a readable .npy or .npz file of plain numbers"
_REMEDY = "If it is truncated, fetch it again; if it holds objects or pickles, save it anew with numpy.save as numbers."
_LARGEST_IDX = 2**32  # bytes


def read_numpy(path: str | Path) -> dict[str | None, np.ndarray]:
    """The arrays of a file: ``{key: array}`` of an ``.npz``, ``{None: array}`` of an ``.npy``.

    The header of each array is read first. It is refused if it states more bytes than the file can hold.

    Raises:
        DataError: for a file that is missing, damaged or too large, or that holds anything but arrays of numbers.
    """
    if not Path(path).is_file():
        raise DataError("path", str(path), "there is no such file", "Give the path of an .npy or .npz file.")
    with open_regular(path) as stream:
        return _load(stream, str(path))


def map_numpy(path: str | Path) -> np.ndarray:
    """The array of an ``.npy`` file, mapped read-only: its values are read from disk when they are used.

    The system is told not to read ahead; :func:`prefetch_rows` asks for the rows that are needed next.

    Raises:
        DataError: as :func:`read_numpy`, and for an ``.npz`` file.
    """
    file = Path(path)
    if not file.is_file():
        raise DataError("path", str(path), "there is no such file", "Give the path of an .npy file.")
    with open_regular(path) as stream, or_data_error("path", str(path), _UNREADABLE, _REMEDY):
        if zipfile.is_zipfile(stream):
            problem = "an .npz (or other zip) file cannot be mapped into memory"
            raise DataError("path", str(path), problem, "Save the array with numpy.save, or use array().")
        stream.seek(0)
        _check_header(stream, os.fstat(stream.fileno()).st_size)
        mapped: np.ndarray = np.load(file, mmap_mode="r", allow_pickle=False)
    if isinstance(mapped.base, mmap.mmap) and hasattr(mmap, "MADV_RANDOM"):
        mapped.base.madvise(mmap.MADV_RANDOM)
    return mapped


def prefetch_rows(rows: np.ndarray, indices: Sequence[int]) -> None:
    """Ask the operating system to fetch these rows of a mapped array from disk, all at once and nothing else.

    By itself the system fetches what lies around each row, megabytes of it on some machines. With a file larger than
    memory that is wasted. The function does nothing on systems without ``madvise``.
    """
    mapping = rows.base
    if not isinstance(mapping, mmap.mmap) or not hasattr(mmap, "MADV_WILLNEED") or len(indices) == 0:
        return
    first, size = getattr(rows, "offset", 0) % mmap.ALLOCATIONGRANULARITY, rows.strides[0]
    order = np.unique(indices)
    breaks = np.flatnonzero(np.diff(order) != 1) + 1
    for run in np.split(order, breaks):
        begin, end = first + int(run[0]) * size, first + (int(run[-1]) + 1) * size
        for place in range(begin - begin % mmap.PAGESIZE, end, _ADVISED_BYTES):
            mapping.madvise(mmap.MADV_WILLNEED, place, min(_ADVISED_BYTES, end - place))


_ADVISED_BYTES = 2**17  # bytes per request: some systems fetch only the beginning of a longer piece


def packaged_npz(name: str) -> dict[str | None, np.ndarray]:
    """The arrays of ``sde_toolkit/data/files/<name>``, found wherever the package is installed."""
    try:
        content = (resources.files("sde_toolkit.data") / "files" / name).read_bytes()
    except OSError as error:
        raise DataError("name", name, "the packaged file is missing", "Reinstall sde-toolkit.") from error
    return _load(io.BytesIO(content), name)


def _load(stream: BinaryIO, shown: str) -> dict[str | None, np.ndarray]:
    with or_data_error("path", shown, _UNREADABLE, _REMEDY):
        size = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        if stream.read(2) == b"PK":
            arrays = _members(stream, size)
        else:
            stream.seek(0)
            _check_header(stream, size)
            stream.seek(0)
            arrays = {None: np.lib.format.read_array(stream, allow_pickle=False)}
    if not arrays:  # another kind of zip file, such as a .pt of torch
        raise DataError("path", shown, "it holds no numpy arrays", "Save the data with numpy.save or savez.")
    return arrays


def _members(stream: BinaryIO, size: int) -> dict[str | None, np.ndarray]:
    """The arrays of a zip file: those of its members that begin like an ``.npy`` file."""
    arrays: dict[str | None, np.ndarray] = {}
    left = inflated_limit(size)
    with zipfile.ZipFile(stream) as archive:
        for info in archive.infolist():
            with archive.open(info) as member:
                if member.read(len(np.lib.format.MAGIC_PREFIX)) != np.lib.format.MAGIC_PREFIX:
                    continue
            left -= info.file_size
            if left < 0:
                raise ValueError(f"more than {inflated_limit(size):,} bytes, out of a file of {size:,}")
            with archive.open(info) as member:
                _check_header(member, info.file_size)
            with archive.open(info) as member:
                key = info.filename.removesuffix(".npy")
                arrays[key] = np.lib.format.read_array(member, allow_pickle=False)
    return arrays


def _check_header(stream: IO[bytes], size: int) -> None:
    """Refuse an array that needs more than the ``size`` bytes of its file, before memory is taken for it.

    Raises:
        ValueError: if the file has fewer bytes than the header states, or no header, or the array holds objects.

    """
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise ValueError(f"version {version} of the format")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are pickled")
    if any(n < 0 for n in shape) or stream.tell() + math.prod(shape) * dtype.itemsize > size:
        raise ValueError(f"{size:,} bytes for an array {dtype} of shape {shape}")


def read_idx(path: str | Path, ndim: int) -> np.ndarray:
    """A uint8 array with ``ndim`` axes from an IDX file, plain or gzipped (told apart by content).

    Raises:
        DataError: for a file that is missing, damaged, or longer or shorter than its header states.
    """
    again, shown = "Fetch the file again.", str(path)
    header = 4 + 4 * ndim
    with open_regular(path) as file, or_data_error("path", shown, "cannot be read", again):
        size = os.fstat(file.fileno()).st_size
        zipped = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        stream: Any = gzip.GzipFile(fileobj=file) if zipped else file
        start = stream.read(header)
        _check_magic(start, ndim, shown)
        shape = struct.unpack(f">{ndim}I", start[4:header])
        most = min(_LARGEST_IDX, inflated_limit(size) if zipped else size)
        if math.prod(shape) > most:
            raise DataError("path", shown, f"truncated: {size} bytes for an array of shape {shape}", again)
        content = stream.read(math.prod(shape) + 1)
        if len(content) != math.prod(shape):
            problem = f"truncated or too long: {len(content)} bytes or more for an array of shape {shape}"
            raise DataError("path", shown, problem, again)
        return np.frombuffer(content, dtype=np.uint8).reshape(shape).copy()


def _check_magic(start: bytes, ndim: int, shown: str) -> None:
    header, magic = 4 + 4 * ndim, bytes((0, 0, 8, ndim))
    if start[:4] != magic:
        problem = (
            f"not an IDX file of unsigned bytes with {ndim} axes: it begins with {start[:4].hex()!r} and should begin "
            f"with {magic.hex()!r}"
        )
        remedy = "Check that images and labels are not exchanged; otherwise fetch the file again."
        raise DataError("path", shown, problem, remedy)
    if len(start) < header:
        problem = f"truncated: {len(start)} bytes, the header has {header}"
        raise DataError("path", shown, problem, "Fetch the file again.")
