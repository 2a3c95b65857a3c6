"""The random numbers of training. Each is a function of (seed, use, step, index) and of nothing else.

So there is no random state to save. Step 61 draws the same numbers in a run that was killed and continues as in one
that was never stopped, on any number of processes and reading workers. The generator is the counter-based Philox 4×64
(Salmon et al. 2011). Its key is the seed, its counter is (0, use, index, step). The index of a sample is its place in
the batch of all processes.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

__all__ = ["KeyedDraws", "Use", "epoch_order", "step_seed"]


class Use(IntEnum):
    """What random numbers are used for. No two uses share a number."""

    ORDER = 0
    TIME = 1
    NOISE = 2
    AUGMENTATION = 3
    LABEL = 4
    NETWORK = 5


class KeyedDraws:
    """The random numbers of one run. To move the generator to a key takes about 2 µs, so each sample has its own."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.Philox(key=seed)
        self._generator = np.random.Generator(self._bits)
        self._state = self._bits.state  # a copy of the new state, which has no words buffered

    def at(self, use: Use, step: int, index: int) -> np.random.Generator:
        """The generator at (use, step, index). It is the same object every time: draw before you ask for the next."""
        state = self._state
        state["state"]["counter"][:] = (0, int(use), index, step)
        self._bits.state = state
        return self._generator

    def uniform(self, use: Use, step: int, first: int, n: int, width: int) -> Tensor:
        """Uniform on [0, 1), float64, (n, width), for the samples ``first``, …, ``first + n − 1``."""
        out = np.empty((n, width))
        for i in range(n):
            self.at(use, step, first + i).random(out=out[i])
        return torch.from_numpy(out)

    def normal(self, use: Use, step: int, first: int, shape: tuple[int, ...]) -> Tensor:
        """Standard normal, float32, of ``shape`` (n, ...), for the samples ``first``, …, ``first + n − 1``."""
        out = np.empty(shape, np.float32)
        for i in range(shape[0]):
            out[i] = self.at(use, step, first + i).standard_normal(shape[1:], np.float32)
        return torch.from_numpy(out)


def epoch_order(seed: int, epoch: int, n: int) -> np.ndarray:
    """The order in which epoch number ``epoch`` visits its n samples."""
    return KeyedDraws(seed).at(Use.ORDER, epoch, 0).permutation(n)


def step_seed(seed: int, step: int, rank: int, part: int) -> int:
    """The seed of torch's own draws in the network (dropout), for pass ``part`` of a step on process ``rank``."""
    return int(KeyedDraws(seed).at(Use.NETWORK, step, rank << 20 | part).integers(2**63))
