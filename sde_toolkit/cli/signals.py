"""Ctrl-C and SIGTERM: a short message and the usual status, 130 or 143, whatever the command was doing."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from sde_toolkit.progress import close_bars

__all__ = ["Stopped", "Terminated", "stopping_with_a_message"]


class Terminated(KeyboardInterrupt):
    """SIGTERM, as schedulers send it before they kill."""


class Stopped(KeyboardInterrupt):
    """A command that was stopped: ``status`` of the process, and what became of its work."""

    def __init__(self, kept: str = "", status: int = 130) -> None:
        super().__init__(kept)
        self.kept, self.status = kept, status

    @classmethod
    def of(cls, stop: KeyboardInterrupt, kept: str) -> Stopped:
        """The same stop, with what is kept of the work."""
        if isinstance(stop, Stopped):
            return stop
        return cls(kept, 143 if isinstance(stop, Terminated) else 130)


@contextmanager
def stopping_with_a_message() -> Iterator[None]:
    """Turn Ctrl-C and SIGTERM inside into a message and an end of the process, without a traceback."""
    here, before = os.getpid(), None

    def terminate(number: int, frame: FrameType | None) -> None:
        if os.getpid() != here:  # a forked process ends as it would without this handler
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
        raise Terminated

    mine = threading.current_thread() is threading.main_thread()
    if mine:
        before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except KeyboardInterrupt as stop:
        close_bars()
        found = Stopped.of(stop, "")
        if os.environ.get("RANK", "0") == "0":
            said = found.kept if found.kept.startswith("stopped") else f"stopped. {found.kept}".rstrip()
            print(f"\n{said}", file=sys.stderr, flush=True)
        raise SystemExit(found.status) from None
    finally:
        if mine:
            signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)
