"""Samples to be evaluated, read from an array file, the output of ``sde-toolkit sample``, or images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.data.decoding import SUFFIXES, open_image
from sde_toolkit.data.reading import read_numpy
from sde_toolkit.errors import DataError

__all__ = ["has_samples", "read_samples"]


def has_samples(path: str | Path) -> bool:
    """Whether a path is a file, or a folder with ``samples.npz`` or images in it."""
    place = Path(path)
    if not place.is_dir():
        return place.is_file()
    return (place / "samples.npz").is_file() or any(file.suffix.lower() in SUFFIXES for file in place.iterdir())


def read_samples(path: str | Path, key: str | None = None) -> Tensor:
    """Samples (n, *event) in data space.

    ``path``: an ``.npy``; an ``.npz``, whose array is ``x``, the only one, or ``key``; a folder with a
    ``samples.npz``; or a folder of images of one size, uint8 (n, 1 or 3, H, W), in the order of their names.

    Raises:
        DataError: for what is missing, unreadable, empty, or of several sizes.
        MissingDependencyError: for images, without pillow.
    """
    place = Path(path)
    if place.is_dir() and (place / "samples.npz").is_file():
        place = place / "samples.npz"
    if place.is_dir():
        return _images(place)
    arrays = read_numpy(place)
    if key is None:
        key = "x" if "x" in arrays else next(iter(arrays)) if len(arrays) == 1 else None
    if key not in arrays:
        there = ", ".join(sorted(map(str, arrays)))
        raise DataError("key", key, f"{place.name} has the arrays {there}", "Name the one that holds the samples.")
    values = arrays[key]
    if values.dtype.kind not in "fiu" or values.ndim == 0 or len(values) == 0:
        problem = f"its array is {values.dtype} {values.shape}, not samples of numbers"
        raise DataError("samples", str(place), problem, "Save it as (n, *event).")
    return torch.from_numpy(values.astype(values.dtype.newbyteorder("=")))


def _images(folder: Path) -> Tensor:
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
    if not files:
        problem = "there is no samples.npz and no image in it"
        raise DataError("samples", str(folder), problem, f"Images are {', '.join(sorted(SUFFIXES))}.")
    found: list[np.ndarray] = []
    for file in files:
        with open_image(file, str(file)) as image:
            if image.mode[0] in "IF":
                problem = f"its pixels are {image.mode!r}, more than 8 bits each"
                raise DataError("samples", str(file), problem, "Save such samples as .npy.")
            grey = image.mode in ("L", "1")
            pixels = np.asarray(image.convert("L" if grey else "RGB"), np.uint8)
        pixels = pixels[None] if grey else np.moveaxis(pixels, 2, 0)
        if found and pixels.shape != found[0].shape:
            problem = f"an image of shape {pixels.shape} among images of {found[0].shape}, as {files[0].name} is"
            raise DataError("samples", str(file), problem, "Images to be evaluated have one size and one mode.")
        found.append(pixels)
    return torch.from_numpy(np.stack(found))
