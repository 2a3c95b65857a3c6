"""``my_file.py:name``: an object in a user's own file. The file is run, and its errors are shown unchanged.

``name=my_file.py:f`` gives it a name of its own. A solver, ``solver=[ddim,my_file.py:f]``, is written as
``+solvers.f.file=my_file.py:f`` before Hydra reads it: Hydra would look for a file of that name among its own.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, TypeVar

from sde_toolkit.checks import required_arguments
from sde_toolkit.errors import ArgumentError
from sde_toolkit.evaluation.candidates import Candidate, named_solvers
from sde_toolkit.metrics.function_metric import metrics_of_functions
from sde_toolkit.metrics.metric import Metric
from sde_toolkit.sampling.automatic import Plan
from sde_toolkit.sampling.foreign_solver import ForeignSolver
from sde_toolkit.solvers import Solver

__all__ = [
    "UserFileError",
    "is_user_file",
    "load_made",
    "load_object",
    "metrics_of_user",
    "separate_user_solvers",
    "solver_of_user",
    "traceback_in_user_file",
]

Made = TypeVar("Made")

_SOLVERS = (Solver, Plan, ForeignSolver)
_LOADED: set[str] = set()  # the users' files
_LIST = re.compile(r"\[.*\]", re.DOTALL)


class UserFileError(ArgumentError):
    """An object in a user's file that cannot be used. Its remedy is Python, on the command line too."""


def is_user_file(text: str) -> bool:
    """Whether a setting reads ``path/to/file.py:name``."""
    return re.fullmatch(r".+\.py:\w*", text) is not None


def load_object(argument: str, text: str) -> Any:
    """The object that ``path/to/file.py:name`` names. The file's folder is on the import path while the file runs.

    Raises:
        UserFileError: if there is no such file, or nothing of that name in it.
    """
    file, name = text.rsplit(":", 1)
    path = Path(file).expanduser().resolve()
    if not path.is_file():
        raise UserFileError(argument, text, f"there is no file {file}", f"Give {argument}=path/to/file.py:name.")
    module = _module(argument, text, path)
    if not name.isidentifier() or not hasattr(module, name):
        names = sorted(key for key in vars(module) if not key.startswith("_") and callable(getattr(module, key)))
        holds = f"{path.name} has {', '.join(names[:8]) or 'no functions'}"
        problem = f"{holds}, and no {name!r}" if name else f"it names nothing in the file: {holds}"
        raise UserFileError(argument, text, problem, f"Give {argument}={file}:name.")
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
        UserFileError: for anything else.
    """
    made = load_object("solver", text)
    if not isinstance(made, _SOLVERS) and callable(made) and required_arguments(made) == []:
        made = called("solver", text, made, "a solver")
    if not (isinstance(made, _SOLVERS) or callable(made)):
        remedy = "Return sde_toolkit.ddim(), for example, or name a function run(denoise, sigmas, x, rng)."
        _refuse("solver", text, made, "a solver", remedy)
    try:
        return named_solvers({name: made})[name]
    except ArgumentError as error:
        if error.problem is None:
            raise
        raise UserFileError("solver", text, error.problem, error.remedy) from None


def metrics_of_user(given: Sequence[Any]) -> dict[str, Any]:
    """``metric=[my_file.py:f,name=my_file.py:g]``: functions f(generated, real), or metrics, by their names.

    Raises:
        UserFileError: for a text that names no object in a file, and for two of one name.
    """
    found: dict[str, Any] = {}
    for text in given:
        if not isinstance(text, str) or not is_user_file(text):
            problem = "not a function in a file"
            raise UserFileError("metric", text, problem, "Give metric=my_file.py:my_function(generated, real).")
        name, place = _name_and_place(text)
        if name in found:
            raise UserFileError("metric", list(given), f"two are called {name!r}", f"Name one: other={place}.")
        found[name] = _metric("metric", place, name)
    return found


def _metric(argument: str, text: str, name: str) -> Any:
    """A metric, or a function that can be one; of a class of metrics its object.

    Raises:
        UserFileError: for anything else.
    """
    made = load_object(argument, text)
    if isinstance(made, type) and issubclass(made, Metric):
        made = called(argument, text, made, "a metric")
    try:
        metrics_of_functions({name: made})
    except ArgumentError as error:
        raise UserFileError(argument, text, str(error.problem), error.remedy) from None
    return made


def load_made(argument: str, text: str, kind: type[Made], remedy: str) -> Made:
    """An object of class ``kind`` in a user's file, or what a function there returns when called without arguments.

    Raises:
        UserFileError: if it is something else, or needs arguments; ``remedy`` says what to return.
    """
    made = load_object(argument, text)
    if not isinstance(made, kind) and callable(made):
        made = called(argument, text, made, f"a {kind.__name__}", remedy)
    if not isinstance(made, kind):
        _refuse(argument, text, made, f"a {kind.__name__}", remedy)
    return made


def _refuse(argument: str, text: str, made: Any, wanted: str, remedy: str) -> NoReturn:
    """Refuse what a file gives, since it is not what is wanted."""
    if inspect.iscoroutine(made):
        made.close()  # it would complain that nobody waited for it
    raise UserFileError(argument, text, f"it gives {_kind_of(made)}, not {wanted}", remedy)


def called(argument: str, text: str, function: Callable[..., Any], wanted: str, remedy: str = "") -> Any:
    """What a function of a user's file returns when it is called without arguments.

    Raises:
        UserFileError: if it needs some.
        Exception: from the function itself, unchanged.
    """
    needed = required_arguments(function)
    name = getattr(function, "__name__", type(function).__name__)
    remedy = f"Name a function without arguments that makes {wanted}. {remedy}".rstrip()
    if needed:
        problem = f"{name} needs the argument{'s' * (len(needed) > 1)} {', '.join(needed)}, and is called without any"
        raise UserFileError(argument, text, problem, remedy)
    try:
        return function()
    except TypeError as error:
        trace = error.__traceback__
        if trace is not None and trace.tb_next is not None:
            raise  # from inside the function
        problem = f"{name} cannot be called without arguments ({error})"
        raise UserFileError(argument, text, problem, remedy) from None


def _kind_of(value: Any) -> str:
    """What a value is, in words."""
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if inspect.isroutine(value):
        return f"the function {getattr(value, '__name__', '')}".rstrip()
    name = type(value).__name__
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"


def traceback_in_user_file(error: BaseException) -> TracebackType | None:
    """The part of an error's traceback that begins in a user's file; None if it passed through none."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename not in _LOADED:
        trace = trace.tb_next
    return trace


def _module(argument: str, text: str, path: Path) -> Any:
    name = f"_user_file_{path.stem}_{abs(hash(str(path)))}"
    if name in sys.modules:
        return sys.modules[name]
    _LOADED.add(str(path))
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    sys.modules[name] = module  # where dataclasses and pickle look it up
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)  # type: ignore[union-attr]
    except SystemExit:
        del sys.modules[name]
        problem = "the file ends the program (SystemExit) when it is loaded"
        remedy = "Put what it runs as a script under if __name__ == '__main__':."
        raise UserFileError(argument, text, problem, remedy) from None
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(path.parent))
    return module
