"""The truths of the package: one file for each in ``catalogue/``, found by listing that folder."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from importlib import import_module
from typing import Any

from sde_toolkit.errors import ArgumentError
from sde_toolkit.suite import catalogue
from sde_toolkit.suite.truth import Truth

__all__ = ["named_truths", "truth_names", "truths"]


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


def named_truths(given: Any = None) -> dict[str, Truth]:
    """Truths by name: names of the package's and truths, in a list or a mapping, or a single one; by default all.

    Raises:
        ArgumentError: for anything else, for two truths of one name, for none, and for a ``draw`` without samples.
    """
    if given is None:
        return truths()
    if isinstance(given, Mapping):
        several = [
            replace(truth, name=str(name)) if isinstance(truth, Truth) else truth for name, truth in given.items()
        ]
    else:
        several = list(given) if isinstance(given, list | tuple) else [given]
    found: dict[str, Truth] = {}
    for each in several:
        truth = truths(each)[each] if isinstance(each, str) else each
        if not isinstance(truth, Truth):
            raise ArgumentError("truths", each, "not a truth", "Pass Truth(name, model), or the name of one.")
        if not isinstance(each, str):
            truth.check()
        if truth.name in found:
            raise ArgumentError("truths", several, f"two of them are called {truth.name!r}", "Give them names.")
        found[truth.name] = truth
    if not found:
        raise ArgumentError("truths", given, "there is no truth", f"Choose from {', '.join(truth_names())}.")
    return found
