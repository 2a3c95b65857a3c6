"""Columns of Hugging Face ``datasets``, by row or shard by shard, as tensors.

A column holds images, which are stored encoded and decoded here (see `decoding.ImageShape`), or numbers: scalars,
lists or arrays, all of one shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.data.decoding import ImageShape, agreed_shape, checked_size, decode, read_header
from sde_toolkit.data.opening import or_data_error
from sde_toolkit.data.sources import Source
from sde_toolkit.data.stream import LabelledSample
from sde_toolkit.errors import DataError

__all__ = ["HuggingFaceRows", "HuggingFaceShards", "column_labels"]

_FETCHED = 16  # rows of a stream fetched together
_ROWS_INSPECTED = 64  # rows whose headers or shapes decide how all are read


class _Column:
    """How one column becomes tensors: images are read as one `ImageShape`, numbers are taken as they are."""

    def __init__(self, rows: Any, features: Any, name: str, size: Any, channels: int | None, shown: str) -> None:
        self.name, self.shown = name, shown
        _require(features, name, "image_column", shown)
        self.image_shape: ImageShape | None = None
        if _is_image(features[name]):
            encoded = ((f"row {i} of {shown}", _encoded(row[name], i, shown)) for i, row in rows)
            headers = ((named, read_header(image, named)) for named, image in encoded)
            self.image_shape = agreed_shape(headers, checked_size(size), channels, "image_column", shown)
            self.event_shape: tuple[int, ...] = self.image_shape.event_shape
            self.dtype = torch.uint8
            return
        self._type = _number_type(features[name])
        if self._type is None:  # refused before a row is read, which would decode a list of pictures
            raise self._no_numbers(name)
        number, row = next(rows, (0, None))
        if row is None:
            raise DataError("path", shown, "it has no rows", "Give another split.")
        first = self._numbers(row[name], number)
        self.event_shape, self.dtype = tuple(first.shape), first.dtype

    def tensor(self, value: Any, row: int) -> Tensor:
        """The sample in this column of a row."""
        if self.image_shape is not None:
            return decode(_encoded(value, row, self.shown), f"row {row} of {self.shown}", self.image_shape)
        found = self._numbers(value, row)
        if tuple(found.shape) != self.event_shape:
            problem = f"its shape is {tuple(found.shape)}, the first row's is {self.event_shape}"
            raise DataError("image_column", f"row {row} of {self.shown}", problem, "Give samples of one shape.")
        return found

    def _numbers(self, value: Any, row: int) -> Tensor:
        try:
            values = np.asarray(value)
            if values.dtype == object:
                values = np.stack([np.asarray(part) for part in value])
            values = values.astype(self._type)
        except (ValueError, TypeError):
            values = np.empty(0, object)
        if values.dtype.kind not in "fiub":
            raise self._no_numbers(f"{self.name}, row {row} of {self.shown}")
        return torch.from_numpy(np.array(values))

    def _no_numbers(self, which: str) -> DataError:
        problem = "its values are neither images nor numbers in an array"
        return DataError("image_column", which, problem, "Name another column.")


class HuggingFaceRows(Source):
    """A column of a ``datasets.Dataset``; its arrow files stay mapped on disk."""

    def __init__(self, rows: Any, column: str, size: Any = None, channels: int | None = None, shown: str = "") -> None:
        _require(rows.features, column, "image_column", shown)
        with _reading(shown):
            raw = _undecoded(rows, column)
        inspected = sorted({round(i * (len(raw) - 1) / max(1, _ROWS_INSPECTED - 1)) for i in range(_ROWS_INSPECTED)})
        some = ((i, raw[i]) for i in inspected) if len(raw) else iter(())
        with _reading(shown):
            self.column = _Column(some, raw.features, column, size, channels, shown)
        super().__init__(len(raw), self.column.event_shape, self.column.dtype)
        self.rows = raw

    def read(self, index: int) -> Tensor:
        """One row."""
        with _reading(self.column.shown):
            return self.column.tensor(self.rows[index][self.column.name], index)

    def read_many(self, indices: list[int]) -> Tensor:
        """Rows fetched together."""
        with _reading(self.column.shown):
            values = self.rows[indices][self.column.name]
        return torch.stack([self.column.tensor(value, i) for value, i in zip(values, indices, strict=True)])

    def describe(self, index: int) -> str:
        """The row's number and the data set."""
        return f"row {index} of {self.column.shown}"


class HuggingFaceShards:
    """Rows of a ``datasets.IterableDataset`` as the `Shards` of a stream."""

    def __init__(
        self,
        rows: Any,
        column: str,
        label_column: str | None,
        size: Any = None,
        channels: int | None = None,
        shown: str = "",
    ) -> None:
        with _reading(shown):
            features = rows.features or rows._resolve_features().features
        _require(features, column, "image_column", shown)
        if label_column is not None:
            _require(features, label_column, "label_column", shown)
        self.needed = [column] if label_column is None else [column, label_column]
        if label_column is not None:
            _check_label_column(features, label_column, shown)
        self.rows = _undecoded(rows, column, features, self.needed[1:])
        self.label_column, self.labelled = label_column, label_column is not None
        some = enumerate(islice(self.rows, _ROWS_INSPECTED))
        with _reading(shown):
            self.column = _Column(some, features, column, size, channels, shown)
        self.event_shape, self.dtype = self.column.event_shape, self.column.dtype

    def __len__(self) -> int:
        """Number of shards: as a rule, of files."""
        return int(self.rows.num_shards)

    def records(self, shard: int, start: int) -> Iterator[tuple[int, Any]]:
        """(number, row) of one shard from number ``start`` on. Images are still encoded."""
        part = self.rows.shard(len(self), shard)
        batches = (part.skip(start) if start else part).iter(_FETCHED)  # `iter(part)` splits among torch's workers
        rows = ({name: batch[name][i] for name in self.needed} for batch in batches for i in range(_rows(batch)))
        with _reading(self.column.shown):
            yield from enumerate(rows, start)

    def decode(self, record: tuple[int, Any]) -> LabelledSample:
        """The sample, and its label."""
        number, row = record
        x = self.column.tensor(row[self.column.name], number)
        if self.label_column is None:
            return x, None
        return x, int(_checked_labels([row[self.label_column]], self.label_column, self.column.shown)[0])


def _reading(shown: str) -> AbstractContextManager[None]:
    """Any error while rows are read becomes a `DataError`: the readers of damaged files raise many kinds."""
    return or_data_error("path", shown, "its rows cannot be read", "Fetch the files again.")


def _is_image(feature: Any) -> bool:
    return type(feature).__name__ == "Image"


def _undecoded(rows: Any, column: str, features: Any = None, also: Sequence[str] = ()) -> Any:
    """The rows without decoding: images stay encoded, numbers come as numpy arrays, float64 as lists.

    Only ``column`` and those in ``also`` are kept: ``datasets`` would decode the pictures in the others.
    Lists keep the digits of float64.
    """
    import datasets

    features = features or rows.features
    rows = rows.select_columns([column, *also])
    if column in features and _is_image(features[column]):
        return rows.with_format(None).cast_column(column, datasets.Image(decode=False))
    double = column in features and _number_type(features[column]) == np.float64
    return rows.with_format(None if double else "numpy")  # the format "numpy" means float32


def _number_type(feature: Any) -> np.dtype | None:
    """The dtype of a feature's innermost values, or None if they are not numbers."""
    while getattr(feature, "feature", None) is not None:
        feature = feature.feature
    try:
        return np.dtype(getattr(feature, "dtype", "object"))
    except TypeError:
        return None


def _rows(batch: dict[str, Any]) -> int:
    return len(next(iter(batch.values())))


def _encoded(value: Any, row: int, shown: str) -> bytes | Path:
    """The file in an image column, as bytes or a path."""
    if isinstance(value, dict) and value.get("bytes") is not None:
        return bytes(value["bytes"])
    if isinstance(value, dict) and value.get("path"):
        return Path(value["path"])
    raise DataError("image_column", f"row {row} of {shown}", "it has no image", "Leave such rows out.")


def _require(features: Any, column: str, argument: str, shown: str) -> None:
    if column not in features:
        extra = ", or label_column=None" if argument == "label_column" else ""
        raise DataError(argument, column, f"{shown} has the columns: {', '.join(features)}", f"Name one{extra}.")


def column_labels(rows: Any, column: str | None, path: str) -> Tensor | None:
    """Labels (N,) int64 of a ``datasets.Dataset``, or None if no column is named."""
    if column is None:
        return None
    _require(rows.features, column, "label_column", path)
    _check_label_column(rows.features, column, path)
    values: list[Any] = []
    with _reading(path):
        for batch in rows.select_columns([column]).with_format(None).iter(batch_size=10_000):
            values += batch[column]
    return _checked_labels(values, column, path)


def _check_label_column(features: Any, column: str, shown: str) -> None:
    """Refuse labels that are not numbers, before one is read."""
    if _is_image(features[column]) or _number_type(features[column]) is None:
        raise _no_labels(column, shown)


def _no_labels(column: str, shown: str) -> DataError:
    problem = f"labels of {shown} are not whole numbers from 0 (null and -1 mean: none given)"
    return DataError("label_column", column, problem, "Name another column, or label_column=None.")


def _checked_labels(values: list[Any], column: str, shown: str) -> Tensor:
    try:
        labels = np.asarray(values)
    except ValueError:
        labels = np.asarray([None])
    if labels.dtype.kind not in "iub" or labels.ndim != 1 or (labels.size and labels.min() < 0):
        raise _no_labels(column, shown)
    return torch.from_numpy(labels.astype(np.int64))
