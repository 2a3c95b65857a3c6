"""``my_file.py:name``: an object in a user's own file. The file is run, and its errors are shown unchanged."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

from sde_toolkit.errors import ArgumentError

__all__ = ["is_user_file", "load_object"]


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
