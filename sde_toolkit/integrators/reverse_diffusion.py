"""Reverse diffusion: the forward process discretised over one step, and that discretisation reversed.

The forward step from s to t is x_t = a x_s + G w with a = α_t/α_s and G² = σ_t² − a² σ_s², exactly. The reversal
treats a − 1 and G² as drift and squared diffusion of one Euler step:

    x_s = (2 − a) x_t + ½(1 + η²) G² ∇log p_t + η G z        (Song et al. 2021, eq. 46; appendix E; η = 1)

η = 0 is their probability flow variant. In terms of a and G the step is finite at any length. score_sde's VP ancestral
predictor divides by √(1 − β) instead, and is not finite for long steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sde_toolkit.equation import ReverseEquation
from sde_toolkit.integrators.exponential import forward_variance
from sde_toolkit.integrators.integrator import AffineStep

__all__ = ["ReverseDiffusion"]


@dataclass(frozen=True)
class ReverseDiffusion(AffineStep):
    """The reverse diffusion predictor of score_sde, for any SDE and any η. Grids may end at σ = 0."""

    order: ClassVar[int | None] = 1
    strong_order: ClassVar[float | None] = 1.0
    weak_order: ClassVar[float | None] = 1.0
    sees_alpha_sigma_only: ClassVar[bool] = True

    def coefficients(self, equation: ReverseEquation, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        sde, eta = equation.sde, equation.eta
        a, G_squared = sde.alpha(t) / sde.alpha(s), forward_variance(sde, t, s)
        m, n = equation.view("epsilon", t)  # score = −ε̂/σ, at α = 0 too
        pull = -0.5 * (1 + eta**2) * G_squared / sde.sigma(t)
        return 2 - a + pull * m, pull * n, eta * torch.sqrt(G_squared.clamp(min=0.0))  # negative upwards
