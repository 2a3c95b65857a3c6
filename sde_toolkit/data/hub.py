"""Data sets of the Hugging Face package ``datasets``: read row by row from mapped files, or streamed shard by shard.

Nothing is downloaded for a path on this machine. Streaming reads a data set on the hub over the network.

"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.data.arrays import affine_of, are_levels
from sde_toolkit.data.columns import HuggingFaceRows, HuggingFaceShards, column_labels
from sde_toolkit.data.dataset import Dataset, split_indices
from sde_toolkit.data.image_folders import check_fraction
from sde_toolkit.data.opening import or_data_error
from sde_toolkit.data.sources import Source
from sde_toolkit.data.stream import ShuffledStream, first_samples
from sde_toolkit.errors import DataError, MissingDependencyError
from sde_toolkit.transforms import Identity, Transform, eight_bit

__all__ = ["hugging_face", "hugging_face_stream", "parquet_columns"]


def hugging_face(
    path: str,
    name: str | None = None,
    split: str = "train",
    test_split: str | None = None,
    image_column: str = "image",
    label_column: str | None = "label",
    size: int | Sequence[int] | None = None,
    channels: int | None = None,
    test_fraction: float = 0.1,
    seed: int = 0,
    cache_dir: str | None = None,
) -> Dataset:
    """A data set by rows: a folder written by ``save_to_disk``, a folder of parquet files, or a name on the hub.

    ``name``: the configuration, where there are several. The test part is ``test_split``, or else ``test_fraction`` of
    the rows, drawn with ``seed``. ``label_column=None``: no labels.

    ``image_column``: images become (C, H, W) uint8 with the transform to [−1, 1]. ``size`` and ``channels`` are as in
    ``image_folder`` and decided from 64 rows; a row that does not fit is refused when it is read. Numbers keep
    their dtype and shape; their transform comes from mean and 1/std of up to 10,000 rows.

    Raises:
        DataError: naming what is missing (split, column) and what there is, or the row that cannot be used.
        MissingDependencyError: without ``datasets``.
    """
    check_fraction(test_fraction)
    loaded = _loaded(path, name, cache_dir, streaming=False)
    train = _rows_of_split(loaded, split, "split", path)
    rows = HuggingFaceRows(train, image_column, size, channels, f"{path} ({split})")
    labels = column_labels(train, label_column, path)
    if test_split is None:
        chosen, left = split_indices(len(rows), min(math.ceil(test_fraction * len(rows)), len(rows) - 1), seed)
        parts: tuple[Source, Source] = (rows.subset(chosen), rows.subset(left))
        both = (None if labels is None else labels[chosen], None if labels is None else labels[left])
        how = f"random split {len(chosen)}/{len(left)} with seed {seed}"
    else:
        test = _rows_of_split(loaded, test_split, "test_split", path)
        test_rows = HuggingFaceRows(test, image_column, size, channels, f"{path} ({test_split})")
        if test_rows.shape[1:] != rows.shape[1:]:
            problem = f"its samples have shape {tuple(test_rows.shape[1:])}, those of {split} {tuple(rows.shape[1:])}"
            raise DataError("test_split", test_split, problem, "Give size= or channels=.")
        parts, both = (rows, test_rows), (labels, column_labels(test, label_column, path))
        how = f"the source's own splits {split!r} and {test_split!r}"
    transform, scaling = _transform(parts[0], rows.column.image_shape is not None, path)
    return Dataset(
        name=Path(path).name,
        train=parts[0],
        test=parts[1],
        train_labels=both[0],
        test_labels=both[1],
        transform=transform,
        levels=256 if rows.column.image_shape else None,
        classes=_class_names(train, label_column),
        source=f"Hugging Face data set {Path(path).name}",
        licence=_licence(train),
        notes=f"{how}; {scaling}",
    )


def hugging_face_stream(
    path: str,
    name: str | None = None,
    split: str = "train",
    test_split: str | None = None,
    image_column: str = "image",
    label_column: str | None = "label",
    size: int | Sequence[int] | None = None,
    channels: int | None = None,
    test_samples: int = 2000,
    buffer: int = 10_000,
    seed: int = 0,
) -> Dataset:
    """The data sets of `hugging_face` as a stream: rows come shard by shard, over the network if they are on the hub.

    The test part is the first ``test_samples`` rows of ``test_split``, held in memory; without ``test_split`` it is
    empty. ``buffer`` rows are shuffled together (see `ShuffledStream`). For columns of numbers, the transform comes
    from the first 10,000 rows. The other arguments are those of `hugging_face`.

    Raises:
        DataError: as `hugging_face`.
        MissingDependencyError: without ``datasets``.
    """
    loaded = _loaded(path, name, None, streaming=True)
    options = (image_column, label_column, size, channels)
    rows = _rows_of_split(loaded, split, "split", path)
    shards = HuggingFaceShards(rows, *options, f"{path} ({split})")
    test = shards
    if test_split is not None:
        test = HuggingFaceShards(
            _rows_of_split(loaded, test_split, "test_split", path), *options, f"{path} ({test_split})"
        )
    x, labels = first_samples(test, 0 if test_split is None else test_samples)
    if shards.column.image_shape is None:
        values = first_samples(shards, 10_000)[0]
        transform, how = _affine(values, path, f"the first {len(values):,} rows")
    else:
        transform, how = eight_bit(), "transform to [-1, 1]"
    return Dataset(
        name=Path(path).name,
        train=x[:0],
        test=x,
        test_labels=labels,
        stream=ShuffledStream(shards, buffer, seed),
        transform=transform,
        levels=256 if shards.column.image_shape else None,
        classes=_class_names(rows, label_column),
        source=f"Hugging Face data set {Path(path).name}, streamed",
        licence=_licence(rows),
        notes=f"streamed in blocks of {buffer} with seed {seed}; {how}",
    )


def _loaded(path: str, name: str | None, cache_dir: str | None, streaming: bool) -> Any:
    datasets, safely = _datasets(), _script_refusal()
    place = Path(path).absolute()  # stays readable when the process changes its folder
    saved = any((place / file).is_file() for file in ("state.json", "dataset_dict.json"))
    try:
        if saved:
            loaded = datasets.load_from_disk(str(place))
            if not isinstance(loaded, dict):
                loaded = {str(loaded.split or "train"): loaded}
            if not streaming:
                return loaded
            return {key: part.to_iterable_dataset(num_shards=_file_count(part)) for key, part in loaded.items()}
        return datasets.load_dataset(
            str(place) if place.exists() else str(path), name, streaming=streaming, cache_dir=cache_dir, **safely
        )
    except Exception as error:  # `datasets` raises many types: missing, damaged, unreachable, ambiguous
        problem = f"cannot be loaded ({type(error).__name__}: {str(error)[:300]})"
        remedy = "Give a folder of save_to_disk, a folder of parquet files, or a name on the hub (and `name`)."
        raise DataError("path", str(path), problem, remedy) from error


def _script_refusal() -> dict[str, bool]:
    """Arguments that keep ``datasets`` from running a script found with the data. From version 4 on it runs none.

    Raises:
        MissingDependencyError: for a version that runs scripts and cannot be told not to.
    """
    datasets = _datasets()
    if int(datasets.__version__.split(".")[0]) >= 4:
        return {}
    if "trust_remote_code" in inspect.signature(datasets.load_dataset).parameters:
        return {"trust_remote_code": False}
    error = ImportError(f"version {datasets.__version__} runs scripts that lie beside the data")
    raise MissingDependencyError("datasets", "Hugging Face data sets", "data", error)


def parquet_columns(file: Path) -> list[str]:
    """The names of the columns of a parquet file.

    Raises:
        DataError: if it cannot be read.
    """
    datasets = _datasets()
    with or_data_error("path", str(file), "cannot be read", "Fetch it again."):
        return list(datasets.Dataset.from_parquet(str(file)).column_names)


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MissingDependencyError("datasets", "Hugging Face data sets", "data", error) from error
    return datasets


def _file_count(part: Any) -> int:
    return max(1, min(len(part), len(part.cache_files)))


def _rows_of_split(loaded: Any, split: str, argument: str, path: str) -> Any:
    if split not in loaded:
        raise DataError(argument, split, f"{path} has the splits: {', '.join(loaded)}", "Give one of them.")
    return loaded[split]


def _class_names(rows: Any, column: str | None) -> tuple[str, ...] | None:
    names = getattr((rows.features or {}).get(column), "names", None)
    return tuple(names) if names else None


def _licence(rows: Any) -> str:
    return str(getattr(rows.info, "license", "") or "the source's own")


def _transform(train: Source, images: bool, path: str) -> tuple[Transform, str]:
    if images:
        return eight_bit(), "transform to [-1, 1]"
    if not len(train):
        return Identity(), "no transform"
    m = min(len(train), 10_000)
    values = train[torch.arange(m) * len(train) // m]
    return _affine(values, path, "train" if m == len(train) else f"{m:,} rows of train")


def _affine(values: Tensor, path: str, of: str) -> tuple[Transform, str]:
    rows = values.numpy()
    return affine_of(rows, "auto", "auto", path, of, whole=are_levels(rows, None))
