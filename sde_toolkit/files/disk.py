"""Forcing written files to the disk, on file systems of every kind."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

__all__ = ["to_disk"]

_UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.EACCES, errno.EPERM}


def to_disk(place: Path | int) -> None:
    """Wait until a file (a path, or a descriptor open for writing) or a folder is on the disk.

    Some systems cannot do this: for folders on Windows, and for folders and some files on network and cloud drives.
    There the function returns at once, and the file is safe only as long as the machine does not lose power.

    Raises:
        OSError: if a file cannot be written, as on a full disk.
    """
    if isinstance(place, int):
        _sync(place)
    elif place.is_dir():
        with contextlib.suppress(OSError):
            _open_and_sync(place, os.O_RDONLY)
    else:
        _open_and_sync(place, os.O_RDWR)  # Windows forces out only what is open for writing


def _open_and_sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        _sync(descriptor)
    finally:
        os.close(descriptor)


def _sync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
