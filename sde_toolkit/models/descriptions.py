"""What a model is, as plain data: numbers, texts, lists and dictionaries, and nothing else.

A part of this package is described by its class and its constructor arguments, ``{class: VPSDE, beta_min: 0.1, ...}``.
A part of the user's own is marked as such, ``{own class: MyNetwork, ...}``, whatever it is called. It is never rebuilt:
it has to be passed when the model is loaded.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from pathlib import PurePath
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_toolkit import networks, sde, transforms
from sde_toolkit.errors import ArgumentError
from sde_toolkit.models import time_inputs
from sde_toolkit.networks.inside import hyperparameters_of, inner_network

__all__ = ["CLASS", "HOMES", "OWN", "OWN_FUNCTION", "describe", "plain_data", "published"]

CLASS, OWN, OWN_FUNCTION = "class", "own class", "own function"
HOMES: dict[str, ModuleType] = {
    "network": networks,
    "sde": sde,
    "time_input": time_inputs,
    "transform": transforms,
}

_MOST_NESTING = 32  # of containers inside one another
_MOST_NUMBERS = 200_000  # of one array
_LARGEST_INTEGER = 2**4096  # whole numbers beyond this are no longer read back by Python
_PLAIN_DATA_REMEDY = (
    "Use numbers, texts, lists, dictionaries or dataclasses of them; keep tensors that are learned as buffers."
)


def describe(role: str, part: Any) -> dict[str, Any]:
    """A part as plain data: a network, an SDE, a time input or a transform (``role``).

    Of a compiled or parallel network the one inside is described.

    Raises:
        ArgumentError: naming the argument of the part that cannot be written.
    """
    part = inner_network(part)
    return _describe_part(role, part, role, 0)


def _describe_part(role: str, part: Any, where: str, depth: int) -> dict[str, Any]:
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        arguments = {f.name: getattr(part, f.name) for f in dataclasses.fields(part) if f.init}
    else:
        arguments = dict(hyperparameters_of(part))
    for name in (CLASS, OWN, OWN_FUNCTION):
        if name in arguments:
            problem = f"{name!r} is the word by which a description names the class"
            raise ArgumentError(f"{where}.hyperparameters", arguments, problem, "Choose another key.")
    plain = {k: plain_data(v, f"{where}.{k}", role, depth + 1) for k, v in arguments.items()}
    return {**_name(role, part), **plain}


def _name(role: str, part: Any) -> dict[str, Any]:
    if isinstance(part, (FunctionType, BuiltinFunctionType, MethodType, type)):  # a function has a name of its own
        return {OWN_FUNCTION: part.__qualname__}
    kind = type(part)
    by_name = role in HOMES  # such a part is looked up by its name when it is loaded
    ours = published(role, kind.__qualname__) is kind if by_name else kind.__module__.startswith("sde_toolkit.")
    return {CLASS if ours else OWN: kind.__qualname__}


def published(role: str, name: Any) -> type | None:
    """The public class of that name in the room of this role; None if there is none."""
    home = HOMES[role]
    found = getattr(home, name) if isinstance(name, str) and name in home.__all__ else None
    return found if isinstance(found, type) and found.__module__.startswith("sde_toolkit.") else None


def plain_data(value: Any, where: str = "value", role: str = "", depth: int = 0) -> Any:
    """A value as plain data. Tuples and arrays become lists; scalars of numpy and torch, numbers.

    Args:
        value: numbers, texts, None, arrays and tensors of real numbers; lists, tuples, dictionaries and dataclasses of
            all these. Functions and modules are noted by name.
        where: what it is called in an error.
        role: of the part that it belongs to, if it is one that a checkpoint rebuilds.
        depth: how deep inside the part it lies.

    Raises:
        ArgumentError: for anything else; complex numbers, sets, a container that contains itself.
    """
    if depth > _MOST_NESTING:
        raise ArgumentError(
            where, value, f"it is nested more than {_MOST_NESTING} deep, or contains itself", _PLAIN_DATA_REMEDY
        )
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, enum.Enum):
        return plain_data(value.value, where, role, depth + 1)
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        return _array_as_lists(value, where, role, depth)
    if isinstance(value, int):
        return _whole(int(value), where)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, (str, PurePath, torch.dtype, torch.device)):
        return _written(str(value), where)
    if isinstance(value, (list, tuple, range)):
        return [plain_data(item, f"{where}[{i}]", role, depth + 1) for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        return {_key(k, where): plain_data(v, f"{where}[{k!r}]", role, depth + 1) for k, v in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _describe_part(role, value, where, depth)
    if callable(value):
        return _name(role, value)
    raise ArgumentError(where, value, f"{type(value).__name__} cannot be written to a checkpoint", _PLAIN_DATA_REMEDY)


def _array_as_lists(value: Any, where: str, role: str, depth: int) -> Any:
    """An array, tensor or scalar as nested lists of numbers."""
    try:
        if isinstance(value, Tensor):
            tensor = value.detach().cpu()
            array = (tensor.double() if tensor.is_floating_point() else tensor).numpy()
        else:
            array = np.asarray(value)
    except (TypeError, RuntimeError, NotImplementedError):  # sparse, quantised, without values
        raise ArgumentError(where, value, "its numbers cannot be read", _PLAIN_DATA_REMEDY) from None
    if array.size > _MOST_NUMBERS:
        raise ArgumentError(
            where, value, f"more than {_MOST_NUMBERS} numbers do not fit in a description", _PLAIN_DATA_REMEDY
        )
    if array.dtype.kind in "fiub":
        return (array.astype(np.float64) if array.dtype.kind == "f" else array).tolist()
    if array.dtype.kind in "UO" and not isinstance(value, np.generic):
        return plain_data(array.tolist(), where, role, depth + 1)
    if array.dtype.kind == "U":
        return str(value)
    raise ArgumentError(where, value, f"numbers of the kind {array.dtype} cannot be written", _PLAIN_DATA_REMEDY)


def _whole(value: int, where: str) -> int:
    if abs(value) > _LARGEST_INTEGER:
        raise ArgumentError(where, value, "it has too many digits to be written", _PLAIN_DATA_REMEDY)
    return value


def _written(value: str, where: str) -> str:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise ArgumentError(where, value, "the text has characters that no file can hold", _PLAIN_DATA_REMEDY) from None
    return value


def _key(key: Any, where: str) -> Any:
    if key is None or isinstance(key, (bool, int, float, str, np.generic)):
        return plain_data(key, where)
    raise ArgumentError(where, key, "the key of a dictionary is a text or a number", _PLAIN_DATA_REMEDY)
