"""Group normalisation (Wu & He 2018), alone and followed by SiLU, for eager and compiled code and all derivatives.

    y = w (x − μ)/√(s² + eps) + b        μ, s²: mean and variance of a group of channels in one sample

The weights w and b are parameters of the layer, (C,), or come from the conditioning of each sample, (B, C) (FiLM,
Perez et al. 2018).

The trunks apply SiLU to nearly every norm. torch keeps three tensors for such a pair (x, y and SiLU(y)), and four if
the weights are a sample's own. Here y is computed again in the backward pass: this costs two elementwise passes and
saves a third or a half of the memory. On a CPU, half-precision norms and the SiLU after them are computed in float32,
which is faster there and more exact. :mod:`.fused_norm` has what accelerators compute for channels-last data.
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

from sde_toolkit.networks.fused_norm import differentiable_backward, fuses, normalised, per_channel, per_weight, traced

__all__ = [
    "GroupNorm",
    "activated",
    "group_count",
    "group_norm_for",
    "is_dual",
    "largest_divisor",
    "per_channel",
    "slow_in_half",
]


def largest_divisor(width: int, limit: int) -> int:
    """The largest divisor of ``width`` not above ``limit`` (at least 1)."""
    return max(divisor for divisor in range(1, max(limit, 1) + 1) if width % divisor == 0)


def group_count(width: int, groups: int, group_width: int = 2) -> int:
    """How many groups ``width`` channels form: at most ``groups``, of ``group_width`` channels or more."""
    return largest_divisor(width, min(groups, width // group_width))


def is_dual(x: Tensor) -> bool:
    """Whether ``x`` carries a forward-mode tangent. Some of torch's fast kernels have no forward-mode derivative."""
    return not torch.compiler.is_compiling() and forward_ad.unpack_dual(x).tangent is not None


def slow_in_half(x: Tensor) -> bool:
    """Whether ``x`` is in half precision on a CPU, where torch's elementwise kernels are slower than in float32."""
    return x.device.type == "cpu" and x.dtype in (torch.bfloat16, torch.float16)


def is_traced_on_accelerator(x: Tensor) -> bool:
    """Whether ``torch.compile`` or ``torch.export`` traces, for another device than a CPU."""
    return torch.compiler.is_compiling() and x.device.type != "cpu" and x.ndim > 2


PIECE = 2**20
"""How many numbers are converted to float32 at a time: their 4 MiB stay in a processor's cache."""

transforms_active = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)
"""Whether a transform of torch.func (vmap, grad, jvp) is active. An autograd.Function would need rules for them."""


class GroupNorm(nn.GroupNorm):
    """torch's GroupNorm, with x in the default memory layout for forward-mode derivatives: no other layout has them."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape (B, width, *size)."""
        if slow_in_half(x):
            affine = (None, None) if self.weight is None else (self.weight.float(), self.bias.float())
            return group_norm(x.float(), self.num_groups, *affine, self.eps).to(x.dtype)
        if self.weight is not None and not (is_dual(x) or transforms_active()):
            given = (x, self.weight, self.bias, None, self.num_groups, self.eps, False)
            if is_traced_on_accelerator(x):
                return traced(*given)
            if fuses(x):
                return normalised(*given)
        return super().forward(x.contiguous() if is_dual(x) else x)


def group_norm_for(width: int, groups: int, affine: bool = True, eps: float = 1e-5, group_width: int = 2) -> GroupNorm:
    """A GroupNorm over ``width`` channels, in as many groups as :func:`group_count` says."""
    return GroupNorm(group_count(width, groups, group_width), width, eps=eps, affine=affine)


def activated(
    norm: GroupNorm, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None, offset: Tensor | None = None
) -> Tensor:
    """SiLU(norm(x)), or SiLU(norm(x) scale + shift) for a norm without weights; shape and dtype of ``x``.

    Args:
        norm: the norm. In training mode a backward pass is expected.
        x: (B, C, *size).
        scale: (B, C), with ``shift``, for a norm without weights.
        shift: (B, C).
        offset: (B, C); what is normalised is x + offset.
    """
    weight, bias = (norm.weight, norm.bias) if scale is None or shift is None else (scale, shift)
    if is_traced_on_accelerator(x) and not is_dual(x):
        return traced(x, weight, bias, offset, norm.num_groups, norm.eps, True)
    if fuses(x) and not (is_dual(x) or is_dual(weight) or transforms_active()):
        return normalised(x, weight, bias, offset, norm.num_groups, norm.eps, True)
    if offset is not None:
        x = x + per_channel(offset, x)
    if torch.compiler.is_compiling() or is_dual(x) or is_dual(weight):  # the compiler fuses the two itself
        y = norm(x)
        return silu(y if scale is None else torch.addcmul(per_channel(bias, x), y, per_channel(weight, x)))
    if norm.training and torch.is_grad_enabled() and not transforms_active():
        out: Tensor = NormedSiLU.apply(x, weight, bias, norm.num_groups, norm.eps)[0]
        return out
    return normed_silu(x, weight, bias, norm.num_groups, norm.eps)


def normed_silu(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    """SiLU of the group norm of x. Without autograd SiLU overwrites the norm."""
    if not (torch.is_grad_enabled() or transforms_active()):
        return _in_pieces(x, weight, bias, groups, eps)[0]
    wide = _precision(x)
    weight, bias = weight.to(wide), bias.to(wide)
    if weight.ndim == 1:
        y = group_norm(x.to(wide), groups, weight, bias, eps)
    else:
        y = torch.addcmul(per_channel(bias, x), group_norm(x.to(wide), groups, eps=eps), per_channel(weight, x))
    return silu(y).to(x.dtype)


class NormedSiLU(torch.autograd.Function):
    """:func:`normed_silu`, which keeps x, μ and 1/√(s² + eps), and computes y again in the backward pass."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        """SiLU(y), μ and 1/√(s² + eps)."""
        return _in_pieces(x, weight, bias, groups, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, weight, bias, ctx.groups, ctx.eps = inputs
        _, mean, inverse = output
        ctx.mark_non_differentiable(mean, inverse)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, bias, mean, inverse)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, inverse = ctx.saved_tensors
        if torch.is_grad_enabled():
            return (*differentiable_backward(cotangent, x, weight, bias, ctx.groups, ctx.eps), None, None)
        pieces = zip(*(_pieces(tensor, x) for tensor in (cotangent, x, weight, bias, mean, inverse)), strict=False)
        dx, dw, db = zip(*(_backward(piece, ctx.groups, ctx.eps) for piece in pieces), strict=True)
        total = sum if weight.ndim == 1 else _concatenated
        return _concatenated(dx), total(dw).to(weight.dtype), total(db).to(bias.dtype), None, None


def _concatenated(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _backward(given: Sequence[Tensor], groups: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients by x, w and b. ``given``: the gradient by the output, x, w, b, μ and 1/√(s² + eps)."""
    cotangent, x, weight, bias, mean, inverse = given
    wide = _laid_out(x.to(_precision(x)))
    own, cotangent = weight.ndim == 1, cotangent.to(wide.dtype)
    if own:
        y = _normed(x, weight, bias, groups, eps)[0]
        slope = torch.ops.aten.silu_backward(cotangent, y)
    else:
        hat = torch.native_group_norm(wide, None, None, *_sizes(x), groups, eps)[0]
        w = per_channel(weight, x).to(wide.dtype)
        slope = torch.ops.aten.silu_backward(cotangent, torch.addcmul(per_channel(bias, x).to(wide.dtype), hat, w))
        dw, db = per_weight(hat.mul_(slope), weight), per_weight(slope, weight)
        slope = slope.mul_(w)
    gamma, mask = (weight.to(wide.dtype), [True, True, True]) if own else (None, [True, False, False])
    dx, *rest = torch.ops.aten.native_group_norm_backward(
        _laid_out(slope, like=wide), wide, mean, inverse, gamma, *_sizes(x), groups, mask
    )
    if own:
        dw, db = rest
    return dx.to(x.dtype), dw, db


def _in_pieces(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """SiLU(y), μ and 1/√(s² + eps); a few samples at a time if they have to be converted to float32."""
    if _samples_per_piece(x) == len(x):
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
    """``tensor`` split along the batch as ``x`` is; weights of the layer, (C,), repeated for each piece."""
    return repeat(tensor) if tensor.ndim == 1 else tensor.split(_samples_per_piece(x))


def _samples_per_piece(x: Tensor) -> int:
    """How many samples to compute at a time: all, unless their float32 copies would leave the cache."""
    return min(len(x), max(1, PIECE // max(1, x[:1].numel()))) if slow_in_half(x) else len(x)


def _normed(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """y, μ and 1/√(s² + eps)."""
    wide = _precision(x)
    weight, bias, rows = weight.to(wide), bias.to(wide), _laid_out(x.to(wide))
    if weight.ndim == 1:
        return torch.native_group_norm(rows, weight, bias, *_sizes(x), groups, eps)
    y, mean, inverse = torch.native_group_norm(rows, None, None, *_sizes(x), groups, eps)
    return torch.addcmul(per_channel(bias, x), y, per_channel(weight, x), out=y), mean, inverse


def _precision(x: Tensor) -> torch.dtype:
    """The dtype to compute in."""
    return torch.float32 if slow_in_half(x) else x.dtype


def _laid_out(x: Tensor, like: Tensor | None = None) -> Tensor:
    """``x`` in a memory layout that torch's kernel supports: that of ``like`` (or x); channels last on a CPU only.

    Axes of length 1 may have any stride, and the kernel reads the layout from the strides: they are made regular.
    """
    example = x if like is None else like
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.ndim)
    if last is not None and example.device.type == "cpu" and example.is_contiguous(memory_format=last):
        rows = x.movedim(1, -1).contiguous()
        return rows.flatten().view(rows.shape).movedim(-1, 1)
    return x.contiguous()


def _sizes(x: Tensor) -> tuple[int, int, int]:
    return x.shape[0], x.shape[1], math.prod(x.shape[2:])
