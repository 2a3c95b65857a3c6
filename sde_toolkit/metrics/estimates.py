"""A measured number with its standard error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Array", "Estimate"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A measured number and its standard error, which is NaN where it is unknown.

    ``also``: further numbers that came with it, as (name, value). Records keep them; tables do not show them.
    """

    value: float
    error: float
    also: tuple[tuple[str, float], ...] = ()

    def __str__(self) -> str:
        return f"{self.value:.4g} ± {self.error:.1g}"
