"""Configs of diffusers: JSON files that name a class and its arguments. Classes are looked up in diffusers alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sde_toolkit.errors import ArgumentError, CheckpointError, MissingDependencyError
from sde_toolkit.files.plain import UnreadableFileError, read_json

__all__ = [
    "OUR_SCHEDULER",
    "SCHEDULER",
    "class_of_diffusers",
    "described_class",
    "in_short",
    "read_config",
    "scheduler_from",
]

SCHEDULER = "scheduler_config.json"
OUR_SCHEDULER = ("sde_toolkit.interop.diffusers_scheduler", "SolverScheduler")
"""Library and name of the scheduler that ``to_diffusers`` makes, in ``model_index.json``."""
_MOST_STEPS = 1_000_000


def scheduler_from(given: Any, saved: Mapping[str, Any] | None = None) -> Any:
    """A scheduler of diffusers from its config, or a folder or file of one; an object is passed on.

    Args:
        given: an object, a mapping with ``_class_name``, a path.
        saved: the config as it was written, if its class is another one: keys that had the default of the class that
            wrote them have the default of the class that reads them.

    Raises:
        ArgumentError: for a config that names no scheduler of diffusers, or has impossible values.
        CheckpointError: for a path without one.
    """
    if isinstance(given, (str, Path)):
        place = Path(given)
        places = [place, place / SCHEDULER, place / "scheduler" / SCHEDULER]
        file = next((p for p in places if p.is_file()), None)
        if file is None:
            problem = f"there is no {SCHEDULER}"
            raise CheckpointError(str(given), problem, "Pass the file, its folder, or the folder of a pipeline.")
        given = read_config(file)
    if not isinstance(given, Mapping):
        return given
    kind = _class_of_scheduler(given.get("_class_name"))
    steps = given.get("num_train_timesteps", 1000)
    if not isinstance(steps, int) or isinstance(steps, bool) or not 1 <= steps <= _MOST_STEPS:
        raise ArgumentError("num_train_timesteps", steps, "not a number of steps", "DDPM has 1000.")
    try:
        return kind.from_config(dict(given if saved is None else saved))
    except (TypeError, ValueError, NotImplementedError, RuntimeError) as error:
        problem = f"{kind.__name__} does not take it ({in_short(error)})"
        raise ArgumentError("scheduler", dict(given), problem, "Check its config.") from None


def _class_of_scheduler(name: Any) -> Any:
    if name != OUR_SCHEDULER[1]:
        return class_of_diffusers(name, "SchedulerMixin", "scheduler")
    from sde_toolkit.interop.diffusers_scheduler import SolverScheduler  # that to_diffusers makes

    return SolverScheduler


def _import_diffusers() -> Any:
    """The package.

    Raises:
        MissingDependencyError: naming the extra that brings it.
    """
    try:
        import diffusers
    except ImportError as error:
        raise MissingDependencyError("diffusers", "a model of diffusers", "interop", error) from None
    return diffusers


def class_of_diffusers(name: Any, base: str, argument: str) -> Any:
    """The class of that name in diffusers, and nowhere else.

    Args:
        name: what a file says.
        base: the name of the class of diffusers that it must inherit from.
        argument: what the class is for, in the error.

    Raises:
        ArgumentError: if there is none.
        MissingDependencyError: if diffusers is not installed.
    """
    diffusers = _import_diffusers()
    found = getattr(diffusers, name, None) if isinstance(name, str) and name.isidentifier() else None
    if not isinstance(found, type) or not issubclass(found, getattr(diffusers, base)):
        problem = f"no {argument} of diffusers {diffusers.__version__} has this name"
        raise ArgumentError(
            f"{argument}._class_name", name, problem, "Update diffusers, or pass an object of the class."
        )
    return found


def described_class(file: Path) -> str | None:
    """The class that a config of diffusers names; None if it is no such file."""
    try:
        found = read_json(file)
    except (FileNotFoundError, UnreadableFileError, OSError):
        return None
    name = found.get("_class_name") if isinstance(found, dict) else None
    return name if isinstance(name, str) else None


def read_config(file: Path) -> dict[str, Any]:
    """The content of a config.

    Raises:
        CheckpointError: if it is missing, damaged or no config.
    """
    try:
        found = read_json(file)
    except FileNotFoundError:
        raise CheckpointError(file.parent, f"it has no {file.name}", "Copy the whole folder.") from None
    except UnreadableFileError as error:
        raise CheckpointError(file.parent, str(error), "Copy the folder again.") from None
    if not isinstance(found, dict):
        raise CheckpointError(file.parent, f"{file.name} holds no config", "Copy the folder again.")
    return found


def in_short(error: Exception) -> str:
    """An error of diffusers as a clause."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
