"""Samples that stay where they are, on disk or elsewhere, until they are indexed.

A `Source` behaves like a tensor of shape (N, *event_shape) in data space: ``len``, ``shape``, ``ndim``,
``dtype``, ``is_floating_point()``, and indexing along the first axis, which reads and returns a tensor:

    source[7]                      one sample (*event_shape)
    source[3:9], source[[5, 2]],   a batch (n, *event_shape)
    source[index]                  int64 (n,), or bool (N,)

A source of your own derives from `Source`, calls ``super().__init__(length, event_shape, dtype)`` and defines
``read(i)``. What ``read`` returns is checked: shape, dtype, and for floating point that no value is NaN or infinite.

Sources are pickled into worker processes and inherited by forked ones. Keep open files and connections in a
`PerProcess`.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.checks import check_count, is_count
from sde_toolkit.data.decoding import ending
from sde_toolkit.errors import ArgumentError, DataError

__all__ = ["PerProcess", "Source", "Subset"]

T = TypeVar("T")


class PerProcess(Generic[T]):
    """An object that each process opens at its first use. It is never pickled, and never used after a fork."""

    def __init__(self, opener: Callable[[], T]) -> None:
        self._opener = opener
        self._held: tuple[int, T] | None = None

    def __call__(self) -> T:
        held = self._held
        if held is None or held[0] != os.getpid():
            held = self._held = (os.getpid(), self._opener())
        return held[1]

    def __getstate__(self) -> dict[str, Any]:
        return {"_opener": self._opener, "_held": None}


class Source(ABC):
    """``length`` samples of shape ``event_shape`` and ``dtype``, read when indexed; see the module's docstring.

    Raises:
        ArgumentError: from the constructor, if length, shape or dtype cannot be used.
        IndexError: when indexed out of range.
        DataError: when what is read cannot be used; it names the sample.
    """

    def __init__(self, length: int, event_shape: Sequence[int], dtype: torch.dtype) -> None:
        check_count("length", length, "Give the number of samples.", least=0)
        shape = tuple(event_shape)
        if not all(is_count(n) for n in shape):
            raise ArgumentError("event_shape", shape, "not the shape of a sample", "Give positive whole numbers.")
        if not isinstance(dtype, torch.dtype) or dtype.is_complex:
            raise ArgumentError("dtype", dtype, "not a real torch.dtype", "Give one such as torch.float32.")
        self._shape = torch.Size((int(length), *shape))
        self._dtype = dtype

    @abstractmethod
    def read(self, index: int) -> Tensor:
        """Sample ``index`` (0 <= index < length), shape ``event_shape``."""

    def read_many(self, indices: list[int]) -> Tensor:
        """Samples (n, *event_shape), n > 0. Override it if several are read faster together."""
        return torch.stack([self.read(index) for index in indices])

    def describe(self, index: int) -> str:
        """What error messages call a sample, such as its file."""
        return f"sample {index}"

    @property
    def shape(self) -> torch.Size:
        """(N, *event_shape)."""
        return self._shape

    @property
    def ndim(self) -> int:
        """Number of axes, including the one that counts the samples."""
        return len(self._shape)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of every sample."""
        return self._dtype

    def is_floating_point(self) -> bool:
        """Whether ``dtype`` is a floating one."""
        return self._dtype.is_floating_point

    def subset(self, indices: Sequence[int] | np.ndarray | Tensor) -> Subset:
        """The samples at ``indices``, still unread."""
        return Subset(self, indices)

    def __len__(self) -> int:
        return self._shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: Any) -> Tensor:
        if isinstance(index, (int, np.integer)) and not isinstance(index, bool):
            return self._read([self._in_range(int(index))])[0]
        indices = [self._in_range(i) for i in _indices_of(index, len(self))]
        return self._read(indices) if indices else torch.empty(0, *self._shape[1:], dtype=self._dtype)

    def __getitems__(self, indices: list[int]) -> list[Tensor]:
        """A batch, as ``torch.utils.data.DataLoader`` asks for it."""
        return list(self[indices])

    def _in_range(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range: there are {len(self)} samples")
        return index % len(self)

    def _read(self, indices: list[int]) -> Tensor:
        values = self.read_many(indices)
        wanted = (len(indices), *self._shape[1:])
        if not isinstance(values, Tensor) or tuple(values.shape) != wanted or values.dtype != self._dtype:
            found = f"{values.dtype} {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
            problem = f"read as {found}, not as {self._dtype} {wanted}"
            raise DataError("source", ending(self.describe(indices[0])), problem, "Correct `read` of the source.")
        if self.is_floating_point():
            bad = ~values.isfinite().reshape(len(values), -1).all(1)
            if bool(bad.any()):
                named = self.describe(indices[int(bad.nonzero()[0])])
                raise DataError(
                    "source", ending(named), "it holds NaN or infinity", "Repair the sample, or leave it out."
                )
        return values


class Subset(Source):
    """The samples of another source at ``indices``, in that order."""

    def __init__(self, source: Source, indices: Sequence[int] | np.ndarray | Tensor) -> None:
        self.source = source
        self.indices = np.asarray(indices, dtype=np.int64).reshape(-1)
        if len(self.indices) and not 0 <= self.indices.min() <= self.indices.max() < len(source):
            span = (int(self.indices.min()), int(self.indices.max()))
            raise ArgumentError("indices", span, f"the source has {len(source)} samples", "Give those of its range.")
        super().__init__(len(self.indices), source.shape[1:], source.dtype)

    def read(self, index: int) -> Tensor:
        """Sample ``indices[index]`` of the source."""
        return self.source.read(int(self.indices[index]))

    def read_many(self, indices: list[int]) -> Tensor:
        """The samples at these places of ``indices``."""
        return self.source.read_many(self.indices[indices].tolist())

    def describe(self, index: int) -> str:
        """The source's name for the sample."""
        return self.source.describe(int(self.indices[index]))


def _indices_of(index: Any, length: int) -> list[int]:
    """The integers that an index stands for."""
    if isinstance(index, slice):
        return list(range(*index.indices(length)))
    if isinstance(index, range):
        return list(index)
    values = index.cpu().numpy() if isinstance(index, Tensor) else np.asarray(index)
    if values.size == 0 and values.ndim == 1:
        return []
    if values.dtype == np.bool_ and values.shape == (length,):
        return np.flatnonzero(values).tolist()
    if values.dtype.kind not in "iu" or values.ndim != 1:
        raise IndexError(f"a source is indexed by an integer, a slice, or a list of integers, not by {index!r}")
    return values.tolist()
