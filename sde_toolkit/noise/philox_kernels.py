"""Philox and the normals in one kernel each, for CUDA and ROCm, by Triton. Imported where Triton is installed.

A lane computes one block: four words, or eight normals. Arguments of 64 bits come as two signed halves, higher half
first: then all calls have arguments of one type, and a kernel is compiled once.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sde_toolkit.noise.box_muller import ANGLE, UNIT
from sde_toolkit.noise.philox import MULTIPLIERS, ROUNDS, WEYL, Blocks

__all__ = ["normals_by_triton", "words_by_triton"]

_LANES = 128
_M_0, _M_1 = (tl.constexpr(word) for word in MULTIPLIERS)
_W_0, _W_1 = (tl.constexpr(word) for word in WEYL)
_ROUNDS, _UNIT, _ANGLE = tl.constexpr(ROUNDS), tl.constexpr(UNIT), tl.constexpr(ANGLE)
_HALVES = [f"{name}{half}" for name in ("k0", "k1", "c0", "c1", "c2", "c3") for half in ("h", "l")]


@triton.jit
def _word(high, low):  # type: ignore[no-untyped-def]
    return (high.to(tl.uint32, bitcast=True).to(tl.uint64) << 32) | low.to(tl.uint32, bitcast=True).to(tl.uint64)


@triton.jit
def _philox(block, k0, k1, first, c1, c2, c3):  # type: ignore[no-untyped-def]
    """The words of the blocks at the counters (first, c1, c2, c3) + block."""
    zero = tl.zeros_like(block).to(tl.uint64)
    m0, m1 = zero + _M_0, zero + _M_1
    c0 = first + block.to(tl.uint64)
    c1 = zero + c1 + (c0 < first).to(tl.uint64)
    c2 = zero + c2
    c3 = zero + c3
    for _ in tl.static_range(_ROUNDS):
        high0, low0 = tl.umulhi(m0, c0), m0 * c0
        high1, low1 = tl.umulhi(m1, c2), m1 * c2
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0 += _W_0
        k1 += _W_1
    return c0, c1, c2, c3


@triton.jit(do_not_specialize=["count", *_HALVES])
def _words(out, count, k0h, k0l, k1h, k1l, c0h, c0l, c1h, c1l, c2h, c2l, c3h, c3l, LANES: tl.constexpr):  # type: ignore[no-untyped-def]
    block = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    w0, w1, w2, w3 = _philox(
        block, _word(k0h, k0l), _word(k1h, k1l), _word(c0h, c0l), _word(c1h, c1l), _word(c2h, c2l), _word(c3h, c3l)
    )
    inside = block < count
    tl.store(out + 4 * block, w0.to(tl.int64, bitcast=True), inside)
    tl.store(out + 4 * block + 1, w1.to(tl.int64, bitcast=True), inside)
    tl.store(out + 4 * block + 2, w2.to(tl.int64, bitcast=True), inside)
    tl.store(out + 4 * block + 3, w3.to(tl.int64, bitcast=True), inside)


@triton.jit
def _store_normals(row, j, word, half, numbers, inside):  # type: ignore[no-untyped-def]
    """The two normals of word number j of a sample: elements j and j + half."""
    u = ((word & 0xFFFFFFFF).to(tl.uint32).to(tl.float32) + 0.5) * _UNIT
    theta = (word >> 32).to(tl.uint32).to(tl.int32, bitcast=True).to(tl.float32) * _ANGLE
    r = tl.sqrt_rn(-2.0 * tl.log(u))
    inside = inside & (j < half)
    tl.store(row + j, r * tl.cos(theta), inside)
    tl.store(row + j + half, r * tl.sin(theta), inside & (j + half < numbers))


@triton.jit(do_not_specialize=["count", "blocks", "numbers", *_HALVES])
def _normals(  # type: ignore[no-untyped-def]
    out, count, blocks, numbers, k0h, k0l, k1h, k1l, c0h, c0l, c1h, c1l, c2h, c2l, c3h, c3l, LANES: tl.constexpr
):
    block, draw = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES), tl.program_id(1).to(tl.int64)
    c2 = _word(c2h, c2l) + draw.to(tl.uint64)
    w0, w1, w2, w3 = _philox(
        block, _word(k0h, k0l), _word(k1h, k1l), _word(c0h, c0l), _word(c1h, c1l), c2, _word(c3h, c3l)
    )
    inside, half = block < count, (numbers + 1) // 2
    samples = draw * (count // blocks) + block // blocks
    row, j = out + samples * numbers, 4 * (block % blocks)
    _store_normals(row, j, w0, half, numbers, inside)
    _store_normals(row, j + 1, w1, half, numbers, inside)
    _store_normals(row, j + 2, w2, half, numbers, inside)
    _store_normals(row, j + 3, w3, half, numbers, inside)


def words_by_triton(blocks: Blocks, device: torch.device) -> Tensor:
    """The words of the blocks on ``device``, (count, 4) int64."""
    out = torch.empty(blocks.count, 4, dtype=torch.int64, device=device)
    _launch(_words, blocks, out, 1, blocks.count)
    return out


def normals_by_triton(blocks: Blocks, n: int, numbers: int, device: torch.device, draws: int = 1) -> Tensor:
    """The normals of n samples in one draw and those after it, (draws, n, numbers) float32.

    ``blocks``: those of the first draw; each sample has an equal share of them.
    """
    out = torch.empty(draws, n, numbers, dtype=torch.float32, device=device)
    _launch(_normals, blocks, out, draws, blocks.count, blocks.count // n, numbers)
    return out


def _launch(kernel: Any, blocks: Blocks, out: Tensor, draws: int, *sizes: int) -> None:
    halves = [_signed_half(half) for word in (*blocks.key, *blocks.counter_words) for half in divmod(word, 1 << 32)]
    with torch.cuda.device(out.device if out.is_cuda else None):
        kernel[(triton.cdiv(blocks.count, _LANES), draws)](
            out, *sizes, *halves, LANES=_LANES, num_warps=4, enable_fp_fusion=False
        )


def _signed_half(half: int) -> int:
    return half - (1 << 32) if half >= 1 << 31 else half
