"""A folder from which work continues: one file for each finished part, and the request they belong to.

    request.json        the fingerprint, and what was decided by measuring
    parts/00017.npz     plain arrays of part 17 and the digest of the fingerprint; nothing in it is ever unpickled

Every file is written beside its place and then moved there: what is there is whole, or was damaged afterwards. A
damaged part is computed anew. A folder with finished parts of another request is refused; without any it is free.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sde_toolkit.data.reading import read_numpy
from sde_toolkit.errors import ArgumentError, DataError
from sde_toolkit.files.plain import UnreadableFileError, read_json
from sde_toolkit.files.whole import write_atomically
from sde_toolkit.jobs.fingerprints import differences, digest

__all__ = ["Arrays", "PartStore"]

Arrays = dict[str, np.ndarray]
_PART = re.compile(r"\d{5,}\.npz|\.\d{5,}\.npz\.\d+\.partial")


@dataclass(frozen=True)
class PartStore:
    """The parts of one request in a folder. ``name``: what the folder is called in error messages."""

    directory: Path
    fingerprint: Mapping[str, Any]
    name: str = "directory"

    def claim(self, decide: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What was decided when the work began; ``decide`` says it, if this is the beginning.

        Raises:
            ArgumentError: if the folder holds parts of another request, naming what differs.
        """
        file = self.directory / "request.json"
        if os.path.lexists(file) or any((self.directory / "parts").glob("*.npz")):
            self._read_request(file)
        if any((self.directory / "parts").glob("*.npz")):
            there = self._read_request(file)
            found = differences(there["fingerprint"], self.fingerprint)
            if found:
                shown = ", ".join(found[:4]) + (f" and {len(found) - 4} more" if len(found) > 4 else "")
                problem = f"it holds parts of another run, which differs in {shown}"
                remedy = "Name another folder, repeat that run's settings, or delete the folder."
                raise ArgumentError(self.name, str(self.directory), problem, remedy)
            return there["decided"]
        decided = decide()
        content = {"fingerprint": self.fingerprint, "digest": digest(self.fingerprint), "decided": decided}
        (self.directory / "parts").mkdir(parents=True, exist_ok=True)
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        write_atomically(file, text.encode("utf-8"))
        return decided

    def _read_request(self, file: Path) -> dict[str, Any]:
        try:
            content = read_json(file)
            return {"fingerprint": dict(content["fingerprint"]), "decided": dict(content["decided"])}
        except (OSError, UnreadableFileError, ValueError, KeyError, TypeError):
            problem = "there is no readable request.json of a run in it: it is missing, damaged, or somebody else's"
            raise ArgumentError(self.name, str(self.directory), problem, "Name another folder.") from None

    def read(self, number: int, first: int, last: int, say: Callable[[str], None]) -> Arrays | None:
        """The arrays of a part, None if it has to be computed; ``say`` is told of one that is damaged."""
        file = self._file(number)
        if not file.exists():
            return None
        try:
            arrays = {str(name): value for name, value in read_numpy(file).items()}
            belongs, place, _ = str(arrays.pop("digest")), arrays.pop("place").tolist(), arrays.pop("process")
        except (DataError, KeyError) as error:
            say(f"part {file.name} is damaged and will be computed anew ({str(error).splitlines()[0][:160]})")
            return None
        whole = all(len(value) == last - first for value in arrays.values() if value.ndim > 0)
        if belongs != digest(self.fingerprint) or place != [number, first, last] or not whole:
            say(f"part {file.name} belongs to something else and will be computed anew")
            return None
        return arrays

    def must_read(self, number: int, first: int, last: int, say: Callable[[str], None]) -> Arrays:
        """The arrays of a part that some process has just written.

        Raises:
            ArgumentError: if it is not there.
        """
        arrays = self.read(number, first, last, say)
        if arrays is None:
            problem = f"part {number} is not there, though a process was to write it"
            remedy = "All processes must see the same folder; run the command once more to compute what is missing."
            raise ArgumentError(self.name, str(self.directory), problem, remedy)
        return arrays

    def write(self, number: int, first: int, last: int, arrays: Mapping[str, np.ndarray], process: int = 0) -> None:
        """Store the arrays of a part, of the samples first to last − 1: per-sample ones (b, ...), the others ()."""
        buffer = io.BytesIO()
        place = {"place": np.array([number, first, last]), "process": np.array(process)}
        own = {"digest": np.array(digest(self.fingerprint)), **place}
        np.savez(buffer, **own, **arrays)  # type: ignore[arg-type]
        file = self._file(number)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, buffer.getvalue())

    def clear(self) -> None:
        """Take the parts away, once what they were for has been written; nothing else."""
        parts = self.directory / "parts"
        for file in parts.iterdir() if parts.is_dir() else ():
            if _PART.fullmatch(file.name):  # also what a killed process left half written
                file.unlink()
        (self.directory / "request.json").unlink(missing_ok=True)
        for folder in (parts, self.directory):
            with contextlib.suppress(OSError):
                folder.rmdir()  # if nothing else is in it

    def _file(self, number: int) -> Path:
        return self.directory / "parts" / f"{number:05d}.npz"
