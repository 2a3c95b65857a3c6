"""What every builder returns: raw data, and a transform that is recommended, never applied.

Each part is a tensor, or a `Source` that reads samples when it is indexed. Data that cannot be indexed come as a
`Stream`, which returns batches in an order of its own; ``train`` is empty then.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.checks import check_count
from sde_toolkit.data.sources import Source
from sde_toolkit.data.stream import Stream
from sde_toolkit.errors import ArgumentError, DataError
from sde_toolkit.ranges import check_range
from sde_toolkit.transforms import Identity, Transform

__all__ = ["Dataset", "split_indices"]


@dataclass(frozen=True, eq=False)
class Dataset:
    """A train and a test part in data space, and what is known about them.

    ``train`` and ``test``: (N, *event_shape) in the dtype of the source. Either may be empty, not both.
    ``train_labels`` and ``test_labels``: int64 (N,) or None.
    ``stream``: what to train on instead of ``train``, or None; its batches come with their labels.
    ``transform``: the recommended map to model space; call ``transform.forward`` yourself.
    ``levels``: data are the whole numbers 0..levels−1, or None for continuous data.
    ``classes``: what the labels 0, 1, … are called, or None.
    ``notes``: how the split and the transform came about.
    """

    name: str
    train: Tensor | Source
    test: Tensor | Source
    train_labels: Tensor | None = None
    test_labels: Tensor | None = None
    transform: Transform = field(default_factory=Identity)
    levels: int | None = None
    source: str = ""
    licence: str = ""
    notes: str = ""
    classes: tuple[str, ...] | None = None
    stream: Stream | None = None

    def __post_init__(self) -> None:
        for part in (self.train, self.test):
            if not isinstance(part, (Tensor, Source)):
                remedy = "Give tensors or Sources; a Stream belongs in stream=."
                raise DataError("train, test", type(part).__name__, "not data", remedy)
        shapes = (tuple(self.train.shape), tuple(self.test.shape))
        if not self.train.ndim or shapes[0][1:] != shapes[1][1:] or self.train.dtype != self.test.dtype:
            raise DataError(
                "train, test",
                shapes,
                "they differ in event shape or dtype",
                "Give both as (N, *event_shape).",
            )
        if self.stream is not None:
            self._check_stream(self.stream)
        elif len(self.train) + len(self.test) == 0:
            raise DataError("train, test", shapes, "there are no samples", "Give at least one sample.")
        for name, labels in (("train", self.train_labels), ("test", self.test_labels)):
            n = len(getattr(self, name))
            if labels is not None and tuple(labels.shape) != (n,):
                raise DataError(f"{name}_labels", tuple(labels.shape), f"{name} has {n} samples", f"Give shape ({n},).")

    def _check_stream(self, stream: Stream) -> None:
        if not isinstance(stream, Stream):
            remedy = "Give one with shard, next_batch, state_dict and load_state_dict."
            raise DataError("stream", type(stream).__name__, "not a Stream", remedy)
        if len(self.train):
            raise DataError("train", tuple(self.train.shape), "there is a stream to train on", "Leave train empty.")
        found = (tuple(stream.event_shape), stream.dtype)
        if found != (tuple(self.test.shape[1:]), self.test.dtype):
            raise DataError("stream", found, "the test part differs in event shape or dtype", "Make them agree.")

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.train.shape[1:])

    @property
    def labelled(self) -> bool:
        """Whether the training samples have labels."""
        return self.train_labels is not None if self.stream is None else self.stream.labelled

    def sample(self, n: int = 10_000) -> Tensor:
        """At most n training samples in data space, spread evenly over all of them; of a stream, the first n.

        For computations that need a few samples in memory: σ_data, moments, a picture. Every call returns the same
        ones. A stream is read from its beginning on a copy, so its own position does not move.
        """
        check_count("n", n, "10,000 is the default.")
        if self.stream is not None:
            return self.stream.shard(0, 1).next_batch(int(n))[0]
        size = len(self.train)
        return self.train[torch.arange(min(int(n), size)) * size // max(1, min(int(n), size))]

    def check_range(self, transform: Transform) -> None:
        """Check that the values fit a model with this transform, by :func:`sde_toolkit.ranges.check_range`.

        Tensors are checked as a whole. Of a source or a stream, 256 samples are checked.

        Raises:
            DataError: for values outside the range that the transform states. Doubtful values cause a warning.
        """
        remedy = "Give the data as the model was trained on, or the model the transform of the data."
        recommended: Transform | None = self.transform
        for part in ("train", "test"):
            values = getattr(self, part)
            if part == "train" and (self.stream is not None or not isinstance(values, Tensor)):
                values = self.sample(256)
            elif not isinstance(values, Tensor):
                values = values[torch.arange(min(256, len(values))) * len(values) // max(1, min(256, len(values)))]
            name = f"dataset.{part} of {self.name!r}"
            check_range(transform, values, recommended, name=name, remedy=remedy)
            recommended = None if len(values) else recommended  # one warning about it is enough


def split_indices(n: int, n_test: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A random split of range(n) into (train, test) indices, each in ascending order.

    It is random because files are often ordered by class, or cycle through the classes. numpy guarantees the numbers of
    ``RandomState`` for ever, so the split is the same with every version.
    """
    if not 0 <= n_test <= n:
        raise ArgumentError("n_test", n_test, f"there are {n} samples", f"Give a number from 0 to {n}.")
    order = np.random.RandomState(seed).permutation(n)
    return np.sort(order[n_test:]), np.sort(order[:n_test])
