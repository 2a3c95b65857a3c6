"""The folder of a command: it is checked and claimed, and only the command's own files are replaced in it.

    .sde-toolkit.json    which command works here, and the files that it has written or may write

Any other file belongs to the user or to another command. A command that would replace it is refused.
"""

from __future__ import annotations

import contextlib
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
from sde_toolkit.files.folders_to_write import why_not_writable
from sde_toolkit.files.plain import UnreadableFileError, read_json
from sde_toolkit.files.whole import write_atomically

__all__ = ["CONFIG", "OWN", "holding", "output_folder", "save_config"]

CONFIG = "config.yaml"
OWN = ".sde-toolkit.json"


def output_folder(config: DictConfig, name: str = "output") -> Path:
    """The folder that the command writes to: ``output``, or with ``--multirun`` the folder of this job.

    Raises:
        ArgumentError: if it is not a folder and cannot become one.
    """
    hydra = HydraConfig.get()
    if hydra.mode == RunMode.MULTIRUN:
        return Path(hydra.runtime.output_dir).absolute()
    given = config[name]
    if not isinstance(given, str) or not given.strip() or "\0" in given:
        raise ArgumentError(name, given, "not the name of a folder", f"Give {name}=runs/mine, for example.")
    directory = Path(given).absolute()
    problem = why_not_writable(directory)
    if problem:
        raise ArgumentError(name, given, problem, "Name another folder.")
    return directory


@contextmanager
def holding(
    directory: Path, command: str, files: Sequence[str], *, main: bool = True, name: str = "output"
) -> Iterator[None]:
    """Claim the folder for the work in the ``with`` block, unless that would replace files of others.

    Args:
        files: the names that the command will write.
        main: whether this is the main process, which claims the folder. The others do nothing here.
        name: what the folder is called on the command line.

    Raises:
        FolderInUseError: if another process works there.
        ArgumentError: if one of the files is there and was not written by this command.
        Stopped: for Ctrl-C and SIGTERM; it says what is kept of the work.
    """
    if not main:
        yield
        return
    _check_own(directory, command, files, name)  # before anything is written, even the lock
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
    """The files that the record names as this command's.

    Raises:
        ArgumentError: if another one would be replaced.
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
    """The content of the record; {} if it is missing or is no such record."""
    with contextlib.suppress(OSError, UnreadableFileError):
        found = read_json(record)
        if isinstance(found, dict) and isinstance(found.get("command"), str) and isinstance(found.get("files"), list):
            return found
    return {}


def _what_is_kept(directory: Path) -> str:
    if any(directory.glob("parts/*.npz")) or any(directory.glob("*/parts/*.npz")):
        return f"What was finished is kept in {directory}: the same command continues from there."
    return "Nothing was finished yet."


def save_config(config: DictConfig, directory: Path) -> None:
    """The resolved settings as ``config.yaml``, whole or not at all."""
    text = OmegaConf.to_yaml(config, resolve=True)
    write_atomically(directory / CONFIG, text.encode("utf-8", "backslashreplace"))
