"""Where the words of Philox and the normals made of them come from: numpy on the CPU, one kernel on a CUDA device."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.errors import warn_caller
from sde_toolkit.noise.box_muller import HostBoxMuller, normals_by_torch
from sde_toolkit.noise.philox import Blocks, HostPhilox, words_by_torch

__all__ = ["DeviceWords", "HostWords", "WordSource"]

_PIECE = 1 << 15  # words at a time on the CPU: what is computed from them stays in the second cache


class WordSource(Protocol):
    """Draws blocks. The share of a sample is the same number of blocks for each."""

    def words(self, blocks: Blocks) -> Tensor:
        """(count, 4) int64."""

    def normals(self, draws: Sequence[Blocks], n: int, numbers: int) -> Tensor:
        """The normals of n samples in several draws with consecutive numbers, (draws, n, numbers) float32."""


class HostWords:
    """On the CPU. Small draws take less time together."""

    def __init__(self, key: tuple[int, int]) -> None:
        self._philox, self._box_muller = HostPhilox(key), HostBoxMuller()

    def words(self, blocks: Blocks) -> Tensor:
        return torch.from_numpy(self._drawn(blocks).view(np.int64).reshape(-1, 4))

    def normals(self, draws: Sequence[Blocks], n: int, numbers: int) -> Tensor:
        half = -(-numbers // 2)
        out = np.empty((len(draws) * n, 2, half), np.float32)
        if len(draws) * n * half <= _PIECE:
            words = [self._drawn(blocks).reshape(n, -1)[:, :half] for blocks in draws]
            self._multiply(np.ascontiguousarray(words[0]) if len(words) == 1 else np.concatenate(words), out)
        else:
            for blocks, part in zip(draws, out.reshape(len(draws), n, 2, half), strict=True):
                self._draw_in_pieces(blocks, part)
        found = torch.from_numpy(out).view(len(draws), n, 2 * half)
        return found if numbers == 2 * half else found[..., :numbers].contiguous()

    def _drawn(self, blocks: Blocks) -> np.ndarray:
        self._philox.start(blocks.counter)
        return self._philox.words(4 * blocks.count)

    def _draw_in_pieces(self, blocks: Blocks, out: np.ndarray) -> None:
        n, _, half = out.shape
        self._philox.start(blocks.counter)
        for rows, columns in _parts(n, half):
            wanted, last = columns.stop - columns.start, columns.stop == half
            drawn = 4 * -(-wanted // 4) if last else wanted  # with the rest of the last block, which nobody uses
            words = self._philox.words((rows.stop - rows.start) * drawn).reshape(-1, drawn)
            self._multiply(np.ascontiguousarray(words[:, :wanted]), out[rows, :, columns])

    def _multiply(self, words: np.ndarray, out: np.ndarray) -> None:
        r, cosine, sine = self._box_muller(words)
        np.multiply(r, cosine, out=out[:, 0])
        np.multiply(r, sine, out=out[:, 1])


def _parts(n: int, words: int) -> Iterator[tuple[slice, slice]]:
    """(n, words) in parts of at most ``_PIECE`` words: several whole samples, or some words of one."""
    several = max(1, _PIECE // words)
    for row in range(0, n, several):
        for column in range(0, words, _PIECE):
            yield slice(row, min(n, row + several)), slice(column, min(words, column + _PIECE))


class DeviceWords:
    """On a CUDA device, by Triton; without it, and on any device, by torch's operations."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def words(self, blocks: Blocks) -> Tensor:
        kernels = _kernels(self.device)
        return words_by_torch(blocks, self.device) if kernels is None else kernels.words_by_triton(blocks, self.device)

    def normals(self, draws: Sequence[Blocks], n: int, numbers: int) -> Tensor:
        kernels = _kernels(self.device)
        if kernels is not None:
            found: Tensor = kernels.normals_by_triton(draws[0], n, numbers, self.device, len(draws))
            return found
        return torch.stack([self._normals_by_torch(blocks, n, numbers) for blocks in draws])

    def _normals_by_torch(self, blocks: Blocks, n: int, numbers: int) -> Tensor:
        words = words_by_torch(blocks, self.device).reshape(n, -1)[:, : -(-numbers // 2)]
        return torch.cat(normals_by_torch(words), 1)[:, :numbers]


@functools.lru_cache(maxsize=16)
def _kernels(device: torch.device) -> ModuleType | None:
    """The kernels of one launch, if Triton is there and runs on the device."""
    if device.type != "cuda":
        return None
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
