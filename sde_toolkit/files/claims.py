"""A folder is claimed before anything is written into it, so that one process works in it at a time.

    with claimed(folder, "training"):
        ...

The lock is the system's (flock, or a locked byte on Windows), which frees it when the process ends, however it ends. On
a file system without locks nothing is locked, and the work continues.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from sde_toolkit.errors import FolderInUseError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["LOCK", "claimed"]

LOCK = ".sde-toolkit.lock"

_held: dict[Path, int] = {}  # folders that this process holds, and the thread that took each
_guard = threading.Lock()


@contextmanager
def claimed(directory: str | Path, purpose: str, argument: str = "directory") -> Iterator[None]:
    """Hold a folder during the block, so that no other process or thread can claim it.

    A missing folder is created. A thread may claim again what it holds. If several processes share a piece of work,
    only the main one claims. At the end the lock file is removed, and so is the folder if it was created here and is
    empty.

    Args:
        directory: the folder.
        purpose: what is done there, for the message that another process gets: "training", "sampling".
        argument: the name of the argument, for the message.

    Raises:
        FolderInUseError: if another process or thread holds it.
        OSError: if the folder cannot be made or written to.
    """
    directory = Path(directory)
    made = not directory.exists()
    directory.mkdir(parents=True, exist_ok=True)
    place = directory.resolve()
    with _guard:
        holder = _held.get(place)
    if holder == threading.get_ident():
        yield
        return
    file = _open_locked(place, argument)
    with _guard:
        _held[place] = threading.get_ident()
    try:
        _write_owner(file, purpose)
        yield
    finally:
        with _guard:
            del _held[place]
        _release(place, file)
        if made:
            with contextlib.suppress(OSError):
                directory.rmdir()  # only if it is empty


def _open_locked(place: Path, argument: str) -> IO[str]:
    """The lock file, open and locked. If its last owner has removed it in the meantime, it is opened again."""
    while True:
        file = (place / LOCK).open("a+", encoding="utf-8")
        try:
            _lock(file)
        except BlockingIOError:
            owner = _read_owner(file)
            file.close()
            problem = f"another process works in it{owner}"
            remedy = "Wait for it, stop it, or name another folder."
            raise FolderInUseError(argument, str(place), problem, remedy) from None
        if _still_has_name(place / LOCK, file):
            return file
        file.close()


def _lock(file: IO[str]) -> None:
    """Lock it, if the file system can.

    Raises:
        BlockingIOError: if another process or thread has locked it.

    """
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:  # no locks here
            return
    else:  # pragma: no cover
        _lock_byte(file)


def _lock_byte(file: IO[str]) -> None:  # pragma: no cover
    """The same on Windows. The locked byte is far behind the text, so that others can read the text."""
    import msvcrt

    file.seek(_LOCKED_BYTE)
    try:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    except PermissionError:
        raise BlockingIOError from None
    except OSError:
        return


_LOCKED_BYTE = 1 << 30


def _still_has_name(path: Path, file: IO[str]) -> bool:
    """Whether the path still leads to the open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _write_owner(file: IO[str], purpose: str) -> None:
    """Write into the lock file who holds it."""
    with contextlib.suppress(OSError):
        file.truncate(0)
        file.write(f"{purpose}, process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()


def _read_owner(file: IO[str]) -> str:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        file.seek(0)
        line = file.readline(200).strip()
        return f" ({line})" if line else ""
    return ""


def _release(place: Path, file: IO[str]) -> None:
    """Remove the lock file, then unlock it. In this order it cannot be the lock file of another process."""
    removed = False
    with contextlib.suppress(OSError):
        (place / LOCK).unlink()
        removed = True
    if fcntl is not None:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_UN)  # also for copies of the descriptor in forked processes
    file.close()
    if not removed:  # Windows cannot remove an open file
        with contextlib.suppress(OSError):
            (place / LOCK).unlink()
