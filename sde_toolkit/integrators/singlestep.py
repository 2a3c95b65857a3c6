"""Single-step DPM-Solver: exponential Runge-Kutta methods in λ that interpolate ε̂ or x̂_0.

With h = λ_s − λ_t the equation at stochasticity η has the exact solutions

    noise prediction, η = 0      x_s = (α_s/α_t) x_t − σ_s ∫₀ʰ e^(h−u) ε̂ du
    data prediction, any η       x_s = (σ_s/σ_t) e^(−η²h) x_t + α_s c ∫₀ʰ e^(−c(h−u)) x̂_0 du + κ z,    c = 1 + η²

(Lu et al. 2022a, DPM-Solver, eq. 3.4; Lu et al. 2022b, DPM-Solver++, eq. 8 and appendix A; with κ of the η-family).
The first is the second with c = −1, α and σ exchanged. The integrand is expanded in powers of u/h, whose moments are

    M_k = c ∫₀ʰ e^(−c(h−u)) (u/h)ᵏ du,        M_0 = 1 − e^(−ch),    M_k = 1 − k M_(k−1)/(c h)

With one evaluation all of these are DDIM. A second and a third lie at λ_t + r h.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from sde_toolkit.checks import is_number
from sde_toolkit.errors import ArgumentError
from sde_toolkit.integrators.exponential import eta_family
from sde_toolkit.integrators.linear_step import Form, PathPoint, RecordedEvaluation, RecordedStep, Trace

__all__ = ["DPMSolver1", "DPMSolver2", "DPMSolver2S", "DPMSolver3", "DPMSolver3S", "SingleStep"]


def exponential_moments(v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(M_0, M_1, M_2) at v = c h, by their power series where the recursion would lose digits."""
    first = -torch.expm1(-v)
    second = 1 - first / v
    third = 1 - 2 * second / v
    small = v.abs() < 0.5
    series = []
    for k in range(3):  # M_k = v Σ (−v)^j k!/(k+j+1)!
        terms = [(-v) ** j * (math.factorial(k) / math.factorial(k + j + 1)) for j in range(14)]
        series.append(v * torch.stack(terms).sum(0))
    return first, torch.where(small, series[1], second), torch.where(small, series[2], third)


class Integral(NamedTuple):
    """x_s = decay x_t + amplitude Σ_k M_k F_k for the integrand F = Σ_k F_k (u/h)ᵏ."""

    decay: Tensor
    amplitude: Tensor
    moments: tuple[Tensor, Tensor, Tensor]

    def __call__(self, x: Form, *powers: Form) -> Form:
        weighted = (m * f for m, f in zip(self.moments, powers, strict=False))
        return self.decay * x + self.amplitude * sum(weighted, torch.zeros_like(x))


def noise_integral(eta: float, here: PathPoint, there: PathPoint) -> Integral:
    """The step with ε̂ as the integrand; of the ODE."""
    h = there.half_log_snr - here.half_log_snr
    return Integral(there.alpha / here.alpha, there.sigma, exponential_moments(-h))


def data_integral(eta: float, here: PathPoint, there: PathPoint) -> Integral:
    """The step with x̂_0 as the integrand."""
    h = there.half_log_snr - here.half_log_snr
    decay = there.sigma / here.sigma * torch.exp(-(eta**2) * h)
    return Integral(decay, there.alpha, exponential_moments((1 + eta**2) * h))


def stage(trace: Trace, target: PathPoint, r: float) -> tuple[PathPoint, Tensor]:
    """The SDE's point at λ_t + r h, and r. Where that would lie beyond t=0, the point is t=0 and r is smaller."""
    begin = trace.begin.half_log_snr
    h = target.half_log_snr - begin
    place = PathPoint.at_half_log_snr(trace.equation.sde, begin + r * h)
    return place, (place.half_log_snr - begin) / h


@dataclass(frozen=True)
class SingleStep(RecordedStep):
    """What single-step methods share: the quantity that is interpolated, and its integral."""

    sees_alpha_sigma_only: ClassVar[bool] = True

    @abstractmethod
    def integrand(self, evaluation: RecordedEvaluation) -> Form:
        """ε̂ or x̂_0 there."""

    @abstractmethod
    def integral(self, eta: float, here: PathPoint, there: PathPoint) -> Integral:
        """The integral from one place to another."""


class _NoisePrediction(SingleStep):
    def integrand(self, evaluation: RecordedEvaluation) -> Form:
        return evaluation.view("epsilon")

    def integral(self, eta: float, here: PathPoint, there: PathPoint) -> Integral:
        return noise_integral(eta, here, there)


class _DataPrediction(SingleStep):
    def integrand(self, evaluation: RecordedEvaluation) -> Form:
        return evaluation.view("x0")

    def integral(self, eta: float, here: PathPoint, there: PathPoint) -> Integral:
        return data_integral(eta, here, there)


@dataclass(frozen=True)
class _Second(SingleStep):
    """Two evaluations, the second at λ_t + r h.

    ``interpolate``: integrate the straight line through both exactly, M_0 F_0 + M_1 ΔF/r, instead of the papers'
    M_0 (F_0 + ΔF/(2r)). Both are of order 2. Only the exact integral has no error if F is linear in λ.

    Raises:
        ArgumentError: unless 0 < r <= 1.
    """

    r: float = 0.5
    interpolate: bool = False

    order: ClassVar[int | None] = 2
    evals_per_step: ClassVar[int | None] = 2
    begins_at_x: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (is_number(self.r) and 0 < self.r <= 1):
            problem = "the second evaluation lies inside the step"
            raise ArgumentError("r", self.r, problem, "Pass 0 < r <= 1; the paper has 0.5.")

    def draws(self, eta: float) -> tuple[int, ...]:
        return (0, 1, 1) if eta > 0 else (0, 0, 0)

    def trace(self, trace: Trace, target: PathPoint) -> Form:
        eta, begin, x = trace.equation.eta, trace.begin, trace.start
        middle, r = stage(trace, target, self.r)
        F = self.integrand(trace.evaluate(x, begin.time))
        x_middle = self.integral(eta, begin, middle)(x, F)
        noise = torch.zeros_like(x)
        if eta > 0:
            noise = middle.sigma * _kappa(eta, begin, middle) * trace.draw()
        change = self.integrand(trace.evaluate(x_middle + noise, middle.time)) - F
        whole = self.integral(eta, begin, target)
        x_s = whole(x, F, change / r) if self.interpolate else whole(x, F + change / (2 * r))
        if eta > 0:
            carried = self.integral(eta, middle, target).decay * noise
            x_s = x_s + carried + target.sigma * _kappa(eta, middle, target) * trace.draw()
        return x_s


def _kappa(eta: float, here: PathPoint, there: PathPoint) -> Tensor:
    """κ/σ of the fresh noise from here to there."""
    return eta_family(eta, (here.half_log_snr - there.half_log_snr).clamp(max=0.0))[1]


@dataclass(frozen=True)
class _Third(SingleStep):
    """Three evaluations, at λ_t, λ_t + h/3 and λ_t + 2h/3. Order 3 needs the last one at 2h/3.

    ``interpolate``: integrate the parabola through all three exactly, instead of the papers' M_0 F_0 + M_1 ΔF_2/r_2.
    """

    interpolate: bool = False

    order: ClassVar[int | None] = 3
    evals_per_step: ClassVar[int | None] = 3
    begins_at_x: ClassVar[bool] = True

    def trace(self, trace: Trace, target: PathPoint) -> Form:
        eta, begin, x = trace.equation.eta, trace.begin, trace.start
        first, r_1 = stage(trace, target, 1 / 3)
        second, r_2 = stage(trace, target, 2 / 3)
        F = self.integrand(trace.evaluate(x, begin.time))
        x_1 = self.integral(eta, begin, first)(x, F)
        change_1 = self.integrand(trace.evaluate(x_1, first.time)) - F
        x_2 = self.integral(eta, begin, second)(x, F, r_2 / r_1 * change_1)
        change_2 = self.integrand(trace.evaluate(x_2, second.time)) - F
        whole = self.integral(eta, begin, target)
        if not self.interpolate:
            return whole(x, F, change_2 / r_2)
        square = (change_2 / r_2 - change_1 / r_1) / (r_2 - r_1)
        return whole(x, F, change_1 / r_1 - r_1 * square, square)


@dataclass(frozen=True)
class DPMSolver1(_NoisePrediction):
    """DPM-Solver-1 (Lu et al. 2022a, eq. 3.7), which is DDIM: x_s = (α_s/α_t) x_t − σ_s (eʰ − 1) ε̂.

    The same as ``Exponential()`` at η = 0. It is here as the innermost method of :class:`Ancestral`.
    """

    order: ClassVar[int | None] = 1
    evals_per_step: ClassVar[int | None] = 1
    begins_at_x: ClassVar[bool] = True

    def trace(self, trace: Trace, target: PathPoint) -> Form:
        found = trace.evaluate(trace.start, trace.begin.time)
        return target.alpha * found.view("x0") + target.sigma * found.view("epsilon")


@dataclass(frozen=True)
class DPMSolver2(_Second, _NoisePrediction):
    """DPM-Solver-2 (Lu et al. 2022a, algorithm 1; any r in appendix B) for the probability flow, order 2.

        u = (α_m/α_t) x_t − σ_m (e^(rh) − 1) ε̂_t        x_s = (α_s/α_t) x_t − σ_s (eʰ − 1) (ε̂_t + (ε̂_u − ε̂_t)/(2r))

    With r = ½ it is also k-diffusion's DPM2: the midpoint rule in σ/α, the middle taken in log(σ/α).
    """


@dataclass(frozen=True)
class DPMSolver2S(_Second, _DataPrediction):
    """DPM-Solver++(2S) (Lu et al. 2022b, algorithm 1) for any η: order 2 on the flow, weak order 2 on the SDE.

        u = decay_m x_t + α_m M_0(rh) x̂_0 + κ_m z        x_s = decay_s x_t + α_s M_0(h) (x̂_0 + Δx̂_0/(2r)) + noise

    With η > 0 there are two draws a step, one before the middle and one after it. The noise at the end contains both,
    so it is that of one Brownian path. At η = 1 it is k-diffusion's "DPM++ SDE".
    """

    strong_order: ClassVar[float | None] = 1.0
    weak_order: ClassVar[float | None] = 2.0


@dataclass(frozen=True)
class DPMSolver3(_Third, _NoisePrediction):
    """DPM-Solver-3 (Lu et al. 2022a, algorithm 2) for the probability flow: r_1 = 1/3, r_2 = 2/3, order 3."""


@dataclass(frozen=True)
class DPMSolver3S(_Third, _DataPrediction):
    """DPM-Solver-3 with x̂_0 in place of ε̂ (Lu et al. 2022b; 3S in their code), for the probability flow, order 3."""
