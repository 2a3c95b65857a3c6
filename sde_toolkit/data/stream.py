"""Data that can be read through, but not indexed. Their samples come in an order of their own.

A stream is endless (it counts epochs), and its order is a function of its seed. `ShuffledStream` makes one from any
`Shards`: files, or anything else that is read one record after the other.

    shards    in epoch e they are visited in an order drawn from (seed, e); process r of R takes every R-th of them
              (with fewer shards than processes, those that share a shard divide its records in turn)
    records   ``buffer`` of them are read as a block, undecoded, put in an order drawn from (seed, r, R, e, block), and
              decoded one by one as they are returned

The state is a few integers: where the block began, and how many of its records have been returned. After
``load_state_dict`` the block is read again, and the samples are exactly those of an uninterrupted run.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.checks import check_count, is_count
from sde_toolkit.errors import ArgumentError, DataError

__all__ = ["LabelledSample", "Shards", "ShuffledStream", "Stream", "first_samples"]

_DATA_KEY = 0xDA7A  # first number in the keys of these random orders; keys of a sample's noise begin with its index
_SHARD_ORDER, _BLOCK_ORDER = 0, 1

LabelledSample = tuple[Tensor, "int | None"]


@runtime_checkable
class Stream(Protocol):
    """What training needs from data that cannot be indexed."""

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Of every sample."""
        ...

    @property
    def labelled(self) -> bool:
        """Whether labels come with the samples."""
        ...

    def shard(self, rank: int, size: int) -> Stream:
        """A new stream from the beginning: the part of process ``rank`` of ``size``.

        Together the processes see each sample once an epoch. A part can be divided again.
        """
        ...

    def next_batch(self, n: int) -> tuple[Tensor, Tensor | None]:
        """The next n samples (n, *event_shape) in data space, and their labels (n,) int64 or None."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The position of the stream, as numbers, strings, lists and dicts only."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state. With another number of processes, start at the epoch after that of the state."""
        ...


class Shards(Protocol):
    """What a `ShuffledStream` reads. ``records`` must return the same records in the same order every time."""

    event_shape: tuple[int, ...]
    dtype: torch.dtype
    labelled: bool

    def __len__(self) -> int:
        """Number of shards, at least 1."""
        ...

    def records(self, shard: int, start: int) -> Iterator[Any]:
        """The records of a shard from number ``start`` on, undecoded."""
        ...

    def decode(self, record: Any) -> LabelledSample:
        """A sample of shape ``event_shape``, and its label or None."""
        ...


def first_samples(shards: Shards, n: int) -> tuple[Tensor, Tensor | None]:
    """The first n samples in the order of the shards, and their labels or None."""
    records = itertools.chain.from_iterable(shards.records(i, 0) for i in range(len(shards)))
    return _stacked([shards.decode(record) for record in itertools.islice(records, n)], shards)


class ShuffledStream:
    """A `Stream` of the records of ``shards``, shuffled with ``seed``; see the module's docstring.

    ``buffer``: number of records that are shuffled together; 1 keeps the order of the shard.

    Raises:
        ArgumentError: if ``buffer``, ``seed``, ``rank`` or ``size`` is out of range.
        DataError: while reading, if a process finds no records, or a record cannot be used.
    """

    def __init__(self, shards: Shards, buffer: int = 10_000, seed: int = 0, rank: int = 0, size: int = 1) -> None:
        for name, value, least in (("buffer", buffer, 1), ("seed", seed, 0), ("size", size, 1), ("rank", rank, 0)):
            check_count(name, value, f"Give {name}={least} or more.", least=least)
        if rank >= size:
            raise ArgumentError("rank", rank, f"there are {size} processes", f"Give one from 0 to {size - 1}.")
        self.shards, self.buffer, self.seed, self.rank, self.size = shards, int(buffer), int(seed), int(rank), int(size)
        self._begin(0)

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return self.shards.event_shape

    @property
    def dtype(self) -> torch.dtype:
        """Of every sample."""
        return self.shards.dtype

    @property
    def labelled(self) -> bool:
        """Whether labels come with the samples."""
        return self.shards.labelled

    @property
    def epoch(self) -> int:
        """How many times this process has been through its shards."""
        return self._start[0]

    def shard(self, rank: int, size: int) -> ShuffledStream:
        """A new stream from the beginning: the part of process ``rank`` of ``size`` in this stream's own part."""
        return ShuffledStream(self.shards, self.buffer, self.seed, self.rank + self.size * rank, self.size * size)

    def next_batch(self, n: int) -> tuple[Tensor, Tensor | None]:
        """The next n samples, and their labels or None. They may come from several blocks and epochs."""
        return _stacked([self._next() for _ in range(n)], self.shards)

    def state_dict(self) -> dict[str, Any]:
        """The position of the stream, as ten whole numbers."""
        epoch, shard, offset, block = self._start
        return {
            "epoch": epoch,
            "shard": shard,
            "offset": offset,
            "block": block,
            "emitted": self._emitted,
            "seed": self.seed,
            "buffer": self.buffer,
            "shards": len(self.shards),
            "rank": self.rank,
            "size": self.size,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state. With another number of processes, start at the beginning of the next epoch.

        Raises:
            DataError: if it is the state of another stream: seed, buffer or number of shards differ.

        """
        mine = self.state_dict()
        if set(state) != set(mine) or not all(is_count(value, 0) for value in state.values()):
            raise DataError("state", sorted(state), "not the state of a shuffled stream", "Give what state_dict gave.")
        for name in ("seed", "buffer", "shards"):
            if state[name] != mine[name]:
                raise DataError(name, mine[name], f"the state was saved with {state[name]}", "Use the same stream.")
        if (state["rank"], state["size"]) != (self.rank, self.size):
            self._begin(state["epoch"] + 1)
            return
        self._begin(state["epoch"], state["shard"], state["offset"], state["block"])
        self._emitted = state["emitted"]

    def _begin(self, epoch: int, shard: int = 0, offset: int = 0, block: int = 0) -> None:
        """Forget what was read. The next block begins at record ``offset`` of this process's shard number ``shard``."""
        self._start = self._after = (epoch, shard, offset, block)
        self._reader: Iterator[tuple[int, int, Any]] | None = None
        self._waiting: list[Any] = []
        self._emitted = 0

    def _next(self) -> LabelledSample:
        while self._emitted >= len(self._waiting):
            if self._waiting:
                self._start, self._emitted, self._waiting = self._after, 0, []
            self._fill()
        record, self._waiting[self._emitted] = self._waiting[self._emitted], None
        self._emitted += 1
        return self.shards.decode(record)

    def _fill(self) -> None:
        """Read the block that begins at ``_start``, or the first of the next epoch if this one has no more records."""
        for _ in range(2):
            epoch, _, _, block = self._start
            self._reader = self._reader or self._records(*self._start[:3])
            found = []
            after = self._start[1:3]
            for shard, offset, record in self._reader:
                found.append(record)
                after = (shard, offset)
                if len(found) == self.buffer:
                    break
            if found:
                order = self._stream(_BLOCK_ORDER, epoch, block, self.rank, self.size).permutation(len(found))
                self._waiting = [found[i] for i in order]
                self._after = (epoch, *after, block + 1)
                return
            self._begin(epoch + 1, 0, 0, 0)
        named = f"process {self.rank} of {self.size}"
        raise DataError("stream", named, "there are no records for it", "Use fewer processes, or more data.")

    def _records(self, epoch: int, first: int, start: int) -> Iterator[tuple[int, int, Any]]:
        """(place of the shard, number of the next record, record), beginning at record ``start`` of shard ``first``."""
        for place, (shard, part, parts) in list(enumerate(self._own_shards(epoch)))[first:]:
            offset = start if place == first else 0
            for number, record in enumerate(self.shards.records(shard, offset), offset):
                if number % parts == part:
                    yield place, number + 1, record

    def _own_shards(self, epoch: int) -> list[tuple[int, int, int]]:
        """The (shard, part, parts) that this process reads in an epoch: records number part, part + parts, …"""
        n = len(self.shards)
        order = self._stream(_SHARD_ORDER, epoch).permutation(n).tolist()
        if self.size <= n:
            return [(shard, 0, 1) for shard in order[self.rank :: self.size]]
        mine = self.rank % n
        return [(order[mine], self.rank // n, len(range(mine, self.size, n)))]

    def _stream(self, *key: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(_DATA_KEY, *key)))


def _stacked(samples: Sequence[LabelledSample], shards: Shards) -> tuple[Tensor, Tensor | None]:
    """A batch of decoded samples, checked against the shape, dtype and labels that the shards declare."""
    name, shape, dtype = type(shards).__name__, tuple(shards.event_shape), shards.dtype
    for sample, label in samples:
        if tuple(sample.shape) != shape or sample.dtype != dtype or (label is None) == shards.labelled:
            found = f"{sample.dtype} {tuple(sample.shape)} with label {label}"
            problem = f"decoded as {found}, not as {dtype} {shape} {'with' if shards.labelled else 'without'} label"
            raise DataError("stream", name, problem, "Correct `decode` of the shards.")
        if sample.is_floating_point() and not bool(sample.isfinite().all()):
            raise DataError("stream", name, "a sample holds NaN or infinity", "Repair the data.")
    x = torch.stack([sample for sample, _ in samples]) if samples else torch.empty(0, *shape, dtype=dtype)
    return x, torch.tensor([label for _, label in samples], dtype=torch.int64) if shards.labelled else None
