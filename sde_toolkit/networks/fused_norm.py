"""Group normalisation with scale, shift and SiLU on accelerators, in the channels-last layout and without copies.

torch's own kernel for accelerators knows no other layout than the default one: it copies what is channels last, and the
convolution after it copies it back. Here the layout stays, statistics are in float32 for half precision, and no tensor
is converted. There are three ways to the same numbers:

- Triton's kernels (:mod:`.norm_kernels`): one read and one write of the device's memory, backward two reads and one.
- torch's operations, where there is no Triton: they read four times and write twice.
- :func:`traced`, for ``torch.compile``, which makes kernels of it together with the operations around it.

In all of them x and the statistics are kept for the backward pass, which computes the rest again.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

from sde_toolkit.errors import warn_caller
from sde_toolkit.networks.own_precision import without_autocast

__all__ = ["FusedNorm", "forward_by_torch", "fuses", "normalised", "per_channel", "per_weight", "traced"]

_LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}

LONG, FEW = 2**14, 64
"""From so many positions on, fewer programs than this are slower than torch's operations, which share one sample."""


def fuses(x: Tensor) -> bool:
    """Whether ``x`` is what this file is for: on an accelerator, (B, C, *size), channels last in memory."""
    layout = _LAYOUTS.get(x.ndim)
    return x.device.type != "cpu" and layout is not None and x.numel() > 0 and x.is_contiguous(memory_format=layout)


def per_channel(weight: Tensor, x: Tensor) -> Tensor:
    """A weight per channel, (C,) or (B, C), with one more axis for each spatial axis of ``x``."""
    return weight.reshape(weight.shape + (1,) * (x.ndim - 2))


def per_weight(values: Tensor, weight: Tensor) -> Tensor:
    """``values`` (B, C, *size) summed to the shape of ``weight``: over positions, and over the batch for (C,)."""
    axes = [0] * (weight.ndim == 1) + list(range(2, values.ndim))
    return values.sum(axes) if axes else values.clone()


def traced(
    x: Tensor, weight: Tensor, bias: Tensor, offset: Tensor | None, groups: int, eps: float, activate: bool
) -> Tensor:
    """The norm in operations from which a compiler makes two passes: the moments of each channel, and the rest.

    A channel is summed before its group, since it is the channels that lie side by side in memory. The variance of a
    group is the mean of its channels' variances plus the variance of their means.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    wide = x.to(dtype)
    if x.dtype == dtype:
        variance, mean = torch.var_mean(wide, _positions(x), correction=0)
    else:  # in one pass, as in _moments
        mean = wide.mean(_positions(x))
        variance = (wide.square().mean(_positions(x)) - mean.square()).clamp(min=0)
    moved = mean if offset is None else mean + offset.to(dtype)
    scale, shift = _scale_and_shift(*_of_groups(moved, variance, groups, eps), weight.to(dtype), bias.to(dtype), offset)
    y = wide * per_channel(scale, x) + per_channel(shift, x)
    return (silu(y) if activate else y).to(x.dtype)


def normalised(
    x: Tensor, weight: Tensor, bias: Tensor, offset: Tensor | None, groups: int, eps: float, activate: bool
) -> Tensor:
    """w (z − μ)/√(s² + eps) + b for z = x + offset with moments μ and s², or SiLU of it; layout and dtype of x.

    Args:
        x: (B, C, *size), channels last in memory.
        weight: w, (C,) or (B, C).
        bias: b, of the shape of w.
        offset: (B, C), or None.
        groups: number of groups.
        eps: added to the variance.
        activate: whether SiLU follows.
    """
    if torch.is_grad_enabled():
        out: Tensor = FusedNorm.apply(x, weight, bias, offset, groups, eps, activate)[0]
        return out
    return _computed(x, weight, bias, offset, groups, eps, activate)[0]


class FusedNorm(torch.autograd.Function):
    """:func:`normalised`, with all derivatives by backward passes."""

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor, offset: Tensor | None, groups: int, eps: float, activate: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The result, μ and 1/√(s² + eps)."""
        return _computed(x, weight, bias, offset, groups, eps, activate)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, weight, bias, offset, ctx.groups, ctx.eps, ctx.activate = inputs
        _, mean, inverse = output
        ctx.mark_non_differentiable(mean, inverse)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, bias, offset, mean, inverse)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, weight, bias, offset, mean, inverse = ctx.saved_tensors
        if torch.is_grad_enabled():
            z = x if offset is None else x + per_channel(offset, x)
            dx, dw, db = differentiable_backward(cotangent, z, weight, bias, ctx.groups, ctx.eps, ctx.activate)
            doffset = None if offset is None else per_weight(dx, offset)
            return dx, dw, db, doffset, None, None, None
        cotangent = cotangent.contiguous(memory_format=_LAYOUTS[x.ndim])
        kernels = _kernels_for(x, ctx.groups)
        by: Any = backward_by_torch if kernels is None else kernels.norm_backward_by_triton
        with without_autocast(x):
            dx, *rows, moved = by(cotangent, x, weight, bias, offset, mean, inverse, ctx.activate)
        dw, db = ((row.sum(0) if weight.ndim == 1 else row).to(weight.dtype) for row in rows)
        return dx, dw, db, None if offset is None else moved.to(offset.dtype), None, None, None


def differentiable_backward(
    cotangent: Tensor, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, activate: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients by x, w and b by differentiable operations, for second derivatives."""
    z = x.unflatten(1, (groups, -1))  # (B, groups, width / groups, *size)
    axes = list(range(2, z.ndim))
    centred = z - z.mean(axes, keepdim=True)
    inverse = (centred.square().mean(axes, keepdim=True) + eps).rsqrt()
    hat = centred * inverse
    w, b = (per_channel(p, x).unflatten(-x.ndim + 1 if p.ndim == 2 else 0, (groups, -1)) for p in (weight, bias))
    slope = cotangent.unflatten(1, (groups, -1))
    if activate:
        y = w * hat + b
        gate = y.sigmoid()
        slope = slope * gate * (1 + y * (1 - gate))
    inner = slope * w
    dx = inverse * (inner - inner.mean(axes, keepdim=True) - hat * (inner * hat).mean(axes, keepdim=True))
    weights = tuple(per_weight(values.flatten(1, 2), weight) for values in (slope * hat, slope))
    return dx.flatten(1, 2), *weights


def _computed(
    x: Tensor, weight: Tensor, bias: Tensor, offset: Tensor | None, groups: int, eps: float, activate: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The result, μ and 1/√(s² + eps)."""
    kernels = _kernels_for(x, groups)
    by = forward_by_torch if kernels is None else kernels.norm_by_triton
    with without_autocast(x):
        found: tuple[Tensor, Tensor, Tensor] = by(x, weight, bias, offset, groups, eps, activate)
    return found


def forward_by_torch(
    x: Tensor, weight: Tensor, bias: Tensor, offset: Tensor | None, groups: int, eps: float, activate: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The result, μ and 1/√(s² + eps), (B, groups), by operations of torch of which none makes a copy of x."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    moments = _moments(x, dtype)
    mean, inverse = _of_groups(moments[0] if offset is None else moments[0] + offset.to(dtype), moments[1], groups, eps)
    scale, shift = _scale_and_shift(mean, inverse, weight.to(dtype), bias.to(dtype), offset)
    y = _times_plus(x, scale, shift)
    return silu(y, inplace=True) if activate else y, mean, inverse


def backward_by_torch(
    cotangent: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    offset: Tensor | None,
    mean: Tensor,
    inverse: Tensor,
    activate: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The gradients by x, and by w, b and offset for each sample, (B, C)."""
    dtype, axes, positions = mean.dtype, _positions(x), x.shape[2:].numel()
    w, b, scale = weight.to(dtype), bias.to(dtype), _spread(inverse, x)
    centre = _spread(mean, x) if offset is None else _spread(mean, x) - offset.to(dtype)
    hat = _times_plus(x, scale, -centre * scale)
    slope = cotangent
    if activate:
        slope = torch.ops.aten.silu_backward(cotangent, _times_plus(hat, w, b))
    db, dw = slope.sum(axes, dtype=dtype), (slope * hat).sum(axes, dtype=dtype)
    plain, along = (_mean_of_group(w * row, mean.shape[1]) / positions for row in (db, dw))
    dx = _times_plus(hat, -_spread(along, x) * scale, -_spread(plain, x) * scale, out=hat)
    torch.addcmul(dx, slope, per_channel(w * scale, x), out=dx)
    return dx, dw, db, None if offset is None else dx.sum(axes, dtype=dtype)


def _positions(x: Tensor) -> tuple[int, ...]:
    """The spatial axes."""
    return tuple(range(2, x.ndim))


def _moments(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel of each sample, (B, C), in ``dtype``, without a converted copy of x.

    In half precision the variance is the mean square less the square of the mean. Where this costs digits, mean/σ in
    the hundreds, the numbers themselves are rounded to as few.
    """
    axes = _positions(x)
    if x.dtype == dtype:
        variance, mean = torch.var_mean(x, axes, correction=0)
        return mean, variance
    n = x.shape[2:].numel()
    mean = x.sum(axes, dtype=dtype) / n
    square = torch.linalg.vector_norm(x, 2, axes, dtype=dtype).square() / n
    return mean, (square - mean.square()).clamp(min=0)


def _of_groups(mean: Tensor, variance: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """μ and 1/√(s² + eps) of each group, from the moments of its channels."""
    between, mu = torch.var_mean(mean.unflatten(1, (groups, -1)), 2, correction=0)
    return mu, (_mean_of_group(variance, groups) + between + eps).rsqrt()


def _mean_of_group(row: Tensor, groups: int) -> Tensor:
    """(B, C) to (B, groups)."""
    return row.unflatten(1, (groups, -1)).mean(2)


def _spread(of_groups: Tensor, x: Tensor) -> Tensor:
    """(B, groups) to (B, C)."""
    return of_groups.unsqueeze(2).expand(-1, -1, x.shape[1] // of_groups.shape[1]).flatten(1)


def _scale_and_shift(
    mean: Tensor, inverse: Tensor, weight: Tensor, bias: Tensor, offset: Tensor | None
) -> tuple[Tensor, Tensor]:
    """a and b, (B, C), of a x + b = w (x + offset − μ)/√(s² + eps) + b."""
    groups = (-1, mean.shape[1], weight.shape[-1] // mean.shape[1])
    scale = weight.reshape(groups) * inverse.unsqueeze(2)
    shift = bias.reshape(groups) - mean.unsqueeze(2) * scale
    if offset is not None:
        shift = shift + offset.to(scale.dtype).reshape(groups) * scale
    return scale.flatten(1), shift.flatten(1)


def _times_plus(x: Tensor, a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """a x + b in one pass, for a and b (B, C) or (C,) of a wider dtype; in the dtype and layout of x.

    ``out`` is always given, since it decides the dtype.
    """
    y = torch.empty_like(x) if out is None else out
    return torch.addcmul(per_channel(b, x), x, per_channel(a, x), out=y)


def _kernels_for(x: Tensor, groups: int) -> ModuleType | None:
    """Triton's kernels, where they take such tensors and are not slower than torch's operations."""
    if type(x) is not Tensor or x.device.type != "cuda":  # a subclass may have no memory
        return None
    kernels = _norm_kernels(x.device)
    if kernels is None or x.dtype not in kernels.DTYPES or x[0].numel() >= 2**31:
        return None
    grid = kernels.Grid.of(x, groups)
    few = grid.programs < FEW and x.shape[2:].numel() >= LONG
    return kernels if grid.suits and not few else None


@functools.lru_cache(maxsize=16)
def _norm_kernels(device: torch.device) -> ModuleType | None:
    """The kernels, if Triton is there and runs on the device."""
    try:
        from sde_toolkit.networks import norm_kernels
    except ImportError:
        return None
    try:
        x, row = torch.ones(1, 4, 2, 2, device=device).contiguous(memory_format=torch.channels_last), torch.ones(4)
        norm_kernels.norm_by_triton(x, row.to(device), row.to(device), None, 2, 1e-5, True)
    except Exception as error:  # of Triton, of the compiler that it calls, of the driver
        warn_caller(f"Norms take several operations of torch instead of one, since Triton fails here: {error}")
        return None
    return norm_kernels
