"""How good the reference is: its steps are doubled until it is at most a fifth as far off as the errors it measures.

The error of a fine solve is what its endpoints move by when its steps are doubled, on all noises of the set: as a root
mean square and as a median, like the errors that it measures. The finer of the two solves is then the reference, and it
is better than that, since its order is at least 1. The doubling stops where the time is up, or after five times. The
result then says how far off the reference may be.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from torch import Tensor

from sde_toolkit.calibration.plan_errors import Measured
from sde_toolkit.calibration.problem import NoiseSet, Problem

__all__ = ["Refining"]

_SHARE = 0.2  # of the errors that are reported
_DOUBLINGS = 5


class Refining:
    """The reference of one set of noises (η = 0), with its own error.

    ``seconds``: of the last doubling; the next takes twice as long.
    """

    def __init__(self, problem: Problem, chosen: NoiseSet) -> None:
        self.problem, self.chosen = problem, chosen
        self.most = chosen.steps * 2**_DOUBLINGS
        self._double()

    @property
    def own_error(self) -> Measured:
        """The root mean square of what the last doubling moved."""
        return Measured.of(self._moved)

    @property
    def own_typical(self) -> Measured:
        """The median of it."""
        return Measured.typical(self._moved)

    def resolves(self, squares: Tensor) -> bool:
        """Whether errors with these squares are at least five times the reference's own, in both senses."""
        errors, own = ((Measured.of(found).value, Measured.typical(found).value) for found in (squares, self._moved))
        return all(mine <= _SHARE * error for mine, error in zip(own, errors, strict=True))

    def until(self, squares: Callable[[], Tensor], deadline: float, share: float = 1.0) -> bool:
        """Double the steps until ``share`` of the errors ``squares()`` is resolved, or the time is up."""
        while not self.resolves(share**2 * squares()):
            if time.monotonic() + 2 * self.seconds > deadline or self.chosen.steps >= self.most:
                return False
            self._double()
        return True

    @property
    def complaint(self) -> str:
        """What a result says whose errors are not resolved."""
        return (
            f" The reference itself may be off by {self.own_error.value:.2g} (median {self.own_typical.value:.2g}): "
            "more than a fifth of the error. A longer time_limit makes it finer."
        )

    def record(self) -> dict[str, Any]:
        """Its steps and its own errors, plain data."""
        own = {"own_error": vars(self.own_error), "own_typical": vars(self.own_typical)}
        return {"steps": self.chosen.steps, **own, "noises": len(self.chosen)}

    def _double(self) -> None:
        began = time.monotonic()
        self._moved = self.problem.refine(self.chosen)
        self.seconds = time.monotonic() - began
