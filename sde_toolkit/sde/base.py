"""The base class of all SDEs: an affine diffusion with scalar noise, defined by α and σ or by f and g.

    dx = f(t) x dt + g(t) dw,   t from 0 (data) to 1 (noise)      x_t | x_0 ~ N(α_t x_0, σ_t² I)

    f = d log α / dt        g² = α² d(σ²/α²)/dt        λ = log(α/σ)   (half the log signal-to-noise ratio)

The notation follows Song et al. 2021, "Score-Based Generative Modeling through SDEs", section 3 and appendix B, and so
do the names ``marginal_prob``, ``prior_sampling``, ``prior_logp`` and ``sde(x, t)`` (of their code, score_sde).
Matrix-valued diffusions (critically damped Langevin, for example) are out of scope.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from sde_toolkit.batching import as_floating, check_same_shape, expand_to
from sde_toolkit.checks import all_hold, check_amount
from sde_toolkit.errors import ArgumentError, DefinitionError
from sde_toolkit.sde.derive import derivative, inverse_decreasing
from sde_toolkit.sde.integrated import integrated_path
from sde_toolkit.sde.kept import PerObject
from sde_toolkit.sde.schedules import NO_FLOAT64, Time, as_float64, in_float64, zero_where_rounding

__all__ = ["SDE", "Time"]

_NEAR = 2.0**-24  # a distance from t=1 at which the limit of dα/dt is read
_STEP = 2.0**-14  # of the differences for dσ/dt at t=1

_RANGES = PerObject()

_SCHEDULES = ("alpha", "log_alpha", "sigma", "f", "g", "d_alpha", "d_sigma", "half_log_snr")


def _is_nowhere(condition: Tensor) -> bool:
    """Whether ``condition`` is known to be false everywhere; False where looking would wait or break a graph."""
    return condition.device.type == "cpu" and not torch.compiler.is_compiling() and all_hold(~condition) is True


def _is_constant(sde: SDE) -> bool:
    """Whether nothing can change what ``sde`` computes: a frozen dataclass of numbers."""
    told = vars(type(sde)).get("__dataclass_params__")  # of this class; a base class says nothing of what is added
    return bool(told and told.frozen) and all(isinstance(v, float | int | None) for v in vars(sde).values())


class SDE:
    """Base class of all SDEs. A subclass defines α and σ, or f and g; the other pair is derived.

    Override *either* ``alpha(t)`` and ``sigma(t)`` *or* ``f(t)`` and ``g(t)`` (and ``sigma_0``, the
    standard deviation at t=0, if it is not zero). They receive ``t`` as a float64 tensor of any shape and
    return a tensor of that shape, or one number for all times. Callers may pass floats and tensors of any dtype; the
    result has their dtype. Any other method here may be overridden by a closed form.

    f and g follow from α and σ by differentiation. α and σ follow from f and g by integration with error control: they
    are exact to rounding where f and g are smooth, and to 1e-7 (relative) through jumps, kinks and integrable
    infinities, also at t=1. ∫f = −∞ at t=1 means α(1) = 0. Other coefficients are refused, naming the time.

    :func:`~sde_toolkit.sde.check_sde` checks a subclass; every score model calls it.

    >>> class Linear(SDE):
    ...     def alpha(self, t):
    ...         return 1 - t / 2
    ...     def sigma(self, t):
    ...         return t
    >>> round(Linear().diffusion(0.5).item() ** 2, 6)  # g² = d(σ²)/dt − 2 f σ²
    1.333333

    Raises:
        DefinitionError: if the subclass defines neither pair, if a method returns something else than one number per
            time, or if f and g cannot be integrated.
    """

    sigma_0: ClassVar[float] = 0.0
    """σ(0), for an SDE that is defined by f and g."""

    sampling_end: ClassVar[float] = 1e-3
    """The time at which sampling in t usually stops (Song et al. 2021, appendix C)."""

    likelihood_end: ClassVar[float] = 1e-5
    """The time at which a likelihood computation usually stops."""

    _given_by_path: ClassVar[bool]
    _given_coefficients: ClassVar[bool]
    _log_alpha_is_given: ClassVar[bool]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in _SCHEDULES:
            if name in cls.__dict__:
                given = cls.__dict__[name]
                setattr(cls, name, in_float64(zero_where_rounding(given) if name == "alpha" else given))

        def gives(name: str) -> bool:
            return getattr(cls, name) is not getattr(SDE, name)

        cls._given_by_path = (gives("alpha") or gives("log_alpha")) and gives("sigma")
        cls._given_coefficients = gives("f") and gives("g")
        cls._log_alpha_is_given = gives("log_alpha")
        if not cls._given_by_path and not cls._given_coefficients:
            raise DefinitionError(
                f"class {cls.__name__} defines neither alpha(t) and sigma(t) nor f(t) and g(t). "
                "Define one of the two pairs; the other is derived."
            )

    def __new__(cls, *arguments: Any, **named: Any) -> SDE:
        if cls is SDE:
            raise DefinitionError(
                "SDE is the base class of all SDEs. Use VPSDE(), for example, or a subclass of yours."
            )
        return super().__new__(cls)

    # The path: α, σ and λ.

    @in_float64
    def alpha(self, t: Time) -> Tensor:
        """α_t, the factor on x_0 in the mean of x_t."""
        return torch.exp(self.log_alpha(t))

    @in_float64
    def log_alpha(self, t: Time) -> Tensor:
        """log α_t = ∫₀ᵗ f du, with error control (:mod:`sde_toolkit.sde.integrated`)."""
        if self._given_by_path:
            return torch.log(self.alpha(t))
        return integrated_path(self, t, with_variance=False)[0]

    @in_float64
    def sigma(self, t: Time) -> Tensor:
        """σ_t, the standard deviation of x_t given x_0: σ²/α² = σ(0)² + ∫₀ᵗ g²/α² du."""
        log_alpha, variance = integrated_path(self, t)
        return torch.sqrt(variance + (torch.exp(log_alpha) * self.sigma_0) ** 2)

    @in_float64
    def half_log_snr(self, t: Time) -> Tensor:
        """λ_t = log(α_t/σ_t), strictly decreasing in t; +inf where σ_t = 0, −inf where α_t = 0."""
        return self.log_alpha(t) - torch.log(self.sigma(t))

    @property
    def loses_signal(self) -> bool:
        """Whether nothing of x_0 is left at t=1: α(1) is 0, or a rounding error of 0, such as √(1 − σ²) = 1e-8."""
        last, before = self.alpha(1.0).item(), self.alpha(1 - 2.0**-10).item()
        if last == 0 or self._log_alpha_is_given or not self._given_by_path:
            return last == 0
        return last < 4e-8 * self.sigma(1.0).item() and last < 1e-4 * before

    def inverse_half_log_snr(self, lambda_t: Time) -> Tensor:
        """The time at which λ has the given value.

        Raises:
            ArgumentError: if the value lies outside [λ(1), λ(0)].
        """
        value, dtype, device = as_float64(lambda_t)
        low, high = self._half_log_snr_range()
        # Rounding errors of float32 are allowed for every dtype: lists of noise levels are often computed in float32.
        eps = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
        slack = 8 * eps * max(1.0, *(abs(end) for end in (low, high) if math.isfinite(end)), 0.0)
        inside = (value >= low - slack) & (value <= high + slack)
        if all_hold(inside) is False:
            worst = value.detach()[~inside].tolist()
            digits = next(
                (n for n in range(6, 17) if all(f"{v:.{n}g}" not in (f"{low:.{n}g}", f"{high:.{n}g}") for v in worst)),
                17,
            )
            raise ArgumentError(
                "lambda_t",
                worst[:4],
                f"half log-SNR of {self} runs from {low:.{digits}g} at t=1 to {high:.{digits}g} at t=0",
                "Pass values inside this range.",
            )
        value = value.clamp(low, high)
        return self.solve_half_log_snr(value).clamp(0.0, 1.0).to(device, dtype)

    def _half_log_snr_range(self) -> tuple[float, float]:
        """λ(1) and λ(0); those of an object that cannot change are computed once."""
        in_graph = torch.compiler.is_compiling()
        known: tuple[float, float] | None = None if in_graph else _RANGES.get(self)
        if known is not None:
            return known
        found = self.half_log_snr(1.0).item(), self.half_log_snr(0.0).item()
        if not in_graph and _is_constant(self):
            _RANGES.put(self, found)
        return found

    def solve_half_log_snr(self, lambda_t: Tensor) -> Tensor:
        """The inverse of λ, float64 to float64, for values inside its range. Override it where a closed form exists."""
        return inverse_decreasing(self.half_log_snr, lambda_t)

    # The coefficients: f and g.

    @in_float64
    def f(self, t: Time) -> Tensor:
        """f(t) = d log α / dt, the factor on x in the drift."""
        return derivative(self.log_alpha, t)

    @in_float64
    def g(self, t: Time) -> Tensor:
        """g(t) = √(α² d(σ²/α²)/dt), the diffusion coefficient."""

        def tau_squared(u: Tensor) -> Tensor:
            return (self.sigma(u) / self.alpha(u)) ** 2

        # Where σ grows like √t at 0, the chain rule gives 0 · ∞ for the derivative of σ²: it is taken a little later.
        infinite = ~derivative(tau_squared, t.detach()).isfinite()
        t = torch.where(infinite, t.clamp(min=1e-10), t)
        rate = derivative(tau_squared, t)
        return self.alpha(t) * torch.sqrt(rate.clamp(min=0.0))

    @in_float64
    def d_alpha(self, t: Time) -> Tensor:
        """dα/dt = f α, or the derivative of α if f and g are not defined. If α(1) = 0, its limit at t=1."""
        if not self._given_coefficients:
            return derivative(self.alpha, t)
        alpha = self.alpha(t)
        lost = (t == 1) & (alpha == 0)
        if _is_nowhere(lost):
            return self.f(t) * alpha
        # f α is −∞ · 0 at t=1. Next to it, it is finite: at a constant limit, still growing to −∞, or falling to 0.
        near, farther = (self.f(u) * self.alpha(u) for u in (1 - _NEAR + 0 * t, 1 - 4 * _NEAR + 0 * t))
        growth = near / farther
        limit = torch.where(growth > 1.01, -math.inf, torch.where(growth < 0.99, 0.0, near))
        return torch.where(lost, limit, self.f(torch.where(lost, 0.5, t)) * alpha)

    @in_float64
    def d_sigma(self, t: Time) -> Tensor:
        """dσ/dt = f σ + g²/(2σ), or the derivative of σ if f and g are not defined. If α(1) = 0, its limit at t=1."""
        if not self._given_coefficients:
            return derivative(self.sigma, t)
        sigma, ended = self.sigma(t), t == 1
        lost = ended if _is_nowhere(ended) else ended & (self.alpha(t) == 0)
        if _is_nowhere(lost):
            return self.f(t) * sigma + self.g(t) ** 2 / (2 * sigma)
        # The two terms are −∞ and ∞ at t=1: a one-sided difference of second order is taken.
        last, before, earlier = (self.sigma(1 - k * _STEP + 0 * t) for k in range(3))
        inner = torch.where(lost, 0.5, t)
        slope = self.f(inner) * sigma + self.g(inner) ** 2 / (2 * sigma)
        return torch.where(lost, (3 * last - 4 * before + earlier) / (2 * _STEP), slope)

    def drift(self, x: Tensor, t: Time) -> Tensor:
        """f(t) x, in the dtype of x. Shapes: x (B, *event), t scalar or (B,).

        Here and below, integer tensors are converted to torch's default dtype.
        """
        x = as_floating(x)
        return expand_to(self._factor(self.f, t, x), x) * x

    def diffusion(self, t: Time) -> Tensor:
        """g(t), in the shape and dtype of t."""
        return self.g(t)

    def sde(self, x: Tensor, t: Time) -> tuple[Tensor, Tensor]:
        """(drift(x, t), diffusion(t)), as in score_sde."""
        x = as_floating(x)
        return self.drift(x, t), self._factor(self.g, t, x)

    # Distributions.

    def marginal_prob(self, x_0: Tensor, t: Time) -> tuple[Tensor, Tensor]:
        """Mean α_t x_0 (shape of x_0) and standard deviation σ_t (shape of t) of x_t given x_0."""
        x_0 = as_floating(x_0, "x_0")
        alpha_t = self._factor(self.alpha, t, x_0)
        return expand_to(alpha_t, x_0) * x_0, self._factor(self.sigma, t, x_0)

    def perturb(self, x_0: Tensor, t: Time, noise: Tensor) -> Tensor:
        """x_t = α_t x_0 + σ_t noise: a draw of x_t given x_0 when ``noise`` is standard normal.

        Raises:
            ArgumentError: if ``noise`` has another shape than ``x_0``, or the shape of ``t`` does not fit them.
        """
        x_0, noise = as_floating(x_0, "x_0"), as_floating(noise, "noise")
        check_same_shape("noise", noise, "x_0", x_0)
        mean, std = self.marginal_prob(x_0, t)
        return mean + expand_to(std, x_0) * noise

    def prior_sampling(
        self,
        shape: tuple[int, ...],
        t: Time = 1.0,
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Draw from the prior N(0, σ_t² I), which replaces p_t at the starting time ``t``, a number or (B,)."""
        check_amount("shape", shape, math.prod(shape))
        noise = torch.randn(shape, generator=generator, dtype=dtype, device=device)
        return expand_to(self._factor(self.sigma, t, noise), noise) * noise

    def prior_logp(self, z: Tensor, t: Time = 1.0) -> Tensor:
        """log N(z; 0, σ_t² I) in nats per sample, (B,). Shapes: z (B, *event), t scalar or (B,)."""
        z = as_floating(z, "z")
        sigma_t = self._factor(self.sigma, t, z)
        dimension = math.prod(z.shape[1:])
        squares = (z / expand_to(sigma_t, z)).square().reshape(z.shape[0], dimension).sum(-1)
        return -0.5 * squares - dimension * (torch.log(sigma_t) + 0.5 * math.log(2 * math.pi))

    @staticmethod
    def _factor(schedule: Callable[[Time], Tensor], t: Time, x: Tensor) -> Tensor:
        """``schedule(t)``, computed in float64, in the dtype and on the device of ``x``."""
        t64 = t.to(torch.float64) if isinstance(t, Tensor) and t.device.type not in NO_FLOAT64 else t
        return schedule(t64).to(x.device, x.dtype)
