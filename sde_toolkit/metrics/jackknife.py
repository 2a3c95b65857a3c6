"""How a value changes when some of its samples are left out: the grouped jackknife, kept in parts.

    value without block b = θ_b          variance = (B − 1)/B Σ_b (θ_b − θ̄)²          (Quenouille 1956; Künsch 1989)

The parts u_b = √((B − 1)/B) (θ_b − θ̄) are kept, and not only the sum of their squares. Two sets that are compared with
the same real samples, and whose samples i share their noise, are left without the same blocks. The difference of their
values then has the difference of their parts: what both have in common cancels.

Samples are left out in blocks of neighbours. The jackknife is right for smooth functions of the two distributions. For
sets of one distribution, where distances have no slope, its error is too large rather than too small.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sde_toolkit.metrics.estimates import Array, Estimate

__all__ = ["BLOCKS", "Resampled", "block_owners", "deviations", "leave_blocks_out"]

BLOCKS = 20  # of either set: quantiles of 19 degrees of freedom are 7 % wider than those of the normal distribution


@dataclass(frozen=True, eq=False)
class Resampled:
    """A value with the parts of its variance, which add in squares.

    ``generated``, ``reference``: the parts u_b from leaving out blocks of either set; empty where nothing can be left
    out, as in an empty reference. ``freedom``: degrees of freedom of both.
    """

    value: float
    generated: Array
    reference: Array
    freedom: tuple[int, int]

    @classmethod
    def of(cls, value: float, generated: Sequence[float] | Array, reference: Sequence[float] | Array) -> Resampled:
        """From the values without each block of the generated samples, and without each of the reference."""
        freedom = (max(0, len(generated) - 1), max(0, len(reference) - 1))
        return cls(value, deviations(generated), deviations(reference), freedom)

    @classmethod
    def mean(cls, several: Sequence[Resampled]) -> Resampled:
        """The mean over seeds: generated samples are independent from seed to seed, the reference is the same."""
        count = len(several)
        return cls(
            float(np.mean([one.value for one in several])),
            np.concatenate([one.generated / count for one in several]),
            np.mean([one.reference for one in several], axis=0),
            (sum(one.freedom[0] for one in several), several[0].freedom[1]),
        )

    def __sub__(self, other: Resampled) -> Resampled:
        """The difference of two values whose blocks are the same."""
        parts = (self.generated - other.generated, self.reference - other.reference)
        return Resampled(self.value - other.value, *parts, self.freedom)

    def moved_to(self, value: float) -> Resampled:
        """The same parts around another value, such as the mean over several splits of the real data."""
        return Resampled(value, self.generated, self.reference, self.freedom)

    @property
    def error(self) -> float:
        """The standard error; NaN if there are no parts."""
        if not any(self.freedom):
            return math.nan
        return math.sqrt((self.generated**2).sum() + (self.reference**2).sum())

    @property
    def degrees(self) -> float:
        """Degrees of freedom of the error (Satterthwaite 1946)."""
        squares = [float((part**2).sum()) for part in (self.generated, self.reference)]
        spread = sum(square**2 / free for square, free in zip(squares, self.freedom, strict=True) if free)
        return sum(squares) ** 2 / spread if spread > 0 else float(max(1, *self.freedom))

    @property
    def estimate(self) -> Estimate:
        return Estimate(self.value, self.error)


def deviations(left_out: Sequence[float] | Array) -> Array:
    """The parts u_b from the values without each block."""
    values = np.asarray(left_out, np.float64)
    if len(values) < 2:
        return np.zeros(len(values))
    parts: Array = math.sqrt((len(values) - 1) / len(values)) * (values - values.mean())
    return parts


def block_owners(n: int, blocks: int = BLOCKS) -> NDArray[np.int64]:
    """For each of n samples the block that it belongs to, (n,): blocks of neighbours, at most one sample larger."""
    return np.arange(n) * min(blocks, n) // max(n, 1)


def leave_blocks_out(statistic: Callable[[NDArray[np.int64]], float], n: int, blocks: int = BLOCKS) -> list[float]:
    """The statistic of n samples without each block; NaN for fewer than 3 samples, nothing for none.

    ``statistic`` is called with the places of the samples that stay.
    """
    if n < 3:
        return [math.nan] * min(n, 2)
    owners = block_owners(n, blocks)
    return [statistic(np.flatnonzero(owners != block)) for block in range(int(owners[-1]) + 1)]
