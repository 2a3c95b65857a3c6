"""Ctrl-C and SIGTERM while a run trains: it finishes the step, saves, and says that the same command continues.

SLURM, Kubernetes and spot machines send SIGTERM some seconds before they kill. A second signal ends the run at once.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

import torch

__all__ = ["Interrupted", "StopRequest"]

_SECONDS_BETWEEN = 0.5  # from one agreement of several processes to the next
_ONE_REQUEST = 1.0  # seconds in which a launcher may repeat the signal that the terminal sent


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM stopped the training after ``step``, and a checkpoint of that step was saved.

    It is a KeyboardInterrupt, so that code which ignores errors (``except Exception``) does not ignore it. ``signal``
    is the number of the signal, ``status`` the status with which a command ends, 130 or 143.
    """

    def __init__(self, message: str, step: int, number: int) -> None:
        super().__init__(message, step, number)
        self.step, self.signal = step, number

    def __str__(self) -> str:
        return str(self.args[0])

    @property
    def status(self) -> int:
        return 128 + self.signal


class StopRequest:
    """Notes the first Ctrl-C or SIGTERM inside its block, if it is entered in the main thread.

    It replaces handlers of Python and of this package, never one of the user's, and restores them at the end.
    """

    def __init__(self, processes: int = 1) -> None:
        self.number: int | None = None
        self._several = processes > 1
        self._asked_at = 0.0
        self._before: dict[int, Any] = {}
        self._home = os.getpid()
        self._next, self._looked_at, self._looked_when = 0, 0, time.perf_counter()

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                handler = signal.getsignal(number)
                if _is_ours(handler):
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        at_home = os.getpid() == self._home  # not in a process that was forked
        if at_home and self.number is None:
            self.number, self._asked_at = number, now
        elif not (at_home and self._several and now - self._asked_at < _ONE_REQUEST):
            signal.signal(number, self._before[number])
            os.kill(os.getpid(), number)

    def agreed(self, step: int, accelerator: Any) -> int | None:
        """The number of a signal that a process received, or None. All processes get it after the same step.

        Several processes ask one another after their first step, and then about every half second. All have to call it.
        """
        if accelerator.num_processes == 1:
            return self.number
        if step < self._next:
            return None
        now = time.perf_counter()
        taken = (now - self._looked_when) / max(1, step - self._looked_at)
        ahead = max(1, min(1000, int(_SECONDS_BETWEEN / max(taken, 1e-6))))
        told = accelerator.gather(torch.tensor([[self.number or 0, ahead]], device=accelerator.device)).tolist()
        self._next, self._looked_at, self._looked_when = step + told[0][1], step, now
        return max(number for number, _ in told) or None


def _is_ours(handler: Any) -> bool:
    """Whether a handler is Python's or this package's. (A signal that is ignored stays ignored.)"""
    standard = handler in (signal.SIG_DFL, signal.default_int_handler)
    return standard or str(getattr(handler, "__module__", "")).startswith("sde_toolkit.")
