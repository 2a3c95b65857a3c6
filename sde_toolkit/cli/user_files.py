"""``my_file.py:name``: an object in a user's own file. The file is run, and its errors are shown unchanged.

``name=my_file.py:f`` gives it a name of its own. A solver, ``solver=[ddim,my_file.py:f]``, is written as
``+solvers.f.file=my_file.py:f`` before Hydra reads it: Hydra would look for a file of that name among its own.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from sde_toolkit.errors import ArgumentError
from sde_toolkit.evaluation.candidates import Candidate, named_solvers

__all__ = ["is_user_file", "load_made", "load_object", "metrics_of_user", "separate_user_solvers", "solver_of_user"]

Made = TypeVar("Made")

_LIST = re.compile(r"\[.*\]", re.DOTALL)


def is_user_file(text: str) -> bool:
    """Whether a setting reads ``path/to/file.py:name``."""
    return re.fullmatch(r".+\.py:\w*", text) is not None


def load_object(argument: str, text: str) -> Any:
    """The object that ``path/to/file.py:name`` names. The file's folder is on the import path while the file runs.

    Raises:
        ArgumentError: if there is no such file, or nothing of that name in it.
    """
    file, name = text.rsplit(":", 1)
    path = Path(file).expanduser().resolve()
    if not path.is_file():
        raise ArgumentError(argument, text, f"there is no file {file}", f"Give {argument}=path/to/file.py:name.")
    module = _module(path)
    if not name.isidentifier() or not hasattr(module, name):
        names = sorted(key for key in vars(module) if not key.startswith("_") and callable(getattr(module, key)))
        holds = f"{path.name} has {', '.join(names[:8]) or 'no functions'}"
        problem = f"{holds}, and no {name!r}" if name else f"it names nothing in the file: {holds}"
        raise ArgumentError(argument, text, problem, f"Give {argument}={file}:name.")
    return getattr(module, name)


def separate_user_solvers(words: Sequence[str]) -> list[str]:
    """The words of a command, with every user's file among the solvers in a word of its own."""
    found: list[str] = []
    for word in words:
        key, sign, value = word.partition("=")
        listed = _LIST.fullmatch(value) is not None
        parts = [part.strip() for part in (value[1:-1].split(",") if listed else [value])]
        if key != "solver" or not sign or not any(is_user_file(part) for part in parts):
            found.append(word)
            continue
        presets = [part for part in parts if not is_user_file(part)]
        found.append(f"solver=[{','.join(presets)}]")
        taken: set[str] = set(presets)
        for part in (part for part in parts if is_user_file(part)):
            name, text = _name_and_place(part)
            if name in taken:
                name = f"{re.sub(r'(?a)[^A-Za-z0-9_]', '_', Path(text.rsplit(':', 1)[0]).stem)}_{name}"
            taken.add(name)
            found.append(f"+solvers.{name}.file='{text}'")
    return found


def _name_and_place(text: str) -> tuple[str, str]:
    """Name and ``path.py:object`` of ``name=path.py:object``; the object's name without one."""
    named = re.fullmatch(r"([A-Za-z_]\w*)=(.+)", text)
    if named is None or Path(text.rsplit(":", 1)[0]).is_file():
        return text.rsplit(":", 1)[1] or "solver", text
    return named[1], named[2]


def solver_of_user(name: str, text: str) -> Candidate:
    """The solver in a user's file: one of ours, someone else's function, or a planner; or a function that returns one.

    Raises:
        ArgumentError: for anything else.
    """
    made = load_object("solver", text)
    if callable(made) and _arguments(made) == 0:
        made = made()
    return named_solvers({name: made})[name]


def metrics_of_user(given: Sequence[Any]) -> dict[str, Any]:
    """``metric=[my_file.py:f,name=my_file.py:g]``: functions f(generated, real), or metrics, by their names.

    Raises:
        ArgumentError: for a text that names no object in a file, and for two of one name.
    """
    found: dict[str, Any] = {}
    for text in given:
        if not isinstance(text, str) or not is_user_file(text):
            problem = "not a function in a file"
            raise ArgumentError("metric", text, problem, "Give metric=my_file.py:my_function(generated, real).")
        name, place = _name_and_place(text)
        if name in found:
            raise ArgumentError("metric", list(given), f"two are called {name!r}", f"Name one: other={place}.")
        found[name] = load_object("metric", place)
    return found


def _arguments(function: Callable[..., Any]) -> int | None:
    """How many arguments a function must be given; None if it does not say."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    fixed = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.default is p.empty and p.kind in fixed for p in parameters)


def load_made(argument: str, text: str, kind: type[Made], remedy: str) -> Made:
    """An object of class ``kind`` in a user's file, or what a function there returns when called without arguments.

    Raises:
        ArgumentError: if it is something else; ``remedy`` says what to return.
    """
    made = load_object(argument, text)
    if not isinstance(made, kind) and callable(made):
        made = made()
    if not isinstance(made, kind):
        raise ArgumentError(argument, text, f"it gives a {type(made).__name__}, not a {kind.__name__}", remedy)
    return made


def _module(path: Path) -> Any:
    name = f"_user_file_{path.stem}_{abs(hash(str(path)))}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    sys.modules[name] = module  # where dataclasses and pickle look it up
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)  # type: ignore[union-attr]
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(str(path.parent))
    return module
