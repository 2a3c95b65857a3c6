"""CIFAR-10 from every form it is distributed in, except the pickled one, which can run code when it is opened.

The binary version is six files of records: one label byte, then 3·32·32 pixel bytes (the red, the green
and the blue plane, each by rows).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.data.archives import member_bytes, open_tar, regular_members
from sde_toolkit.data.dataset import Dataset
from sde_toolkit.data.hub import hugging_face, parquet_columns
from sde_toolkit.data.image_folders import image_folder
from sde_toolkit.data.opening import open_regular, or_data_error
from sde_toolkit.data.reading import read_numpy
from sde_toolkit.errors import DataError
from sde_toolkit.transforms import eight_bit

__all__ = ["cifar10"]

_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_TRAIN = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
_ACCEPTED_PATHS = (
    "Give the folder cifar-10-batches-bin (or cifar-10-binary.tar.gz) of the binary version, an .npz with x_train, "
    "y_train, x_test, y_test, a folder with train/CLASS/*.png and test/CLASS/*.png, or one with train-*.parquet and "
    "test-*.parquet."
)
_BATCH_BYTES = 60_000 * 3073  # the largest file that is read: all images in one
_Part = tuple[np.ndarray, np.ndarray]


def cifar10(path: str | Path) -> Dataset:
    """CIFAR-10 in memory: (N, 3, 32, 32) uint8, labels 0..9, the source's own split, transform to [−1, 1].

    ``path``: the binary version (folder or .tar.gz), an ``.npz`` with x_train, … (channels first or last),
    a folder with train/CLASS and test/CLASS images, or a folder of parquet files from the hub.

    Raises:
        DataError: if it is none of these. The Python version holds pickles, which can run code, and is refused.
    """
    place = Path(path)
    inner = place / "cifar-10-batches-bin"
    folder = inner if inner.is_dir() else place
    if place.is_file():
        parts = _from_npz(place) if place.suffix == ".npz" else _from_tar(place)
    elif (folder / _TRAIN[0]).is_file() or (folder / "test_batch.bin").is_file():
        parts = _from_binary({name: _bytes(folder / name) for name in (*_TRAIN, "test_batch.bin")}, str(folder))
    elif (folder / "data_batch_1").is_file() or (place / "cifar-10-batches-py").is_dir():
        problem = "these are Python pickles, which can run code when they are opened"
        raise DataError("path", str(path), problem, _ACCEPTED_PATHS)
    elif (place / "train").is_dir() and (place / "test").is_dir():
        return _in_memory(image_folder(place / "train", test_path=place / "test", channels=3), str(path))
    elif any(place.glob("**/*.parquet")):
        return _in_memory(_from_parquet(place), str(path))
    else:
        found = "nothing of it is in this folder" if place.is_dir() else "there is no such file or folder"
        raise DataError("path", str(path), found, _ACCEPTED_PATHS)
    (x_train, y_train), (x_test, y_test) = parts
    train, labels, test, others = (torch.from_numpy(values.copy()) for values in (x_train, y_train, x_test, y_test))
    return _dataset(train, labels, test, others, str(path))


def _from_binary(files: dict[str, bytes], shown: str) -> tuple[_Part, _Part]:
    def part(names: tuple[str, ...]) -> _Part:
        rows = []
        for name in names:
            content = files[name]
            if not content or len(content) % 3073 or len(content) > _BATCH_BYTES:
                problem = f"{name} has {len(content)} bytes, not a multiple of 3073 (a batch has 10,000 times that)"
                raise DataError("path", shown, problem, "Fetch it again.")
            rows.append(np.frombuffer(content, np.uint8).reshape(-1, 3073))
        joined = np.concatenate(rows)
        return joined[:, 1:].reshape(-1, 3, 32, 32), joined[:, 0].astype(np.int64)

    return part(_TRAIN), part(("test_batch.bin",))


def _from_tar(path: Path) -> tuple[_Part, _Part]:
    files: dict[str, bytes] = {}
    with open_tar(path, _ACCEPTED_PATHS) as archive:
        for member in regular_members(archive):
            name = member.name.rsplit("/", 1)[-1]
            if name in (*_TRAIN, "test_batch.bin"):
                files[name] = member_bytes(archive, member, _BATCH_BYTES)
    missing = [name for name in (*_TRAIN, "test_batch.bin") if name not in files]
    if missing:
        raise DataError("path", str(path), f"the archive lacks {', '.join(missing)}", _ACCEPTED_PATHS)
    return _from_binary(files, str(path))


def _from_npz(path: Path) -> tuple[_Part, _Part]:
    found = read_numpy(path)
    missing = [key for key in ("x_train", "y_train", "x_test", "y_test") if key not in found]
    if missing:
        raise DataError("path", str(path), f"the file lacks {', '.join(missing)}", _ACCEPTED_PATHS)

    def part(which: str) -> _Part:
        x, y = found[f"x_{which}"], found[f"y_{which}"].reshape(-1)
        if x.dtype == np.uint8 and x.ndim == 4 and x.shape[1:] == (32, 32, 3):
            x = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
        if x.dtype != np.uint8 or x.shape[1:] != (3, 32, 32) or y.dtype.kind not in "iu" or len(y) != len(x):
            problem = f"the {which} part is {x.dtype} {x.shape} with labels {y.dtype} {y.shape}"
            raise DataError("path", str(path), problem, "Save uint8 (N, 32, 32, 3) or (N, 3, 32, 32), labels (N,).")
        return x, y.astype(np.int64)

    return part("train"), part("test")


def _from_parquet(place: Path) -> Dataset:
    files = sorted(place.glob("**/*.parquet"))
    columns = parquet_columns(files[0])
    image, label = (next((c for c in names if c in columns), names[0]) for names in (("img", "image"), ("label",)))
    return hugging_face(str(place), test_split="test", image_column=image, label_column=label, channels=3)


def _bytes(file: Path) -> bytes:
    with open_regular(file) as stream, or_data_error("path", str(file), "cannot be read", _ACCEPTED_PATHS):
        return stream.read(_BATCH_BYTES + 1)


def _in_memory(data: Dataset, path: str) -> Dataset:
    train, test, labels, others = data.train, data.test, data.train_labels, data.test_labels
    if data.event_shape != (3, 32, 32) or labels is None or others is None:
        raise DataError("path", path, f"its images have shape {data.event_shape}, not (3, 32, 32)", _ACCEPTED_PATHS)
    return _dataset(train[:], labels, test[:], others, path)


def _dataset(train: Tensor, labels: Tensor, test: Tensor, others: Tensor, path: str) -> Dataset:
    for part, known in (("train", labels), ("test", others)):
        if len(known) == 0 or int(known.min()) < 0 or int(known.max()) > 9:
            span = f"{int(known.min())}..{int(known.max())}" if len(known) else "nothing"
            raise DataError("path", path, f"labels of the {part} part span {span}, not 0..9", _ACCEPTED_PATHS)
    return Dataset(
        name="cifar10",
        train=train,
        train_labels=labels,
        test=test,
        test_labels=others,
        transform=eight_bit(),
        levels=256,
        classes=_CLASSES,
        source="CIFAR-10 (A. Krizhevsky 2009), from 80 Million Tiny Images",
        licence="none stated by its authors",
        notes=f"read from {Path(path).name}; the source's own split; transform to [-1, 1]",
    )
