"""Tar files of others, plain or compressed, read one member after the other and never unpacked.

Sparse members, which can stand for terabytes of zeros, and members that are too large for what they are said to be are
refused; so is an archive that ends in the middle of a member, or whose members point backwards.
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
    """A tar file, whatever it is compressed with; whatever is wrong inside the block is a `DataError` that names it."""
    with open_regular(path) as file, or_data_error("path", str(path), "not a readable tar file", remedy):
        start, size = file.read(2), os.fstat(file.fileno()).st_size
        file.seek(0)
        inflate = _INFLATE.get(start)
        stream = file if inflate is None else inflate(file)
        bounded = BoundedStream(cast(BinaryIO, stream), size if inflate is None else inflated_limit(size))
        with tarfile.open(fileobj=cast(Any, bounded), mode="r:") as archive:
            yield archive


def regular_members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The regular members, in order, without keeping them.

    Raises:
        tarfile.ReadError: for a sparse member, and for an archive that is damaged.
    """
    if archive.firstmember is None:  # type: ignore[attr-defined]  # empty, where Python 3.10 would seek to byte -1
        _check_end(archive)
        return
    place = -1
    while True:
        member = archive.next()
        archive.members = []  # type: ignore[attr-defined]  # it would remember every member of a large file
        if member is None:
            _check_end(archive)
            return
        if archive.offset <= place:
            raise tarfile.ReadError(f"a member at byte {place} points backwards")
        place = archive.offset
        if member.issparse():
            raise tarfile.ReadError(f"member {member.name[:100]} is sparse, and not read")
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
    """tarfile takes a damaged header for the end of the file; the end is a block of zeros."""
    file: Any = archive.fileobj
    file.seek(archive.offset)
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE or any(block):
        raise tarfile.ReadError(f"damaged or cut short at byte {archive.offset}")
