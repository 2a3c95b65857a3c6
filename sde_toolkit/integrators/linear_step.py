"""Steps of several evaluations: written once on linear forms, recorded for a whole grid, and played back.

Everything that an explicit one-step method computes between t and s is linear in x_t, the outputs and the draws:

    x_j = a x_t + Σ b_i y_i + Σ c_i z_i,        y_i = network(x_i, t_i),    z_i ~ N(0, I)

and x̂_0, ε̂ and the drift are linear in (x_j, y_j) at every stage. A method is therefore written as in its
paper, on *forms*: float64 tensors (known, steps) of the coefficients (a, b, c), for all steps at once. The recorded
forms become the table. A step multiplies, adds, and evaluates the network.

Methods in λ step towards a :class:`PathPoint` and use its α and σ: it need not lie on the curve of the SDE.
At α_t = 0 or σ_s = 0 such a step is infinitely long in λ. ``evals_per_step`` exponential steps of order 1
(:mod:`~sde_toolkit.integrators.exponential`) of equal length in t then replace it: they are finite and cost the same.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple, TypeAlias

import torch
from torch import Tensor

from sde_toolkit.equation import ReverseEquation
from sde_toolkit.errors import ArgumentError
from sde_toolkit.integrators.exponential import eta_family
from sde_toolkit.integrators.integrator import Integrator, combine
from sde_toolkit.integrators.tables import StepRow, Table
from sde_toolkit.models.prediction import Kind
from sde_toolkit.noise.streams import Noise
from sde_toolkit.sde import SDE

__all__ = ["Form", "LinearStep", "PathPoint", "RecordedEvaluation", "RecordedStep", "Recording", "Trace"]

Form: TypeAlias = Tensor
"""Coefficients (known, steps) of one linear combination of x_t, the y_i and the z_i, in order of computation."""


class PathPoint(NamedTuple):
    """One point of each step: time, α, σ and λ = log(α/σ), each of shape (steps,)."""

    time: Tensor
    alpha: Tensor
    sigma: Tensor
    half_log_snr: Tensor

    @classmethod
    def at(cls, sde: SDE, t: Tensor) -> PathPoint:
        """The points of the SDE at the times ``t``."""
        return cls(t, sde.alpha(t), sde.sigma(t), sde.half_log_snr(t))

    @classmethod
    def at_half_log_snr(cls, sde: SDE, value: Tensor) -> PathPoint:
        """The points of the SDE where λ has the given values; t=0 for values larger than λ(0)."""
        value = torch.minimum(value, sde.half_log_snr(torch.zeros_like(value)))
        return cls.at(sde, sde.inverse_half_log_snr(value))

    def select(self, mask: Tensor) -> PathPoint:
        """The points of the steps in ``mask``."""
        return PathPoint(*(part[mask] for part in self))


class RecordedEvaluation(NamedTuple):
    """One evaluation of the network, as any prediction or as the drift."""

    equation: ReverseEquation
    t: Tensor
    x: Form
    y: Form

    def view(self, kind: Kind) -> Form:
        """The form of the prediction as ``kind``."""
        m, n = self.equation.view(kind, self.t)
        return m * self.x + n * self.y

    def drift(self) -> Form:
        """The form of the equation's drift."""
        p, q = self.equation.drift_coefficients(self.t)
        return p * self.x + q * self.y


class Trace:
    """What a method is written with: the start, evaluations and draws. It records the evaluations.

    ``start``: the form of x_t at the points ``begin``. ``grid_steps``: how many steps the whole grid has.
    """

    def __init__(self, equation: ReverseEquation, begin: PathPoint, width: int, grid_steps: int) -> None:
        self.equation, self.begin, self.grid_steps = equation, begin, grid_steps
        self.asked: list[tuple[Tensor, Form]] = []
        self._units = torch.eye(width, dtype=torch.float64)[:, :, None].repeat(1, 1, len(begin.time))
        self._known = 0
        self.start = self._next()

    def _next(self) -> Form:
        self._known += 1
        return self._units[self._known - 1]

    def evaluate(self, x: Form, t: Tensor) -> RecordedEvaluation:
        """One evaluation of the network at (x, t)."""
        self.asked.append((t, x))
        return RecordedEvaluation(self.equation, t, x, self._next())

    def draw(self) -> Form:
        """A new standard normal draw."""
        return self._next()


class Recording(NamedTuple):
    """A recorded step: the stages (t_j, x_j) at which the network is evaluated, and the form of x_s."""

    stages: list[tuple[Tensor, Form]]
    end: Form


@dataclass(frozen=True)
class LinearStep(Integrator):
    """A step that is played back from a :class:`Recording`. A subclass gives :meth:`plan`, and :meth:`draws`.

    ``begins_at_x``: whether the first evaluation is at x_t itself, which then needs no multiplication.
    """

    begins_at_x: ClassVar[bool] = False

    @abstractmethod
    def plan(self, equation: ReverseEquation, t: Tensor, target: PathPoint) -> Recording:
        """The steps from the times ``t`` to ``target``, with ``evals_per_step`` evaluations."""

    def draws(self, eta: float) -> tuple[int, ...]:
        """Normal draws before each evaluation, and after the last: ``evals_per_step`` + 1 numbers."""
        return (0,) * (self._evaluations + 1)

    @property
    def _evaluations(self) -> int:
        return self.evals_per_step or 0

    def draws_noise(self, eta: float) -> bool:
        """Whether :meth:`draws` has any."""
        return sum(self.draws(eta)) > 0

    def prepare(self, equation: ReverseEquation, grid: Tensor) -> Table:
        t, s = grid[:-1], grid[1:]
        stages, end = self.plan(equation, t, PathPoint.at(equation.sde, s))
        if self.begins_at_x and bool(((stages[0][1] - _unit(stages[0][1])).abs() > 1e-14).any()):
            problem = f"the first evaluation of {self} is not at x_t"
            raise ArgumentError("begins_at_x", True, problem, "Leave begins_at_x at False.")
        counts = self._counts(self.draws(equation.eta))
        asked = zip(stages, counts, strict=False)
        columns = tuple((equation.inputs(time), tuple(x[:count])) for (time, x), count in asked)
        return self.table(equation, grid, stages=columns, end=tuple(end))

    def _counts(self, draws: tuple[int, ...]) -> list[int]:
        """How many coefficients each evaluation has, and the end: one for x_t, for every y and every z before it."""
        counts, known = [], 0
        for drawn in draws:
            known += 1 + drawn
            counts.append(known)
        if self.begins_at_x:
            counts[0] = 0
        return counts

    def step(self, equation: ReverseEquation, x: Tensor, row: StepRow, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        *before, last = self.draws(equation.eta)
        found = [x]
        for drawn, (inputs, coefficients) in zip(before, row.stages, strict=True):
            for _ in range(drawn):
                found.append(noise())
            x_j = combine(coefficients, found) if coefficients else x
            found.append(equation.output(x_j, inputs))
        for _ in range(last):
            found.append(noise())
        return combine(row.end, found), None


@dataclass(frozen=True)
class RecordedStep(LinearStep):
    """An explicit one-step method, written as :meth:`trace`."""

    @abstractmethod
    def trace(self, trace: Trace, target: PathPoint) -> Form:
        """The form of x at the target, reached from ``trace.start`` with ``evals_per_step`` evaluations."""

    def plan(self, equation: ReverseEquation, t: Tensor, target: PathPoint) -> Recording:
        """The trace; exponential steps of order 1 replace a step that is infinitely long in λ."""
        begin = PathPoint.at(equation.sde, t)
        width = 1 + self._evaluations + sum(self.draws(equation.eta))
        finite = begin.half_log_snr.isfinite() & target.half_log_snr.isfinite()
        if not self.sees_alpha_sigma_only or bool(finite.all()):
            trace = Trace(equation, begin, width, len(t))
            end = self.trace(trace, target)
            return Recording(trace.asked, end)
        short = Trace(equation, begin.select(finite), width, len(t))
        end = self.trace(short, target.select(finite))
        long = Trace(equation, begin.select(~finite), width, len(t))
        return _recording_where(finite, Recording(short.asked, end), self._in_substeps(long, target.select(~finite)))

    def _in_substeps(self, trace: Trace, target: PathPoint) -> Recording:
        """Exponential steps of order 1 and equal length in t. They use one draw each; other draws have weight 0."""
        sde, eta, n = trace.equation.sde, trace.equation.eta, self._evaluations
        draws = self.draws(eta)
        begin = trace.begin.time
        places = [PathPoint.at(sde, begin + (target.time - begin) * (k / n)) for k in range(n)]
        x = trace.start
        for _ in range(draws[0]):
            trace.draw()
        for drawn, (here, there) in zip(draws[1:], pairwise([*places, target]), strict=True):
            found = trace.evaluate(x, here.time)
            noise = [trace.draw() for _ in range(drawn)]
            rho, kappa = eta_family(eta, here.half_log_snr - there.half_log_snr)
            x = there.alpha * found.view("x0") + there.sigma * rho * found.view("epsilon")
            if noise:
                x = x + there.sigma * kappa * noise[-1]
        return Recording(trace.asked, x)


def _unit(form: Form) -> Form:
    """x_t itself."""
    unit = torch.zeros_like(form)
    unit[0] = 1.0
    return unit


def _recording_where(mask: Tensor, chosen: Recording, other: Recording) -> Recording:
    """One recording of all steps: ``chosen`` where the mask is true, ``other`` where it is false."""

    def merged(a: Tensor, b: Tensor) -> Tensor:
        whole = a.new_empty(*a.shape[:-1], len(mask))
        whole[..., mask], whole[..., ~mask] = a, b
        return whole

    pairs = zip(chosen.stages, other.stages, strict=True)
    stages = [(merged(t, u), merged(x, y)) for (t, x), (u, y) in pairs]
    return Recording(stages, merged(chosen.end, other.end))
