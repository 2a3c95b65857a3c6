"""A stream that is read ahead by other processes, with the same promise of exact resumption.

Worker w of W reads shard w of W of the stream and makes whole batches of it; they are taken in turn. With every batch
comes the state in which its worker then was, so that the state of the whole is W states and whose turn it is: what was
read ahead and never handed out is read again.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from sde_toolkit.checks import check_count, is_count
from sde_toolkit.data.stream import Stream
from sde_toolkit.errors import DataError

__all__ = ["ParallelStream", "outlive_signals"]

_WorkerAnswer = tuple[Tensor, "Tensor | None", dict[str, Any]] | str  # a string: what is wrong


class ParallelStream:
    """``stream``, decoded by ``workers`` processes that each read ``ahead`` batches ahead.

    The order of the samples depends on ``workers``, which therefore belongs to the state.

    Raises:
        ArgumentError: if ``workers`` or ``ahead`` is not positive.
    """

    def __init__(self, stream: Stream, workers: int = 2, ahead: int = 4) -> None:
        for name, value in (("workers", workers), ("ahead", ahead)):
            check_count(name, value, f"Give {name}=1 or more.")
        self.stream, self.workers, self.ahead = stream, int(workers), int(ahead)
        self._states: list[dict[str, Any] | None] = [None] * self.workers
        self._turn = 0
        self._running: tuple[int, Iterator[_WorkerAnswer]] | None = None

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return self.stream.event_shape

    @property
    def dtype(self) -> torch.dtype:
        """Of every sample."""
        return self.stream.dtype

    @property
    def labelled(self) -> bool:
        """Whether labels come with the samples."""
        return self.stream.labelled

    def shard(self, rank: int, size: int) -> ParallelStream:
        """From the beginning, as process ``rank`` of ``size``."""
        return ParallelStream(self.stream.shard(rank, size), self.workers, self.ahead)

    def next_batch(self, n: int) -> tuple[Tensor, Tensor | None]:
        """The next n samples; another n than before stops the workers and starts them anew.

        Raises:
            DataError: as the stream itself, in its words.
        """
        if self._running is None or self._running[0] != n:
            self._running = (n, self._start(n))
        answer = next(self._running[1])
        if isinstance(answer, str):
            raise DataError("stream", f"worker {self._turn}", answer.rstrip("."), "It was found while reading ahead.")
        x, labels, state = answer
        self._states[self._turn] = state
        self._turn = (self._turn + 1) % self.workers
        return x, labels

    def state_dict(self) -> dict[str, Any]:
        """The state of every worker (None before its first batch), and whose turn it is."""
        return {"workers": list(self._states), "turn": self._turn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there.

        Raises:
            DataError: if it is the state of another number of workers, or none at all.
        """
        states = state.get("workers")
        if not isinstance(states, list) or len(states) != self.workers or not is_count(state.get("turn"), 0):
            found = len(states) if isinstance(states, list) else sorted(state)
            problem = f"the run that goes on has {self.workers} workers"
            raise DataError("state", found, problem, "Use as many workers as in the run before.")
        self._states, self._turn, self._running = list(states), int(state["turn"]) % self.workers, None

    def _start(self, n: int) -> Iterator[_WorkerAnswer]:
        # in turn from `_turn` on: torch asks its workers in the order of their numbers
        order = [(self._turn + i) % self.workers for i in range(self.workers)]
        parts = [(self.stream.shard(w, self.workers), self._states[w]) for w in order]
        loader: DataLoader[_WorkerAnswer] = DataLoader(
            _WorkerBatches(parts, n),
            batch_size=None,
            num_workers=self.workers,
            prefetch_factor=self.ahead,
            generator=torch.Generator(),  # its own: the global one is left alone
            worker_init_fn=outlive_signals,
        )
        return iter(loader)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_running": None}


def outlive_signals(worker: int) -> None:
    """For a process that reads: Ctrl-C and SIGTERM are often sent to a whole group, and the one that reads for decides.

    Ctrl-C is ignored, and SIGTERM too unless it comes from the process that reads for. (On macOS and Windows, where a
    process cannot tell from whom a signal comes, it dies of any SIGTERM.)
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_end_when_told, daemon=True).start()


def _end_when_told() -> None:
    parent = multiprocessing.parent_process()
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != (os.getppid() if parent is None else parent.pid):
        continue
    os._exit(0)


class _WorkerBatches(IterableDataset[_WorkerAnswer]):
    """Endless (x, labels, state) of the part of this worker."""

    def __init__(self, parts: list[tuple[Stream, dict[str, Any] | None]], n: int) -> None:
        self.parts, self.n = parts, n

    def __iter__(self) -> Iterator[_WorkerAnswer]:
        info = get_worker_info()
        stream, state = self.parts[0 if info is None else info.id]
        if state is not None:
            stream.load_state_dict(state)
        while True:
            try:
                x, labels = stream.next_batch(self.n)
            except DataError as error:  # torch would hand it on as a RuntimeError
                yield str(error)
                return
            yield x, labels, stream.state_dict()
