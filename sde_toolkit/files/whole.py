"""Writing files so that each is complete or absent: written beside its place, forced to the disk, and then moved."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from sde_toolkit.files.disk import to_disk

__all__ = ["atomic_file", "atomic_path", "write_all", "write_atomically"]


def write_atomically(file: Path, content: bytes) -> None:
    """Write a file so that nobody ever sees half of it."""
    write_all(file.parent, {file.name: content})


def write_all(directory: Path, contents: Mapping[str, bytes]) -> None:
    """Write the files of one report, by name. The first one appears when all are complete on the disk.

    Raises:
        OSError: naming the file that could not be written. Existing files are replaced only if all could be written.

    """
    files = [directory / name for name in contents]
    try:
        for file, content in zip(files, contents.values(), strict=True):
            with _named_errors(file), _partial_path(file).open("wb") as stream:
                _write_to_disk(stream, content)
        for file in files:
            with _named_errors(file):
                os.replace(_partial_path(file), file)
    finally:
        for file in files:
            _partial_path(file).unlink(missing_ok=True)


@contextmanager
def atomic_path(file: Path) -> Iterator[Path]:
    """A path to write a file to. It is moved to ``file`` when the block ends, and removed if the block fails.

    Raises:
        OSError: naming the file, if it cannot be written.
    """
    partial = _partial_path(file)
    try:
        with _named_errors(file):
            yield partial
            to_disk(partial)
            os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_file(file: Path) -> Iterator[IO[bytes]]:
    """A stream to write a file through. The file appears when the block ends, and does not if the block fails.

    Raises:
        OSError: naming the file, if it cannot be written.
    """
    partial = _partial_path(file)
    try:
        with _named_errors(file):
            with partial.open("wb") as stream:
                yield stream
                _write_to_disk(stream, b"")
            os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


def _write_to_disk(stream: IO[bytes], content: bytes) -> None:
    """Write, and force the file to the disk."""
    stream.write(content)
    stream.flush()
    to_disk(stream.fileno())


def _partial_path(file: Path) -> Path:
    return file.with_name(f".{file.name}.{os.getpid()}.partial")


@contextmanager
def _named_errors(file: Path) -> Iterator[None]:
    """Add the file's name to errors of writing: for a full disk, the system's own error does not name it."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(file)) from None
