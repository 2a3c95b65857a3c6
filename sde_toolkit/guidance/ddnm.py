"""DDNM: x̂_0 is moved to the nearest point that gives y.

    x̂_0 − A⁺ (A x̂_0 − y)

Denoising diffusion null-space models (Wang et al. 2023, eq. 13).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sde_toolkit.guidance.measurement import Measurement
from sde_toolkit.guidance.posterior_method import PosteriorMethod
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.models.wrapper import Inside

__all__ = ["DDNM"]


@dataclass(frozen=True)
class DDNM(PosteriorMethod):
    """x̂_0 − A⁺ (A x̂_0 − y), by one evaluation and no product.

    Assumes that y has no noise, and ignores the noise that it has. What A does not see is sampled as if it did not
    depend on what it sees. Wang et al. 2023, eq. 13.
    """

    def check(self, measurement: Measurement, model: ScoreModel) -> None:
        if measurement.A.row_gram is None:
            measurement.A.svd()  # refuses what is too large

    def estimate(
        self, x_t: Tensor, inside: Inside, measurement: Measurement, y: Tensor | None, condition: Any
    ) -> Tensor:
        x_0 = inside(x_t, condition)
        return x_0 + measurement.A.pseudo_inverse(measurement.residual(x_0, y))
