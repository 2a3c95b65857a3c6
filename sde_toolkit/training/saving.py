"""Checkpoints of a run. Each is complete or absent. The last few and the best are kept. None needs unpickling.

    output/checkpoints/step-000000500/    model.yaml  run.yaml  ema.safetensors  raw.safetensors  training.pt
    output/best                           a file that names the one with the lowest held-out loss

A checkpoint is written under another name, forced to the disk, and then renamed. Before a checkpoint is removed, it is
renamed too. A kill can leave folders with these other names; the next start removes them.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.data import Stream
from sde_toolkit.errors import ArgumentError, CheckpointError
from sde_toolkit.files.disk import to_disk
from sde_toolkit.files.plain import UnreadableFileError, read_yaml
from sde_toolkit.files.tensors import load_torch_file
from sde_toolkit.files.whole import write_atomically
from sde_toolkit.jobs.fingerprints import flat
from sde_toolkit.models import checkpoint
from sde_toolkit.models.checkpoint import BEST, CHECKPOINTS, best_checkpoint, checkpoint_folders
from sde_toolkit.models.descriptions import CLASS, OWN
from sde_toolkit.showing import shown
from sde_toolkit.training.folder import PARTIAL, RUN, STATE
from sde_toolkit.training.trial import differing_part

__all__ = [
    "check_run",
    "check_stream_state",
    "load_state",
    "mark_best",
    "mark_missed_best",
    "prune",
    "restoring",
    "save_checkpoint",
    "writing",
]


def save_checkpoint(
    directory: Path,
    step: int,
    description: Mapping[str, Any],
    run: Mapping[str, Any],
    weights: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
) -> Path:
    """Write the checkpoint of a step. It has its name only when it is complete.

    Raises:
        CheckpointError: if it cannot be written (disk full, no permission). Earlier checkpoints stay as they are.
    """
    home = directory / CHECKPOINTS
    target = home / f"step-{step:09d}"
    partial = home / f"{PARTIAL}{target.name}"
    try:
        home.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        checkpoint.save(partial, description, weights)
        with (partial / STATE).open("wb") as file:
            torch.save(dict(state), file)
        (partial / RUN).write_text(checkpoint.check_plain("run", run), encoding="utf-8")
        for file_path in partial.iterdir():
            to_disk(file_path)
        to_disk(partial)
        if target.exists():  # the run repeats this step
            _remove(target)
        os.replace(partial, target)
        to_disk(home)
    except (OSError, RuntimeError) as error:  # torch's writer turns a failed write into a RuntimeError
        shutil.rmtree(partial, ignore_errors=True)
        with writing(directory):
            raise OSError(f"{target.name}: {error}") from None
    return target


def _remove(folder: Path) -> None:
    """Remove a checkpoint. It is renamed first, so that nothing incomplete has its name."""
    doomed = folder.with_name(f"{PARTIAL}gone-{folder.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    os.replace(folder, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def check_stream_state(stream: Stream | None) -> None:
    """Refuse a stream whose state a checkpoint cannot hold. It is written to memory and read back.

    Raises:
        ArgumentError: if the state holds more than plain data.
    """
    if stream is None:
        return
    state, memory = stream.state_dict(), io.BytesIO()
    try:
        torch.save(state, memory)
        torch.load(io.BytesIO(memory.getvalue()), weights_only=True)
    except Exception as error:  # pickle and torch raise many kinds of errors
        problem = f"its state_dict cannot be written and read back ({type(error).__name__})"
        remedy = "Let state_dict return numbers, strings, lists and dicts only."
        raise ArgumentError("dataset.stream", state, problem, remedy) from None


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Turn a failed write into an error that names the folder.

    Raises:
        CheckpointError: for any OSError inside.
    """
    try:
        yield
    except OSError as error:
        there = [folder.name for _, folder in checkpoint_folders(place)] if place.is_dir() else []
        last = there[-1] if there else "the start"
        raise CheckpointError(
            place,
            f"it could not be written ({' '.join(str(error).split())[:200]})",
            f"Free disk space, or permit writing, and run the same command again. It continues from {last}.",
        ) from None


def mark_best(directory: Path, folder: Path) -> None:
    """Let ``best`` name a checkpoint. It is a file, since not every file system has links."""
    with writing(directory):
        write_atomically(directory / BEST, f"{CHECKPOINTS}/{folder.name}\n".encode())


def mark_missed_best(directory: Path, best_step: int) -> None:
    """Let ``best`` name the checkpoint of the best step, if a kill came before it could."""
    folders = dict(checkpoint_folders(directory))
    if best_step in folders and not _is_same_folder(best_checkpoint(directory), folders[best_step]):
        mark_best(directory, folders[best_step])


def prune(directory: Path, keep: int) -> None:
    """Remove the checkpoints of the run, except the last ``keep`` and the best."""
    best = best_checkpoint(directory)
    for _, folder in checkpoint_folders(directory)[:-keep]:
        if (folder / RUN).is_file() and not _is_same_folder(best, folder):
            _remove(folder)


def _is_same_folder(one: Path | None, other: Path) -> bool:
    return one is not None and one.resolve() == other.resolve()


def load_state(folder: Path) -> dict[str, Any]:
    """The training state of a checkpoint, on the CPU, read with torch's ``weights_only``.

    Raises:
        CheckpointError: if it is missing, damaged or foreign.
    """
    file, remedy = folder / STATE, _remove_it(folder)
    try:
        found = load_torch_file(file, remedy)
    except FileNotFoundError:
        raise CheckpointError(folder, f"it has no {STATE}", f"Restore the file. Or: {remedy}") from None
    if not isinstance(found, dict) or "step" not in found:
        raise CheckpointError(folder, f"{STATE} holds no training state", remedy)
    return found


def _remove_it(folder: Path) -> str:
    return f"Remove {folder.name}. Then the run continues from the checkpoint before it, or from the start."


@contextmanager
def restoring(folder: Path) -> Iterator[None]:
    """Turn the error of a state that does not fit the run into one that names the checkpoint.

    Raises:
        CheckpointError: for the errors that optimizers, schedules and streams raise.
    """
    try:
        yield
    except CheckpointError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        problem = f"{STATE} does not fit the run ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        raise CheckpointError(folder, problem, _remove_it(folder)) from error


_OF_OLD_RUNS = {"options.ema_warmup": False, "noise_version": 1}  # of runs that began before these were written


def check_run(folder: Path, run: Mapping[str, Any], free: Set[str]) -> None:
    """Refuse to continue from a checkpoint that was made with other settings. The ``free`` keys may differ.

    Raises:
        CheckpointError: naming the first key that differs, and both values.
    """
    made_with = _read_run(folder)
    part = differing_part(made_with.get("behaviour"), run["behaviour"])
    then, now = ({**_OF_OLD_RUNS, **dict(flat({**of, "behaviour": None}))} for of in (made_with, run))
    for key in [key for key in now if key.endswith(f".{OWN}") and key not in then]:
        bare = key.removesuffix(OWN) + CLASS  # earlier versions wrote so of the user's own parts
        if bare in then:
            then[key] = then.pop(bare)
    if "held" not in made_with:  # earlier versions did not write it
        now = {key: value for key, value in now.items() if not key.startswith("held.")}
    if then["noise_version"] != now["noise_version"]:
        problem = (
            "the random numbers of training have changed since it was made, so its run cannot be continued exactly"
        )
        remedy = "Train in another folder; the command's initial=FOLDER starts from these weights."
        raise CheckpointError(folder, problem, remedy)
    for key in sorted({*then, *now} - free):
        if then.get(key) != now.get(key):
            raise CheckpointError(
                folder,
                f"it was made with {key}={shown(then.get(key))}, now {key}={shown(now.get(key))}",
                "Give the same value to continue, or train in another folder. (There the command's initial=FOLDER "
                "starts from these weights.)",
            )
    if part is not None:
        problem = f"its {part} has the same name as before, but gives other answers on a few values"
        raise CheckpointError(folder, problem, f"Give the same {part} to continue, or train in another folder.")


def _read_run(folder: Path) -> dict[str, Any]:
    remedy = f"Restore the file. Or: {_remove_it(folder)}"
    try:
        found = read_yaml(folder / RUN)
    except FileNotFoundError:
        raise CheckpointError(folder, f"it has no {RUN}", remedy) from None
    except UnreadableFileError as error:
        raise CheckpointError(folder, str(error), remedy) from None
    if not isinstance(found, dict):
        raise CheckpointError(folder, f"{RUN} holds no description of a run", remedy)
    return found
