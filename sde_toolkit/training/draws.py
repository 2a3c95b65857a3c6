"""The random numbers of training. Each is a function of (seed, purpose, step, index) and of nothing else.

So there is no random state to save. Step 61 draws the same numbers in a run that was killed and continues as in one
that was never stopped, on any number of processes and reading workers. They are those of
:class:`~sde_toolkit.noise.keyed_draws.KeyedDraws`: the draw is the step, and the index of a sample is its place in the
batch of all processes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.noise.keyed_draws import KeyedDraws
from sde_toolkit.noise.streams import Purpose

__all__ = ["NOISE_VERSION", "UndrawnNoise", "epoch_order", "seed_torch", "step_seed"]

NOISE_VERSION = 2  # of the random numbers of a step; the runs of another version are not continued


@dataclass(frozen=True)
class UndrawnNoise:
    """The noise of the samples ``first``, ... of a step, which is drawn where the step is taken.

    ``shape``: (n, *event).
    """

    seed: int
    step: int
    first: int
    shape: tuple[int, ...]

    def on(self, device: torch.device | str) -> Tensor:
        """Standard normal, float32."""
        draws = KeyedDraws(self.seed, Purpose.TRAINING_NOISE, device)
        return draws.normal(self.step, self.first, self.shape).to(device, non_blocking=True)


def epoch_order(seed: int, epoch: int, n: int) -> np.ndarray:
    """The order in which epoch number ``epoch`` visits its n samples."""
    return KeyedDraws(seed, Purpose.TRAINING_ORDER).generator(epoch).permutation(n)


def step_seed(seed: int, step: int, rank: int, part: int) -> int:
    """The seed of torch's own draws in the network (dropout), for pass ``part`` of a step on process ``rank``."""
    return KeyedDraws(seed, Purpose.TRAINING_NETWORK).integers(step, rank << 20 | part, 1)[0]


def seed_torch(seed: int, device: torch.device) -> None:
    """Seed torch's own draws on the CPU and on the device. (``torch.manual_seed`` asks for every kind of device.)"""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type != "cpu":
        torch.manual_seed(seed)
