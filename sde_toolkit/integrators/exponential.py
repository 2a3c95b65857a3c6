"""The exponential step: hold the denoised estimate x̂_0 constant from t to s, and integrate the rest exactly.

    x_s = α_s x̂_0 + ρ ε̂ + κ z,        ε̂ = (x_t − α_t x̂_0)/σ_t,        ρ = √(σ_s² − κ²)

With r = (α_t σ_s)/(α_s σ_t) = exp(λ_t − λ_s) the noise κ is one of

    the η-family     κ² = σ_s² (1 − r^(2η²))      ρ = σ_s r^(η²)        the exact solution for frozen x̂_0
    DDIM's η         κ² = η² σ_s² (1 − r²)                              Song et al. 2021a, eq. 16

η = 1 is the posterior q(x_s | x_t, x̂_0) of DDPM (Ho et al. 2020, eq. 7) for every SDE; η = 0 is DDIM. The two
rules agree at η = 0 and η = 1 only. Everything stays finite at σ_s = 0: there x_s = x̂_0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sde_toolkit.equation import ReverseEquation
from sde_toolkit.errors import ArgumentError
from sde_toolkit.integrators.integrator import AffineStep
from sde_toolkit.sde import SDE

__all__ = ["Exponential", "ddim_noise", "eta_family", "forward_variance"]

NoiseRule = Callable[[float, Tensor], tuple[Tensor, Tensor]]
"""(η, λ_t − λ_s) to (ρ/σ_s, κ/σ_s)."""

VarianceRule = Callable[[SDE, Tensor, Tensor], Tensor]
"""(sde, t, s) to the variance of the noise that a step from t to s adds."""


def eta_family(eta: float, delta_lambda: Tensor) -> tuple[Tensor, Tensor]:
    """ρ/σ_s = r^(η²) and κ/σ_s = √(1 − r^(2η²)): the equation's own noise, integrated exactly."""
    if eta == 0:
        return torch.ones_like(delta_lambda), torch.zeros_like(delta_lambda)
    exponent = eta**2 * delta_lambda
    return torch.exp(exponent), torch.sqrt(-torch.expm1(2 * exponent))


def ddim_noise(eta: float, delta_lambda: Tensor) -> tuple[Tensor, Tensor]:
    """κ/σ_s = η √(1 − r²) and ρ/σ_s = √(r² + (1 − η²)(1 − r²)), the η of the DDIM paper.

    Raises:
        ArgumentError: where η² (1 − r²) > 1: the variance of the added noise would be larger than σ_s².
    """
    if eta == 0:
        return torch.ones_like(delta_lambda), torch.zeros_like(delta_lambda)
    r_squared, rest = torch.exp(2 * delta_lambda), -torch.expm1(2 * delta_lambda)
    kappa_squared = eta**2 * rest
    if bool((kappa_squared > 1).any()):
        raise ArgumentError(
            "eta",
            eta,
            f"η² (1 − r²) reaches {kappa_squared.max().item():.4g} > 1: the step would add more noise than σ_s",
            "Use eta <= 1, a finer grid, or Exponential() whose η-family has no such limit.",
        )
    return torch.sqrt((r_squared + (1 - eta**2) * rest).clamp(min=0.0)), torch.sqrt(kappa_squared)


def forward_variance(sde: SDE, t: Tensor, s: Tensor) -> Tensor:
    """σ_t² − (α_t/α_s)² σ_s², the variance of x_t given x_s: DDPM's β, 1 − ᾱ_t/ᾱ_s on a sub-grid."""
    return -(sde.sigma(t) ** 2) * torch.expm1(2 * (sde.half_log_snr(t) - sde.half_log_snr(s)))


@dataclass(frozen=True)
class Exponential(AffineStep):
    """The exponential integrator of order 1.

    ``noise``: the rule for ρ and κ. ``variance``: replaces the variance of the added noise and keeps the
    mean, as DDPM's "large" variance does. No noise is added where σ_s = 0. The declared stochastic orders hold
    for the rules of this file, and are not checked for a ``variance`` of your own.

    Raises:
        ArgumentError: if ``variance`` is not a function, or returns a negative number.
    """

    noise: NoiseRule = eta_family
    variance: VarianceRule | None = None

    order: ClassVar[int | None] = 1
    strong_order: ClassVar[float | None] = 1.0
    weak_order: ClassVar[float | None] = 1.0
    sees_alpha_sigma_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.variance is not None and not callable(self.variance):
            problem = "not a function (sde, t, s) -> Tensor"
            raise ArgumentError("variance", self.variance, problem, "Pass forward_variance, or one of your own.")

    def __repr__(self) -> str:
        rules = {"noise": self.noise, "variance": self.variance}
        shown = (f"{k}={getattr(v, '__name__', v)}" for k, v in rules.items() if v not in (None, eta_family))
        return f"Exponential({', '.join(shown)})"

    def coefficients(self, equation: ReverseEquation, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        sde = equation.sde
        alpha_s, sigma_s = sde.alpha(s), sde.sigma(s)
        rho, kappa = self.noise(equation.eta, sde.half_log_snr(t) - sde.half_log_snr(s))
        rho, kappa = sigma_s * rho, sigma_s * kappa
        if self.variance is not None:
            variance = self.variance(sde, t, s)
            if bool((variance < 0).any()):
                raise ArgumentError("variance", variance.tolist(), "it is negative", "A variance is at least 0.")
            kappa = torch.where(sigma_s > 0, torch.sqrt(variance), 0.0)
        x_0, epsilon = equation.views(t, "x0", "epsilon")
        A, B = (alpha_s * a + rho * b for a, b in zip(x_0, epsilon, strict=True))
        return A, B, kappa
