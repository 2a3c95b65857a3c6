"""What every builder returns: raw data, and a transform that is recommended, never applied."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from sde_toolkit.errors import ArgumentError, DataError
from sde_toolkit.transforms import Identity, Transform

__all__ = ["Dataset", "split_indices"]


@dataclass(frozen=True, eq=False)
class Dataset:
    """A train and a test tensor in data space, and what is known about them.

    ``train`` and ``test``: (N, *event_shape) in the dtype of the source. Either may be empty, not both.
    ``train_labels`` and ``test_labels``: int64 (N,) or None.
    ``transform``: the recommended map to model space; call ``transform.forward`` yourself.
    ``levels``: data are the whole numbers 0..levels−1, or None for continuous data.
    ``notes``: how the split and the transform came about.
    """

    name: str
    train: Tensor
    test: Tensor
    train_labels: Tensor | None = None
    test_labels: Tensor | None = None
    transform: Transform = field(default_factory=Identity)
    levels: int | None = None
    source: str = ""
    licence: str = ""
    notes: str = ""

    def __post_init__(self) -> None:
        shapes = (tuple(self.train.shape), tuple(self.test.shape))
        if self.train.ndim == 0 or shapes[0][1:] != shapes[1][1:] or self.train.dtype != self.test.dtype:
            raise DataError(
                "train, test",
                shapes,
                "they differ in event shape or dtype",
                "Give both as (N, *event_shape).",
            )
        if len(self.train) + len(self.test) == 0:
            raise DataError("train, test", shapes, "there are no samples", "Give at least one sample.")
        for part, labels in (("train", self.train_labels), ("test", self.test_labels)):
            n = len(getattr(self, part))
            if labels is not None and tuple(labels.shape) != (n,):
                raise DataError(f"{part}_labels", tuple(labels.shape), f"{part} has {n} samples", f"Give shape ({n},).")

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.train.shape[1:])


def split_indices(n: int, n_test: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A random split of range(n) into (train, test) indices, each in ascending order.

    Random, because files are often ordered by class or cycle through the classes. ``RandomState`` is the
    generator whose stream numpy has frozen: the split is the same in every version.
    """
    if not 0 <= n_test <= n:
        raise ArgumentError("n_test", n_test, f"there are {n} samples", f"Give a number from 0 to {n}.")
    order = np.random.RandomState(seed).permutation(n)
    return np.sort(order[n_test:]), np.sort(order[:n_test])
