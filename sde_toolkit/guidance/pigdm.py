"""ΠGDM: Cov[x_0 | x_t] is taken to be that of data N(m, s² I).

    x̂_0 + V Aᵀ (r² A Aᵀ + Σ_y)⁻¹ e        r² = s² σ²/(s² α² + σ²)

Pseudoinverse-guided diffusion models (Song et al. 2023, eq. 7 and 8).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sde_toolkit.checks import check_positive
from sde_toolkit.guidance.measurement import Measurement
from sde_toolkit.guidance.posterior_method import PosteriorMethod, conditional_variance, estimate_and_covariance
from sde_toolkit.models.wrapper import Inside

__all__ = ["PiGDM"]


@dataclass(frozen=True)
class PiGDM(PosteriorMethod):
    """x̂_0 + V Aᵀ (r² A Aᵀ + Σ_y)⁻¹ e, by one evaluation and one product.

    Assumes data of variance s² in every direction; exact if they are N(m, s² I), and only then. The paper has s = 1,
    r² = σ²/(α² + σ²). σ_y = 0 is allowed: the inverse is then the pseudo-inverse. Song et al. 2023, eq. 7, 8.

    Args:
        prior_std: s > 0, in model space. Default: the model's ``sigma_data``, so that another unit of the data changes
            nothing. Pass 1 for the paper's method whatever the model.
    """

    prior_std: float | None = None

    def __post_init__(self) -> None:
        if self.prior_std is not None:
            check_positive("prior_std", self.prior_std, "Leave it out for the model's sigma_data.")

    def estimate(
        self, x_t: Tensor, inside: Inside, measurement: Measurement, y: Tensor | None, condition: Any
    ) -> Tensor:
        x_0, V = estimate_and_covariance(x_t, inside, condition)
        w = measurement.solve(measurement.residual(x_0, y), conditional_variance(inside, self.prior_std))
        return x_0 + V(measurement.A.adjoint(w))
