"""An SDE defined by its half log-SNR curve λ(t): any strictly decreasing function, or interpolated knots.

With τ = σ/α = e^(−λ):

    variance preserving:    α² = (1 + τ(0)²)/(1 + τ²)     σ = α τ     f = λ′ sigmoid(−2λ)     g² = −2 λ′ σ²
    otherwise:              α = 1                         σ = τ       f = 0                   g² = −2 λ′ σ²

If λ(0) = ∞, the first is α² = sigmoid(2λ) (Kingma et al. 2021, "Variational Diffusion Models", eq. 3). If λ(0) is
finite, x_0 already carries noise of standard deviation τ(0) at t=0. Then the preserved sum is α² + σ² = 1 + τ(0)², so
that α(0) = 1 as for every SDE here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from sde_toolkit.checks import is_number
from sde_toolkit.errors import ArgumentError
from sde_toolkit.sde.base import SDE, Time
from sde_toolkit.sde.derive import derivative, pick

__all__ = ["Knots", "LogSNRSDE"]

_EARLIEST = 1e-12  # f and g at earlier times are computed here: λ′ may be infinite at 0, where σ² λ′ is not


@dataclass(frozen=True)
class Knots:
    """λ through given points: a decreasing, once continuously differentiable piecewise cubic.

    The slope at an inner knot is a weighted harmonic mean of the two secants (Fritsch & Butland 1984, eq. 4-5). At the
    ends it is a one-sided difference, limited to between a third and three times the secant. Two knots give a straight
    line. λ″ jumps at the inner knots, so integrators in t of order above 2 lose their order there.

    Raises:
        ArgumentError: unless ``times`` increase from 0 to 1, and ``half_log_snrs`` are as many and decrease.
    """

    times: tuple[float, ...]
    half_log_snrs: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("times", "half_log_snrs"):
            values = getattr(self, name)
            values = values.tolist() if isinstance(values, Tensor) else list(values)
            for i, value in enumerate(values):
                if not is_number(value):
                    raise ArgumentError(f"{name}[{i}]", value, "not a finite number", "Pass finite knots.")
            object.__setattr__(self, name, tuple(map(float, values)))
        times, lambdas = self.times, self.half_log_snrs
        if len(times) < 2 or len(times) != len(lambdas) or (times[0], times[-1]) != (0.0, 1.0):
            problem = f"{len(times)} times for {len(lambdas)} values of λ"
            raise ArgumentError("times", times, problem, "Pass as many of both, at least 2, from t=0 to t=1.")
        for i in range(len(times) - 1):
            if times[i + 1] <= times[i]:
                problem = f"they must increase, but do not between positions {i} and {i + 1}"
                raise ArgumentError("times", times[i : i + 2], problem, "Sort the knots.")
            if lambdas[i + 1] >= lambdas[i]:
                problem = f"λ must decrease, but does not between t={times[i]:.6g} and t={times[i + 1]:.6g}"
                remedy = "Pass smaller values for later times: t=0 is data and t=1 noise."
                raise ArgumentError("half_log_snrs", lambdas[i : i + 2], problem, remedy)

    @cached_property
    def _cubics(self) -> tuple[Tensor, Tensor, Tensor]:
        """Times (K,); width of each interval (K−1,); coefficients (4, K−1) of 1, u, u², u³ with u in [0, 1]."""
        t, y = (torch.tensor(v, dtype=torch.float64) for v in (self.times, self.half_log_snrs))
        h, rise = t.diff(), y.diff()
        secant = rise / h
        before, after = 2 * h[1:] + h[:-1], h[1:] + 2 * h[:-1]
        inner = (before + after) / (before / secant[:-1] + after / secant[1:])
        slope = torch.cat([_end_slope(h, secant), inner, _end_slope(h.flip(0), secant.flip(0))])
        left, right = h * slope[:-1], h * slope[1:]
        return t, h, torch.stack([y[:-1], left, 3 * rise - 2 * left - right, left + right - 2 * rise])

    def __call__(self, t: Tensor) -> Tensor:
        knots, h, cubics = (v.to(t.device) for v in self._cubics)
        i = (torch.searchsorted(knots, t.detach().contiguous()) - 1).clamp(0, len(h) - 1)
        u = (t - pick(knots, i)) / pick(h, i)
        c_0, c_1, c_2, c_3 = pick(cubics, i)
        return c_0 + u * (c_1 + u * (c_2 + u * c_3))


def _end_slope(h: Tensor, secant: Tensor) -> Tensor:
    if len(h) == 1:
        return secant
    slope = ((2 * h[0] + h[1]) * secant[0] - h[0] * secant[1]) / (h[0] + h[1])
    return slope.clamp(3 * secant[0], secant[0] / 3).reshape(1)


@dataclass(frozen=True)
class LogSNRSDE(SDE):
    """The SDE with the half log-SNR ``curve``.

    Args:
        curve: a strictly decreasing elementwise function from float64 tensors to float64 tensors, differentiable by
            torch; or :class:`Knots`. λ(0) may be +∞ (no noise on the data). λ(1) may be −∞ (no signal left) if the
            variance is preserved.
        variance_preserving: whether the state is scaled so that α² + σ² is constant; otherwise α = 1.

    The curve may be learned: it is evaluated anew at every call, so that α(0) = 1 after every update, and gradients
    reach its parameters. Only the construction checks that it decreases.

    A checkpoint holds knots. Of any other function it holds the name only, and the SDE has to be passed again:
    ``ScoreModel.from_pretrained(path, sde=...)``.

    Raises:
        ArgumentError: if ``curve`` is not a function of t, does not decrease, or is not finite; the times are named.
    """

    curve: Callable[[Tensor], Tensor] = Knots((0.0, 1.0), (7.0, -5.0))
    variance_preserving: bool = True

    def __post_init__(self) -> None:
        if not callable(self.curve):
            raise ArgumentError(
                "curve", self.curve, "not a function of t", "Pass the function itself, or Knots(times, half_log_snrs)."
            )
        t = torch.cat([torch.zeros(1), torch.logspace(-9, -3, 61), torch.linspace(1e-3, 1, 2000)[1:]]).double()
        lambdas = self.curve(t)
        if not isinstance(lambdas, Tensor) or lambdas.shape != t.shape or lambdas.dtype != torch.float64:
            found = (tuple(lambdas.shape), lambdas.dtype) if isinstance(lambdas, Tensor) else type(lambdas).__name__
            problem = "for a float64 tensor t it must return a float64 tensor of the same shape"
            raise ArgumentError("curve", found, problem, "Compute λ with torch operations on t.")
        inside = lambdas.isfinite()
        inside[0] |= lambdas[0] == math.inf
        inside[-1] |= bool(lambdas[-1] == -math.inf) and self.variance_preserving
        if not bool(inside.all()):
            i = int((~inside).int().argmax())
            problem = f"λ is {lambdas[i].item()} at t={t[i].item():.6g}"
            remedy = "λ must be finite, except that λ(0) may be inf, and λ(1) may be -inf if variance_preserving."
            raise ArgumentError("curve", self.curve, problem, remedy)
        rising = lambdas.diff() >= 0
        if bool(rising.any()):
            i = int(rising.int().argmax())
            where = f"t={t[i].item():.6g} and t={t[i + 1].item():.6g}"
            problem = f"λ must decrease, but goes from {lambdas[i].item():.6g} to {lambdas[i + 1].item():.6g}"
            remedy = "Here t=0 is data and t=1 noise: a curve in the other direction of time is curve(1 - t)."
            raise ArgumentError("curve", self.curve, f"{problem} between {where}", remedy)

    def _log_total(self, t: Tensor) -> Tensor:
        """log(1 + τ(0)²), on the device of ``t``. It is computed at every call, because the curve may be learned."""
        return -_log_sigmoid(2 * self.curve(torch.zeros((), dtype=torch.float64, device=t.device)))

    def half_log_snr(self, t: Time) -> Tensor:
        return self.curve(t)

    def log_alpha(self, t: Time) -> Tensor:
        if not self.variance_preserving:
            return torch.zeros_like(t)
        return 0.5 * (self._log_total(t) + _log_sigmoid(2 * self.curve(t)))

    def sigma(self, t: Time) -> Tensor:
        if not self.variance_preserving:
            return torch.exp(-self.curve(t))
        return torch.exp(0.5 * (self._log_total(t) + _log_sigmoid(-2 * self.curve(t))))

    def f(self, t: Time) -> Tensor:
        if not self.variance_preserving:
            return torch.zeros_like(t)
        t = t.clamp(min=_EARLIEST)
        return derivative(self.curve, t) * torch.sigmoid(-2 * self.curve(t))

    def g(self, t: Time) -> Tensor:
        t = t.clamp(min=_EARLIEST)
        return self.sigma(t) * torch.sqrt(-2 * derivative(self.curve, t))


def _log_sigmoid(z: Tensor) -> Tensor:
    """log sigmoid(z), exact to rounding for every z, also infinite ones. (torch's own refuses expanded tensors.)"""
    return -F.softplus(-z, threshold=50.0)
