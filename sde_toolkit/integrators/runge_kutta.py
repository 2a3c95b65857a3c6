"""Explicit Runge-Kutta methods for the probability flow, in any coordinate.

With u and x̃ = x/c of the coordinate (:mod:`~sde_toolkit.integrators.coordinates`), h = u_s − u_t and F = dx̃/du, a step
takes x̃ from u_t to u_s. The network is evaluated at points between the two.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

from sde_toolkit.errors import ArgumentError
from sde_toolkit.integrators.coordinates import Coordinate, NoiseToSignal
from sde_toolkit.integrators.linear_step import Form, PathPoint, RecordedStep, Trace

__all__ = ["Heun", "RungeKutta", "RungeKutta4"]


@dataclass(frozen=True)
class RungeKutta(RecordedStep):
    """What Runge-Kutta methods share: the coordinate. A subclass gives :meth:`advance`.

    ``coordinate``: ``NoiseToSignal()``, ``Time()``, ``HalfLogSNR()``, ``Angle(sigma_data)``, or one of your own.

    Raises:
        ArgumentError: if ``coordinate`` is not a :class:`Coordinate`.
    """

    coordinate: Coordinate = field(default_factory=NoiseToSignal)

    begins_at_x: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not isinstance(self.coordinate, Coordinate):
            raise ArgumentError("coordinate", self.coordinate, "not a Coordinate", "Pass NoiseToSignal() or Time().")

    @property
    def sees_alpha_sigma_only(self) -> bool:  # type: ignore[override]
        """As the coordinate."""
        return self.coordinate.sees_alpha_sigma_only

    def trace(self, trace: Trace, target: PathPoint) -> Form:
        return self.advance(trace, trace.start / self.coordinate.scale(trace.begin), trace.begin, target)

    @abstractmethod
    def advance(self, trace: Trace, x: Form, begin: PathPoint, target: PathPoint) -> Form:
        """The unscaled state at the target, from the scaled state ``x`` at ``begin``."""

    def _slope(self, trace: Trace, x: Form, point: PathPoint) -> Form:
        """F at the scaled state ``x``: one evaluation."""
        return self.coordinate.rate(trace.evaluate(self.coordinate.scale(point) * x, point.time))

    def _interval(self, trace: Trace, begin: PathPoint, target: PathPoint) -> Form:
        sde = trace.equation.sde
        return self.coordinate.position_of(sde, target) - self.coordinate.position_of(sde, begin)


@dataclass(frozen=True)
class Heun(RungeKutta):
    """Heun's method of order 2, the explicit trapezoidal rule, two evaluations a step.

        k_1 = F(x̃, u_t)    k_2 = F(x̃ + h k_1, u_s)    x̃ ← x̃ + ½h (k_1 + k_2)

    ``Heun(NoiseToSignal())`` is EDM's deterministic sampler (Karras et al. 2022, algorithm 1), whose last Euler step to
    σ = 0 is ``tweedie=True`` of :func:`~sde_toolkit.sample`. With ``Heun(Time())`` the grid must end above t = 0 where
    σ(0) = 0.

    ``coordinate``: see :class:`RungeKutta`.
    """

    order: ClassVar[int | None] = 2
    evals_per_step: ClassVar[int | None] = 2

    def advance(self, trace: Trace, x: Form, begin: PathPoint, target: PathPoint) -> Form:
        h = self._interval(trace, begin, target)
        k_1 = self._slope(trace, x, begin)
        k_2 = self._slope(trace, x + h * k_1, PathPoint.at(trace.equation.sde, target.time))
        return self.coordinate.scale(target) * (x + 0.5 * h * (k_1 + k_2))


@dataclass(frozen=True)
class RungeKutta4(RungeKutta):
    """The classical method of order 4 (Kutta 1901), four evaluations a step.

        k_1 = F(x̃, u)    k_2 = F(x̃ + ½h k_1, u + ½h)    k_3 = F(x̃ + ½h k_2, u + ½h)    k_4 = F(x̃ + h k_3, u + h)
        x̃ ← x̃ + h (k_1 + 2 k_2 + 2 k_3 + k_4)/6

    ``coordinate``: see :class:`RungeKutta`.
    """

    order: ClassVar[int | None] = 4
    evals_per_step: ClassVar[int | None] = 4

    def advance(self, trace: Trace, x: Form, begin: PathPoint, target: PathPoint) -> Form:
        sde, h = trace.equation.sde, self._interval(trace, begin, target)
        middle = self.coordinate.point(sde, self.coordinate.position_of(sde, begin) + 0.5 * h)
        k_1 = self._slope(trace, x, begin)
        k_2 = self._slope(trace, x + 0.5 * h * k_1, middle)
        k_3 = self._slope(trace, x + 0.5 * h * k_2, middle)
        k_4 = self._slope(trace, x + h * k_3, PathPoint.at(sde, target.time))  # the target itself may lie off the curve
        return self.coordinate.scale(target) * (x + h / 6 * (k_1 + 2 * k_2 + 2 * k_3 + k_4))
