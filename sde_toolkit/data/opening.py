"""Opening files from elsewhere: regular files only, and a bounded number of bytes out of each.

A reader of a named pipe may wait for ever, and a device has no end. A compressed file of kilobytes can stand for
terabytes. All of these are refused with a `DataError` that names the file.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from sde_toolkit.errors import DataError, SDEToolkitError

__all__ = ["BoundedStream", "inflated_limit", "open_regular", "or_data_error"]

_AT_LEAST = 2**30  # bytes that every compressed file may hold
_RATIO = 64  # of inflated to stored bytes in larger files; data that compress better have to be stored uncompressed


def open_regular(
    path: str | Path, argument: str = "path", missing: tuple[str, str] = ("there is no such file", "Check the path.")
) -> BinaryIO:
    """A file opened for reading. Pipes, devices and folders are refused at once, without waiting.

    ``missing``: problem and remedy in the error for a file that is not there.

    Raises:
        DataError: if it is missing, may not be read, or is no regular file.
    """
    shown = str(path)
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError as error:
        raise DataError(argument, ending(shown), *missing) from error
    except PermissionError as error:
        raise DataError(argument, ending(shown), "it may not be read", "Check its permissions.") from error
    except (OSError, ValueError) as error:
        problem = f"it cannot be opened ({type(error).__name__}: {error})"
        raise DataError(argument, ending(shown), problem, "Give the path of a file.") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        problem = "it is not a regular file (but a folder, a pipe or a device)"
        raise DataError(argument, ending(shown), problem, "Give the path of a file, or remove it.")
    return os.fdopen(descriptor, "rb")


def ending(name: str) -> str:
    """The last 100 characters. Error messages cut long values at their end, where paths differ most."""
    return name if len(name) <= 100 else "..." + name[-97:]


def inflated_limit(stored: int) -> int:
    """The most bytes that a compressed file of this size may hold: 1 GiB, or 64 times its size."""
    return max(_AT_LEAST, _RATIO * stored)


class BoundedStream(io.RawIOBase):
    """A readable, seekable stream. It raises after ``limit`` bytes, and if more than ``piece`` are asked for at once.

    Raises:
        ValueError: on reading beyond.
    """

    def __init__(self, stream: BinaryIO, limit: int, piece: int = 2**28) -> None:
        self._stream, self._limit, self._piece = stream, limit, piece

    def read(self, size: int = -1, /) -> bytes:
        """At most ``size`` bytes."""
        if size < 0 or size > self._piece:
            raise ValueError(f"{size:,} bytes are asked for at once")
        content = self._stream.read(size)
        self._check(self._stream.tell())
        return content

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Go to a place. Bytes that have to be inflated on the way count towards the limit."""
        if whence == 0:
            self._check(offset)
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        """The current place in the stream."""
        return self._stream.tell()

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def _check(self, place: int) -> None:
        if not 0 <= place <= self._limit:
            raise ValueError(f"more than {self._limit:,} bytes, out of a much smaller file")


@contextmanager
def or_data_error(argument: str, shown: str, problem: str, remedy: str) -> Iterator[None]:
    """Turn any error inside the block into a `DataError`. The package's own errors pass unchanged.

    Decoders of damaged files raise errors of many kinds: KeyError, RecursionError, OverflowError, struct.error,
    MemoryError and their own.
    """
    try:
        yield
    except SDEToolkitError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(argument, ending(shown), f"{problem} ({type(error).__name__}: {reason})", remedy) from error
