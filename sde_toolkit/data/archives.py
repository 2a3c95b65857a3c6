"""Tar files from elsewhere, plain or compressed, read one member after the other and never unpacked.

Sparse members are refused, since they can stand for terabytes of zeros. So are members that are too large for an image
or a label, archives that end in the middle of a member, and archives whose members point backwards.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from sde_toolkit.data.opening import BoundedStream, inflated_limit, open_regular, or_data_error

__all__ = ["member_bytes", "open_tar", "regular_members"]

_INFLATE: dict[bytes, Callable[[BinaryIO], Any]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZ": bz2.BZ2File,
    b"\xfd7": lzma.LZMAFile,
    b"]\x00": lzma.LZMAFile,
}


@contextmanager
def open_tar(path: str | Path, remedy: str = "If it is truncated, fetch it again.") -> Iterator[tarfile.TarFile]:
    """An open tar file, plain or compressed. Any error inside the block becomes a `DataError` that names the file."""
    with open_regular(path) as file, or_data_error("path", str(path), "not a readable tar file", remedy):
        start, size = file.read(2), os.fstat(file.fileno()).st_size
        file.seek(0)
        inflate = _INFLATE.get(start)
        stream = file if inflate is None else inflate(file)
        bounded = BoundedStream(cast(BinaryIO, stream), size if inflate is None else inflated_limit(size))
        with tarfile.open(fileobj=cast(Any, bounded), mode="r:") as archive:
            yield archive


def regular_members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members that are regular files, in order. They are not kept in memory.

    Raises:
        tarfile.ReadError: for a sparse member, and for an archive that is damaged.
    """
    if archive.firstmember is None:  # type: ignore[attr-defined]  # empty: Python 3.10 would seek to byte -1
        _check_end(archive)
        return
    place = -1
    while True:
        member = archive.next()
        archive.members = []  # type: ignore[attr-defined]  # tarfile keeps every member otherwise
        if member is None:
            _check_end(archive)
            return
        if archive.offset <= place:
            raise tarfile.ReadError(f"a member at byte {place} points backwards")
        place = archive.offset
        if member.issparse():
            raise tarfile.ReadError(f"member {member.name[:100]} is sparse; sparse members are not read")
        if member.isreg():
            yield member


def member_bytes(archive: tarfile.TarFile, member: tarfile.TarInfo, limit: int) -> bytes:
    """The bytes of a member.

    Raises:
        tarfile.ReadError: if there are more than ``limit``, or fewer than its header says.
    """
    if member.size > limit:
        problem = f"member {member.name[:100]} has {member.size:,} bytes, and at most {limit:,} are read"
        raise tarfile.ReadError(problem)
    file = archive.extractfile(member)
    content = b"" if file is None else file.read()
    if len(content) != member.size:
        raise tarfile.ReadError(f"member {member.name[:100]} is cut short")
    return content


def _check_end(archive: tarfile.TarFile) -> None:
    """Refuse a damaged header, which tarfile takes for the end of the archive. The true end is a block of zeros."""
    file: Any = archive.fileobj
    file.seek(archive.offset)
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE or any(block):
        raise tarfile.ReadError(f"damaged or cut short at byte {archive.offset}")
