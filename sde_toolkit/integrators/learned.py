"""Ancestral sampling with a learned variance (Nichol & Dhariwal 2021, "Improved DDPM", eq. 15).

The mean is that of the exponential step. The network has a second output v, and v sets the variance Σ of the noise of
every element, between the posterior's β̃ and the forward process's β:

    log Σ = v log β + (1 − v) log β̃,    β̃ = σ_s² (1 − r²),    β = σ_t² (1 − r²)        so  Σ = κ² (σ_t/σ_s)^(2v)

v is a fraction, 0 to 1. Published networks return 2 v − 1 in [−1, 1]; the score model's ``learned_variance="range"``
converts it. Here r = (α_t σ_s)/(α_s σ_t), and κ² = β̃ at η = 1. The code computes Σ = κ² (σ_t/σ_s)^(2v) at any η.
v = 0 is :class:`Exponential`; a model without a learned variance has v = 0. No noise is added where σ_s = 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sde_toolkit.equation import ReverseEquation
from sde_toolkit.integrators.exponential import Exponential
from sde_toolkit.integrators.integrator import Integrator
from sde_toolkit.integrators.tables import StepRow, Table
from sde_toolkit.noise.streams import Noise

__all__ = ["LearnedVariance"]


@dataclass(frozen=True)
class LearnedVariance(Integrator):
    """The exponential integrator of order 1, whose noise has the variance that the model learned.

    x_s = A x_t + B y + κ (σ_t/σ_s)^v z: one evaluation, one draw of noise per step. The declared stochastic orders are
    those of v = 0; no order is known for a learned variance.
    """

    order: ClassVar[int | None] = 1
    strong_order: ClassVar[float | None] = 1.0
    weak_order: ClassVar[float | None] = 1.0
    evals_per_step: ClassVar[int | None] = 1
    sees_alpha_sigma_only: ClassVar[bool] = True

    def prepare(self, equation: ReverseEquation, grid: Tensor) -> Table:
        """``gain`` is log(σ_t/σ_s), and 0 where σ_s = 0."""
        t, s = grid[:-1], grid[1:]
        sigma_t, sigma_s = equation.sde.sigma(t), equation.sde.sigma(s)
        gain = torch.where(sigma_s > 0, torch.log(sigma_t / sigma_s), 0.0)
        A, B, kappa = Exponential().coefficients(equation, t, s)
        return self.table(equation, grid, inputs=equation.inputs(t), A=A, B=B, kappa=kappa, gain=gain)

    def step(self, equation: ReverseEquation, x: Tensor, row: StepRow, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        """One step; the state is not used."""
        y, v = equation.outputs(x, row.inputs)
        x = (row.A * x).addcmul_(row.B, y)
        if equation.eta == 0:
            return x, None
        scale = row.kappa if v is None else row.kappa * torch.exp(row.gain * v)
        return x.addcmul_(scale, noise()), None
