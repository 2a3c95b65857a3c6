"""The grid of methods whose last step must reach the data: Tweedie's step would undo what they put in."""

from __future__ import annotations

from torch import Tensor

from sde_toolkit.grids import uniform
from sde_toolkit.sde import SDE

__all__ = ["uniform_to_data"]


def uniform_to_data(sde: SDE, steps: int, *, start: float = 1.0) -> Tensor:
    """Equal steps in t from ``start`` down to 0, where σ is 0 for most SDEs."""
    return uniform(sde, steps, start=start, end=0.0)
