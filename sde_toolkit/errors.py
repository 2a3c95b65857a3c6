"""Typed errors, and the one way to warn. Every message names the argument, the value it had, and what to do instead.

All derive from :class:`SDEToolkitError`; those about a caller's argument are also ``ValueError``, so
code that knows nothing of this package still catches them in the usual way.
"""

from __future__ import annotations

import copy
import io
import pickle
import sys
import warnings
from pathlib import Path
from typing import Any

from sde_toolkit.showing import shown

__all__ = [
    "ArgumentError",
    "CheckpointError",
    "DataError",
    "DefinitionError",
    "FolderInUseError",
    "ForeignSolverError",
    "GridError",
    "MaxEvaluationsError",
    "MissingDependencyError",
    "NonFiniteError",
    "SDEToolkitError",
    "warn_caller",
]

_PACKAGE = str(Path(__file__).parent)


class SDEToolkitError(Exception):
    """Base class of every error raised on purpose by this package.

    It can be pickled and copied with its message and attributes, so that one process can raise it for another. An
    attribute that cannot be pickled, or is very large, arrives as the text by which it is shown.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _raised_anew, (type(self), self.args, {name: _packed(v) for name, v in vars(self).items()})

    def __copy__(self) -> SDEToolkitError:
        return _made_anew(type(self), self.args, vars(self))

    def __deepcopy__(self, memo: dict[int, Any]) -> SDEToolkitError:
        return _made_anew(type(self), self.args, {name: _deep(v, memo) for name, v in vars(self).items()})


class ArgumentError(SDEToolkitError, ValueError):
    """An argument that cannot be used: ``argument=value: problem. remedy``.

    With one argument it is the whole message.
    """

    def __init__(self, argument: str, value: Any = None, problem: str | None = None, remedy: str = "") -> None:
        self.argument = argument
        self.value = value
        self.problem = problem
        self.remedy = remedy
        if problem is None:
            super().__init__(argument)
            return
        super().__init__(f"{argument}={shown(value)}: {problem.rstrip('.')}. {remedy}")


class DefinitionError(SDEToolkitError, TypeError):
    """A class that derives from one of ours without giving what it must."""


class GridError(ArgumentError):
    """A time grid that is not a strictly monotone sequence of times inside the SDE's domain."""


class FolderInUseError(ArgumentError):
    """A folder in which another process works: :func:`sde_toolkit.files.claims.claimed`."""


class DataError(ArgumentError):
    """A data set or array that cannot be used: wrong file, shape, dtype, range, or non-finite values."""


class CheckpointError(SDEToolkitError):
    """A checkpoint that is truncated, foreign, incomplete, or does not fit the model it describes."""

    def __init__(self, path: Any, problem: str, remedy: str) -> None:
        self.path = path
        self.remedy = remedy
        super().__init__(f"checkpoint {str(path)!r}: {problem.rstrip('.')}. {remedy}")


class NonFiniteError(SDEToolkitError, ArithmeticError):
    """A solve or a training became NaN or infinite; ``step`` and ``t`` (None in training) say where."""

    def __init__(self, problem: str, *, step: int, t: float | None = None, remedy: str) -> None:
        self.step = step
        self.t = t
        self.remedy = remedy
        at = f"step {step}" if t is None else f"step {step}, t={t:.6g}"
        super().__init__(f"{problem} at {at}. {remedy}")


class MaxEvaluationsError(SDEToolkitError, RuntimeError):
    """A solve needed more network evaluations than ``max_nfe`` allows; ``t``: where it had used them all.

    ``foreign``: of a solver of someone else, and ``t`` is a noise level σ/α.
    """

    def __init__(self, max_nfe: int, t: float, *, foreign: bool = False) -> None:
        self.max_nfe = max_nfe
        self.t = t
        if foreign:
            problem = f"budget={max_nfe}: the solver had used these evaluations at σ/α={t:.6g}, and asked for another"
            super().__init__(f"{problem}. Make it take its steps from the noise levels that it is given.")
            return
        super().__init__(
            f"max_nfe={max_nfe}: the adaptive solver had used them all at t={t:.6g}. Raise max_nfe, loosen "
            "rtol and atol, or end the grid further from t=0, where the field is stiff."
        )


class ForeignSolverError(SDEToolkitError, RuntimeError):
    """Someone else's solver raised an error, or returned no samples: ``solver: reason``."""

    def __init__(self, solver: str, reason: str) -> None:
        self.solver = solver
        super().__init__(f"{solver}: {reason}")


class MissingDependencyError(SDEToolkitError, ImportError):
    """An optional package that this call needs is not installed, or is and cannot be imported.

    The message names the package, what needs it, the command that installs it and, where it is broken, the reason.

    Args:
        package: as pip knows it.
        needed_for: a noun, as in "is needed for a progress bar".
        extra: of this package, that brings it; None: no extra does.
        reason: what its import raised.
    """

    def __init__(self, package: str, needed_for: str, extra: str | None, reason: Exception | None = None) -> None:
        self.package, self.extra = package, extra
        source = package if extra is None else f"'sde-toolkit[{extra}]'"
        torch = _installed("torch")
        kept = "" if torch is None else f"torch=={torch} "  # or pip may bring another one
        if (reason is None or isinstance(reason, ModuleNotFoundError)) and _installed(package) is None:
            found, remedy = "is not installed", f"Install it with: pip install {source}"
            if extra == "fid" and kept:  # its torchvision wants the torch that it was made for
                remedy = f"Name {kept.strip()} in the command too, and pip keeps your torch. {remedy}"
        else:
            why = "" if reason is None else f" ({type(reason).__name__}: {' '.join(str(reason).split())[:160]})"
            wanted = source if extra is None else f"{package} {source}"
            found = f"cannot be imported{why}"
            remedy = f"Install versions that fit one another with: pip install --upgrade {kept}{wanted}"
            if package == "torchvision" and torch is not None:
                own = f"torchvision=={_torchvision_for(torch)}"
                remedy = f"Install the build for torch {torch}, from where torch came: pip install --force-reinstall "
                remedy += f"--no-deps {own}, then pip install {kept}{own} {source}"
        super().__init__(f"{package!r} is needed for {needed_for} and {found}. {remedy}")


def _installed(package: str) -> str | None:
    """Its version; None if it is not there."""
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _torchvision_for(torch: str) -> str:
    """torchvision 0.(n + 15) is made for torch 2.n."""
    minor = torch.split(".")[1]
    return f"0.{int(minor) + 15}.*" if torch.startswith("2.") and minor.isdigit() else "*"


_LARGEST = 2**20  # bytes of an attribute that travels with an error


class _Limited(io.BytesIO):
    """Bytes up to a limit: so that no gigabytes are pickled before it is known that they are too many."""

    def write(self, content: Any) -> int:
        if self.tell() + len(content) > _LARGEST:
            raise OverflowError
        return super().write(content)


def _packed(value: Any) -> tuple[bytes | None, str]:
    """A value as bytes, None where it cannot be pickled; and as the text that stands for it then."""
    text = shown(value)
    if getattr(value, "nbytes", 0) > _LARGEST:
        return None, text
    stream = _Limited()
    try:
        pickle.Pickler(stream).dump(value)
    except Exception:  # whatever a value's own pickling raises
        return None, text
    return stream.getvalue(), text


def _raised_anew(
    kind: type[SDEToolkitError], args: tuple[Any, ...], packed: dict[str, tuple[bytes | None, str]]
) -> SDEToolkitError:
    return _made_anew(kind, args, {name: _unpacked(*value) for name, value in packed.items()})


def _unpacked(content: bytes | None, text: str) -> Any:
    if content is None:
        return text
    try:
        return pickle.loads(content)
    except Exception:  # a class that this process cannot find
        return text


def _made_anew(kind: type[SDEToolkitError], args: tuple[Any, ...], attributes: dict[str, Any]) -> SDEToolkitError:
    """An error without its constructor, which wants other arguments than the message."""
    error = kind.__new__(kind, *args)
    super(SDEToolkitError, error).__init__(*args)
    vars(error).update(attributes)
    return error


def _deep(value: Any, memo: dict[int, Any]) -> Any:
    try:
        return copy.deepcopy(value, memo)
    except Exception:  # what cannot be copied is shared
        return value


def warn_caller(message: str, category: type[Warning] = UserWarning) -> None:
    """A warning that names the line of the user's code from which this package was called."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
