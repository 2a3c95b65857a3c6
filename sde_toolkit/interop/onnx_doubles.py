"""Functions that onnxruntime has in float32 alone, or not at all, written with those that it has in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["with_known_functions"]

_HUGE = 1e38  # in place of ∞, of which no difference can be taken; float32 has it, too


def with_known_functions(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """``program`` without the functions of this module, equal to rounding of float64."""
    used = {node.target for node in program.graph.nodes} & set(_FUNCTIONS)
    return program.run_decompositions({target: _FUNCTIONS[target] for target in used}) if used else program


def _softplus(x: Tensor, beta: float = 1, threshold: float = 20) -> Tensor:
    """log(1 + e^(βx))/β. Above the threshold, where torch returns x, the difference is below e^(−threshold)."""
    y = beta * x
    return (y.clamp(min=0.0) + torch.log1p(torch.exp(-y.abs()))) / beta


def _asinh(x: Tensor) -> Tensor:
    size = x.abs()
    return torch.sign(x) * torch.log1p(size + size**2 / (1 + torch.sqrt(1 + size**2)))


def _tan(x: Tensor) -> Tensor:
    return torch.sin(x) / torch.cos(x)


def _atan2(y: Tensor, x: Tensor) -> Tensor:
    """The angle in float32, and what is left of it: δ = sin δ up to δ³/6, which is 1e-22 for δ = 1e-7."""
    y, x = _finite(y), _finite(x)
    near = torch.atan2(y.to(torch.float32), x.to(torch.float32)).to(y.dtype)
    sine, cosine = torch.sin(near), torch.cos(near)
    return near + (y * cosine - x * sine) / (x * cosine + y * sine).clamp(min=1 / _HUGE)


def _atan(x: Tensor) -> Tensor:
    x = _finite(x)
    near = torch.atan(x.to(torch.float32)).to(x.dtype)
    sine, cosine = torch.sin(near), torch.cos(near)
    return near + (x * cosine - sine) / (cosine + x * sine)


def _finite(x: Tensor) -> Tensor:
    """x within ±1e38. torch writes two clamps of one input under the same name, so that nobody can read the file."""
    most = torch.full_like(x, _HUGE)
    return torch.minimum(torch.maximum(x, -most), most)


def _in_float64(written: Callable[..., Tensor]) -> Callable[..., Any]:
    def decomposed(x: Tensor, *others: Any) -> Any:
        return written(x, *others) if x.dtype == torch.float64 else NotImplemented  # torch then keeps its own

    return decomposed


def _searchsorted(row: Tensor, values: Tensor, *, out_int32: bool = False, right: bool = False, **others: Any) -> Any:
    """The number of entries of one sorted row that stand before each value."""
    if row.ndim != 1 or any(option is not None for option in others.values()):
        return NotImplemented
    before = row <= values.unsqueeze(-1) if right else row < values.unsqueeze(-1)
    return before.sum(-1, dtype=torch.int32 if out_int32 else torch.int64)


_ATEN = torch.ops.aten
_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    _ATEN.softplus.default: _in_float64(_softplus),
    _ATEN.asinh.default: _in_float64(_asinh),
    _ATEN.tan.default: _in_float64(_tan),
    _ATEN.atan.default: _in_float64(_atan),
    _ATEN.atan2.default: _in_float64(_atan2),
    _ATEN.searchsorted.Tensor: _searchsorted,
}
