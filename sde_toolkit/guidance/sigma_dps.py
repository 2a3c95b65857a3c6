"""σ-DPS: the measurement is taken to depend on x̂_0 as it does on x_0.

    x̂_0 + V Aᵀ Σ_y⁻¹ e

Diffusion posterior sampling (Chung et al. 2023, eq. 15, which has 1/σ_y² where the paper's algorithm has a step size).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sde_toolkit.guidance.measurement import Measurement
from sde_toolkit.guidance.posterior_method import PosteriorMethod, estimate_and_covariance
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.models.wrapper import Inside

__all__ = ["SigmaDPS"]


@dataclass(frozen=True)
class SigmaDPS(PosteriorMethod):
    """x̂_0 + V Aᵀ Σ_y⁻¹ e, by one evaluation and one product.

    Assumes Cov[x_0 | x_t] = 0, so that p(y | x_t) = N(y; A x̂_0, Σ_y). Samples are too narrow, and where Σ_y is small
    the equation is stiff. σ_y = 0 is refused. Chung et al. 2023, eq. 11, 15.
    """

    def check(self, measurement: Measurement, model: ScoreModel) -> None:
        measurement.check_noise("SigmaDPS")

    def estimate(
        self, x_t: Tensor, inside: Inside, measurement: Measurement, y: Tensor | None, condition: Any
    ) -> Tensor:
        x_0, V = estimate_and_covariance(x_t, inside, condition)
        w = measurement.apply_precision(measurement.residual(x_0, y))
        return x_0 + V(measurement.A.adjoint(w))
