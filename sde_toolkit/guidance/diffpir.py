"""DiffPIR: x̂_0 is moved to the point that fits y and stays near to it.

    argmin_x ‖y − A x‖²_{Σ_y⁻¹} + λ (α²/σ²) ‖x − x̂_0‖² = x̂_0 + s Aᵀ (s A Aᵀ + Σ_y)⁻¹ e        s = σ²/(λ α²)

Denoising diffusion models for plug-and-play image restoration (Zhu et al. 2023, eq. 12b).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.checks import check_positive
from sde_toolkit.guidance.measurement import Measurement
from sde_toolkit.guidance.posterior_method import PosteriorMethod
from sde_toolkit.models.wrapper import Inside

__all__ = ["DiffPIR"]


@dataclass(frozen=True)
class DiffPIR(PosteriorMethod):
    """argmin_x ‖y − A x‖²_{Σ_y⁻¹} + λ (α²/σ²) ‖x − x̂_0‖², by one evaluation and no product.

    Assumes Cov[x_0 | x_t] = σ²/(λ α²) I: that of a flat prior for λ = 1. σ_y = 0 is allowed, and gives DDNM.
    Zhu et al. 2023, eq. 12b.

    Args:
        weight: λ > 0; the paper uses 1 to 20.
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        check_positive("weight", self.weight, "Pass 1 for a flat prior; the paper goes up to 20.")

    def estimate(
        self, x_t: Tensor, inside: Inside, measurement: Measurement, y: Tensor | None, condition: Any
    ) -> Tensor:
        x_0 = inside(x_t, condition)
        least = torch.finfo(x_t.dtype).tiny ** 0.25  # where α is smaller, y is fitted to round-off
        s = (inside.sigma / inside.alpha.clamp_min(least)) ** 2 / self.weight
        w = measurement.solve(measurement.residual(x_0, y), s)
        return x_0 + s * measurement.A.adjoint(w)
