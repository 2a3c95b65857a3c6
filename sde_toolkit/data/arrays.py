"""A data set of your own: any ``.npy`` or ``.npz`` array whose first axis counts the samples."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sde_toolkit.data.dataset import Dataset, split_indices
from sde_toolkit.data.reading import read_numpy
from sde_toolkit.errors import ArgumentError, DataError
from sde_toolkit.transforms import Affine

__all__ = ["affine_of", "are_levels", "are_whole_numbers", "array"]


def array(
    path: str | Path,
    key: str | None = None,
    test_fraction: float = 0.1,
    shift: Any = "auto",
    scale: Any = "auto",
    levels: int | None = None,
    seed: int = 0,
    per: str = "auto",
) -> Dataset:
    """Samples (N, *event_shape) from a file; event shapes of any rank, () included.

    ``key`` names the array in an ``.npz`` that holds several. ``test_fraction`` of the samples, drawn with ``seed``, is
    the test part.

    The recommended transform is (x − shift) · scale. ``shift`` and ``scale`` are numbers, arrays, or "auto": the mean
    and 1/std of the train part, as ``notes`` says. ``per`` chooses what has a mean and std of its own: "column" of a
    table of samples (D,), "channel" of samples (C, ...), "element", or "all" for one mean and one std. "auto" is
    "column" for a table, because one common scale would lose the small columns. It is "all" for images and signals, for
    ``levels`` and uint8, and where shift or scale is given.

    ``levels``: give it if the values are whole numbers 0..levels−1.

    Raises:
        DataError: naming the file, if it is missing, damaged, empty, or holds anything but finite real numbers.
        ArgumentError: if ``test_fraction``, ``per``, ``shift`` or ``scale`` cannot be used.
    """
    values = _checked_samples(_array_under_key(path, key), str(path))
    if not 0.0 <= test_fraction < 1.0:
        raise ArgumentError("test_fraction", test_fraction, "not in [0, 1)", "Give a fraction such as 0.1.")
    n = len(values)
    train, test = split_indices(n, min(math.ceil(test_fraction * n), n - 1), seed)
    if levels is not None and not are_whole_numbers(values, levels):
        raise DataError("levels", levels, f"the values are not whole numbers 0..{levels - 1}", "Give levels=None.")
    transform, how = affine_of(values[train], shift, scale, str(path), per=per, whole=are_levels(values, levels))
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


def _array_under_key(path: str | Path, key: str | None) -> np.ndarray:
    arrays = read_numpy(path)
    if key is None and len(arrays) == 1:
        return next(iter(arrays.values()))
    if key not in arrays:
        keys = ", ".join(sorted(str(name) for name in arrays if name is not None))
        problem = f"{str(path)!r} has the keys: {keys}" if keys else f"{str(path)!r} has no keys"
        raise DataError("key", key, problem, "Give one of them." if keys else "Leave key out, or give an .npz.")
    return arrays[key]


def _checked_samples(values: np.ndarray, path: str) -> np.ndarray:
    """The array in native byte order. Refused unless it holds at least one sample, and finite real numbers only."""
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


def are_levels(values: np.ndarray, levels: int | None) -> bool:
    """Whether these are grey levels or the like. They get one scale: bits per dimension need one level width."""
    return levels is not None or values.dtype.kind == "b" or values.dtype == np.uint8


def are_whole_numbers(values: np.ndarray, levels: int) -> bool:
    """Whether every value is one of 0, 1, …, levels − 1."""
    return bool(values.min() >= 0 and values.max() <= levels - 1 and (np.floor(values) == values).all())


def affine_of(
    train: np.ndarray, shift: Any, scale: Any, path: str, of: str = "train", per: str = "auto", whole: bool = False
) -> tuple[Affine, str]:
    """The transform (x − shift) · scale, and a text that says where its numbers come from.

    What is "auto" comes from mean and standard deviation of ``train``. ``per``: what has a shift and scale of its own,
    see :func:`array`; "auto" is "column" for samples (D,), unless they are ``whole`` levels or shift or scale is given.
    A constant column, channel or element is divided by its absolute value, or by 1 if it is 0.
    """
    for name, value in (("shift", shift), ("scale", scale)):
        if isinstance(value, str) and value != "auto":
            raise ArgumentError(name, value, "not a number", f'Give {name} as a float, or as "auto".')
    if not (isinstance(shift, str) or isinstance(scale, str)):
        given = Affine(shift, scale)
        given.log_abs_det(train.shape[1:])  # refuses a shift or scale that does not fit the samples
        return given, "transform: as given"
    per = _resolved_per(per, train, whole or not (isinstance(shift, str) and isinstance(scale, str)))
    axes = {"all": None, "element": (0,), "column": (0,)}.get(per, tuple(i for i in range(train.ndim) if i != 1))
    remarks: list[str] = []
    with np.errstate(over="ignore", invalid="ignore"):  # an overflow is refused below
        mean = np.asarray(train.mean(axes, dtype=np.float64, keepdims=axes is not None))
        std = np.asarray(train.std(axes, dtype=np.float64, keepdims=axes is not None))
    if isinstance(shift, str):
        shift = mean if axes is None else mean[0]
        remarks.append(f"shift = mean of {of} = {_in_words(shift, per)}")
    if isinstance(scale, str):
        constant = train.min(axes, keepdims=True) == train.max(axes, keepdims=True)
        if not (np.isfinite(std).all() and np.isfinite(1.0 / std[std > 0]).all()) or constant.all():
            found = f"standard deviation {0.0 if constant.all() else std.max()}"
            raise DataError("path", path, f"the train part has {found}", "Give scale as a float.")
        size = np.where(mean == 0, 1.0, np.abs(mean))
        scale = 1.0 / np.where(constant.reshape(std.shape), size, std)
        scale = scale if axes is None else scale[0]
        remarks.append(f"scale = 1/std of {of} = {_in_words(scale, per)}")
        if constant.any():
            remarks.append(f"{int(constant.sum())} of them constant, and scaled by 1/|value|")
    affine = Affine(shift, scale)
    affine.log_abs_det(train.shape[1:])
    return affine, f"transform: {'; '.join(remarks)}"


def _resolved_per(per: str, train: np.ndarray, as_one: bool) -> str:
    """The choice that ``per`` stands for with these samples.

    Raises:
        ArgumentError: for an unknown name, and for axes that the samples do not have.
    """
    names = ("auto", "all", "column", "channel", "element")
    if per not in names:
        raise ArgumentError("per", per, "there is no such choice", f"Choose one of {', '.join(names)}.")
    if per == "auto":
        return "column" if train.ndim == 2 and not as_one else "all"
    least = {"column": 2, "channel": 3, "element": 2}.get(per, 1)
    if train.ndim < least or (per == "column" and train.ndim > 2):
        problem = f"the samples have shape {train.shape[1:]}"
        raise ArgumentError("per", per, problem, "Columns are those of samples (D,), channels those of (C, ...).")
    return per


def _in_words(values: Any, per: str) -> str:
    if per == "all":
        return f"{float(values):.6g}"
    return f"{values.min():.6g} to {values.max():.6g}, one for each {per}"
