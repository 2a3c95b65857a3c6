"""The random numbers of training, each a function of (seed, purpose, step, index) and of nothing else.

There is no stream to save and none to lose: step 61 draws the same after a resumption as without one, on any number of
processes and loading workers. The generator is the counter-based Philox 4×64 (Salmon et al. 2011), whose counter is
(0, purpose, index, step) and whose key is the seed; the samples of a batch are told apart by their global index.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

__all__ = ["KeyedDraws", "Use", "epoch_order", "step_seed"]


class Use(IntEnum):
    """What numbers are for; no two uses share any."""

    ORDER = 0
    TIME = 1
    NOISE = 2
    AUGMENTATION = 3
    LABEL = 4
    NETWORK = 5


class KeyedDraws:
    """Keyed draws of one run; cheap enough to be made for every sample (about 2 µs beside the numbers themselves)."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.Philox(key=seed)
        self._generator = np.random.Generator(self._bits)
        self._state = self._bits.state  # a copy, as new: with no words buffered

    def at(self, use: Use, step: int, index: int) -> np.random.Generator:
        """The generator of one (use, step, index). It is one object: use it up before asking for the next."""
        state = self._state
        state["state"]["counter"][:] = (0, int(use), index, step)
        self._bits.state = state
        return self._generator

    def uniform(self, use: Use, step: int, first: int, n: int, width: int) -> Tensor:
        """Uniform on [0, 1), float64, (n, width), for the samples first, …, first + n − 1."""
        out = np.empty((n, width))
        for i in range(n):
            self.at(use, step, first + i).random(out=out[i])
        return torch.from_numpy(out)

    def normal(self, use: Use, step: int, first: int, shape: tuple[int, ...]) -> Tensor:
        """Standard normal, float32, of the given shape (n, ...), for the samples first, …, first + n − 1."""
        out = np.empty(shape, np.float32)
        for i in range(shape[0]):
            out[i] = self.at(use, step, first + i).standard_normal(shape[1:], np.float32)
        return torch.from_numpy(out)


def epoch_order(seed: int, epoch: int, n: int) -> np.ndarray:
    """The order in which epoch number ``epoch`` visits its n samples."""
    return KeyedDraws(seed).at(Use.ORDER, epoch, 0).permutation(n)


def step_seed(seed: int, step: int, rank: int, part: int) -> int:
    """A seed for what torch draws by itself inside the network (dropout) in one part of one step on one process."""
    return int(KeyedDraws(seed).at(Use.NETWORK, step, rank << 20 | part).integers(2**63))
