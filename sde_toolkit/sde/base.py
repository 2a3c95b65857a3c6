"""What an SDE is: an affine diffusion with scalar noise, seen through α, σ or through f, g.

    dx = f(t) x dt + g(t) dw,   t from 0 (data) to 1 (noise)      x_t | x_0 ~ N(α_t x_0, σ_t² I)

    f = d log α / dt        g² = α² d(σ²/α²)/dt        λ = log(α/σ)   (half the log signal-to-noise ratio)

Notation and the score_sde names ``marginal_prob``, ``prior_sampling``, ``prior_logp``, ``sde(x, t)`` follow
Song et al. 2021, "Score-Based Generative Modeling through SDEs", sections 3 and appendix B. Matrix-valued
diffusions (critically damped Langevin and the like) are out of scope.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from numbers import Real
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor

from sde_toolkit.batching import as_floating, check_same_shape, expand_to
from sde_toolkit.checks import all_hold, check_amount, some_seen
from sde_toolkit.errors import ArgumentError, DefinitionError
from sde_toolkit.sde.derive import derivative, inverse_decreasing
from sde_toolkit.sde.integrated import integrated_path

__all__ = ["SDE", "Time"]

Time: TypeAlias = Any
"""A float, a 0-dim tensor, or a tensor of shape (B,): anywhere in [0, 1]."""

_SCHEDULES = ("alpha", "log_alpha", "sigma", "f", "g", "d_alpha", "d_sigma", "half_log_snr")
_NO_FLOAT64 = ("mps",)
_ROUNDING = 1e-15  # below it α(1) is what rounding leaves of 0


def _as_float64(value: Any) -> tuple[Tensor, torch.dtype, torch.device]:
    """The float64 tensor that a schedule computes with, and the dtype and device to answer in."""
    if not isinstance(value, Tensor):
        value = torch.as_tensor(value, dtype=torch.float64)
    dtype = value.dtype if value.is_floating_point() else torch.float64
    work_device = "cpu" if value.device.type in _NO_FLOAT64 else value.device
    return value.to(work_device, torch.float64), dtype, value.device


def _inside(t: Tensor, dtype: torch.dtype) -> Tensor:
    """``t``, moved to the end that it misses by its last digit; refused if it lies outside [0, 1].

    Only where looking costs no device synchronisation: not on an accelerator, in a graph, or under vmap.
    """
    if not some_seen(~((t >= 0) & (t <= 1))):
        return t
    slack = min(2 * torch.finfo(dtype).eps, 1e-6)
    outside = ~((t >= -slack) & (t <= 1 + slack))
    if not bool(outside.any()):
        return t.clamp(0.0, 1.0)
    raise ArgumentError(
        "t",
        t.detach().flatten()[int(outside.flatten().int().argmax())].item(),
        "time runs from 0 (data) to 1 (noise)",
        "Pass times in [0, 1]; a discrete index i of N steps is the time i/N.",
    )


def _in_float64(schedule: Callable[..., Any]) -> Callable[..., Tensor]:
    """Let a schedule of float64 tensors accept any time and answer in the dtype it was given."""

    @functools.wraps(schedule)
    def wrapped(self: SDE, t: Time) -> Tensor:
        t64, dtype, device = _as_float64(t)
        t64 = _inside(t64, dtype)
        value = schedule(self, t64)
        if not isinstance(value, Tensor) or value.shape != t64.shape or value.dtype != torch.float64:
            value = _as_schedule(value, t64, f"class {type(self).__name__}: {schedule.__name__}(t)")
        return value.to(device, dtype)

    return wrapped


def _as_schedule(value: Any, t: Tensor, what: str) -> Tensor:
    """One float64 value per time, of whatever a user's method returned."""
    if isinstance(value, Real) and not isinstance(value, bool):
        return torch.full_like(t, float(value))
    remedy = f"Return one real number per time: a tensor of the shape of t, which is {tuple(t.shape)} here."
    if not isinstance(value, Tensor):
        try:
            value = torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError):
            raise DefinitionError(f"{what} returned {type(value).__name__}. {remedy}") from None
    if value.is_complex() or value.dtype == torch.bool:
        raise DefinitionError(f"{what} returned {value.dtype}. {remedy}")
    if value.numel() != 1 and value.shape != t.shape:
        raise DefinitionError(f"{what} returned the shape {tuple(value.shape)}. {remedy}")
    value = value.to(t.device, torch.float64)
    return value if value.shape == t.shape else value.reshape(()) + torch.zeros_like(t)


def _zero_where_rounding(alpha: Callable[..., Any]) -> Callable[..., Any]:
    """α(1) = cos(π/2) is 6e-17 in floating point, and means 0; its slope stays."""

    @functools.wraps(alpha)
    def wrapped(self: SDE, t: Tensor) -> Any:
        value = alpha(self, t)
        if self._log_alpha_is_given or not isinstance(value, Tensor) or value.shape != t.shape:
            return value
        return value - torch.where((t == 1) & (value.abs() <= _ROUNDING), value.detach(), 0.0)

    return wrapped


class SDE:
    """Base class of all SDEs. A subclass gives one half, the other half follows.

    Override *either* ``alpha(t)`` and ``sigma(t)`` *or* ``f(t)`` and ``g(t)`` (with ``sigma_0``, the
    standard deviation at t=0, if it is not zero). They receive ``t`` as a float64 tensor of any shape and
    return a tensor of that shape, or one number for all times; callers may pass floats and tensors of any dtype, and
    get their dtype back. Any other method here may be overridden by a closed form.

    f and g are integrated with error control: α and σ are right to rounding where f and g are smooth, and to 1e-7,
    relative, through jumps, kinks and integrable infinities, at t=1 too. ∫f = −∞ at t=1 means α(1) = 0. What cannot
    be integrated so is refused, naming the time. α and σ are differentiated where f and g follow from them.

    :func:`~sde_toolkit.sde.check_sde` says whether an SDE is one: every score model asks it.

    >>> class Linear(SDE):
    ...     def alpha(self, t):
    ...         return 1 - t / 2
    ...     def sigma(self, t):
    ...         return t
    >>> round(Linear().diffusion(0.5).item() ** 2, 6)  # g² = d(σ²)/dt − 2 f σ²
    1.333333

    Raises:
        DefinitionError: when the subclass gives neither pair; when a method answers with something else than one
            number per time; when f and g cannot be integrated.
    """

    sigma_0: ClassVar[float] = 0.0
    """σ(0) of an SDE that is given by f and g."""

    sampling_end: ClassVar[float] = 1e-3
    """Where sampling in t usually stops (Song et al. 2021, appendix C)."""

    likelihood_end: ClassVar[float] = 1e-5
    """Where likelihood computation usually stops."""

    _given_by_path: ClassVar[bool]
    _given_coefficients: ClassVar[bool]
    _log_alpha_is_given: ClassVar[bool]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in _SCHEDULES:
            if name in cls.__dict__:
                given = cls.__dict__[name]
                setattr(cls, name, _in_float64(_zero_where_rounding(given) if name == "alpha" else given))

        def gives(name: str) -> bool:
            return getattr(cls, name) is not getattr(SDE, name)

        cls._given_by_path = (gives("alpha") or gives("log_alpha")) and gives("sigma")
        cls._given_coefficients = gives("f") and gives("g")
        cls._log_alpha_is_given = gives("log_alpha")
        if not cls._given_by_path and not cls._given_coefficients:
            raise DefinitionError(
                f"class {cls.__name__} gives neither alpha(t) and sigma(t) nor f(t) and g(t). "
                "Define one of the two pairs; the other is derived."
            )

    def __new__(cls, *arguments: Any, **named: Any) -> SDE:
        if cls is SDE:
            raise DefinitionError(
                "SDE is the base class of all SDEs. Use VPSDE(), for example, or a subclass of yours."
            )
        return super().__new__(cls)

    # The path: α, σ and λ.

    @_in_float64
    def alpha(self, t: Time) -> Tensor:
        """α_t, the factor of x_0 in the mean of x_t."""
        return torch.exp(self.log_alpha(t))

    @_in_float64
    def log_alpha(self, t: Time) -> Tensor:
        """log α_t = ∫₀ᵗ f, with error control (:mod:`sde_toolkit.sde.integrated`)."""
        if self._given_by_path:
            return torch.log(self.alpha(t))
        return integrated_path(self, t, with_variance=False)[0]

    @_in_float64
    def sigma(self, t: Time) -> Tensor:
        """σ_t, the standard deviation of x_t given x_0: σ²/α² = σ(0)² + ∫₀ᵗ g²/α²."""
        log_alpha, variance = integrated_path(self, t)
        return torch.sqrt(variance + (torch.exp(log_alpha) * self.sigma_0) ** 2)

    @_in_float64
    def half_log_snr(self, t: Time) -> Tensor:
        """λ_t = log(α_t/σ_t), strictly decreasing in t; +inf where σ_t = 0, −inf where α_t = 0."""
        return self.log_alpha(t) - torch.log(self.sigma(t))

    @property
    def loses_signal(self) -> bool:
        """Whether nothing of x_0 is left at t=1: α(1) is 0, or what rounding leaves of it, such as √(1 − σ²) = 1e-8."""
        last, before = self.alpha(1.0).item(), self.alpha(1 - 2.0**-10).item()
        if last == 0 or self._log_alpha_is_given or not self._given_by_path:
            return last == 0
        return last < 4e-8 * self.sigma(1.0).item() and last < 1e-4 * before

    def inverse_half_log_snr(self, lambda_t: Time) -> Tensor:
        """The time at which λ has the given value.

        Raises:
            ArgumentError: if the value lies outside [λ(1), λ(0)].
        """
        value, dtype, device = _as_float64(lambda_t)
        low, high = (self.half_log_snr(end).item() for end in (1.0, 0.0))
        # The slack of float32, in which lists of noise levels are often written, whatever holds them here.
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

    def solve_half_log_snr(self, lambda_t: Tensor) -> Tensor:
        """The closed form behind :meth:`inverse_half_log_snr`, float64 to float64; by default bisection."""
        return inverse_decreasing(self.half_log_snr, lambda_t)

    # The coefficients: f and g.

    @_in_float64
    def f(self, t: Time) -> Tensor:
        """f(t) = d log α / dt, the factor of x in the drift."""
        return derivative(self.log_alpha, t)

    @_in_float64
    def g(self, t: Time) -> Tensor:
        """g(t) = √(α² d(σ²/α²)/dt), the diffusion coefficient."""

        def tau_squared(u: Tensor) -> Tensor:
            return (self.sigma(u) / self.alpha(u)) ** 2

        # σ may behave like √t, whose derivative at 0 is infinite; that of σ² is not.
        infinite = ~derivative(tau_squared, t.detach()).isfinite()
        t = torch.where(infinite, t.clamp(min=1e-10), t)
        rate = derivative(tau_squared, t)
        return self.alpha(t) * torch.sqrt(rate.clamp(min=0.0))

    @_in_float64
    def d_alpha(self, t: Time) -> Tensor:
        """dα/dt = f α; differentiated where only the path is given, since f is infinite at α = 0."""
        return self.f(t) * self.alpha(t) if self._given_coefficients else derivative(self.alpha, t)

    @_in_float64
    def d_sigma(self, t: Time) -> Tensor:
        """dσ/dt = f σ + g²/(2σ); differentiated where only the path is given."""
        if not self._given_coefficients:
            return derivative(self.sigma, t)
        sigma = self.sigma(t)
        return self.f(t) * sigma + self.g(t) ** 2 / (2 * sigma)

    def drift(self, x: Tensor, t: Time) -> Tensor:
        """f(t) x, in the dtype of x. Shapes: x (B, *event), t scalar or (B,).

        Here and below integers are taken as floating-point numbers of torch's default dtype.
        """
        x = as_floating(x)
        return expand_to(self._factor(self.f, t, x), x) * x

    def diffusion(self, t: Time) -> Tensor:
        """g(t), with the shape and dtype of t."""
        return self.g(t)

    def sde(self, x: Tensor, t: Time) -> tuple[Tensor, Tensor]:
        """(drift(x, t), diffusion(t)), score_sde's way of asking for both."""
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
            ArgumentError: if ``noise`` has another shape than ``x_0``, or ``t`` fits neither.
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
        """Draw from the prior N(0, σ_t² I) that stands for p_t at the starting time ``t``, a number or (B,)."""
        check_amount("shape", shape, math.prod(shape))
        noise = torch.randn(shape, generator=generator, dtype=dtype, device=device)
        return expand_to(self._factor(self.sigma, t, noise), noise) * noise

    def prior_logp(self, z: Tensor, t: Time = 1.0) -> Tensor:
        """log density of N(0, σ_t² I) at z, in nats per sample. Shapes: z (B, *event), t scalar or (B,), to (B,)."""
        z = as_floating(z, "z")
        sigma_t = self._factor(self.sigma, t, z)
        dimension = math.prod(z.shape[1:])
        squares = (z / expand_to(sigma_t, z)).square().reshape(z.shape[0], dimension).sum(-1)
        return -0.5 * squares - dimension * (torch.log(sigma_t) + 0.5 * math.log(2 * math.pi))

    @staticmethod
    def _factor(schedule: Callable[[Time], Tensor], t: Time, x: Tensor) -> Tensor:
        """``schedule(t)`` computed in float64, moved to the dtype and device of ``x``."""
        t64 = t.to(torch.float64) if isinstance(t, Tensor) and t.device.type not in _NO_FLOAT64 else t
        return schedule(t64).to(x.device, x.dtype)
