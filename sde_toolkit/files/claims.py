"""One process works in a folder at a time: a folder is claimed before anything is written into it.

    with claimed(folder, "training"):
        ...

The lock is the system's (flock, or a locked byte on Windows): it is free again when the process ends, however it ends.
Where the file system knows no locks, nothing is held and the work goes on.
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
    """Hold a folder, which is made if it is missing, so that no other process or thread claims it in the meantime.

    What the same thread claims a second time it has already. Of several processes that share a piece of work, the main
    one claims. The lock file goes at the end, and so does the folder if it was made here and nothing was put into it.

    Args:
        directory: the folder.
        purpose: what is done there, as another process is told it: "training", "sampling".
        argument: the name that the caller knows the folder by, for the message.

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
    """The lock file, open and locked. One that its last owner removed in the meantime is opened anew."""
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
        BlockingIOError: if someone else has.
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
    """The same on Windows: a byte far behind the text, so that the text can be read."""
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
    """Whether the open file still has its name."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _write_owner(file: IO[str], purpose: str) -> None:
    """Say in the lock file who holds it."""
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
    """Remove the file while it is locked, so that nobody else's is removed; then let it go."""
    removed = False
    with contextlib.suppress(OSError):
        (place / LOCK).unlink()
        removed = True
    if fcntl is not None:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_UN)  # also for copies of the descriptor in forked processes
    file.close()
    if not removed:  # Windows removes no open file
        with contextlib.suppress(OSError):
            (place / LOCK).unlink()
