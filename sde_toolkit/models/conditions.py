"""What a network is told besides x and time: rows that go with the samples, in any nesting.

    has one row per sample     a tensor with at least one axis
    shared by all samples      a 0-dim tensor; None, numbers, strings, bytes, enums, torch's dtypes and devices
    taken apart                mappings, lists, tuples, named tuples and dataclasses of these, in one another

Nothing else is accepted: a numpy array or an object of another class could hold rows that would not be cut with the
batch. A list or tuple of plain values alone is refused too, since it may have been meant as rows.
"""

from __future__ import annotations

import copy
import dataclasses
import enum
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from numbers import Number
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.errors import ArgumentError

__all__ = ["check_condition", "map_rows", "named_rows", "pair_parts", "repeat_rows", "tensors_of"]

_SHARED = (type(None), Number, str, bytes, enum.Enum, torch.dtype, torch.device)
_DEEPEST = 32


def map_rows(condition: Any, choose: Callable[[Tensor], Tensor]) -> Any:
    """A condition with ``choose`` applied to every tensor of rows in it; what is shared stays as it is."""
    if isinstance(condition, Tensor):
        return choose(condition) if condition.ndim > 0 else condition
    parts = _parts(condition)
    if parts is None:
        return condition
    return _rebuilt(condition, {key: map_rows(part, choose) for key, part in parts.items()})


def repeat_rows(condition: Any, times: int) -> Any:
    """A condition for the batch so many times over, one copy after another."""
    return condition if times == 1 else map_rows(condition, lambda rows: torch.cat([rows] * times))


def pair_parts(one: Any, other: Any, combine: Callable[[str, Any, Any], Any], path: str = "condition") -> Any:
    """A condition like ``one``, each tensor or shared value of it replaced by ``combine(path, value, other's value)``.

    Raises:
        ArgumentError: naming the part in which ``other`` is built otherwise.
    """
    parts, others = _parts(one), _parts(other)
    if parts is None:
        return combine(path, one, other)
    if others is None or set(parts) != set(others):
        found = type(other).__name__ if others is None else list(others)
        problem = f"the condition of the samples has a {type(one).__name__} of {list(parts)} there"
        raise ArgumentError(path, found, problem, "Give the two the same structure.")
    paired = {key: pair_parts(part, others[key], combine, _path_to(path, key)) for key, part in parts.items()}
    return _rebuilt(one, paired)


def tensors_of(condition: Any) -> Iterator[Tensor]:
    """All tensors in a condition."""
    if isinstance(condition, Tensor):
        yield condition
        return
    for part in (_parts(condition) or {}).values():
        yield from tensors_of(part)


def named_rows(condition: Any, path: str = "condition") -> Iterator[tuple[str, Tensor]]:
    """(path, tensor) of every tensor of rows, in the order of :func:`map_rows`: ``condition.text``, for example."""
    if isinstance(condition, Tensor):
        if condition.ndim > 0:
            yield path, condition
        return
    for key, part in (_parts(condition) or {}).items():
        yield from named_rows(part, f"{path}.{key}")


def check_condition(condition: Any, n: int) -> None:
    """One row per sample in every tensor of a condition, and nothing in it whose rows are unknown.

    Raises:
        ArgumentError: naming the part, as in ``condition.added.text``.
    """
    _check_part("condition", condition, n, 0)


def _check_part(path: str, condition: Any, n: int, depth: int) -> None:
    if isinstance(condition, Tensor):
        _check_rows(path, condition, n)
        return
    parts = _parts(condition)
    if parts is None:
        _check_shared(path, condition)
        return
    if depth > _DEEPEST:
        raise ArgumentError(path, type(condition).__name__, f"nested more than {_DEEPEST} deep", "Give it flatter.")
    plain = isinstance(condition, (list, tuple)) and not hasattr(condition, "_fields")
    if plain and parts and all(isinstance(part, _SHARED) and part is not None for part in parts.values()):
        problem = f"a {type(condition).__name__} of plain values cannot be told from rows"
        raise ArgumentError(path, condition, problem, "Pass torch.tensor(...), with one row per sample.")
    for key, part in parts.items():
        _check_part(_path_to(path, key), part, n, depth + 1)


def _path_to(path: str, key: Any) -> str:
    return f"{path}.{key}" if isinstance(key, str) else f"{path}[{key!r}]"


def _check_rows(path: str, part: Tensor, n: int) -> None:
    if part.layout != torch.strided or part.is_nested:
        kind = "nested" if part.is_nested else part.layout
        raise ArgumentError(path, kind, "its rows cannot be cut", "Pass an ordinary tensor, .to_dense() of it.")
    if part.ndim > 0 and len(part) != n:
        problem = f"it has {len(part)} rows for {n} samples"
        raise ArgumentError(path, tuple(part.shape), problem, "Give one row per sample; expand what is shared.")


def _check_shared(path: str, part: Any) -> None:
    if isinstance(part, _SHARED):
        return
    if hasattr(part, "__array__"):
        if getattr(part, "ndim", None) == 0:
            return
        problem = f"a {type(part).__name__} is no tensor, and its rows would not go with the samples"
        raise ArgumentError(path, getattr(part, "shape", None), problem, "Pass torch.as_tensor(...) of it.")
    problem = f"nobody can tell which rows a {type(part).__name__} has"
    raise ArgumentError(path, part, problem, "Pass a tensor, or a dict, list, tuple or dataclass of tensors.")


def _parts(structure: Any) -> dict[Any, Any] | None:
    """What a structure is made of, by key, place or name; None if it is none."""
    if isinstance(structure, Mapping):
        return dict(structure)
    if isinstance(structure, tuple) and hasattr(structure, "_fields"):
        return dict(zip(structure._fields, structure, strict=True))
    if isinstance(structure, (list, tuple)):
        return dict(enumerate(structure))
    if dataclasses.is_dataclass(structure) and not isinstance(structure, type):
        return {field.name: getattr(structure, field.name) for field in dataclasses.fields(structure)}
    return None


def _rebuilt(structure: Any, parts: dict[Any, Any]) -> Any:
    """A structure of the same kind with other parts."""
    if type(structure) is dict or (isinstance(structure, Mapping) and not isinstance(structure, MutableMapping)):
        return parts
    if isinstance(structure, tuple) and hasattr(structure, "_fields"):
        return type(structure)(*parts.values())
    if isinstance(structure, (list, tuple)):
        return type(structure)(parts.values())
    made = copy.copy(structure)
    for key, part in parts.items():
        if isinstance(structure, Mapping):
            made[key] = part
        else:
            object.__setattr__(made, key, part)  # frozen dataclasses too
    return made
