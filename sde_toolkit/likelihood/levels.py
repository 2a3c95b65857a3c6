"""What integer data are: evenly spaced values, in the caller's own data space.

Everything that turns a density into the probability of integers (decoders, dequantisation, bits per dimension) asks
for this description; nothing assumes 256 levels or a range.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.checks import MOST, check_count, is_number
from sde_toolkit.errors import ArgumentError, DataError
from sde_toolkit.transforms import Transform

__all__ = ["Levels", "check_fits", "check_levels"]

_OFF = 1e-3  # of a width: how far from its level a value may lie, for values that passed through float32


@dataclass(frozen=True)
class Levels:
    """``count`` evenly spaced values from ``low`` to ``high``, both included, in data space.

    The bin of a level reaches half a ``width`` to both sides.

    Raises:
        ArgumentError: unless ``count`` is at least 2 and low < high.
    """

    count: int = 256
    low: float = 0.0
    high: float = 255.0

    def __post_init__(self) -> None:
        check_count("count", self.count, "8 bits are 256.", least=2, most=MOST)
        if not (is_number(self.low) and is_number(self.high) and self.low < self.high):
            problem = "the lowest level must be less than the highest, both finite"
            raise ArgumentError("low, high", (self.low, self.high), problem, "8-bit images run from 0.0 to 255.0.")

    @property
    def width(self) -> float:
        """The distance between neighbouring levels."""
        return (self.high - self.low) / (self.count - 1)

    @property
    def values(self) -> Tensor:
        """All levels, (count,) float64."""
        return self.at(torch.arange(self.count))

    @property
    def edges(self) -> Tensor:
        """The edges of the bins, (count + 1,) float64, from low − width/2 to high + width/2."""
        return self.low + (torch.arange(self.count + 1, dtype=torch.float64) - 0.5) * self.width

    def at(self, index: Tensor) -> Tensor:
        """The levels of the given places (0 is the lowest), float64."""
        return self.low + index.to(torch.float64) * self.width

    def index(self, x: Tensor) -> Tensor:
        """The place of the level nearest to each value, int64 within 0 .. count − 1."""
        place = torch.round((x.to(torch.float64) - self.low) / self.width)
        return place.clamp(0, self.count - 1).to(torch.int64)

    def check(self, x: Any, name: str = "x") -> None:
        """Refuse values that are none of the levels (they may be off by a thousandth of the width).

        Raises:
            ArgumentError: if ``x`` is no tensor.
            DataError: naming the first value outside the range, between two levels, or not finite.
        """
        if not isinstance(x, Tensor):
            raise ArgumentError(name, x, "not a tensor", "Pass a tensor (n, *event) in data space.")
        values = x.detach().to(torch.float64).flatten()
        slack = _OFF * self.width
        outside = ~((values >= self.low - slack) & (values <= self.high + slack))
        between = ~((values - self.at(self.index(values.nan_to_num()))).abs() <= slack)
        for wrong, problem in ((outside, "outside the range of"), (between, "between")):
            if bool(wrong.any()):
                place = int(wrong.int().argmax())
                raise DataError(
                    name,
                    values[place].item(),
                    f"{problem} the levels from {self.low:g} to {self.high:g}, {self.count} in number; "
                    f"{int(wrong.sum())} of {values.numel()} values are",
                    "Pass the data as they are stored, before any scaling, or describe their levels: "
                    "Levels(256, 0.0, 1.0) are 8 bits divided by 255.",
                )


def check_levels(levels: Any) -> None:
    """A description of discrete data, or None.

    Raises:
        ArgumentError: naming what was passed.
    """
    if levels is not None and not isinstance(levels, Levels):
        raise ArgumentError("levels", levels, "not Levels", "Pass Levels(count, low, high), Levels() for 8 bits.")


def check_fits(levels: Levels, transform: Transform) -> None:
    """Refuse levels of another range than a transform names: data in [0, 1] for a model of grey levels, for example.

    Raises:
        ArgumentError: naming both ranges.
    """
    low, high = (getattr(transform, name, None) for name in ("low", "high"))
    if low is None or high is None:
        return
    near = 0.1 * (high - low)
    if abs(levels.low - low) > near or abs(levels.high - high) > near:
        problem = f"the model's data lie in [{low:g}, {high:g}]"
        raise ArgumentError("levels", levels, problem, "Pass the data as the model was trained on, and their levels.")
