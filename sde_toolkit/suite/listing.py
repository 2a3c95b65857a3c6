"""The truths of the package: one file for each in ``catalogue/``, found by listing that folder."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterable
from importlib import import_module

from sde_toolkit.errors import ArgumentError
from sde_toolkit.suite import catalogue
from sde_toolkit.suite.truth import Truth

__all__ = ["truth_names", "truths"]


def truth_names() -> list[str]:
    """The names of all truths of the package: those of the public modules of ``sde_toolkit.suite.catalogue``."""
    return sorted(m.name for m in pkgutil.iter_modules(catalogue.__path__) if not m.name.startswith("_"))


def truths(names: Iterable[str] | None = None) -> dict[str, Truth]:
    """The truths of the package by name, all of them by default.

    Raises:
        ArgumentError: for a name that is not among them.
    """
    known = truth_names()
    wanted = known if names is None else [names] if isinstance(names, str) else list(names)
    for name in wanted:
        if name not in known:
            problem = "there is no truth of that name"
            raise ArgumentError("truths", name, problem, f"Choose from {', '.join(known)}, or give a Truth.")
    return {name: import_module(f"{catalogue.__name__}.{name}").truth() for name in wanted}
