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
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor

from sde_toolkit.broadcasting import as_floating, check_same_shape, expand_to
from sde_toolkit.errors import ArgumentError, DefinitionError
from sde_toolkit.sde.derive import derivative, integral, inverse_decreasing

__all__ = ["SDE", "Time", "check_sde"]

Time: TypeAlias = Any
"""A float, a 0-dim tensor, or a tensor of shape (B,): anywhere in [0, 1]."""

_SCHEDULES = ("alpha", "log_alpha", "sigma", "f", "g", "d_alpha", "d_sigma", "half_log_snr")
_NO_FLOAT64 = ("mps",)


def _as_float64(value: Any) -> tuple[Tensor, torch.dtype, torch.device]:
    """The float64 tensor that a schedule computes with, and the dtype and device to answer in."""
    if not isinstance(value, Tensor):
        value = torch.as_tensor(value, dtype=torch.float64)
    dtype = value.dtype if value.is_floating_point() else torch.float64
    work_device = "cpu" if value.device.type in _NO_FLOAT64 else value.device
    return value.to(work_device, torch.float64), dtype, value.device


def _check_domain(t: Tensor) -> None:
    """Refuse times outside [0, 1]. Only where looking costs no device synchronisation."""
    if t.device.type != "cpu" or torch.compiler.is_compiling() or t.numel() == 0:
        return
    if not bool(((t >= 0) & (t <= 1)).all()):
        worst = t.detach().flatten()[int(((t < 0) | (t > 1) | t.isnan()).flatten().int().argmax())].item()
        raise ArgumentError(
            "t",
            worst,
            "time runs from 0 (data) to 1 (noise)",
            "Pass times in [0, 1]; a discrete index i of N steps is the time i/N.",
        )


def _in_float64(schedule: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Let a schedule of float64 tensors accept any time and answer in the dtype it was given."""

    @functools.wraps(schedule)
    def wrapped(self: SDE, t: Time) -> Tensor:
        t64, dtype, device = _as_float64(t)
        _check_domain(t64)
        return schedule(self, t64).to(device, dtype)

    return wrapped


class SDE:
    """Base class of all SDEs. A subclass gives one half, the other half follows.

    Override *either* ``alpha(t)`` and ``sigma(t)`` *or* ``f(t)`` and ``g(t)`` (with ``sigma_0``, the
    standard deviation at t=0, if it is not zero). They receive ``t`` as a float64 tensor of any shape and
    return a tensor of that shape; callers may pass floats and tensors of any dtype, and get their dtype
    back. Any other method here may be overridden by a closed form.

    >>> class Linear(SDE):
    ...     def alpha(self, t):
    ...         return 1 - t / 2
    ...     def sigma(self, t):
    ...         return t
    >>> round(Linear().diffusion(0.5).item() ** 2, 6)  # g² = d(σ²)/dt − 2 f σ²
    1.333333

    Raises:
        DefinitionError: when the subclass gives neither pair.
    """

    sigma_0: ClassVar[float] = 0.0
    """σ(0) of an SDE that is given by f and g."""

    sampling_end: ClassVar[float] = 1e-3
    """Where sampling in t usually stops (Song et al. 2021, appendix C)."""

    likelihood_end: ClassVar[float] = 1e-5
    """Where likelihood computation usually stops."""

    _given_by_path: ClassVar[bool]
    _given_coefficients: ClassVar[bool]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in _SCHEDULES:
            if name in cls.__dict__:
                setattr(cls, name, _in_float64(cls.__dict__[name]))

        def gives(name: str) -> bool:
            return getattr(cls, name) is not getattr(SDE, name)

        cls._given_by_path = (gives("alpha") or gives("log_alpha")) and gives("sigma")
        cls._given_coefficients = gives("f") and gives("g")
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
        """log α_t = ∫₀ᵗ f."""
        return torch.log(self.alpha(t)) if self._given_by_path else integral(self.f, t)

    @_in_float64
    def sigma(self, t: Time) -> Tensor:
        """σ_t, the standard deviation of x_t given x_0: σ²/α² = σ(0)² + ∫₀ᵗ g²/α²."""
        tau_squared = self.sigma_0**2 + integral(lambda u: (self.g(u) / self.alpha(u)) ** 2, t)
        return self.alpha(t) * torch.sqrt(tau_squared)

    @_in_float64
    def half_log_snr(self, t: Time) -> Tensor:
        """λ_t = log(α_t/σ_t), strictly decreasing in t; +inf where σ_t = 0, −inf where α_t = 0."""
        return self.log_alpha(t) - torch.log(self.sigma(t))

    def inverse_half_log_snr(self, lambda_t: Time) -> Tensor:
        """The time at which λ has the given value.

        Raises:
            ArgumentError: if the value lies outside [λ(1), λ(0)].
        """
        value, dtype, device = _as_float64(lambda_t)
        low, high = (self.half_log_snr(end).item() for end in (1.0, 0.0))
        slack = 8 * torch.finfo(dtype).eps * max(1.0, *(abs(end) for end in (low, high) if math.isfinite(end)), 0.0)
        if value.numel() and not bool(((value >= low - slack) & (value <= high + slack)).all()):
            raise ArgumentError(
                "lambda_t",
                value.detach().flatten().tolist()[:4],
                f"half log-SNR of {self} runs from {low:.6g} at t=1 to {high:.6g} at t=0",
                "Pass values inside this range.",
            )
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
        t = t.clamp(min=1e-10)  # σ may behave like √t, whose derivative at 0 is infinite; that of σ² is not
        rate = derivative(lambda u: (self.sigma(u) / self.alpha(u)) ** 2, t)
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


def check_sde(sde: Any) -> None:
    """Refuse whatever is not an instance of a subclass of :class:`SDE`.

    Raises:
        ArgumentError: naming what was passed.
    """
    if not isinstance(sde, SDE):
        raise ArgumentError("sde", sde, "not an SDE", "Pass an instance of one, for example VPSDE().")
