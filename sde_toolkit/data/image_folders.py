"""A folder of image files, read when they are needed.

Images are in the order of their paths, sorted by code point, which is the same on every machine. The headers of all
files are checked when the set is built (about 10,000 a second from a local disk). Pixels are decoded when an image is
read.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.checks import is_number
from sde_toolkit.data.dataset import Dataset, split_indices
from sde_toolkit.data.decoding import SUFFIXES, ImageShape, agreed_shape, checked_size, decode, ending, read_header
from sde_toolkit.data.sources import Source
from sde_toolkit.errors import ArgumentError, DataError
from sde_toolkit.transforms import eight_bit

__all__ = ["ImageFiles", "check_fraction", "image_folder"]


class ImageFiles(Source):
    """The image files ``root/name`` as samples (C, H, W), uint8."""

    def __init__(self, root: str | Path, names: Sequence[str], image_shape: ImageShape) -> None:
        super().__init__(len(names), image_shape.event_shape, torch.uint8)
        self.root = str(root)
        self.names = list(names)
        self.image_shape = image_shape

    def read(self, index: int) -> Tensor:
        """The decoded pixels of one file."""
        path = Path(self.root, self.names[index])
        return decode(path, str(path), self.image_shape)

    def describe(self, index: int) -> str:
        """The path of the file."""
        return str(Path(self.root, self.names[index]))


def image_folder(
    path: str | Path,
    size: int | Sequence[int] | None = None,
    labels: str | None = "folders",
    test_fraction: float = 0.1,
    seed: int = 0,
    channels: int | None = None,
    test_path: str | Path | None = None,
) -> Dataset:
    """The images in a folder and its sub-folders, (N, C, H, W) uint8, transform to [−1, 1].

    ``labels``: with "folders", the sub-folder of ``path`` that an image is in is its class; classes are numbered in
    sorted order (`Dataset.classes`). None: no labels. ``size``: a number, or (height, width), that images are cropped
    at the centre and resized to. None: all must have one size. ``channels``: 1, 3 or 4, that images are converted to.
    None: all must have the same. The test part is ``test_path``, a folder like the first, or else ``test_fraction`` of
    the images, drawn with ``seed``.

    Raises:
        DataError: naming the folder or the file, if there are no images, if one is damaged or may not be read, or if
            they differ in size or channels.
    """
    if labels not in ("folders", None):
        raise ArgumentError("labels", labels, "not a way to label images", 'Give "folders", or None.')
    check_fraction(test_fraction)
    wanted = checked_size(size)
    root = Path(path).absolute()  # stays readable when the process changes its folder
    names, ignored = _find_images(root)
    test_root = root if test_path is None else Path(test_path).absolute()
    test_names, more = ([], Counter[str]()) if test_path is None else _find_images(test_root)
    files = [root / name for name in names] + [test_root / name for name in test_names]
    with ThreadPoolExecutor(min(16, 4 * (os.cpu_count() or 1))) as pool:
        headers = zip(map(str, files), pool.map(lambda file: read_header(file, str(file)), files), strict=True)
        image_shape = agreed_shape(headers, wanted, channels, "path", str(root))
    whole = ImageFiles(root, names, image_shape)
    classes = _folder_classes(names, root) if labels else None
    found = None if classes is None else _folder_labels(names, classes, root)
    if test_path is None:
        n_test = min(math.ceil(test_fraction * len(names)), len(names) - 1)
        train, test = split_indices(len(names), n_test, seed)
        parts: tuple[Source, Source] = (whole.subset(train), whole.subset(test))
        both = (None if found is None else found[train], None if found is None else found[test])
        how = f"random split {len(train)}/{len(test)} with seed {seed}"
    else:
        parts = (whole, ImageFiles(test_root, test_names, image_shape))
        both = (found, None if classes is None else _folder_labels(test_names, classes, test_root))
        how = f"test part from {test_root.name}"
    notes = [how, "transform to [-1, 1]", *_remarks(ignored + more, image_shape)]
    return Dataset(
        name=root.name or "images",
        train=parts[0],
        test=parts[1],
        train_labels=both[0],
        test_labels=both[1],
        transform=eight_bit(),
        levels=256,
        classes=classes,
        source=f"the folder {root.name}",
        licence="the files' own",
        notes="; ".join(notes),
    )


def check_fraction(test_fraction: float) -> None:
    """Refuse anything but a number in [0, 1)."""
    if not is_number(test_fraction) or not 0.0 <= test_fraction < 1.0:
        raise ArgumentError("test_fraction", test_fraction, "not in [0, 1)", "Give a fraction such as 0.1.")


def _find_images(root: Path) -> tuple[list[str], Counter[str]]:
    """The sorted names of the images below ``root``, with "/" between folders, and a count of other files by suffix."""
    if not root.is_dir():
        raise DataError("path", str(root), "there is no such folder", "Give a folder of image files.")

    def refused(error: OSError) -> None:
        raise DataError("path", ending(str(error.filename)), "it may not be read", "Check its permissions.") from error

    names: list[str] = []
    ignored: Counter[str] = Counter()
    visited = {os.path.realpath(root)}
    for folder, below, files in os.walk(root, onerror=refused, followlinks=True):
        inside = PurePosixPath(Path(folder).relative_to(root).as_posix())
        real = {name: os.path.realpath(os.path.join(folder, name)) for name in below}
        below[:] = [name for name in below if not name.startswith(".") and real[name] not in visited]
        visited.update(real[name] for name in below)  # a link to a folder above is not followed twice
        for name in files:
            suffix = os.path.splitext(name)[1].lower()
            if suffix in SUFFIXES and not name.startswith("."):
                names.append(str(inside / name))
            else:
                ignored[suffix if suffix and not name.startswith(".") else name] += 1
    if not names:
        other = f" ({sum(ignored.values())} files of other kinds)" if ignored else ""
        kinds = ", ".join(sorted(suffix[1:] for suffix in SUFFIXES))
        raise DataError(
            "path", str(root), f"there are no images in it{other}", f"Give a folder with files of: {kinds}."
        )
    return sorted(names), ignored


def _folder_classes(names: Sequence[str], root: Path) -> tuple[str, ...]:
    for name in names:
        if "/" not in name:
            problem = "it is in no sub-folder, so it has no class"
            raise DataError(
                "labels", ending(str(root / name)), problem, "Give labels=None, or one sub-folder per class."
            )
    return tuple(sorted({name.split("/", 1)[0] for name in names}))


def _folder_labels(names: Sequence[str], classes: tuple[str, ...], root: Path) -> Tensor:
    number = {name: i for i, name in enumerate(classes)}
    of_each = [name.split("/", 1)[0] if "/" in name else "" for name in names]
    for name, found in zip(names, of_each, strict=True):
        if found not in number:
            problem = f"its class {found!r} is not in the training part"
            raise DataError("test_path", ending(str(root / name)), problem, "Use the same sub-folders, or labels=None.")
    return torch.from_numpy(np.array([number[found] for found in of_each], dtype=np.int64))


def _remarks(ignored: Counter[str], image_shape: ImageShape) -> list[str]:
    remarks = []
    if image_shape.resize:
        remarks.append(f"centre cropped and resized to {image_shape.width}x{image_shape.height} (Lanczos)")
    if ignored:
        kinds = ", ".join(f"{n} {name}" for name, n in ignored.most_common(5))
        remarks.append(f"{sum(ignored.values())} files that are not images ignored ({kinds})")
    return remarks
