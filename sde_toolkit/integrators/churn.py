"""EDM's sampler: Heun's method in `NoiseToSignal`, with noise added before each step (churn).

With x̄ = x/α and τ = σ/α, from τ_t to τ_s (Karras et al. 2022, algorithm 2; any SDE through its α and λ):

    τ̂ = τ_t (1 + γ),   γ = min(S_churn/N, √2 − 1) where S_tmin ≤ τ_t ≤ S_tmax, else 0
    x̄ ← x̄ + S_noise √(τ̂² − τ_t²) z                        the forward process from τ_t up to τ̂
    d = ε̂(x̄, τ̂)     x̄′ = x̄ + (τ_s − τ̂) d     x̄ ← x̄ + ½ (τ_s − τ̂) (d + ε̂(x̄′, τ_s))

The equation is the probability flow, η = 0. The sampler adds its own noise, and S_churn says how much. With S_noise = 1
the noise moves p_t exactly to the marginal at τ̂, so churn does not change the order of convergence of the marginals.
N is the number of steps of the grid. The SDE ends at t = 1: τ̂ is limited to its value there, so a step from t = 1 adds
no noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from sde_toolkit.checks import is_number
from sde_toolkit.errors import ArgumentError
from sde_toolkit.integrators.coordinates import NoiseToSignal
from sde_toolkit.integrators.linear_step import Form, PathPoint, RecordedStep, Trace
from sde_toolkit.integrators.runge_kutta import Heun

__all__ = ["ChurnedHeun"]


_USUAL = {"S_tmin": 0.1, "S_tmax": 100.0}  # in units of the data's size: Karras et al. 2022, table 5, at 0.5


@dataclass(frozen=True)
class ChurnedHeun(RecordedStep):
    """EDM's second-order sampler; with ``S_churn=0`` it is Heun's method in (x/α, σ/α) and draws no noise.

    ``S_tmin``, ``S_tmax`` are noise levels τ = σ/α, EDM's σ; None stands for 0.1 and 100 times the model's
    ``sigma_data``: the paper uses 0.05 and 50 for data of size 0.5. EDM's last Euler step to σ = 0 is ``tweedie=True``
    of :func:`~sde_toolkit.sample`. On a grid that ends at σ = 0, the last step is two exponential steps.

    Raises:
        ArgumentError: for a parameter that is negative, or not a number.
    """

    S_churn: float = 0.0
    S_tmin: float | None = 0.0
    S_tmax: float | None = math.inf
    S_noise: float = 1.0

    order: ClassVar[int | None] = 2
    evals_per_step: ClassVar[int | None] = 2
    sees_alpha_sigma_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("S_churn", "S_tmin", "S_tmax", "S_noise"):
            value: Any = getattr(self, name)
            if name in _USUAL and value is None:
                continue
            if not ((is_number(value) or (name == "S_tmax" and value == math.inf)) and value >= 0):
                problem = "must be a number, and not negative"
                raise ArgumentError(name, value, problem, "S_churn=0 is the deterministic sampler.")

    def _level(self, name: str, sigma_data: float) -> float:
        given: float | None = getattr(self, name)
        return _USUAL[name] * sigma_data if given is None else given

    @property
    def begins_at_x(self) -> bool:  # type: ignore[override]
        """True without churn."""
        return self.S_churn == 0

    def draws(self, eta: float) -> tuple[int, ...]:
        return (1, 0, 0) if self.S_churn > 0 else (0, 0, 0)

    def trace(self, trace: Trace, target: PathPoint) -> Form:
        begin = trace.begin
        x = trace.start / begin.alpha
        if self.S_churn > 0:
            tau = torch.exp(-begin.half_log_snr)
            most = torch.exp(-trace.equation.sde.half_log_snr(torch.ones_like(tau)))
            gamma = min(self.S_churn / trace.grid_steps, math.sqrt(2) - 1)
            raised = torch.minimum(tau * (1 + gamma), most)
            low, high = (self._level(name, trace.equation.model.sigma_data) for name in ("S_tmin", "S_tmax"))
            raised = torch.where((tau >= low) & (tau <= high), raised, tau)
            x = x + self.S_noise * torch.sqrt((raised**2 - tau**2).clamp(min=0.0)) * trace.draw()
            begin = PathPoint.at_half_log_snr(trace.equation.sde, -torch.log(raised))
        return Heun(NoiseToSignal()).advance(trace, x, begin, target)
