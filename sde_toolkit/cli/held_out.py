"""Held-out samples of a data set, the same ones whatever the seed; or a user's own file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.data import Dataset
from sde_toolkit.data.decoding import SUFFIXES, ImageShape, decode, read_header
from sde_toolkit.errors import ArgumentError, DataError
from sde_toolkit.evaluation.sample_files import read_samples

__all__ = ["HeldOut", "read_file"]


class HeldOut:
    """n samples of the test part of a data set, or of its training part, if there are no others.

    Attributes:
        part: "test" or "train"; ``values`` and ``labels`` are all of it.
        index: which samples they are, (n,).

    Raises:
        ArgumentError: if there are fewer; ``name`` is the setting that asked.
    """

    def __init__(self, dataset: Dataset, n: int, name: str = "n") -> None:
        self.part, self.values, self.labels = "test", dataset.test, dataset.test_labels
        if len(self.values) == 0:
            self.part, self.values, self.labels = "train", dataset.train, dataset.train_labels
        if n > len(self.values):
            problem = f"the {self.part} part of {dataset.name} has {len(self.values)} samples"
            raise ArgumentError(name, n, problem, "Ask for fewer.")
        self.index = torch.randperm(len(self.values), generator=torch.Generator().manual_seed(0))[:n]
        self.source = f"{self.part} part of {dataset.name} ({dataset.source})"

    @property
    def x(self) -> Tensor:
        """The samples (n, *event), in data space."""
        return self.values[self.index]


def read_file(path: str, event_shape: tuple[int, ...]) -> Tensor:
    """The samples (n, *event) of an array file, or the one of a picture, in data space.

    A picture is converted to the number of channels of the events.

    Raises:
        DataError: for what is missing or unreadable, or has another shape.
    """
    place = Path(path)
    remedy = f"Give an array of shape {event_shape}, or (n, *{event_shape})."
    if not place.is_file():
        raise DataError("file", path, "there is no such file", "Give a picture, or an .npy or .npz file.")
    if place.suffix.lower() in SUFFIXES:
        return _picture(place, event_shape)
    x: Any = read_samples(place)
    if tuple(x.shape) == event_shape:
        x = x[None]
    if tuple(x.shape[1:]) != event_shape:
        raise DataError("file", path, f"its array has shape {tuple(x.shape)}", remedy)
    if x.is_floating_point() and not bool(x.isfinite().all()):
        raise DataError("file", path, "it holds NaN or infinity", "Remove them.")
    return x


def _picture(place: Path, event_shape: tuple[int, ...]) -> Tensor:
    if len(event_shape) != 3 or event_shape[0] not in (1, 3):
        problem = f"a picture, and the model's samples have shape {event_shape}"
        raise DataError("file", str(place), problem, "Give an .npy file.")
    channels, height, width = event_shape
    header = read_header(place, str(place))
    if (header.height, header.width) != (height, width):
        problem = f"it is {header.width}x{header.height} pixels, the model's images are {width}x{height}"
        raise DataError("file", str(place), problem, "Crop and scale it to that size.")
    return decode(place, str(place), ImageShape(height, width, channels, resize=False))[None]
