"""The files in the folder of a run that belong to the run. Only these are ever replaced or removed.

A run writes checkpoints/, averages/, pictures/, training.csv, lambda.csv and best. If something else in the folder has
one of these names, the folder is refused before anything is written.
"""

from __future__ import annotations

import csv
import re
import shutil
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any

from sde_toolkit.errors import CheckpointError
from sde_toolkit.jobs.fingerprints import digest, flat
from sde_toolkit.models import checkpoint
from sde_toolkit.models.checkpoint import BEST, CHECKPOINTS, checkpoint_folders

__all__ = ["AVERAGES", "LOGS", "PARTIAL", "RUN", "STATE", "check_folder", "remove_leftovers", "run_digest", "snapshots"]

RUN = "run.yaml"
STATE = "training.pt"
PARTIAL = ".partial-"
AVERAGES = "averages"
PICTURES = "pictures"
LOGS = {
    "training.csv": (
        "step",
        "images",
        "seconds",
        "learning_rate",
        "loss",
        "gradient_norm",
        "skipped",
        "images_per_second",
        "held_out_loss",
    ),
    "lambda.csv": ("step", "part", "low", "high", "count", "loss"),
}


def check_folder(directory: Path, run: str) -> None:
    """Refuse a folder in which something that no run wrote has a name that a run writes.

    Where there is no checkpoint, snapshots of averages belong to the run only if they have its digest, ``run``.

    Raises:
        CheckpointError: naming the file or folder.
    """
    for name in _foreign(directory, run):
        problem = f"{name} is there already, and does not belong to this run"
        raise CheckpointError(directory, problem, f"Train in another folder, or move {name} out of this one.")


def _foreign(directory: Path, run: str) -> Iterator[str]:
    for name, columns in LOGS.items():
        file = directory / name
        if _exists(file) and not _is_log(file, columns):
            yield name
    if _exists(directory / BEST) and not checkpoint.is_best_mark(directory / BEST):
        yield BEST
    for name in (CHECKPOINTS, AVERAGES, PICTURES):
        if _exists(directory / name) and not (directory / name).is_dir():
            yield name
    for entry in sorted((directory / CHECKPOINTS).glob("step-*")):
        if re.fullmatch(r"step-\d{9,}", entry.name) and not any((entry / name).is_file() for name in (RUN, STATE)):
            yield f"{CHECKPOINTS}/{entry.name}"
    if not checkpoint_folders(directory):
        for _, _, file in snapshots(directory):
            if _run_of(file) != run:
                yield str(file.relative_to(directory))


def _exists(path: Path) -> bool:
    return path.exists() or path.is_symlink()


def _is_log(file: Path, columns: tuple[str, ...]) -> bool:
    """Whether a file is a log of a run, or empty."""
    if not file.is_file():
        return False
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            first = next(csv.reader([lines.readline(1000)]), [])
    except (UnicodeDecodeError, csv.Error):
        return False
    return tuple(first) == columns or file.stat().st_size == 0


def _run_of(file: Path) -> str | None:
    """The digest of the run that wrote a snapshot; None if the file has none."""
    try:
        return checkpoint.tensors_metadata(file).get("run")
    except CheckpointError:
        return None


def run_digest(record: Mapping[str, Any], free: Set[str]) -> str:
    """A hash of all settings that decide the weights of a run."""
    named = {key: value for key, value in record.items() if key != "behaviour"}  # it repeats to round-off only
    return digest({key: value for key, value in flat(named) if key not in free})


def snapshots(directory: str | Path) -> list[tuple[float, int, Path]]:
    """(σ_rel, step, file) of every snapshot of a run's power-function averages, in order of steps."""
    found = []
    for file in (Path(directory) / AVERAGES).glob("sigma_rel-*/step-*.safetensors"):
        width, step = re.fullmatch(r"sigma_rel-([\d.e-]+)", file.parent.name), re.fullmatch(r"step-(\d+)", file.stem)
        if width and step:
            found.append((float(width[1]), int(step[1]), file))
    return sorted(found, key=lambda row: row[1:])


def remove_leftovers(directory: Path) -> None:
    """Remove the partial files and folders that a killed run may have left."""
    files = "|".join(map(re.escape, (*LOGS, BEST)))
    _remove_partial(directory, rf"\.({files})\.\d+\.partial|{re.escape(PARTIAL)}{BEST}")
    _remove_partial(directory / CHECKPOINTS, rf"{re.escape(PARTIAL)}(gone-)?step-\d+")
    for place in (directory / AVERAGES).glob("sigma_rel-*"):
        _remove_partial(place, r"\.step-\d+\.safetensors\.\d+\.partial")


def _remove_partial(place: Path, pattern: str) -> None:
    for leftover in place.glob(".*"):
        if not re.fullmatch(pattern, leftover.name):
            continue
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)
