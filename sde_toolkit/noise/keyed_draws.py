"""Random numbers that are functions of (seed, purpose, draw, sample, position), drawn where they are needed.

There is no state. Batch size, split, number of processes and order of the draws have no influence, and the integers
are the same on a CPU and on a GPU. The numbers are made of blocks of :mod:`.philox`. The key of the cipher is (seed,
purpose). Its counter holds

    bits 0 to 127      1 + b i + p, for block p of the b blocks of sample i
    bits 128 to 191    the number of the draw
    bits 192 to 255    8 m + the kind of number, for samples of m numbers

so that the samples of a batch are one walk of the counter, and samples of other sizes have other numbers.
"""

from __future__ import annotations

import math
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.noise.philox import Blocks, HostPhilox
from sde_toolkit.noise.word_sources import DeviceWords, HostWords, WordSource

__all__ = ["KeyedDraws", "NumberKind"]

_RESOLUTION = 2.0**-53


class NumberKind(IntEnum):
    """Kinds of numbers; no two share a word."""

    NORMAL = 0
    UNIFORM = 1
    SIGN = 2
    INTEGER = 3
    ANY = 4

    def words(self, numbers: int) -> int:
        """How many words ``numbers`` numbers are made of."""
        return -(-numbers // {NumberKind.NORMAL: 2, NumberKind.SIGN: 64}.get(self, 1))


class KeyedDraws:
    """The random numbers of one seed and purpose.

    ``shape`` is (n, *event) in all methods, for the samples ``first``, ..., ``first + n − 1``. Numbers for a CUDA
    device are drawn there, by one kernel. Those for any other device are drawn on the CPU and stay there.

    ``seed``: from 0 to 2⁶⁴ − 1. ``purpose``: a number that tells apart what one seed is used for.
    """

    def __init__(self, seed: int, purpose: int, device: torch.device | str = "cpu") -> None:
        device = torch.device(device)
        self.key = (int(seed), int(purpose))
        self.device = device if device.type == "cuda" else torch.device("cpu")
        self.source: WordSource = DeviceWords(device) if device.type == "cuda" else HostWords(self.key)

    def normal(self, draw: int, first: int, shape: tuple[int, ...]) -> Tensor:
        """Standard normal, float32."""
        return self.normals(draw, 1, first, shape)[0]

    def normals(self, draw: int, count: int, first: int, shape: tuple[int, ...]) -> Tensor:
        """Those of ``count`` draws, (count, n, *event)."""
        n, numbers = shape[0], math.prod(shape[1:])
        if n * numbers == 0:
            return torch.empty(count, *shape, device=self.device)
        draws = [self._blocks(NumberKind.NORMAL, draw + k, first, n, numbers) for k in range(count)]
        return self.source.normals(draws, n, numbers).reshape(count, *shape)

    def uniform(self, draw: int, first: int, shape: tuple[int, ...]) -> Tensor:
        """Uniform on [0, 1), float64: multiples of 2⁻⁵³."""
        words = self._words(NumberKind.UNIFORM, draw, first, shape)
        return (((words >> 11) & (1 << 53) - 1).to(torch.float64) * _RESOLUTION).reshape(shape)

    def sign(self, draw: int, first: int, shape: tuple[int, ...]) -> Tensor:
        """−1 or 1, float32."""
        words = self._words(NumberKind.SIGN, draw, first, shape)
        bits = (words.unsqueeze(2) >> torch.arange(64, device=self.device)) & 1
        return (2 * bits.flatten(1)[:, : math.prod(shape[1:])].to(torch.float32) - 1).reshape(shape)

    def integers(self, draw: int, first: int, n: int) -> list[int]:
        """A whole number of 63 bits for each of n samples."""
        found: list[int] = (
            ((self._words(NumberKind.INTEGER, draw, first, (n,)) >> 1) & (1 << 63) - 1).flatten().tolist()
        )
        return found

    def generator(self, draw: int) -> np.random.Generator:
        """numpy's generator for a draw, on the CPU, for what needs an unknown count of numbers, such as an order."""
        host = HostPhilox(self.key)
        host.start(self._blocks(NumberKind.ANY, draw, 0, 0, 0).counter)
        return np.random.Generator(host.bits)

    def _words(self, kind: NumberKind, draw: int, first: int, shape: tuple[int, ...]) -> Tensor:
        """The words of every sample, (n, words) int64."""
        n, numbers = shape[0], math.prod(shape[1:])
        blocks, words = self._blocks(kind, draw, first, n, numbers), kind.words(numbers)
        return self.source.words(blocks).reshape(n, 4 * -(-words // 4))[:, :words]

    def _blocks(self, kind: NumberKind, draw: int, first: int, n: int, numbers: int) -> Blocks:
        each = -(-kind.words(numbers) // 4)
        return Blocks(self.key, ((8 * numbers + kind) << 192) + (draw << 128) + each * first + 1, each * n)
