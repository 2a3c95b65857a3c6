"""Where noise comes from: by default one stream per sample, on request one generator for the whole batch.

A stream is numpy's ``SeedSequence(seed, spawn_key=(index,))``, where index is the sample's position among all. Its
numbers do not depend on batch size, split, number of processes or device. They are drawn on the host. A
``torch.Generator`` draws on its device, and its numbers depend on the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.checks import check_amount, check_count
from sde_toolkit.errors import ArgumentError

__all__ = [
    "Noise",
    "Once",
    "Purpose",
    "check_noise_dtype",
    "check_stream",
    "generator_for",
    "per_sample_noise",
    "sample_streams",
    "shared_noise",
]


_BYTES_OF_A_STREAM = 1000  # bytes of the state of one stream, about


class Purpose(IntEnum):
    """What a sample's stream is for, other than sampling: one seed serves all purposes, and no draw is used twice."""

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


_OF_A_RUN = 0x52756E  # the keys of samples are (index,) and (index, purpose)

Noise = Callable[[], Tensor]
"""Returns the next standard normal draw, shape (B, *event)."""


def check_stream(seed: int, first_index: int) -> None:
    """Refuse a seed or an index that names no stream.

    Raises:
        ArgumentError: if ``seed`` or ``first_index`` is negative or not a whole number.
    """
    for name, value in (("seed", seed), ("first_index", first_index)):
        check_count(name, value, f"Pass {name}=0, for example.", least=0)


def check_noise_dtype(dtype: torch.dtype) -> None:
    """Refuse to round normal draws to whole numbers.

    Raises:
        ArgumentError: unless ``dtype`` is a floating-point type.
    """
    if not dtype.is_floating_point:
        raise ArgumentError("dtype", dtype, "noise needs a floating-point type", "Pass torch.float32 or another float.")


def sample_streams(seed: int, first_index: int, n: int, purpose: Purpose | None = None) -> list[np.random.Generator]:
    """The streams of the samples ``first_index``, ..., ``first_index + n − 1``; by default the streams for sampling."""
    keys = [(first_index + i,) if purpose is None else (first_index + i, int(purpose)) for i in range(n)]
    return [np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key)) for key in keys]


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
    purpose: Purpose | None = None,
) -> Noise:
    """Draws for the samples ``first_index, ..., first_index + B − 1``, each from its own stream.

    ``purpose``: by default sampling. Drawn in float32 and then cast: a float64 run has the same noise as a float32
    run.

    Raises:
        ArgumentError: if ``seed`` or ``first_index`` is negative, or ``dtype`` not a floating-point one.
    """
    check_stream(seed, first_index)
    check_noise_dtype(dtype)
    check_amount("shape", shape, math.prod(shape))
    check_amount("shape", shape, shape[0], bytes_each=_BYTES_OF_A_STREAM)
    streams = sample_streams(seed, first_index, shape[0], purpose)

    def draw() -> Tensor:
        noise = np.empty(shape, np.float32)
        for i, stream in enumerate(streams):
            noise[i] = stream.standard_normal(shape[1:], np.float32)
        return torch.from_numpy(noise).to(device, dtype, non_blocking=True)

    return draw


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
