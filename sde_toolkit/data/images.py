"""Handwritten digits: MNIST from a file, 2,000 of its test images from the package, and the 8×8 UCI digits.

Images are uint8 of shape (N, 1, H, W). Their grey levels 0..levels−1 are those of the source.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.data.dataset import Dataset, split_indices
from sde_toolkit.data.reading import packaged_npz, read_idx, read_numpy
from sde_toolkit.errors import DataError
from sde_toolkit.transforms import Affine, eight_bit

__all__ = ["digits", "mnist", "mnist_test_images"]

_MNIST_SOURCE = "MNIST (Y. LeCun, C. Cortes, C. J. C. Burges), derived from NIST Special Databases 1 and 3"
_MNIST_LICENCE = "commonly distributed under CC BY-SA 3.0"
_ACCEPTED_PATHS = (
    "Give an .npz file with x_train, y_train, x_test, y_test (the mnist.npz of Keras), or a folder with the "
    "four IDX files train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and "
    "t10k-labels-idx1-ubyte, plain or .gz (torchvision keeps them in MNIST/raw)."
)
_KEYS = ("x_train", "y_train", "x_test", "y_test")
_IDX = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")


def mnist(path: str | Path) -> Dataset:
    """MNIST, or a set in the same format (Fashion-, K-MNIST): 28×28 images, 256 levels, labels 0..9.

    ``path``: an ``.npz`` file with x_train, y_train, x_test, y_test, or a folder with the four IDX files.
    """
    place = Path(path)
    if place.is_dir():
        arrays = {key: read_idx(_idx_file(place, stem), int(stem[-1])) for key, stem in zip(_KEYS, _IDX, strict=True)}
    elif place.is_file():
        found = read_numpy(place)
        missing = [key for key in _KEYS if key not in found]
        if missing:
            raise DataError("path", str(path), f"the file lacks {', '.join(missing)}", _ACCEPTED_PATHS)
        arrays = {key: found[key] for key in _KEYS}
    else:
        raise DataError("path", str(path), "there is no such file or folder", _ACCEPTED_PATHS)
    parts: list[Tensor] = []
    for part in ("train", "test"):
        parts += _checked_part(arrays[f"x_{part}"], arrays[f"y_{part}"], part, str(path))
    return Dataset(
        name="mnist",
        train=parts[0],
        train_labels=parts[1],
        test=parts[2],
        test_labels=parts[3],
        transform=eight_bit(),
        levels=256,
        source=_MNIST_SOURCE,
        licence=_MNIST_LICENCE,
        notes=f"read from {place.name}; the source's own split; transform to [-1, 1]",
    )


def _idx_file(folder: Path, stem: str) -> Path:
    for joint in ("-", "."):  # train-images-idx3-ubyte, or train-images.idx3-ubyte as some copies are named
        for end in ("", ".gz"):
            file = folder / f"{stem[:-5]}{joint}{stem[-4:]}-ubyte{end}"
            if file.is_file():
                return file
    raise DataError("path", str(folder), f"the folder lacks {stem}-ubyte and {stem}-ubyte.gz", _ACCEPTED_PATHS)


def _checked_part(images: np.ndarray, labels: np.ndarray, part: str, path: str) -> tuple[Tensor, Tensor]:
    """Images (N, 1, 28, 28) uint8 and labels (N,) int64."""
    problem = ""
    if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1:] != (28, 28):
        problem = f"its images are {images.dtype} {images.shape}, not uint8 (N, 28, 28)"
    elif len(images) == 0:
        problem = "it has no images"
    elif labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        problem = f"its labels are {labels.dtype} {labels.shape}, not integers ({len(images)},)"
    elif labels.min() < 0 or labels.max() > 9:
        problem = f"its labels span {labels.min()}..{labels.max()}, not 0..9"
    if problem:
        raise DataError("path", path, f"the {part} part cannot be used: {problem}", _ACCEPTED_PATHS)
    return torch.from_numpy(images[:, None].copy()), torch.from_numpy(labels.astype(np.int64))


def mnist_test_images() -> Dataset:
    """The first 2,000 MNIST test images with labels, from the package itself; ``train`` is empty.

    For examples and for evaluation without a download. Do not train on them.
    """
    stored = packaged_npz("mnist_test_2000.npz")
    images, labels = _checked_part(stored["images"], stored["labels"], "test", "mnist_test_2000.npz")
    return Dataset(
        name="mnist_test_images",
        train=images[:0].clone(),
        train_labels=labels[:0].clone(),
        test=images,
        test_labels=labels,
        transform=eight_bit(),
        levels=256,
        source=_MNIST_SOURCE,
        licence=_MNIST_LICENCE,
        notes="the first 2,000 images of the MNIST test set; transform to [-1, 1]",
    )


def digits() -> Dataset:
    """1,797 handwritten digits, (N, 1, 8, 8) uint8 with values 0..16: 1,500 to train, 297 to test.

    Each value counts the ink pixels of a 4×4 block of a bitmap, hence 17 levels.
    """
    stored = packaged_npz("digits.npz")
    images = torch.from_numpy(stored["images"][:, None].copy())
    labels = torch.from_numpy(stored["labels"].astype(np.int64))
    train, test = (torch.from_numpy(index) for index in split_indices(len(images), 297))
    return Dataset(
        name="digits",
        train=images[train],
        train_labels=labels[train],
        test=images[test],
        test_labels=labels[test],
        transform=Affine(8.0, 1.0 / 8.0),
        levels=17,
        source="Optical Recognition of Handwritten Digits, UCI (E. Alpaydin, C. Kaynak), test part, "
        "as in scikit-learn's load_digits",
        licence="CC BY 4.0",
        notes="fixed random split 1500/297; transform to [-1, 1]",
    )
