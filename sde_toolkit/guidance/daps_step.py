"""Decoupled annealing (Zhang et al. 2025, algorithm 1): draw x_0 given x_t and y, then add the noise of the next level.

    x̂_0 from x_t by the flow        x_0 ~ N(x̂_0, r² I) p(y | x_0), normalised        x_s = α_s x_0 + σ_s z

Exact where N(x̂_0, r² I) is the law of x_0 given x_t. The paper has r = σ/α; here r² is that of data N(m, s² I),
s² σ²/(s² α² + σ²), which tends to it as s → ∞. x_0 is drawn exactly, or by Langevin steps as in the paper:

    x_0 ← x_0 + h (Aᵀ Σ_y⁻¹ (y − A x_0) − (x_0 − x̂_0)/r²) + √(2h) z        h = step_size/(1/r² + ‖Aᵀ Σ_y⁻¹ A‖)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from sde_toolkit.checks import check_count, check_positive
from sde_toolkit.equation import ReverseEquation
from sde_toolkit.errors import ArgumentError
from sde_toolkit.guidance.inner_levels import inner_level, inner_times, inside_at_level
from sde_toolkit.guidance.measured_step import MeasuredStep, measurement_for
from sde_toolkit.guidance.measurement import Measurement
from sde_toolkit.guidance.posterior_method import conditional_variance
from sde_toolkit.guidance.step_operator import OneStep
from sde_toolkit.guidance.steps_to_data import uniform_to_data
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.noise.streams import Purpose, per_sample_noise
from sde_toolkit.solvers import Solver

__all__ = ["DAPS", "daps"]


def daps(
    model: ScoreModel,
    A: Any,
    y: Tensor | None = None,
    noise_std: float | Tensor | None = None,
    *,
    space: Literal["data", "model"] = "data",
    **settings: Any,
) -> Solver:
    """The solver of :class:`DAPS` for ``model``: ``sample(model, daps(model, A, y, 0.05), steps=50)``.

    A, y, noise_std and space are those of :func:`~sde_toolkit.guidance.posterior`; ``settings`` those of DAPS.
    """
    measurement, into = measurement_for(model, A, y, noise_std, space)
    return Solver("daps", 1.0, DAPS(measurement, into, **settings), uniform_to_data)


@dataclass(frozen=True, eq=False)
class DAPS(MeasuredStep):
    """``flow_steps`` evaluations per step, no products.

    Args:
        measurement, into_model_space: see :class:`MeasuredStep`; with noise.
        prior_std: s > 0, in model space. Default: the model's ``sigma_data``; ``math.inf``: r = σ/α, as in the paper.
        flow_steps: evaluations for x̂_0, steps of the flow equal in λ down to σ = 0, or almost; 1: x̂_0 is the
            model's own, E[x_0 | x_t]; the paper has 5.
        langevin_steps: None: x_0 is drawn exactly.
        step_size: of Langevin steps, below 2.

    Raises:
        ArgumentError: for a measurement without noise, and settings that are none. From ``sample``: for η = 0.
    """

    prior_std: float | None = None
    flow_steps: int = 1
    langevin_steps: int | None = None
    step_size: float = 0.1
    _curvature: float = field(init=False, repr=False, default=0.0)

    strong_order: ClassVar[float | None] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.measurement.check_noise("DAPS")
        if self.prior_std is not None and self.prior_std != math.inf:
            check_positive("prior_std", self.prior_std, "Leave it out for the model's sigma_data.")
        check_count("flow_steps", self.flow_steps, "1 is the model's own x̂_0; the paper has 5.")
        if self.langevin_steps is not None:
            check_count("langevin_steps", self.langevin_steps, "None draws exactly; the paper has 100.")
        if check_positive("step_size", self.step_size, "0.1 is small.") >= 2:
            raise ArgumentError("step_size", self.step_size, "Langevin steps of 2 or more diverge", "0.1 is small.")
        if self.langevin_steps is not None:
            object.__setattr__(self, "_curvature", largest_curvature(self.measurement))

    @property
    def evals_per_step(self) -> int | None:  # type: ignore[override]
        """Those of the flow."""
        return self.flow_steps

    def check(self, equation: ReverseEquation) -> None:
        """Refuse the flow."""
        super().check(equation)
        if equation.eta == 0:
            raise ArgumentError("eta", 0.0, "DAPS draws x_0 and noise in every step", "Use eta=1; it has no effect.")

    def columns(self, equation: ReverseEquation, t: Tensor, s: Tensor) -> dict[str, Any]:
        end = torch.full_like(t, equation.sde.sampling_end).minimum(0.5 * t)
        times = inner_times(equation.sde, t, end, self.flow_steps)[:-1]
        return {"levels": tuple(inner_level(equation, u) for u in times)}

    def move(self, step: OneStep) -> Tensor:
        y, condition = self.y_of(step)
        x, x_0 = step.x_t, step.x_t
        for k, level in enumerate(step.row.levels):
            x_0 = inside_at_level(step.inside, x, level)(x, condition)
            if k + 1 < self.flow_steps:
                *_, alpha, sigma = level
                *_, next_alpha, next_sigma = step.row.levels[k + 1]
                x = next_alpha * x_0 + next_sigma * ((x - alpha * x_0) / sigma)
        r_squared = self._variance(step)
        drawn = (
            self._exactly(step, x_0, y, r_squared)
            if self.langevin_steps is None
            else self._by_langevin(step, x_0, y, r_squared, self.langevin_steps)
        )
        return step.next.alpha * drawn + step.next.sigma * step.noise()

    def _variance(self, step: OneStep) -> Tensor:
        if self.prior_std == math.inf:
            return (step.now.sigma / step.now.alpha) ** 2
        return conditional_variance(step.inside, self.prior_std)

    def _exactly(self, step: OneStep, x_0: Tensor, y: Tensor, r_squared: Tensor) -> Tensor:
        """A draw from N(x̂_0, r² I) and a y of it, and then what the difference to the true y says of it."""
        A = self.measurement.A
        x = x_0 + r_squared.sqrt() * step.noise()
        white = _white(step, math.prod(A.measured_shape)).reshape(x.shape[0], *A.measured_shape)
        error = self.measurement.residual(x, y) - self.measurement.noise.colour(white)
        return x + r_squared * A.adjoint(self.measurement.solve(error, r_squared))

    def _by_langevin(self, step: OneStep, x_0: Tensor, y: Tensor, r_squared: Tensor, steps: int) -> Tensor:
        A, x = self.measurement.A, x_0
        h = self.step_size / (1 / r_squared + self._curvature)
        for _ in range(steps):
            slope = A.adjoint(self.measurement.apply_precision(self.measurement.residual(x, y))) - (x - x_0) / r_squared
            x = x + h * slope + (2 * h).sqrt() * step.noise()
        return x


def _white(step: OneStep, elements: int) -> Tensor:
    """So many standard normal numbers for each sample, (B, elements)."""
    each = math.prod(step.x_t.shape[1:])
    draws = [step.noise().flatten(1) for _ in range(-(-elements // max(1, each)))]
    return torch.cat(draws, dim=1)[:, :elements]


def largest_curvature(measurement: Measurement) -> float:
    """The largest eigenvalue of Aᵀ Σ_y⁻¹ A, a little above it: by power iteration."""
    A = measurement.A
    x = per_sample_noise(0, 0, (1, *A.event_shape), dtype=A.dtype, device=A.device, purpose=Purpose.PROBES)()
    found = 0.0
    for _ in range(30):
        x = x / x.norm()
        x = A.adjoint(measurement.apply_precision(A(x)))
        found = x.norm().item()
        if found == 0:
            break
    return 1.1 * found
