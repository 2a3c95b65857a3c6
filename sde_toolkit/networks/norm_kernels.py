"""Group normalisation, scale and shift, and SiLU in one kernel, and their backward pass in another, by Triton.

Imported where Triton is installed. The data are channels last in memory. A program of the grid has all positions of one
sample and some whole groups: those whose channels fill 128 bytes of a position. It reads them twice, and the second
time they are still in the L2 cache. So the device's memory is read once and written once (backward: two reads, one
write). All sums are in float32; those of squares are of differences from the first position, so that a large mean costs
no digits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["DTYPES", "Grid", "norm_backward_by_triton", "norm_by_triton"]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_TILE = 4096
_UNSPECIALISED = ["positions", "groups", "weight_step", "bias_step", "offset_step", "activate", "moves"]
"""Arguments of which no value has a kernel of its own: so each number of channels in a group has one, and no more."""

_ROW_BYTES = 128


@triton.jit
def _own_channels(groups, GROUP: tl.constexpr, PADDED: tl.constexpr, GROUPS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of this program: its sample, its groups, and its channels with the group of each, padded to PADDED per group."""
    chunks = tl.cdiv(groups, GROUPS)
    sample = (tl.program_id(0) // chunks).to(tl.int64)
    first = (tl.program_id(0) % chunks) * GROUPS
    k = tl.arange(0, GROUPS * PADDED)
    group = first + k // PADDED
    inside = (k % PADDED < GROUP) & (group < groups)
    channel = first * GROUP + k if GROUP == PADDED else group * GROUP + k % PADDED
    return sample, first + tl.arange(0, GROUPS), group, channel, inside


@triton.jit
def _per_group(values, GROUPS: tl.constexpr, PADDED: tl.constexpr):  # type: ignore[no-untyped-def]
    """The sum of each group's values, once per group and once per channel."""
    total = tl.sum(tl.reshape(values, (GROUPS, PADDED)), 1)
    spread = tl.broadcast_to(total[:, None], (GROUPS, PADDED))
    return total, tl.reshape(spread, (GROUPS * PADDED,))


@triton.jit
def _offset(place, inside, channel, moves):  # type: ignore[no-untyped-def]
    """What is added to each channel: 0 unless ``moves``."""
    given = inside & ((channel * 0 + moves) != 0)
    return tl.load(place, given, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=_UNSPECIALISED)
def _norm(  # type: ignore[no-untyped-def]
    x, out, mean, inverse, weight, bias, offset, positions, channels, groups, weight_step, bias_step, offset_step,
    activate, moves, eps, GROUP: tl.constexpr, PADDED: tl.constexpr, GROUPS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    sample, owned, _, channel, inside = _own_channels(groups, GROUP, PADDED, GROUPS)
    start_of_sample = sample * positions * channels
    x += start_of_sample
    out += start_of_sample
    pivot = tl.load(x + channel, inside, other=0.0).to(tl.float32)
    sums = tl.zeros((TILE, GROUPS * PADDED), tl.float32)
    squares = tl.zeros((TILE, GROUPS * PADDED), tl.float32)
    for start in range(0, positions, TILE):
        row = start + tl.arange(0, TILE)
        here = (row < positions)[:, None] & inside[None, :]
        value = tl.load(x + row[:, None] * channels + channel[None, :], here, other=0.0).to(tl.float32)
        value = tl.where(here, value - pivot[None, :], 0.0)
        sums += value
        squares += value * value
    n = positions.to(tl.float32)
    total = tl.sum(sums, 0)
    own = pivot + total / n  # mean of the channel
    spread = tl.maximum(tl.sum(squares, 0) - total * total / n, 0.0)
    moved = _offset(offset + sample * offset_step + channel, inside, channel, moves)
    own += moved
    of_group, mu = _per_group(tl.where(inside, own, 0.0), GROUPS, PADDED)
    mu = mu / GROUP
    spread += n * (own - mu) * (own - mu)
    deviation, variance = _per_group(tl.where(inside, spread, 0.0), GROUPS, PADDED)
    known = sample * groups + owned
    tl.store(mean + known, of_group / GROUP, owned < groups)
    tl.store(inverse + known, tl.rsqrt(deviation / (GROUP * n) + eps), owned < groups)
    w = tl.load(weight + sample * weight_step + channel, inside, other=0.0).to(tl.float32)
    b = tl.load(bias + sample * bias_step + channel, inside, other=0.0).to(tl.float32)
    w = w * tl.rsqrt(variance / (GROUP * n) + eps)
    b = b + (moved - mu) * w
    for start in range(0, positions, TILE):
        row = start + tl.arange(0, TILE)
        here = (row < positions)[:, None] & inside[None, :]
        place = row[:, None] * channels + channel[None, :]
        y = tl.load(x + place, here, other=0.0).to(tl.float32) * w[None, :] + b[None, :]
        y = tl.where(activate != 0, y * tl.sigmoid(y), y)
        tl.store(out + place, y.to(out.dtype.element_ty), here)


@triton.jit
def _slope(cotangent, hat, w, b, activate):  # type: ignore[no-untyped-def]
    """The gradient by y = w hat + b."""
    y = hat * w[None, :] + b[None, :]
    gate = tl.sigmoid(y)
    return tl.where(activate != 0, cotangent * gate * (1.0 + y * (1.0 - gate)), cotangent)


@triton.jit(do_not_specialize=_UNSPECIALISED)
def _norm_backward(  # type: ignore[no-untyped-def]
    cotangent, x, dx, dw, db, doffset, mean, inverse, weight, bias, offset, positions, channels, groups,
    weight_step, bias_step, offset_step, activate, moves,
    GROUP: tl.constexpr, PADDED: tl.constexpr, GROUPS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    sample, _, group, channel, inside = _own_channels(groups, GROUP, PADDED, GROUPS)
    start_of_sample = sample * positions * channels
    x += start_of_sample
    cotangent += start_of_sample
    dx += start_of_sample
    mu = tl.load(mean + sample * groups + group, inside, other=0.0)
    scale = tl.load(inverse + sample * groups + group, inside, other=0.0)
    w = tl.load(weight + sample * weight_step + channel, inside, other=0.0).to(tl.float32)
    b = tl.load(bias + sample * bias_step + channel, inside, other=0.0).to(tl.float32)
    mu -= _offset(offset + sample * offset_step + channel, inside, channel, moves)
    slopes = tl.zeros((TILE, GROUPS * PADDED), tl.float32)
    products = tl.zeros((TILE, GROUPS * PADDED), tl.float32)
    hats = tl.zeros((TILE, GROUPS * PADDED), tl.float32)
    for start in range(0, positions, TILE):
        row = start + tl.arange(0, TILE)
        here = (row < positions)[:, None] & inside[None, :]
        place = row[:, None] * channels + channel[None, :]
        hat = (tl.load(x + place, here, other=0.0).to(tl.float32) - mu[None, :]) * scale[None, :]
        given = tl.load(cotangent + place, here, other=0.0).to(tl.float32)  # 0 outside, and so is the slope
        slope = _slope(given, hat, w, b, activate)
        slopes += slope
        products += slope * hat
        hats += tl.where(here, hat, 0.0)
    n = positions.to(tl.float32)
    total, product = tl.sum(slopes, 0), tl.sum(products, 0)
    own = sample * channels + channel
    tl.store(db + own, total, inside)
    tl.store(dw + own, product, inside)
    _, plain = _per_group(tl.where(inside, w * total, 0.0), GROUPS, PADDED)
    _, along = _per_group(tl.where(inside, w * product, 0.0), GROUPS, PADDED)
    plain = plain / (GROUP * n)
    along = along / (GROUP * n)
    tl.store(doffset + own, scale * (w * total - n * plain - along * tl.sum(hats, 0)), inside)
    for start in range(0, positions, TILE):
        row = start + tl.arange(0, TILE)
        here = (row < positions)[:, None] & inside[None, :]
        place = row[:, None] * channels + channel[None, :]
        hat = (tl.load(x + place, here, other=0.0).to(tl.float32) - mu[None, :]) * scale[None, :]
        given = tl.load(cotangent + place, here, other=0.0).to(tl.float32)
        slope = _slope(given, hat, w, b, activate)
        found = scale[None, :] * (slope * w[None, :] - plain[None, :] - hat * along[None, :])
        tl.store(dx + place, found.to(dx.dtype.element_ty), here)


class Grid(NamedTuple):
    """How the channels are shared among programs.

    Attributes:
        group: channels of a group.
        padded: the same, rounded up to a power of two.
        groups: groups of a program.
        tile: positions that a program has in registers at a time.
        programs: their number.
    """

    group: int
    padded: int
    groups: int
    tile: int
    programs: int

    @classmethod
    def of(cls, x: Tensor, groups: int) -> Grid:
        """For (B, C, *size) in ``groups`` groups."""
        group = x.shape[1] // groups
        padded = triton.next_power_of_2(group)
        together = max(1, _ROW_BYTES // x.element_size() // padded)
        together = min(together, triton.next_power_of_2(groups))
        tile = max(1, _TILE // (together * padded))
        return cls(group, padded, together, tile, len(x) * triton.cdiv(groups, together))

    @property
    def suits(self) -> bool:
        """Whether a tile fits into the registers."""
        return self.tile * self.groups * self.padded <= _TILE


def norm_by_triton(
    x: Tensor, weight: Tensor, bias: Tensor, offset: Tensor | None, groups: int, eps: float, activate: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The result, and μ and 1/√(s² + eps) in float32, (B, groups).

    Args:
        x: (B, C, *size), channels last in memory.
        weight: (C,) or (B, C).
        bias: (C,) or (B, C).
        offset: what is added to x first, (B, C), or None.
        groups: number of groups.
        eps: added to the variance.
        activate: whether SiLU follows.
    """
    grid, out = Grid.of(x, groups), torch.empty_like(x)
    mean, inverse = torch.empty(2, len(x), groups, dtype=torch.float32, device=x.device).unbind()
    _launch(_norm, grid, (x, out, mean, inverse), (weight, bias, offset), groups, (eps,), activate)
    return out, mean, inverse


def norm_backward_by_triton(
    cotangent: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    offset: Tensor | None,
    mean: Tensor,
    inverse: Tensor,
    activate: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients by x, and by weight, bias and offset for each sample, (B, C) in float32."""
    groups, dx = mean.shape[1], torch.empty_like(x)
    dw, db, doffset = torch.empty(3, *x.shape[:2], dtype=torch.float32, device=x.device).unbind()
    tensors = (cotangent, x, dx, dw, db, doffset, mean, inverse)
    _launch(_norm_backward, Grid.of(x, groups), tensors, (weight, bias, offset), groups, (), activate)
    return dx, dw, db, doffset


def _launch(
    kernel: Any,
    grid: Grid,
    tensors: tuple[Tensor, ...],
    channelwise: tuple[Tensor, Tensor, Tensor | None],
    groups: int,
    last: tuple[float, ...],
    activate: bool,
) -> None:
    x, moves = tensors[0], channelwise[2] is not None
    given = (channelwise[0] if row is None else row for row in channelwise)
    rows = [row if row.stride(-1) == 1 else row.contiguous() for row in given]
    steps = [0 if row.ndim != 2 else row.stride(0) for row in rows]
    warps = 8 if grid.tile * grid.groups * grid.padded >= 2048 else 4
    with torch.cuda.device(x.device if x.is_cuda else None):
        kernel[(grid.programs,)](
            *tensors, *rows, x.shape[2:].numel(), x.shape[1], groups, *steps, int(activate),
            int(moves), *last, GROUP=grid.group, PADDED=grid.padded, GROUPS=grid.groups,
            TILE=grid.tile, num_warps=warps, enable_fp_fusion=True,
        )  # fmt: skip
