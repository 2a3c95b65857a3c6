"""MMPS: Cov[x_0 | x_t] is that of the model itself.

    x̂_0 + V Aᵀ (A V Aᵀ + Σ_y)⁻¹ e

Moment matching posterior sampling (Rozet et al. 2024, eq. 15 and algorithm 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sde_toolkit.checks import all_hold, branches_on_data, check_count, is_number
from sde_toolkit.errors import ArgumentError, warn_caller
from sde_toolkit.guidance.covariance_solve import solve_covariance
from sde_toolkit.guidance.measurement import Measurement
from sde_toolkit.guidance.posterior_method import PosteriorMethod, conditional_variance, estimate_and_covariance
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.models.wrapper import Inside

__all__ = ["MMPS"]


@dataclass(frozen=True)
class MMPS(PosteriorMethod):
    """x̂_0 + V Aᵀ (A V Aᵀ + Σ_y)⁻¹ e, by one evaluation and one product for each iteration of Arnoldi's method.

    Assumes that x_0 given x_t is Gaussian; exact for every Gaussian prior, every A and Σ_y. σ_y = 0 is allowed.
    Rozet et al. 2024, eq. 15.

    All samples are one batch of systems, preconditioned by ΠGDM's M = r² A Aᵀ + Σ_y where it has a closed form. A
    sample's iterations stop when its residual √(rᵀM⁻¹r) has fallen to ``tolerance`` of its start. It does not change
    any more then, whatever the batch holds. After one iteration it is ΠGDM with a step length that fits V.

    A network's V is not quite symmetric, least of all at high noise, and may have negative eigenvalues. A sample stops
    before the iteration in which that would decide (:mod:`~sde_toolkit.guidance.covariance_solve`). If it is the first
    one, the sample has no guidance in that step, and a warning says so.

    In a compiled step there are always ``max_iterations`` products.

    Args:
        tolerance: of the residual, relative; 0: to round-off.
        max_iterations: products per evaluation, at most.
    """

    tolerance: float = 3e-2
    max_iterations: int = 16

    def __post_init__(self) -> None:
        if not (is_number(self.tolerance) and 0 <= self.tolerance < 1):
            raise ArgumentError("tolerance", self.tolerance, "a relative residual lies in [0, 1)", "Pass 0.03.")
        check_count("max_iterations", self.max_iterations, "Pass the most products per evaluation, 16.")

    def check(self, measurement: Measurement, model: ScoreModel) -> None:
        _ = measurement.solves_directly  # prepares the preconditioner

    def estimate(
        self, x_t: Tensor, inside: Inside, measurement: Measurement, y: Tensor | None, condition: Any
    ) -> Tensor:
        A = measurement.A
        x_0, V = estimate_and_covariance(x_t, inside, condition)

        def covariance(p: Tensor) -> tuple[Tensor, Tensor]:
            moved = V(A.adjoint(p))
            return A(moved) + measurement.apply_covariance(p), moved

        def precondition(r: Tensor) -> Tensor:
            return measurement.solve(r, conditional_variance(inside, None))

        found = solve_covariance(
            covariance,
            measurement.residual(x_0, y),
            precondition if measurement.solves_directly else lambda r: r,
            tolerance=self.tolerance,
            max_iterations=self.max_iterations,
        )
        if branches_on_data() and all_hold(~found.unsolved) is False:
            warn_caller(
                f"MMPS left {int(found.unsolved.sum())} of {len(x_t)} samples without guidance for a step: by the "
                "model's Cov[x_0 | x_t] = (σ²/α) ∂x̂_0/∂x_t the measurement has a negative variance. PiGDM() does not "
                "rely on it."
            )
        return x_0 if found.image is None else x_0 + found.image
