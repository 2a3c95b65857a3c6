"""A data set of your own: any ``.npy`` or ``.npz`` array whose first axis counts the samples."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

from sde_toolkit.data.dataset import Dataset, split_indices
from sde_toolkit.data.reading import read_numpy
from sde_toolkit.errors import ArgumentError, DataError
from sde_toolkit.transforms import Affine

__all__ = ["affine_of", "array", "whole_numbers"]


def array(
    path: str | Path,
    key: str | None = None,
    test_fraction: float = 0.1,
    shift: float | str = "auto",
    scale: float | str = "auto",
    levels: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Samples (N, *event_shape) from a file; event shapes of any rank, () included.

    ``key`` names the array of an ``.npz`` that holds several. ``test_fraction`` of the samples, drawn with
    ``seed``, is the test part. ``shift`` and ``scale`` of the recommended transform (x − shift) · scale
    default to the mean and 1/std over all elements of the train part; ``notes`` states them.
    ``levels``: say so if the values are whole numbers 0..levels−1.
    """
    values = _checked(_chosen(path, key), str(path))
    if not 0.0 <= test_fraction < 1.0:
        raise ArgumentError("test_fraction", test_fraction, "not in [0, 1)", "Give a fraction such as 0.1.")
    n = len(values)
    train, test = split_indices(n, min(math.ceil(test_fraction * n), n - 1), seed)
    if levels is not None and not whole_numbers(values, levels):
        raise DataError("levels", levels, f"the values are not whole numbers 0..{levels - 1}", "Give levels=None.")
    transform, how = affine_of(values[train], shift, scale, str(path))
    return Dataset(
        name=Path(path).stem,
        train=torch.from_numpy(values[train]),
        test=torch.from_numpy(values[test]),
        transform=transform,
        levels=levels,
        source=f"the file {Path(path).name}",
        licence="the file's own",
        notes=f"random split {len(train)}/{len(test)} with seed {seed}; {how}",
    )


def _chosen(path: str | Path, key: str | None) -> np.ndarray:
    arrays = read_numpy(path)
    if key is None and len(arrays) == 1:
        return next(iter(arrays.values()))
    if key not in arrays:
        keys = ", ".join(sorted(str(name) for name in arrays if name is not None))
        problem = f"{str(path)!r} has the keys: {keys}" if keys else f"{str(path)!r} has no keys"
        raise DataError("key", key, problem, "Give one of them." if keys else "Leave key out, or give an .npz.")
    return arrays[key]


def _checked(values: np.ndarray, path: str) -> np.ndarray:
    """The array in native byte order, if it holds at least one sample of finite real numbers."""
    kind, size = values.dtype.kind, values.dtype.itemsize
    if kind not in "fiub" or (kind == "f" and size > 8):
        raise DataError("path", path, f"its dtype is {values.dtype}, not real numbers", "Save it as float32 or uint8.")
    if values.ndim == 0 or values.size == 0:
        raise DataError(
            "path", path, f"it has shape {values.shape}: no samples", "Save it as (N, *event_shape), N > 0."
        )
    if kind == "f" and not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).sum())
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
        raise DataError("path", path, f"{bad} values are NaN or infinite, the first at index {where}", "Remove them.")
    return values.astype(values.dtype.newbyteorder("="))


def whole_numbers(values: np.ndarray, levels: int) -> bool:
    """Whether all are 0, 1, …, levels − 1."""
    return bool(values.min() >= 0 and values.max() <= levels - 1 and (np.floor(values) == values).all())


def affine_of(
    train: np.ndarray, shift: float | str, scale: float | str, path: str, of: str = "train"
) -> tuple[Affine, str]:
    """(x − shift) · scale as given, else from mean and standard deviation, and in words how."""
    for name, given in (("shift", shift), ("scale", scale)):
        if isinstance(given, str) and given != "auto":
            raise ArgumentError(name, given, "not a number", f'Give {name} as a float, or as "auto".')
    chosen: list[str] = []
    if isinstance(shift, str):
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused below
            shift = float(train.mean(dtype=np.float64))
        chosen.append(f"shift = mean of {of} = {shift:.6g}")
    if isinstance(scale, str):
        with np.errstate(over="ignore", invalid="ignore"):
            std = float(train.std(dtype=np.float64))
        if not 0.0 < std < math.inf:
            raise DataError("path", path, f"the train part has standard deviation {std}", "Give scale as a float.")
        scale = 1.0 / std
        chosen.append(f"scale = 1/std of {of} = {scale:.6g}")
    return Affine(shift, scale), "transform: " + ("; ".join(chosen) or "as given")
