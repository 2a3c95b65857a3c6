"""Denoising diffusion restoration (Kawar et al. 2022, eq. 4 to 8): each singular direction of A by its own rule.

In x̄ = x/α, τ = σ/α, in the coordinates of A = U diag(s) Vᵀ with ȳ = Uᵀ y/s and its noise ν = σ_y/s, a step to τ draws

    measured, ν ≤ τ      x̄ ~ N(x̂_0 + η_b (ȳ − x̂_0), τ² − η_b² ν²)
    measured, ν > τ      x̄ ~ N(x̂_0 + √(1−η²) τ (ȳ − x̂_0)/ν, η² τ²)
    not measured         x̄ ~ N(x̂_0 + √(1−η²) τ ε̂, η² τ²)

Each has the variance τ² around x_0 if x̂_0 = x_0 and y = A x_0 + noise. η is the equation's, 0.85 in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from sde_toolkit.checks import is_number
from sde_toolkit.equation import ReverseEquation
from sde_toolkit.errors import ArgumentError
from sde_toolkit.guidance.measured_step import MeasuredStep, measurement_for
from sde_toolkit.guidance.step_operator import OneStep
from sde_toolkit.guidance.steps_to_data import uniform_to_data
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.solvers import Solver

__all__ = ["DDRM", "ddrm"]


def ddrm(
    model: ScoreModel,
    A: Any,
    y: Tensor | None = None,
    noise_std: float = 0.0,
    *,
    eta: float = 0.85,
    eta_b: float = 1.0,
    space: Literal["data", "model"] = "data",
) -> Solver:
    """The solver of :class:`DDRM` for ``model``: ``sample(model, ddrm(model, A, y, 0.05), steps=20)``.

    A, y, noise_std and space are those of :func:`~sde_toolkit.guidance.posterior`.
    """
    measurement, into = measurement_for(model, A, y, noise_std, space)
    return Solver(f"ddrm[eta={eta:g}]", eta, DDRM(measurement, into, eta_b), uniform_to_data)


@dataclass(frozen=True, eq=False)
class DDRM(MeasuredStep):
    """One evaluation per step. σ_y = 0 is allowed; the noise must be one number.

    Args:
        measurement, into_model_space: see :class:`MeasuredStep`. A needs a singular value decomposition
            (:meth:`~sde_toolkit.guidance.LinearOperator.svd`).
        eta_b: η_b, in [0, 1].

    Raises:
        ArgumentError: for another noise, and another η_b. From ``sample``: for an η outside of (0, 1].
    """

    eta_b: float = 1.0

    strong_order: ClassVar[float | None] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (is_number(self.eta_b) and 0 <= self.eta_b <= 1):
            raise ArgumentError("eta_b", self.eta_b, "it lies in [0, 1]", "The paper has 1.")
        if self.measurement.noise.variance is None:
            problem = "DDRM knows noise of one size for all elements"
            raise ArgumentError("noise_std", self.measurement.noise_std, problem, "Pass one number, or use MMPS.")
        self.measurement.A.svd()  # refuses an operator that is too large for one

    def check(self, equation: ReverseEquation) -> None:
        """Refuse an η that the formulas do not allow."""
        super().check(equation)
        if not 0 < equation.eta <= 1:
            raise ArgumentError("eta", equation.eta, "DDRM's η lies in (0, 1]", "The paper has 0.85.")

    def columns(self, equation: ReverseEquation, t: Tensor, s: Tensor) -> dict[str, Any]:
        return {"tau": equation.sde.sigma(s) / equation.sde.alpha(s)}

    def move(self, step: OneStep) -> Tensor:
        y, condition = self.y_of(step)
        x_0 = step.inside(step.x_t, condition)
        svd, tau = self.measurement.A.svd(), step.row.tau
        eta, z = step.eta, step.noise()
        kept = (1 - eta**2) ** 0.5
        free = x_0 + kept * tau * step.epsilon(x_0) + eta * tau * z
        s, x, w = svd.s_beside(x_0), svd.to_domain(x_0), svd.to_domain(z)
        error = svd.to_range(y.expand(x_0.shape[0], *self.measurement.A.measured_shape)) / s - x
        nu = (self.measurement.noise.variance or 0.0) ** 0.5 / s
        noisy = nu > tau
        mean = torch.where(noisy, kept * tau / torch.where(noisy, nu, 1.0), self.eta_b) * error
        variance = torch.where(noisy, (eta * tau) ** 2, tau**2 - (self.eta_b * nu) ** 2)
        known = x + mean + variance.clamp(min=0).sqrt() * w
        return step.next.alpha * (free + svd.from_domain(known - svd.to_domain(free)))
