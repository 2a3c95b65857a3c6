"""An ``.npy`` file larger than memory: its rows are read from disk when they are needed.

The file is mapped, not loaded; each process maps it at its first use. Values are checked batch by batch as they are
read. The recommended transform comes from a sample of rows, whose number is in ``notes``.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.checks import check_count
from sde_toolkit.data.arrays import affine_of, are_levels, are_whole_numbers
from sde_toolkit.data.dataset import Dataset, split_indices
from sde_toolkit.data.decoding import ending
from sde_toolkit.data.image_folders import check_fraction
from sde_toolkit.data.reading import map_numpy, prefetch_rows, read_numpy
from sde_toolkit.data.sources import PerProcess, Source
from sde_toolkit.errors import DataError
from sde_toolkit.transforms import Transform, eight_bit

__all__ = ["MappedRows", "memory_map"]

_SAMPLE_KEY = 1  # added to the seed, so that the sample is drawn apart from the split, whose key is the seed alone
_SAMPLE_BYTES = 2**28  # the largest sample for the transform, as float64


class MappedRows(Source):
    """Rows of an ``.npy`` file, (N, *event_shape), in native byte order."""

    def __init__(self, path: str | Path) -> None:
        self.path = str(Path(path).absolute())  # stays readable when the process changes its folder
        self._rows = PerProcess(partial(map_numpy, self.path))
        rows = self._rows()
        self._native = rows.dtype.newbyteorder("=")
        kind, size = rows.dtype.kind, rows.dtype.itemsize
        if kind not in "fiub" or (kind == "f" and size > 8):
            problem = f"its dtype is {rows.dtype}, not real numbers"
            raise DataError("path", ending(self.path), problem, "Save it as float32 or uint8.")
        if rows.ndim == 0 or rows.size == 0:
            problem = f"it has shape {rows.shape}: no samples"
            raise DataError("path", ending(self.path), problem, "Save it as (N, *event_shape), N > 0.")
        if rows.flags.f_contiguous and not rows.flags.c_contiguous:
            problem = "it is in Fortran order: one sample is spread over the whole file"
            raise DataError("path", ending(self.path), problem, "Save numpy.ascontiguousarray of it.")
        super().__init__(len(rows), rows.shape[1:], torch.from_numpy(np.empty(0, self._native)).dtype)
        self._identity = (rows.shape, rows.dtype)

    def read(self, index: int) -> Tensor:
        """One row."""
        return self.read_many([index])[0]

    def read_many(self, indices: list[int]) -> Tensor:
        """Rows, copied out of the file."""
        rows = self._rows()
        if (rows.shape, rows.dtype) != self._identity:
            problem = f"it holds {rows.dtype} {rows.shape} now, {self._identity[1]} {self._identity[0]} before"
            raise DataError("path", ending(self.path), problem, "Build the data set again.")
        prefetch_rows(rows, indices)
        return torch.from_numpy(rows[indices].astype(self._native, copy=False))

    def describe(self, index: int) -> str:
        """The file and the row."""
        return f"row {index} of {self.path}"


def memory_map(
    path: str | Path,
    labels_path: str | Path | None = None,
    test_fraction: float = 0.1,
    shift: Any = "auto",
    scale: Any = "auto",
    levels: int | None = None,
    sample: int = 10_000,
    seed: int = 0,
    per: str = "auto",
) -> Dataset:
    """Samples (N, *event_shape) from an ``.npy`` file that need not fit in memory.

    ``labels_path``: an ``.npy`` of N whole numbers from 0. ``test_fraction`` of the samples, drawn with ``seed``, is
    the test part.

    The recommended transform is (x − shift) · scale. If ``shift`` and ``scale`` are "auto", uint8 has the transform of
    8-bit images (levels 256), and other data have mean and 1/std over ``sample`` random rows of the train part (fewer
    where they would take more than 256 MB as float64). ``per`` chooses what has a mean and std of its own, as in
    :func:`sde_toolkit.data.array`.

    ``levels``: give it if the values are whole numbers 0..levels−1. It is checked on the same rows.

    Raises:
        DataError: naming the file; naming the row, when a sample is read.
    """
    check_fraction(test_fraction)
    check_count("sample", sample, "It is a number of rows to look at.")
    rows = MappedRows(path)
    n = len(rows)
    labels = None if labels_path is None else _read_labels(labels_path, n)
    train, test = split_indices(n, min(math.ceil(test_fraction * n), n - 1), seed)
    transform: Transform
    automatic = isinstance(shift, str) and isinstance(scale, str) and shift == scale == "auto"
    if rows.dtype == torch.uint8 and automatic and levels in (None, 256):
        transform, levels, how = eight_bit(), 256, "transform to [-1, 1]"
    else:
        per_row = 8 * math.prod(rows.shape[1:])
        m = max(1, min(len(train), int(sample), _SAMPLE_BYTES // per_row))
        if levels is None and not isinstance(shift, str) and not isinstance(scale, str):
            m = 0  # no row has to be read
        chosen = np.sort(train[np.random.RandomState([seed, _SAMPLE_KEY]).permutation(len(train))[:m]])
        values = rows[chosen].numpy()
        of = "train" if m == len(train) else f"{m:,} random rows of train (seed {seed})"
        transform, how = affine_of(values, shift, scale, str(path), of, per, are_levels(values, levels))
        if levels is not None and not are_whole_numbers(values, levels):
            problem = f"the values are not whole numbers 0..{levels - 1}"
            raise DataError("levels", levels, problem, "Give levels=None.")
    return Dataset(
        name=Path(path).stem,
        train=rows.subset(train),
        test=rows.subset(test),
        train_labels=None if labels is None else labels[train],
        test_labels=None if labels is None else labels[test],
        transform=transform,
        levels=levels,
        source=f"the file {Path(path).name}",
        licence="the file's own",
        notes=f"random split {len(train)}/{len(test)} with seed {seed}; {how}",
    )


def _read_labels(path: str | Path, n: int) -> Tensor:
    values = read_numpy(path).get(None)
    if values is None:
        raise DataError("labels_path", str(path), "it is no .npy file", "Save the labels with numpy.save.")
    if values.dtype.kind not in "iu" or values.shape != (n,):
        problem = f"it holds {values.dtype} {values.shape}, not integers ({n},)"
        raise DataError("labels_path", str(path), problem, "Save one whole number per sample.")
    if values.min() < 0:
        raise DataError("labels_path", str(path), f"its least label is {values.min()}", "Count classes from 0.")
    return torch.from_numpy(values.astype(np.int64))
