"""Group normalisation (Wu & He 2018), alone and followed by SiLU, for eager and compiled, forward and backward modes.

With μ and s² the mean and variance of a group of channels in one sample, y = w (x − μ)/√(s² + eps) + b. The weights w
and b are the layer's own, (C,), or follow from the conditioning of each sample, (B, C) (FiLM, Perez et al. 2018).

The trunks apply SiLU to nearly every norm. Training keeps three tensors for such a pair (x, y and SiLU(y)), four where
the weights are a sample's. Here y is computed again in the backward pass, which costs two elementwise passes and saves
a third or a half of the memory.
On a CPU, half-precision norms and the SiLU after them run in float32, which is faster there and more exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.functional import group_norm, silu

__all__ = ["GroupNorm", "activated", "group_count", "is_dual", "largest_divisor", "normalisation", "slow_in_half"]


def largest_divisor(width: int, limit: int) -> int:
    """The largest divisor of ``width`` not above ``limit`` (at least 1)."""
    return max(divisor for divisor in range(1, max(limit, 1) + 1) if width % divisor == 0)


def group_count(width: int, groups: int) -> int:
    """How many groups ``width`` channels form: at most ``groups``, and never a group of a single channel."""
    return largest_divisor(width, min(groups, width // 2))


def is_dual(x: Tensor) -> bool:
    """Whether ``x`` carries a forward-mode tangent: some of torch's fast paths have no such derivative."""
    return not torch.compiler.is_compiling() and forward_ad.unpack_dual(x).tangent is not None


def slow_in_half(x: Tensor) -> bool:
    """Whether ``x`` is of half precision on a CPU, where torch's elementwise kernels are made for float32."""
    return x.device.type == "cpu" and x.dtype in (torch.bfloat16, torch.float16)


PIECE = 2**20
"""Numbers that are widened at a time: 4 MiB of them stay in a processor's cache."""

transforms_active = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)
"""Whether a transform of torch.func (vmap, grad, jvp) is at work, for which an autograd.Function would need rules."""


class GroupNorm(nn.GroupNorm):
    """torch's; its forward derivative exists in the default memory layout only."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape (B, width, *size)."""
        if slow_in_half(x):
            affine = (None, None) if self.weight is None else (self.weight.float(), self.bias.float())
            return group_norm(x.float(), self.num_groups, *affine, self.eps).to(x.dtype)
        return super().forward(x.contiguous() if is_dual(x) else x)


def normalisation(width: int, groups: int, affine: bool = True, eps: float = 1e-5) -> GroupNorm:
    """GroupNorm whose group count adapts to the width."""
    return GroupNorm(group_count(width, groups), width, eps=eps, affine=affine)


def activated(norm: GroupNorm, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
    """SiLU(norm(x)), or SiLU(norm(x) scale + shift) for a norm without weights; shape and dtype of ``x``.

    Args:
        norm: the norm, whose mode says whether a backward pass will follow.
        x: (B, C, *size).
        scale: (B, C), with ``shift``, for a norm without weights.
        shift: (B, C).
    """
    weight, bias = (norm.weight, norm.bias) if scale is None or shift is None else (scale, shift)
    if torch.compiler.is_compiling() or is_dual(x) or is_dual(weight):  # the compiler fuses them by itself
        y = norm(x)
        return silu(y if scale is None else torch.addcmul(_spread(bias, x), y, _spread(weight, x)))
    if norm.training and torch.is_grad_enabled() and not transforms_active():
        out: Tensor = NormedSiLU.apply(x, weight, bias, norm.num_groups, norm.eps)[0]
        return out
    return normed_silu(x, weight, bias, norm.num_groups, norm.eps)


def normed_silu(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    """SiLU of the group norm of x; without autograd to remember it, the norm is overwritten."""
    if not (torch.is_grad_enabled() or transforms_active()):
        return _in_pieces(x, weight, bias, groups, eps)[0]
    wide = _precision(x)
    weight, bias = weight.to(wide), bias.to(wide)
    if weight.ndim == 1:
        y = group_norm(x.to(wide), groups, weight, bias, eps)
    else:
        y = torch.addcmul(_spread(bias, x), group_norm(x.to(wide), groups, eps=eps), _spread(weight, x))
    return silu(y).to(x.dtype)


class NormedSiLU(torch.autograd.Function):
    """:func:`normed_silu` which remembers x and the groups' μ and 1/s, and computes the norm again to go back."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        """SiLU(y), μ and 1/√(s² + eps)."""
        return _in_pieces(x, weight, bias, groups, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, weight, bias, ctx.groups, ctx.eps = inputs
        _, mean, inverse = output
        ctx.mark_non_differentiable(mean, inverse)
        ctx.save_for_backward(x, weight, bias, mean, inverse)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, inverse = ctx.saved_tensors
        if torch.is_grad_enabled():
            return (*_differentiable_backward(cotangent, x, weight, bias, ctx.groups, ctx.eps), None, None)
        pieces = zip(*(_pieces(tensor, x) for tensor in (cotangent, x, weight, bias, mean, inverse)), strict=False)
        dx, dw, db = zip(*(_backward(piece, ctx.groups, ctx.eps) for piece in pieces), strict=True)
        total = sum if weight.ndim == 1 else _joined
        return _joined(dx), total(dw).to(weight.dtype), total(db).to(bias.dtype), None, None


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _backward(given: Sequence[Tensor], groups: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of :func:`normed_silu` by x, w and b, given the output's, x, w, b, μ and 1/√(s² + eps)."""
    cotangent, x, weight, bias, mean, inverse = given
    wide = _laid_out(x.to(_precision(x)))
    own, cotangent = weight.ndim == 1, cotangent.to(wide.dtype)
    if own:
        y = _normed(x, weight, bias, groups, eps)[0]
        slope = torch.ops.aten.silu_backward(cotangent, y)
    else:
        hat = torch.native_group_norm(wide, None, None, *_sizes(x), groups, eps)[0]
        w = _spread(weight, x).to(wide.dtype)
        slope = torch.ops.aten.silu_backward(cotangent, torch.addcmul(_spread(bias, x).to(wide.dtype), hat, w))
        dw, db = _per_weight(hat.mul_(slope), weight), _per_weight(slope, weight)
        slope = slope.mul_(w)
    gamma, mask = (weight.to(wide.dtype), [True, True, True]) if own else (None, [True, False, False])
    dx, *rest = torch.ops.aten.native_group_norm_backward(
        _laid_out(slope, like=wide), wide, mean, inverse, gamma, *_sizes(x), groups, mask
    )
    if own:
        dw, db = rest
    return dx.to(x.dtype), dw, db


def _differentiable_backward(
    cotangent: Tensor, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of :func:`normed_silu` in operations that have derivatives themselves."""
    z = x.unflatten(1, (groups, -1))  # (B, groups, width / groups, *size)
    axes = list(range(2, z.ndim))
    centred = z - z.mean(axes, keepdim=True)
    inverse = (centred.square().mean(axes, keepdim=True) + eps).rsqrt()
    hat = centred * inverse
    w, b = (_spread(p, x).unflatten(-x.ndim + 1 if p.ndim == 2 else 0, (groups, -1)) for p in (weight, bias))
    y = w * hat + b
    gate = y.sigmoid()
    slope = cotangent.unflatten(1, (groups, -1)) * gate * (1 + y * (1 - gate))
    inner = slope * w
    dx = inverse * (inner - inner.mean(axes, keepdim=True) - hat * (inner * hat).mean(axes, keepdim=True))
    weights = tuple(_per_weight(values.flatten(1, 2), weight) for values in (slope * hat, slope))
    return dx.flatten(1, 2), *weights


def _per_weight(values: Tensor, weight: Tensor) -> Tensor:
    """(B, C, *size) added up for each weight: over the positions, and over the batch where it shares its weights."""
    axes = [0] * (weight.ndim == 1) + list(range(2, values.ndim))
    return values.sum(axes) if axes else values.clone()


def _spread(weight: Tensor, x: Tensor) -> Tensor:
    """A weight per channel, (C,) or (B, C), with an axis for each spatial one of ``x``."""
    return weight.reshape(weight.shape + (1,) * (x.ndim - 2))


def _in_pieces(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """SiLU(y), μ and 1/√(s² + eps), a few samples at a time where they have to be widened."""
    if _share(x) == len(x):
        y, mean, inverse = _normed(x, weight, bias, groups, eps)
        return silu(y, inplace=True).to(x.dtype), mean, inverse
    out, statistics = torch.empty_like(x), []
    for part, target, w, b in zip(*(_pieces(tensor, x) for tensor in (x, out, weight, bias)), strict=False):
        y, *both = _normed(part, w, b, groups, eps)
        target.copy_(silu(y, inplace=True))
        statistics.append(both)
    mean, inverse = (torch.cat(rows) for rows in zip(*statistics, strict=True))
    return out, mean, inverse


def _pieces(tensor: Tensor, x: Tensor) -> Iterable[Tensor]:
    """A row for each sample of ``x`` cut as x is; the layer's own weights, (C,), again and again."""
    return repeat(tensor) if tensor.ndim == 1 else tensor.split(_share(x))


def _share(x: Tensor) -> int:
    """How many samples to take at a time: all, unless float32 copies of them would need much memory."""
    return min(len(x), max(1, PIECE // max(1, x[:1].numel()))) if slow_in_half(x) else len(x)


def _normed(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """y, μ and 1/√(s² + eps)."""
    wide = _precision(x)
    weight, bias, rows = weight.to(wide), bias.to(wide), _laid_out(x.to(wide))
    if weight.ndim == 1:
        return torch.native_group_norm(rows, weight, bias, *_sizes(x), groups, eps)
    y, mean, inverse = torch.native_group_norm(rows, None, None, *_sizes(x), groups, eps)
    return torch.addcmul(_spread(bias, x), y, _spread(weight, x), out=y), mean, inverse


def _precision(x: Tensor) -> torch.dtype:
    """The one to compute in."""
    return torch.float32 if slow_in_half(x) else x.dtype


def _laid_out(x: Tensor, like: Tensor | None = None) -> Tensor:
    """In a memory layout that torch's kernel knows, as ``like`` where it is given: channels last on a CPU only.

    Axes of length 1 may have any stride, by which the kernel would misjudge channels last: all are written anew.
    """
    example = x if like is None else like
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.ndim)
    if last is not None and example.device.type == "cpu" and example.is_contiguous(memory_format=last):
        rows = x.movedim(1, -1).contiguous()
        return rows.flatten().view(rows.shape).movedim(-1, 1)
    return x.contiguous()


def _sizes(x: Tensor) -> tuple[int, int, int]:
    return x.shape[0], x.shape[1], math.prod(x.shape[2:])
