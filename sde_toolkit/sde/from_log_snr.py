"""A path from its half log-SNR curve λ(t) alone: any strictly decreasing function, or knots to interpolate.

With τ = σ/α = e^(−λ), and what scale the state has chosen by one flag,

    variance preserving:    α² = (1 + τ(0)²)/(1 + τ²)        otherwise:    α = 1            σ = α τ
    f = λ′ sigmoid(−2λ)     or 0                             g² = −2 λ′ σ²

For λ(0) = ∞ the first is α² = sigmoid(2λ) (Kingma et al. 2021, "Variational Diffusion Models", eq. 3). A finite
λ(0) means that x_0 already carries noise of size τ(0) at t=0; the total α² + σ² = 1 + τ(0)² is what is preserved
then, so that α(0) = 1 as for every SDE here.
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

_EARLIEST = 1e-12  # where λ(0) = ∞, g(0) is read off here: λ′ is infinite at 0, σ² λ′ is not


@dataclass(frozen=True)
class Knots:
    """λ through given points: a decreasing, once continuously differentiable piecewise cubic.

    Fritsch & Butland 1984, eq. 4-5: the slope at a knot is a weighted harmonic mean of the two secants; at the ends
    a one-sided difference, kept between a third and three times its secant. Two knots give a straight line.
    λ″ jumps at the inner knots: integrators in t of order above 2 feel it.

    Raises:
        ArgumentError: unless ``times`` increase from 0 to 1 and ``half_log_snrs``, as many, decrease.
    """

    times: tuple[float, ...]
    half_log_snrs: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("times", "half_log_snrs"):
            values = getattr(self, name)
            values = values.tolist() if isinstance(values, Tensor) else list(values)
            for i, value in enumerate(values):
                if not is_number(value):
                    raise ArgumentError(f"{name}[{i}]", value, "not a finite number", "Knots are finite points.")
            object.__setattr__(self, name, tuple(map(float, values)))
        times, lambdas = self.times, self.half_log_snrs
        if len(times) < 2 or len(times) != len(lambdas) or (times[0], times[-1]) != (0.0, 1.0):
            problem = f"{len(times)} times for {len(lambdas)} values of λ"
            raise ArgumentError("times", times, problem, "Give as many of both, at least 2, from t=0 to t=1.")
        for i in range(len(times) - 1):
            if times[i + 1] <= times[i]:
                problem = f"they must increase, and do not between positions {i} and {i + 1}"
                raise ArgumentError("times", times[i : i + 2], problem, "Sort the knots.")
            if lambdas[i + 1] >= lambdas[i]:
                problem = f"λ must decrease, and does not between t={times[i]:.6g} and t={times[i + 1]:.6g}"
                raise ArgumentError("half_log_snrs", lambdas[i : i + 2], problem, "Noise grows with t.")

    @cached_property
    def _cubics(self) -> tuple[Tensor, Tensor, Tensor]:
        """Knots (K,), and each interval's width and coefficients of 1, u, u², u³ with u from 0 to 1 on it."""
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
    """The SDE whose half log-SNR is ``curve``.

    ``curve``: strictly decreasing, elementwise, float64 tensor to float64 tensor, differentiable by torch; or
    :class:`Knots`. λ(0) may be +∞ (no noise on the data), and λ(1) −∞ (no signal left) where the variance is
    preserved. ``variance_preserving``: scale the state so that its variance stays; otherwise α = 1.

    The curve may be learned: nothing of it is kept from call to call, so that α(0) = 1 after every step, and gradients
    reach its parameters. That it decreases is checked once, here.

    A checkpoint keeps knots. Any other function is noted by its name and has to be passed again:
    ``ScoreModel.from_pretrained(path, sde=...)``.

    Raises:
        ArgumentError: naming the times between which ``curve`` does not decrease, or where it is not finite.
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
            raise ArgumentError("curve", found, "it must answer a float64 t in its shape and dtype", "Use torch on t.")
        inside = lambdas.isfinite()
        inside[0] |= lambdas[0] == math.inf
        inside[-1] |= bool(lambdas[-1] == -math.inf) and self.variance_preserving
        if not bool(inside.all()):
            i = int((~inside).int().argmax())
            problem = f"λ is {lambdas[i].item()} at t={t[i].item():.6g}"
            raise ArgumentError("curve", self.curve, problem, "Only λ(0) = inf, and λ(1) = -inf where α² + σ² is kept.")
        rising = lambdas.diff() >= 0
        if bool(rising.any()):
            i = int(rising.int().argmax())
            where = f"t={t[i].item():.6g} and t={t[i + 1].item():.6g}"
            problem = f"λ must decrease, and goes from {lambdas[i].item():.6g} to {lambdas[i + 1].item():.6g}"
            raise ArgumentError("curve", self.curve, f"{problem} between {where}", "Noise grows with t.")

    def _log_total(self, t: Tensor) -> Tensor:
        """log(1 + τ(0)²), on the device of ``t``: read off the curve anew each time, since it may be learned."""
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
    """log sigmoid(z) to rounding for every z, infinite ones included; torch's own refuses expanded tensors."""
    return -F.softplus(-z, threshold=50.0)
