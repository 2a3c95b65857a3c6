"""The folder of a command: found, checked, claimed, and only what is the command's own is ever replaced in it.

    .sde-toolkit.json    which command works here, and the files that it has written or may write

A file that stands there and is not in that list belongs to the user or to another command: the command is refused.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from sde_toolkit.cli.signals import Stopped
from sde_toolkit.errors import ArgumentError
from sde_toolkit.files.claims import claimed
from sde_toolkit.files.plain import UnreadableFileError, read_json
from sde_toolkit.files.whole import write_atomically

__all__ = ["CONFIG", "OWN", "holding", "output_folder", "save_config"]

CONFIG = "config.yaml"
OWN = ".sde-toolkit.json"


def output_folder(config: DictConfig, name: str = "output") -> Path:
    """Where the command writes: ``output``, or the folder of its own that a job of ``--multirun`` has.

    Raises:
        ArgumentError: for what is no folder and cannot become one.
    """
    hydra = HydraConfig.get()
    if hydra.mode == RunMode.MULTIRUN:
        return Path(hydra.runtime.output_dir).absolute()
    given = config[name]
    if not isinstance(given, str) or not given.strip() or "\0" in given:
        raise ArgumentError(name, given, "not the name of a folder", f"Give {name}=runs/mine, for example.")
    directory = Path(given).absolute()
    problem = _why_not(directory)
    if problem:
        raise ArgumentError(name, given, problem, "Name another folder.")
    return directory


def _why_not(directory: Path) -> str:
    """Why nothing can be written into a folder that need not be there yet; "" if nothing is known to be in the way."""
    for place in (directory, *directory.parents):
        try:
            place.lstat()
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno == errno.ENOTDIR:
                continue
            return error.strerror or str(error)
        if not place.is_dir():
            return "a file of that name is there" if place == directory else f"{place} is a file, not a folder"
        return "" if os.access(place, os.W_OK | os.X_OK) else f"{place} cannot be written to"
    return ""


@contextmanager
def holding(
    directory: Path, command: str, files: Sequence[str], *, main: bool = True, name: str = "output"
) -> Iterator[None]:
    """Claim the folder, refuse to touch what is not the command's own in it, and do the work.

    Args:
        files: the names that the command will write.
        main: of several processes that share the work the main one claims; the others do nothing here.
        name: what the folder is called on the command line.

    Raises:
        FolderInUseError: if another process works there.
        ArgumentError: if one of the files is there and was not written by this command.
        Stopped: for Ctrl-C and SIGTERM, with what became of the work.
    """
    if not main:
        yield
        return
    _check_own(directory, command, files, name)  # before anything is written, the lock included
    with claimed(directory, f"sde-toolkit {command}", name):
        known = _check_own(directory, command, files, name)
        record, new = directory / OWN, not (directory / OWN).exists()
        if set(files) - set(known) or new:
            content = {"command": command, "files": sorted({*known, *files})}
            write_atomically(record, (json.dumps(content, indent=2) + "\n").encode())
        try:
            yield
        except KeyboardInterrupt as stop:
            raise Stopped.of(stop, _what_is_kept(directory)) from None
        finally:
            if new and not any((directory / file).exists() for file in files):
                record.unlink(missing_ok=True)  # refused, or nothing was written yet


def _check_own(directory: Path, command: str, files: Sequence[str], name: str) -> list[str]:
    """The files that are on record as this command's.

    Raises:
        ArgumentError: if another one is in the way.
    """
    there = _read(directory / OWN)
    own = there["files"] if there.get("command") == command else []
    foreign = [file for file in files if file not in own and os.path.lexists(directory / file)]
    if foreign:
        by = f"the {there['command']} command" if foreign[0] in there.get("files", []) else "this command"
        was = f"was written by {by}" if foreign[0] in there.get("files", []) else "was not written by this command"
        problem = f"its {foreign[0]} {was}, and would be replaced"
        raise ArgumentError(name, str(directory), problem, f"Name another folder with {name}=...")
    return own


def _read(record: Path) -> dict[str, Any]:
    """What the record says; nothing where it is missing or something else."""
    with contextlib.suppress(OSError, UnreadableFileError):
        found = read_json(record)
        if isinstance(found, dict) and isinstance(found.get("command"), str) and isinstance(found.get("files"), list):
            return found
    return {}


def _what_is_kept(directory: Path) -> str:
    if any(directory.glob("parts/*.npz")) or any(directory.glob("*/parts/*.npz")):
        return f"What was finished is kept in {directory}: the same command goes on from there."
    return "Nothing was finished yet."


def save_config(config: DictConfig, directory: Path) -> None:
    """The resolved settings as ``config.yaml``, whole or not at all."""
    text = OmegaConf.to_yaml(config, resolve=True)
    write_atomically(directory / CONFIG, text.encode("utf-8", "backslashreplace"))
