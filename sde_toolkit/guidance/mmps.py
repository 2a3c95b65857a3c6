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
from sde_toolkit.guidance.conjugate_gradients import conjugate_gradients
from sde_toolkit.guidance.measurement import Measurement
from sde_toolkit.guidance.posterior_method import PosteriorMethod, conditional_variance, estimate_and_covariance
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.models.wrapper import Inside

__all__ = ["MMPS"]


@dataclass(frozen=True)
class MMPS(PosteriorMethod):
    """x̂_0 + V Aᵀ (A V Aᵀ + Σ_y)⁻¹ e, by one evaluation and one product for each iteration of conjugate gradients.

    Assumes that x_0 given x_t is Gaussian; exact for every Gaussian prior, every A and Σ_y. σ_y = 0 is allowed.
    Rozet et al. 2024, eq. 15.

    All samples are one batch of systems. A sample's iterations stop when its residual rᵀ M⁻¹ r has fallen to
    ``tolerance``² of its start, with the preconditioner M = r² A Aᵀ + Σ_y of ΠGDM where it has a closed form (else
    M = 1). A sample that has stopped does not change any more, whatever the batch holds. So one iteration is ΠGDM with
    a step length that fits V. A network's ∂x̂_0/∂x_t is not quite symmetric and may have negative curvature: a sample
    that meets it stops there, with a warning. In a compiled step there are always ``max_iterations`` products.

    Args:
        tolerance: of the residual, relative; 0 for ``max_iterations`` in any case.
        max_iterations: products per evaluation, at most.
    """

    tolerance: float = 1e-2
    max_iterations: int = 16

    def __post_init__(self) -> None:
        if not (is_number(self.tolerance) and 0 <= self.tolerance < 1):
            raise ArgumentError("tolerance", self.tolerance, "a relative residual lies in [0, 1)", "Pass 0.01.")
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

        found = conjugate_gradients(
            covariance,
            measurement.residual(x_0, y),
            tolerance=self.tolerance,
            max_iterations=self.max_iterations,
            precondition=precondition if measurement.solves_directly else None,
            look_every=1,
        )
        if branches_on_data() and all_hold(~found.indefinite) is False:
            warn_caller(
                "MMPS met a direction in which the model's Cov[x_0 | x_t] = (σ²/α) ∂x̂_0/∂x_t is negative, and stopped "
                f"there for {int(found.indefinite.sum())} of {len(x_t)} samples. Networks are like that at high noise; "
                "PiGDM does without this covariance."
            )
        return x_0 if found.image is None else x_0 + found.image
