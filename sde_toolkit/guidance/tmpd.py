"""TMPD: Cov[A x_0 | x_t] is taken to be diagonal, with its own row sums.

    x̂_0 + V Aᵀ diag((A V Aᵀ + Σ_y) 1)⁻¹ e

Tweedie moment projected diffusions (Boys et al. 2023, eq. 9 and the row sums of section 3.3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.guidance.measurement import Measurement
from sde_toolkit.guidance.posterior_method import PosteriorMethod, estimate_and_covariance
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.models.wrapper import Inside

__all__ = ["TMPD"]


@dataclass(frozen=True)
class TMPD(PosteriorMethod):
    """x̂_0 + V Aᵀ diag((A V Aᵀ + Σ_y) 1)⁻¹ e, by one evaluation and two products.

    Assumes that A V Aᵀ is diagonal; exact for a Gaussian prior where it is. Row sums of A V Aᵀ below 0, which a
    covariance may have, count as 0. σ_y = 0 is refused. Boys et al. 2023, section 3.
    """

    def check(self, measurement: Measurement, model: ScoreModel) -> None:
        measurement.check_noise("TMPD")

    def estimate(
        self, x_t: Tensor, inside: Inside, measurement: Measurement, y: Tensor | None, condition: Any
    ) -> Tensor:
        A = measurement.A
        x_0, V = estimate_and_covariance(x_t, inside, condition)
        e = measurement.residual(x_0, y)
        ones = torch.ones_like(e)
        row_sums = A(V(A.adjoint(ones))).clamp_min(0) + measurement.apply_covariance(ones)
        return x_0 + V(A.adjoint(e / row_sums))
