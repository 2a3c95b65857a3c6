"""Philox 4×64-10: a cipher from counters to random integers, in numpy's C, and in torch on any device.

The counter has 256 bits, the key 128. A block is what the cipher makes of one counter: four words of 64 bits. Ten
rounds, with (M_0, M_1) the multipliers, and "high" and "low" the halves of a product of 128 bits:

    (c_0, c_1, c_2, c_3) ← (high(M_1 c_2) ^ c_1 ^ k_0,  low(M_1 c_2),  high(M_0 c_0) ^ c_3 ^ k_1,  low(M_0 c_0))

After each round the key grows by the Weyl constants. Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
torch has signed words only. Sums and products are the same bits, and shifts to the right get a mask.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["MULTIPLIERS", "ROUNDS", "WEYL", "Blocks", "HostPhilox", "philox", "signed", "words_by_torch"]

ROUNDS = 10
MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_64 = 1 << 64
_LOW = 0xFFFFFFFF


@dataclass(frozen=True)
class Blocks:
    """``count`` blocks under a key of two words: those of the counters ``counter``, ``counter`` + 1, ...

    The lower 128 bits of the counter are a position. They must not overflow.
    """

    key: tuple[int, int]
    counter: int
    count: int

    @property
    def counter_words(self) -> tuple[int, int, int, int]:
        """The first counter, lowest word first."""
        return words_of(self.counter)


def words_of(counter: int) -> tuple[int, int, int, int]:
    """256 bits as four words, lowest first."""
    return counter % _64, (counter >> 64) % _64, (counter >> 128) % _64, (counter >> 192) % _64


def signed(word: int) -> int:
    """The same 64 bits as a signed integer."""
    return word - _64 if word >= _64 >> 1 else word


class HostPhilox:
    """The words on the CPU, from numpy. To move to a counter takes 1 µs; a word takes about 3 ns."""

    def __init__(self, key: tuple[int, int]) -> None:
        self.bits = np.random.Philox(key=np.array(key, np.uint64))
        self._state = self.bits.state  # a copy, in which no words are buffered

    def start(self, counter: int) -> None:
        """The next word is the first one of the block at ``counter``, at least 1: numpy adds one before it draws."""
        self._state["state"]["counter"][:] = words_of(counter - 1)
        self.bits.state = self._state

    def words(self, n: int) -> np.ndarray:
        """The next n words, uint64."""
        return self.bits.random_raw(n)


def words_by_torch(blocks: Blocks, device: torch.device) -> Tensor:
    """The words of the blocks on ``device``, (count, 4) int64."""
    c_0, c_1, c_2, c_3 = (signed(word) for word in blocks.counter_words)
    least = torch.iinfo(torch.int64).min
    low = torch.arange(blocks.count, device=device) + c_0
    carried = (low ^ least) < (c_0 ^ least)  # compared as unsigned words
    counter = torch.empty(4, blocks.count, dtype=torch.int64, device=device)
    counter[0], counter[1], counter[2], counter[3] = low, c_1 + carried.to(torch.int64), c_2, c_3
    return philox(counter, blocks.key).T


def philox(counter: Tensor, key: tuple[int, int]) -> Tensor:
    """The blocks of counters (4, n) int64, lowest word first: (4, n) int64."""
    c_02, c_13 = counter[0::2], counter[1::2]
    multipliers, weyl = _constants(counter.device)
    k = torch.tensor([[signed(word)] for word in key]).to(counter.device, non_blocking=True)
    for _ in range(ROUNDS):
        high, low = _product(c_02, multipliers)
        c_02, c_13 = high.flip(0) ^ c_13 ^ k, low.flip(0)
        k = k + weyl
    return torch.stack((c_02, c_13), 1).flatten(0, 1)


@functools.lru_cache(maxsize=8)
def _constants(device: torch.device) -> tuple[Tensor, Tensor]:
    """The multipliers and the Weyl constants, (2, 1) each."""
    columns = [torch.tensor([[signed(word)] for word in words]) for words in (MULTIPLIERS, WEYL)]
    return columns[0].to(device), columns[1].to(device)


def _product(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The higher and the lower word of a product of two unsigned words, by halves of 32 bits."""
    a_0, a_1, b_0, b_1 = a & _LOW, _upper(a), b & _LOW, _upper(b)
    first = a_0 * b_1 + _upper(a_0 * b_0)
    second = a_1 * b_0 + (first & _LOW)
    return a_1 * b_1 + _upper(first) + _upper(second), a * b


def _upper(word: Tensor) -> Tensor:
    """The upper 32 bits of an unsigned word."""
    return (word >> 32) & _LOW
