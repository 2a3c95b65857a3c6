"""A stream that other processes read ahead. It continues as exactly as the stream itself.

Worker w of W reads part w of W of the stream and makes whole batches of it. Batches are taken from the workers in turn.
Every batch comes with the state of its worker after that batch. The state of the whole is therefore W states, and whose
turn it is. Batches that were read ahead but never returned are read again when the stream continues.
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

_WorkerAnswer = tuple[Tensor, "Tensor | None", dict[str, Any]] | str  # a string: the message of an error


class ParallelStream:
    """``stream``, decoded by ``workers`` processes; each reads ``ahead`` batches ahead.

    The order of the samples depends on ``workers``. A state can only be loaded with the same number of them.

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
        """The dtype of every sample."""
        return self.stream.dtype

    @property
    def labelled(self) -> bool:
        """Whether labels come with the samples."""
        return self.stream.labelled

    def shard(self, rank: int, size: int) -> ParallelStream:
        """A new stream from the beginning: the part of process ``rank`` of ``size``."""
        return ParallelStream(self.stream.shard(rank, size), self.workers, self.ahead)

    def next_batch(self, n: int) -> tuple[Tensor, Tensor | None]:
        """The next n samples, and their labels or None. If n changes, the workers are stopped and started again.

        Raises:
            DataError: with the message of the stream, if a worker failed.
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
        """Continue from a state that `state_dict` returned.

        Raises:
            DataError: if it is not such a state, or one of another number of workers.

        """
        states = state.get("workers")
        if not isinstance(states, list) or len(states) != self.workers or not is_count(state.get("turn"), 0):
            found = len(states) if isinstance(states, list) else sorted(state)
            problem = f"this stream has {self.workers} workers"
            raise DataError("state", found, problem, "Use as many workers as when the state was saved.")
        self._states, self._turn, self._running = list(states), int(state["turn"]) % self.workers, None

    def _start(self, n: int) -> Iterator[_WorkerAnswer]:
        # torch asks its workers in the order of their numbers, so the first one gets the part whose turn it is
        order = [(self._turn + i) % self.workers for i in range(self.workers)]
        parts = [(self.stream.shard(w, self.workers), self._states[w]) for w in order]
        loader: DataLoader[_WorkerAnswer] = DataLoader(
            _WorkerBatches(parts, n),
            batch_size=None,
            num_workers=self.workers,
            prefetch_factor=self.ahead,
            generator=torch.Generator(),  # so that the global generator is not used
            worker_init_fn=outlive_signals,
        )
        return iter(loader)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_running": None}


def outlive_signals(worker: int) -> None:
    """Keep a reading process alive when Ctrl-C or SIGTERM is sent to the whole group of processes.

    The process that it reads for, its parent, decides when it ends. Ctrl-C is ignored, and so is SIGTERM unless the
    parent sent it. (On macOS and Windows a process cannot tell who sent a signal, so any SIGTERM ends it.)
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
    """Endless batches (x, labels, state) of the part that belongs to this worker."""

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
