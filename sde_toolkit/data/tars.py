"""WebDataset shards: tar files in which consecutive members with the same name up to the first dot form a sample.

    00017.png, 00017.cls    an image, and its label as a whole number in text

Members of other kinds are ignored. Records are read one after the other; skipped ones are not read.
"""

from __future__ import annotations

import glob
import tarfile
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch

from sde_toolkit.data.archives import member_bytes, open_tar, regular_members
from sde_toolkit.data.dataset import Dataset
from sde_toolkit.data.decoding import MOST_BYTES, SUFFIXES, agreed_shape, checked_size, decode, ending, read_header
from sde_toolkit.data.stream import LabelledSample, ShuffledStream, first_samples
from sde_toolkit.errors import DataError
from sde_toolkit.transforms import eight_bit

__all__ = ["TarShards", "webdataset"]

_LABEL_BYTES, _DIGITS = 1024, 18  # a label is a whole number in text that fits 64 bits
_RECORDS_INSPECTED = 64  # records whose headers decide how all are read


class _Record(NamedTuple):
    name: str
    image: bytes
    label: bytes | None


class TarShards:
    """Images (and labels, if ``labelled``) in tar files, as the `Shards` of a stream."""

    def __init__(
        self, files: Sequence[str], labelled: bool, size: int | Sequence[int] | None, channels: int | None
    ) -> None:
        self.files = [str(Path(file).absolute()) for file in files]
        self.labelled = labelled
        self.dtype = torch.uint8
        headers = []
        for shard in range(len(self.files)):
            for record in self.records(shard, 0):
                headers.append((record.name, read_header(record.image, record.name)))
                if len(headers) == _RECORDS_INSPECTED:
                    break
            if len(headers) == _RECORDS_INSPECTED:
                break
        self.image_shape = agreed_shape(headers, checked_size(size), channels, "path", ", ".join(self.files))
        self.event_shape: tuple[int, ...] = self.image_shape.event_shape

    def __len__(self) -> int:
        """Number of tar files."""
        return len(self.files)

    def records(self, shard: int, start: int) -> Iterator[_Record]:
        """Undecoded samples of one file, from number ``start`` on."""
        path = self.files[shard]
        with open_tar(path) as archive:
            yield from _group_records(archive, path, start)

    def decode(self, record: _Record) -> LabelledSample:
        """uint8 (C, H, W), and the label."""
        image = decode(record.image, record.name, self.image_shape)
        if not self.labelled:
            return image, None
        text = b"" if record.label is None else record.label.strip()
        if not (text.isdigit() and len(text) <= _DIGITS):
            problem = "it has no label: no .cls member with a whole number beside it"
            raise DataError("labels", ending(record.name), problem, "Give labels=False, or add labels.")
        return image, int(text)


def webdataset(
    path: str | Path | Sequence[str],
    labels: bool = True,
    test_path: str | Path | Sequence[str] | None = None,
    test_samples: int = 2000,
    buffer: int = 10_000,
    size: int | Sequence[int] | None = None,
    channels: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Images from WebDataset shards as a stream of (C, H, W) uint8, transform to [−1, 1].

    ``path``: a pattern such as "shards/train-*.tar", a folder of tar files, or a list of files. The test part is the
    first ``test_samples`` of ``test_path``, held in memory; without one it is empty. ``buffer`` records are shuffled
    together. ``size`` and ``channels`` are as in ``image_folder`` and decided from the first 64 records; a later one
    that does not fit is refused when it is read.

    Raises:
        DataError: naming the file, if it is missing or not a tar file, or if an image or label cannot be used.
    """
    shards = TarShards(_tar_files(path), labels, size, channels)
    test = shards if test_path is None else TarShards(_tar_files(test_path), labels, size, channels)
    x, known = first_samples(test, 0 if test_path is None else test_samples)
    return Dataset(
        name=Path(shards.files[0]).stem,
        train=x[:0],
        test=x,
        test_labels=known,
        stream=ShuffledStream(shards, buffer, seed),
        transform=eight_bit(),
        levels=256,
        source=f"{len(shards)} WebDataset shards",
        licence="the files' own",
        notes=f"streamed in blocks of {buffer} with seed {seed}; transform to [-1, 1]",
    )


def _tar_files(path: str | Path | Sequence[str]) -> list[str]:
    if isinstance(path, (str, Path)):
        pattern = str(Path(path, "*.tar")) if Path(path).is_dir() else str(path)
        found = sorted(glob.glob(pattern))
    else:
        found = [str(file) for file in path]
    missing = [file for file in found if not Path(file).is_file()]
    if missing or not found:
        problem = "there is no such file"
        raise DataError("path", missing[0] if missing else str(path), problem, 'Give a pattern such as "data/*.tar".')
    return found


def _group_records(archive: tarfile.TarFile, path: str, start: int) -> Iterator[_Record]:
    """The records: runs of members with one key. Contents are read from record ``start`` on."""
    number, key, name, counted = -1, None, "", False
    image: bytes | None = None
    label: bytes | None = None
    for member in chain(regular_members(archive), [None]):
        stem, _, ending = ("", "", "") if member is None else _split_name(member.name)
        if key is not None and (member is None or stem != key):
            if image is not None and number >= start:
                yield _Record(name, image, label)
            image = label = None
        if member is None:
            return
        kind = "." + ending.rsplit(".", 1)[-1].lower()
        if stem != key:
            key, counted = stem, False
        if kind in SUFFIXES and not counted:
            counted, number = True, number + 1
            name = f"{path}:{member.name}"
            image = member_bytes(archive, member, MOST_BYTES) if number >= start else None
        elif kind == ".cls":
            label = member_bytes(archive, member, _LABEL_BYTES)


def _split_name(name: str) -> tuple[str, str, str]:
    folder, slash, base = name.rpartition("/")
    stem, dot, ending = base.partition(".")
    return folder + slash + stem, dot, ending
