"""Where noise comes from: by default one stream per sample, on request one generator for the whole batch.

A stream belongs to (seed, purpose, sample), where sample is the place among all samples. Its numbers are those of
:class:`~sde_toolkit.noise.keyed_draws.KeyedDraws`. They do not depend on batch size, split or number of processes. They
are drawn on the device where they are needed, from the same integers on each. A ``torch.Generator`` draws on its
device too, but its numbers depend on the batch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.checks import check_amount, check_count
from sde_toolkit.errors import ArgumentError
from sde_toolkit.noise.keyed_draws import KeyedDraws

__all__ = [
    "Noise",
    "Once",
    "Purpose",
    "check_noise_dtype",
    "check_stream",
    "generator_for",
    "per_sample_noise",
    "shared_noise",
]

_LARGEST = 2**64 - 1
_AHEAD = 16  # so many draws are drawn together, after the first,
_SMALL, _SMALL_ON_CUDA = 1 << 12, 1 << 17  # of at most so many numbers: there a launch takes longer than its work


class Purpose(IntEnum):
    """What a sample's random numbers are for: one seed serves all purposes, and no draw is used twice."""

    SAMPLING = 0
    PROBES = 1
    TIMES = 2
    PERTURBATION = 3
    DECODER = 4
    DEQUANTISATION = 5
    CALIBRATION = 6
    MEASUREMENT = 7
    RESAMPLING = 8
    SELECTION = 9
    FOREIGN = 10
    PATH = 11
    TRAINING_ORDER = 12
    TRAINING_TIME = 13
    TRAINING_NOISE = 14
    TRAINING_AUGMENTATION = 15
    TRAINING_LABEL = 16
    TRAINING_NETWORK = 17


class Once(IntEnum):
    """What a run draws once for all its samples together, with a generator of torch."""

    DIRECTIONS = 1
    RESIDUALS = 2
    MINI_BATCHES = 3
    GRADIENT_CHECK = 4
    KID_SUBSETS = 5
    PICTURES = 6
    EXACT_SAMPLES = 7
    OPERATOR_CHECK = 7


_OF_A_RUN = 0x52756E

Noise = Callable[[], Tensor]
"""Returns the next standard normal draw, shape (B, *event)."""


def check_stream(seed: int, first_index: int) -> None:
    """Refuse a seed or an index that names no stream.

    Raises:
        ArgumentError: unless ``seed`` and ``first_index`` are whole numbers from 0 to 2⁶⁴ − 1.
    """
    for name, value in (("seed", seed), ("first_index", first_index)):
        if check_count(name, value, f"Pass {name}=0, for example.", least=0) > _LARGEST:
            raise ArgumentError(name, value, "it has more than 64 bits", f"Pass {name}=0, for example.")


def check_noise_dtype(dtype: torch.dtype) -> None:
    """Refuse to round normal draws to whole numbers.

    Raises:
        ArgumentError: unless ``dtype`` is a floating-point type.
    """
    if not dtype.is_floating_point:
        raise ArgumentError("dtype", dtype, "noise needs a floating-point type", "Pass torch.float32 or another float.")


def generator_for(seed: int, use: Once, number: int = 0) -> torch.Generator:
    """The generator of one use in a run; ``number`` distinguishes several generators of the same use."""
    sequence = np.random.SeedSequence(seed, spawn_key=(number, int(use), _OF_A_RUN))
    return torch.Generator().manual_seed(int(sequence.generate_state(1, np.uint64)[0]))


def per_sample_noise(
    seed: int,
    first_index: int,
    shape: tuple[int, ...],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    purpose: Purpose = Purpose.SAMPLING,
    begin: int = 0,
) -> Noise:
    """Draws for the samples ``first_index, ..., first_index + B − 1``, each from its own stream.

    ``begin``: the number of the first draw. Numbers are drawn in float32 and then cast, so that a float64 run has the
    same noise as a float32 run.

    Raises:
        ArgumentError: if ``seed`` or ``first_index`` is negative, or ``dtype`` not a floating-point one.
    """
    check_stream(seed, first_index)
    check_noise_dtype(dtype)
    check_amount("shape", shape, math.prod(shape))
    draws = KeyedDraws(seed, purpose, device)
    small = _SMALL if draws.device.type == "cpu" else _SMALL_ON_CUDA
    ahead = _AHEAD if math.prod(shape) <= small else 1

    def drawn() -> Iterator[Tensor]:
        if begin == 0:  # which may be the only one
            yield draws.normal(0, first_index, shape).to(device, dtype, non_blocking=True)
        for number in itertools.count(max(begin, 1), ahead):
            if ahead == 1:
                yield draws.normal(number, first_index, shape).to(device, dtype, non_blocking=True)
            else:
                yield from draws.normals(number, ahead, first_index, shape).to(device, dtype, non_blocking=True)

    return drawn().__next__


def shared_noise(
    generator: torch.Generator,
    shape: tuple[int, ...],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Noise:
    """Draws for the whole batch from one generator, on the generator's device."""
    check_noise_dtype(dtype)

    def draw() -> Tensor:
        noise = torch.randn(shape, generator=generator, dtype=dtype, device=generator.device)
        return noise.to(device, non_blocking=True)

    return draw
