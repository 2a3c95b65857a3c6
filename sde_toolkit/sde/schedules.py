"""What a method of an SDE may take and return: any kind of time in, and one float64 number per time inside.

A schedule is a method that maps times to numbers: α, log α, σ, λ, f, g. It is written for float64 tensors.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from numbers import Real
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from sde_toolkit.errors import ArgumentError, DefinitionError

if TYPE_CHECKING:
    from sde_toolkit.sde.base import SDE

__all__ = ["NO_FLOAT64", "Time", "as_float64", "in_float64", "zero_where_rounding"]

Time: TypeAlias = Any
"""A float, a 0-dim tensor, or a tensor of shape (B,): anywhere in [0, 1]."""

NO_FLOAT64 = ("mps",)
"""Devices without float64: schedules are computed on the CPU for them."""

_CPU = torch.device("cpu")

_ROUNDING = 1e-15  # |α(1)| up to this size is a rounding error of 0


def as_float64(value: Any) -> tuple[Tensor, torch.dtype, torch.device]:
    """``value`` as a float64 tensor for schedules, and the dtype and device that the result should have."""
    if type(value) is Tensor and value.dtype is torch.float64 and value.is_cpu:  # the usual case, and the quickest
        return value, torch.float64, _CPU
    if not isinstance(value, Tensor):
        value = torch.as_tensor(value, dtype=torch.float64)
    dtype = value.dtype if value.is_floating_point() else torch.float64
    work_device = "cpu" if value.device.type in NO_FLOAT64 else value.device
    return value.to(work_device, torch.float64), dtype, value.device


def _checked_times(t: Tensor, dtype: torch.dtype) -> Tensor:
    """``t``, clamped to [0, 1] if it is outside by a rounding error.

    Values are looked at only where this costs no synchronisation: not on an accelerator, in a graph, or under vmap.

    Raises:
        ArgumentError: if ``t`` is outside [0, 1] by more than that.
    """
    if not t.is_cpu or torch.compiler.is_compiling() or _in_unit(t):
        return t
    slack = min(2 * torch.finfo(dtype).eps, 1e-6)
    outside = ~((t >= -slack) & (t <= 1 + slack))
    if not bool(outside.any()):
        return t.clamp(0.0, 1.0)
    raise ArgumentError(
        "t",
        t.detach().flatten()[int(outside.flatten().int().argmax())].item(),
        "time runs from 0 (data) to 1 (noise)",
        "Pass times in [0, 1]; a discrete index i of N steps is the time i/N.",
    )


def _in_unit(t: Tensor) -> bool:
    """Whether all times are in [0, 1]; also True under ``torch.func.vmap``, where no value can be looked at."""
    n = t.numel()
    if n == 0:
        return True
    try:
        if n == 1:
            return 0 <= t.item() <= 1
        least, most = torch.aminmax(t)
        return least.item() >= 0 and most.item() <= 1
    except RuntimeError:
        return True


def in_float64(schedule: Callable[..., Any]) -> Callable[..., Tensor]:
    """Let a schedule that maps float64 tensors accept any kind of time and return its dtype."""

    @functools.wraps(schedule)
    def wrapped(self: SDE, t: Time) -> Tensor:
        t64, dtype, device = as_float64(t)
        t64 = _checked_times(t64, dtype)
        value = schedule(self, t64)
        if not isinstance(value, Tensor) or value.shape != t64.shape or value.dtype != torch.float64:
            value = _as_schedule(value, t64, f"class {type(self).__name__}: {schedule.__name__}(t)")
        return value if dtype is torch.float64 and device is _CPU and value.is_cpu else value.to(device, dtype)

    return wrapped


def _as_schedule(value: Any, t: Tensor, what: str) -> Tensor:
    """The value that a user's method returned, as one float64 number per time.

    Raises:
        DefinitionError: if it cannot be read so.
    """
    if isinstance(value, Real) and not isinstance(value, bool):
        return torch.full_like(t, float(value))
    remedy = f"Return one real number per time: a tensor of the shape of t, which is {tuple(t.shape)} here."
    if not isinstance(value, Tensor):
        try:
            value = torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError):
            raise DefinitionError(f"{what} returned {type(value).__name__}. {remedy}") from None
    if value.is_complex() or value.dtype == torch.bool:
        raise DefinitionError(f"{what} returned {value.dtype}. {remedy}")
    if value.numel() != 1 and value.shape != t.shape:
        raise DefinitionError(f"{what} returned the shape {tuple(value.shape)}. {remedy}")
    value = value.to(t.device, torch.float64)
    return value if value.shape == t.shape else value.reshape(()) + torch.zeros_like(t)


def zero_where_rounding(alpha: Callable[..., Any]) -> Callable[..., Any]:
    """Let ``alpha`` return 0 at t=1 where it returns a rounding error (cos(π/2) = 6e-17). Its derivative stays."""

    @functools.wraps(alpha)
    def wrapped(self: SDE, t: Tensor) -> Any:
        value = alpha(self, t)
        if self._log_alpha_is_given or not isinstance(value, Tensor) or value.shape != t.shape:
            return value
        return value - torch.where((t == 1) & (value.abs() <= _ROUNDING), value.detach(), 0.0)

    return wrapped
