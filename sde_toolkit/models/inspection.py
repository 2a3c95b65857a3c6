"""Which modules a network is made of, also where it is a plain function around them.

A module lists its own. A function holds modules in its closure, its defaults, its global names or the object that it is
a method of; a callable object holds them among its attributes. What is reached in another way (a registry, an import
inside the function) is not found.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

__all__ = ["dtype_of", "modules_of", "name_of"]

_LINKS = 4  # from one function or object to the next: none are followed further


def name_of(network: Any) -> str:
    """What an error calls a network: its function's name or its class."""
    return str(getattr(network, "__qualname__", type(network).__name__))


def modules_of(network: Any, name: str = "network") -> Iterator[tuple[str, nn.Module]]:
    """(path, module) for every module that ``network`` is, holds or calls, each once; ``name`` begins the paths."""
    yield from _walk(name, network, _LINKS, set())


def dtype_of(network: Any) -> torch.dtype | None:
    """The dtype of the first floating-point parameter of ``network`` as it is now; None where it has none."""
    if isinstance(network, nn.Module):
        found = _first_dtype(network)
        if found is not None:
            return found
    return next((d for _, module in modules_of(network) if (d := _first_dtype(module)) is not None), None)


def _first_dtype(module: nn.Module) -> torch.dtype | None:
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), None)


def _walk(path: str, thing: Any, depth: int, seen: set[int]) -> Iterator[tuple[str, nn.Module]]:
    if id(thing) in seen or depth < 0:
        return
    seen.add(id(thing))
    if isinstance(thing, nn.Module):
        yield path, thing
        own = {k: v for k, v in vars(thing).items() if not k.startswith("_") and _may_hold_modules(v)}
        held = {**thing._modules, **own}
        for key, value in held.items():
            # a module's own parts do not count as depth: they are a tree
            yield from _walk(f"{path}.{key}", value, depth if isinstance(value, nn.Module) else depth - 1, seen)
        return
    for key, value in _held_by(thing).items():
        yield from _walk(f"{path}.{key}", value, depth - 1, seen)


def _held_by(thing: Any) -> dict[str, Any]:
    """What a function or a callable object refers to, by name, as far as modules may be in it."""
    found: dict[str, Any] = {}
    if isinstance(thing, functools.partial):
        found = {"func": thing.func, **{str(i): v for i, v in enumerate(thing.args)}, **thing.keywords}
    elif isinstance(thing, types.MethodType):
        found = {"self": thing.__self__, thing.__func__.__name__: thing.__func__}
    elif isinstance(thing, types.FunctionType):
        found = _names_of(thing)
    elif isinstance(thing, (list, tuple)):
        found = {str(i): v for i, v in enumerate(thing[:64])}
    elif isinstance(thing, dict):
        found = {str(k): v for k, v in list(thing.items())[:64]}
    elif callable(thing):
        found = dict(getattr(thing, "__dict__", {}))
        call = getattr(type(thing), "__call__", None)  # noqa: B004
        found |= {"__call__": call} if isinstance(call, types.FunctionType) else {}
    return {key: value for key, value in found.items() if _may_hold_modules(value)}


def _names_of(function: types.FunctionType) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in function.__code__.co_names:
        if name in function.__globals__:
            found[name] = function.__globals__[name]
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # not filled yet
            continue
    for holder in list(found.values()):  # held.network in the code: that attribute of what held is
        own = getattr(holder, "__dict__", None) or {}
        found |= {name: own[name] for name in function.__code__.co_names if name in own and name not in found}
    defaults = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    return {**found, **{f"default {i}": value for i, value in enumerate(defaults)}}


def _may_hold_modules(value: Any) -> bool:
    """Modules, functions and objects of the user's own; no classes, and nothing of torch or numpy."""
    if isinstance(value, nn.Module):
        return True
    if isinstance(value, type):
        return False
    if isinstance(value, (list, tuple, dict, functools.partial, types.MethodType)):
        return True
    home = str(getattr(value, "__module__", None) or "").partition(".")[0]
    return callable(value) and home not in ("torch", "numpy", "builtins")
