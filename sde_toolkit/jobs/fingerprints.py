"""Plain data that tell one piece of work from another: what was computed, from which weights, with which settings.

What changes no number beyond round-off (device, threads, number of processes) has no place in a fingerprint.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.models.checkpoint import state_of
from sde_toolkit.models.descriptions import CLASS, OWN
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.networks.inside import inner_network

__all__ = [
    "behaviour",
    "differences",
    "digest",
    "digits_of",
    "fingerprint_data",
    "fixed_events",
    "flat",
    "model_fingerprint",
    "tensor_digest",
    "weights_digest_of",
]


def model_fingerprint(model: ScoreModel) -> dict[str, Any]:
    """The weights' hash and everything but the weights."""
    return {"weights_sha256": weights_digest_of(model), **fingerprint_data(model.description())}


def behaviour(model: ScoreModel, event_shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[str]:
    """What a network answers that is no module, so that nobody can see its parameters; nothing for modules."""
    inside: Any = model
    while isinstance(inside, ScoreModel):
        inside = inner_network(inside.network)
    if isinstance(inside, torch.nn.Module):
        return []
    with torch.no_grad():
        return digits_of(model(fixed_events(event_shape).to(dtype), 0.5).output)


def fixed_events(event_shape: tuple[int, ...]) -> Tensor:
    """Two events that say nothing, (2, *event_shape) float64."""
    return torch.linspace(-1.0, 1.0, 2 * math.prod(event_shape), dtype=torch.float64).reshape(2, *event_shape)


def digits_of(answer: Tensor) -> list[str]:
    """A few numbers to five digits."""
    return [f"{value:.5g}" for value in answer.double().flatten()[:8].tolist()]


def weights_digest_of(module: torch.nn.Module) -> str:
    """SHA-256 of all parameters and buffers, by their names; the same wherever they lie, compiled or not."""
    weights = hashlib.sha256()
    for name, value in sorted(state_of(module).items()):
        said = tensor_digest(value) if isinstance(value, Tensor) else fingerprint_data(value)
        weights.update(f"{name} {said}\n".encode())
    return weights.hexdigest()


def digest(content: Mapping[str, Any]) -> str:
    """A short name of plain data."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What differs, as ``settings.nfe (50 there, 30 here)``."""
    old, new = dict(flat(there)), dict(flat(here))
    return [
        f"{name} ({_shortened(old.get(name))} there, {_shortened(new.get(name))} here)"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]


def flat(content: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested plain data by their dotted names."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield from flat(value, f"{name}.{key}" if name else str(key))
    else:
        yield name, content


def _shortened(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 24 else f"{text[:12]}…"


def fingerprint_data(value: Any) -> Any:
    """A setting as plain data for JSON; tensors as their hash, parts by class and fields, functions by name."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        return {"shape": list(value.shape), "sha256": tensor_digest(value)}
    if isinstance(value, Mapping):
        return {str(key): fingerprint_data(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [fingerprint_data(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: fingerprint_data(getattr(value, f.name)) for f in dataclasses.fields(value)}
        mark = CLASS if type(value).__module__.startswith("sde_toolkit.") else OWN  # ours, or one that has its name
        return {mark: type(value).__qualname__, **fields}
    if isinstance(value, functools.partial):
        return {
            "function": fingerprint_data(value.func),
            "arguments": [fingerprint_data(value.args), fingerprint_data(value.keywords)],
        }
    return str(getattr(value, "__qualname__", value if isinstance(value, torch.dtype) else type(value).__qualname__))


def tensor_digest(tensor: Tensor) -> str:
    """SHA-256 of dtype, shape and values."""
    values = tensor.detach().cpu()
    values = (values.to_dense() if values.layout != torch.strided else values).contiguous()
    kind = str(values.dtype).removeprefix("torch.")
    content = values.reshape(-1).view(torch.uint8).numpy().tobytes()  # numpy does not know every dtype of torch
    shape = tuple(values.shape) or (1,)  # as numpy says of a single number that it has made contiguous
    return hashlib.sha256(f"{kind} {shape} ".encode() + content).hexdigest()
