"""The classical Runge-Kutta method for the probability flow, in coordinates of one's choice.

    in t             dx/dt = drift                        x itself, against t
    straight         dx̄/dτ = ε̂,   x̄ = x/α, τ = σ/α        EDM's coordinates (Karras et al. 2022, eq. 1 and section 3)

In the straight coordinates all SDEs are one curve, and for data with a density the right-hand side is bounded and
smooth as t → 0; in t it sees f and g, and must stop where they are finite.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sde_toolkit.errors import ArgumentError
from sde_toolkit.integrators.linear_step import Evaluation, Form, Place, RecordedStep, Trace
from sde_toolkit.sde import SDE

__all__ = ["Coordinates", "InTime", "RungeKutta4", "Straight"]


class Coordinates(ABC):
    """Coordinates of the flow: x = scale x̃, and dx̃/d(position) = rate."""

    in_lambda: ClassVar[bool]

    @abstractmethod
    def position(self, place: Place) -> Tensor:
        """The independent variable there."""

    @abstractmethod
    def place(self, sde: SDE, position: Tensor) -> Place:
        """Where the independent variable has this value."""

    @abstractmethod
    def scale(self, place: Place) -> Tensor:
        """x/x̃ there."""

    @abstractmethod
    def rate(self, evaluation: Evaluation) -> Form:
        """dx̃/d(position) there."""


@dataclass(frozen=True)
class InTime(Coordinates):
    """x itself, against t."""

    in_lambda: ClassVar[bool] = False

    def position(self, place: Place) -> Tensor:
        return place.time

    def place(self, sde: SDE, position: Tensor) -> Place:
        return Place.at(sde, position)

    def scale(self, place: Place) -> Tensor:
        return torch.ones_like(place.time)

    def rate(self, evaluation: Evaluation) -> Form:
        return evaluation.drift()


@dataclass(frozen=True)
class Straight(Coordinates):
    """x̄ = x/α against τ = σ/α."""

    in_lambda: ClassVar[bool] = True

    def position(self, place: Place) -> Tensor:
        return torch.exp(-place.half_log_snr)

    def place(self, sde: SDE, position: Tensor) -> Place:
        return Place.at_half_log_snr(sde, -torch.log(position))

    def scale(self, place: Place) -> Tensor:
        return place.alpha

    def rate(self, evaluation: Evaluation) -> Form:
        return evaluation.view("epsilon")


@dataclass(frozen=True)
class RungeKutta4(RecordedStep):
    """The classical method of order 4 (Kutta 1901), four evaluations a step.

        k_1 = F(x̃, u)    k_2 = F(x̃ + ½h k_1, u + ½h)    k_3 = F(x̃ + ½h k_2, u + ½h)    k_4 = F(x̃ + h k_3, u + h)
        x̃ ← x̃ + h (k_1 + 2 k_2 + 2 k_3 + k_4)/6

    ``coordinates``: ``Straight()`` or ``InTime()``, or your own.

    Raises:
        ArgumentError: if ``coordinates`` are none.
    """

    coordinates: Coordinates = Straight()

    order: ClassVar[int | None] = 4
    evals_per_step: ClassVar[int | None] = 4
    begins_at_x: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not isinstance(self.coordinates, Coordinates):
            raise ArgumentError("coordinates", self.coordinates, "not Coordinates", "Pass Straight() or InTime().")

    @property
    def in_lambda(self) -> bool:  # type: ignore[override]
        """That of the coordinates."""
        return self.coordinates.in_lambda

    def trace(self, trace: Trace, target: Place) -> Form:
        given, sde = self.coordinates, trace.equation.sde
        u, h = given.position(trace.begin), given.position(target) - given.position(trace.begin)
        middle = given.place(sde, u + 0.5 * h)
        x = trace.start / given.scale(trace.begin)

        def slope(x: Form, place: Place) -> Form:
            return given.rate(trace.evaluate(given.scale(place) * x, place.time))

        k_1 = slope(x, trace.begin)
        k_2 = slope(x + 0.5 * h * k_1, middle)
        k_3 = slope(x + 0.5 * h * k_2, middle)
        k_4 = slope(x + h * k_3, Place.at(sde, target.time))  # the target itself may lie off the curve
        return given.scale(target) * (x + h / 6 * (k_1 + 2 * k_2 + 2 * k_3 + k_4))
