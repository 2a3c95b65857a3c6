"""Random numbers that are functions of (seed, purpose, draw, sample, position), drawn where they are needed.

There is no state. Batch size, split, number of processes and order of the draws have no influence, and the integers
are the same on a CPU and on a GPU. The numbers are made of blocks of :mod:`.philox`. The key of the cipher is (seed,
purpose). Its counter holds

    bits 0 to 127      1 + b i + p, for block p of the b blocks of sample i
    bits 128 to 191    the number of the draw
    bits 192 to 255    4 m + the kind of number, for samples of m numbers

so that the samples of a batch are one walk of the counter, and samples of other sizes have other numbers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from enum import IntEnum
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.errors import warn_caller
from sde_toolkit.noise.box_muller import HostBoxMuller, normals_by_torch
from sde_toolkit.noise.philox import Blocks, HostPhilox, words_by_torch

__all__ = ["KeyedDraws", "Kind"]

_PIECE = 1 << 14  # words at a time on the CPU: what is computed from them stays in the second cache
_RESOLUTION = 2.0**-53


class Kind(IntEnum):
    """Kinds of numbers; no two share a word."""

    NORMAL = 0
    UNIFORM = 1
    SIGN = 2
    ANY = 3

    def words(self, numbers: int) -> int:
        """How many words ``numbers`` numbers are made of."""
        per_word = {Kind.NORMAL: 2, Kind.UNIFORM: 1, Kind.SIGN: 64, Kind.ANY: 1}[self]
        return -(-numbers // per_word)


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
        self._host = HostPhilox(self.key) if self.device.type == "cpu" else None
        self._box_muller = HostBoxMuller()

    def normal(self, draw: int, first: int, shape: tuple[int, ...]) -> Tensor:
        """Standard normal, float32."""
        n, numbers = shape[0], math.prod(shape[1:])
        if n * numbers == 0:
            return torch.empty(shape, device=self.device)
        if self._host is not None:
            return torch.from_numpy(self._host_normals(self._host, draw, first, n, numbers)).reshape(shape)
        blocks, kernels = self._blocks(Kind.NORMAL, draw, first, n, numbers), _kernels(self.device)
        if kernels is not None:
            return kernels.normals_by_triton(blocks, n, numbers, self.device).reshape(shape)
        words = words_by_torch(blocks, self.device).reshape(n, -1)[:, : Kind.NORMAL.words(numbers)]
        return torch.cat(normals_by_torch(words), 1)[:, :numbers].reshape(shape)

    def normals(self, draw: int, count: int, first: int, shape: tuple[int, ...]) -> Tensor:
        """Those of ``count`` draws, (count, n, *event): for small draws on the CPU this takes less time than singly."""
        n, numbers = shape[0], math.prod(shape[1:])
        if self._host is None or n * numbers == 0 or count == 1:
            return torch.stack([self.normal(draw + k, first, shape) for k in range(count)])
        words = [self._words(Kind.NORMAL, draw + k, first, shape) for k in range(count)]
        r, cosine, sine = self._box_muller(np.concatenate(words))
        pairs = np.stack((r * cosine, r * sine), 1).reshape(count * n, -1)[:, :numbers]
        return torch.from_numpy(np.ascontiguousarray(pairs)).reshape(count, *shape)

    def uniform(self, draw: int, first: int, shape: tuple[int, ...]) -> Tensor:
        """Uniform on [0, 1), float64: multiples of 2⁻⁵³."""
        words = self._words(Kind.UNIFORM, draw, first, shape)
        if isinstance(words, np.ndarray):
            return torch.from_numpy((words >> np.uint64(11)) * _RESOLUTION).reshape(shape)
        return (((words >> 11) & (1 << 53) - 1).to(torch.float64) * _RESOLUTION).reshape(shape)

    def sign(self, draw: int, first: int, shape: tuple[int, ...]) -> Tensor:
        """−1 or 1, float32."""
        words, numbers = self._words(Kind.SIGN, draw, first, shape), math.prod(shape[1:])
        if isinstance(words, np.ndarray):
            octets = words.astype("<u8", copy=False).view(np.uint8).reshape(shape[0], 8 * words.shape[1])
            bits = torch.from_numpy(np.unpackbits(octets, axis=1, count=numbers, bitorder="little"))
        else:
            places = torch.arange(64, device=self.device)
            bits = ((words.unsqueeze(2) >> places) & 1).flatten(1)[:, :numbers]
        return (2 * bits.to(torch.float32) - 1).reshape(shape)

    def integers(self, draw: int, first: int, n: int) -> list[int]:
        """A whole number of 63 bits for each of n samples."""
        return [word % 2**64 >> 1 for word in self._words(Kind.ANY, draw, first, (n,))[:, 0].tolist()]

    def generator(self, draw: int) -> np.random.Generator:
        """numpy's generator for a draw, on the CPU, for what needs an unknown count of numbers, such as an order."""
        host = HostPhilox(self.key)
        host.start((Kind.ANY << 192) + (draw << 128) + 1)
        return np.random.Generator(host.bits)

    def _blocks(self, kind: Kind, draw: int, first: int, n: int, numbers: int) -> Blocks:
        each = -(-kind.words(numbers) // 4)
        return Blocks(self.key, ((4 * numbers + kind) << 192) + (draw << 128) + each * first + 1, each * n)

    def _words(self, kind: Kind, draw: int, first: int, shape: tuple[int, ...]) -> Tensor | np.ndarray:
        """The words of every sample, (n, words): int64 on a device, uint64 on the CPU."""
        n, numbers = shape[0], math.prod(shape[1:])
        words, blocks = kind.words(numbers), self._blocks(kind, draw, first, n, numbers)
        if self._host is not None:
            self._host.start(blocks.counter)
            return self._host.words(4 * blocks.count).reshape(n, 4 * -(-words // 4))[:, :words]
        kernels = _kernels(self.device)
        found = words_by_torch(blocks, self.device) if kernels is None else kernels.words_by_triton(blocks, self.device)
        return found.reshape(n, 4 * -(-words // 4))[:, :words]

    def _host_normals(self, host: HostPhilox, draw: int, first: int, n: int, numbers: int) -> np.ndarray:
        words = Kind.NORMAL.words(numbers)
        out = np.empty((n, 2, words), np.float32)
        host.start(self._blocks(Kind.NORMAL, draw, first, n, numbers).counter)
        for rows, columns in _pieces(n, words):
            wanted, last = columns.stop - columns.start, columns.stop == words
            drawn = 4 * -(-wanted // 4) if last else wanted  # with the rest of the last block, which nobody uses
            piece = host.words((rows.stop - rows.start) * drawn).reshape(-1, drawn)
            r, cosine, sine = self._box_muller(np.ascontiguousarray(piece[:, :wanted]))
            np.multiply(r, cosine, out=out[rows, 0, columns])
            np.multiply(r, sine, out=out[rows, 1, columns])
        return np.ascontiguousarray(out.reshape(n, 2 * words)[:, :numbers])


def _pieces(n: int, words: int) -> Iterator[tuple[slice, slice]]:
    """(n, words) in pieces of at most ``_PIECE`` words: several whole samples, or a part of one."""
    several = max(1, _PIECE // words)
    for row in range(0, n, several):
        for column in range(0, words, _PIECE):
            yield slice(row, min(n, row + several)), slice(column, min(words, column + _PIECE))


@functools.lru_cache(maxsize=16)
def _kernels(device: torch.device) -> ModuleType | None:
    """The kernels of one launch, if Triton is there and runs on the device."""
    try:
        from sde_toolkit.noise import philox_kernels
    except ImportError:
        return None
    try:
        philox_kernels.normals_by_triton(Blocks((0, 0), 1, 1), 1, 1, device)
    except Exception as error:  # of Triton, of the compiler that it calls, of the driver
        warn_caller(f"Noise is drawn by many small operations of torch, since Triton fails here: {error}")
        return None
    return philox_kernels
