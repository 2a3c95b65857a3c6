"""Twisted diffusion sampler: a measurement as potential, particles drawn towards it by its gradient.

    ψ_t(x_t) = N(y; A x̂_0, r_t² A Aᵀ + Σ_y)        x̂_0 ↦ x̂_0 + (σ²/α) ∇ log ψ_t        r_t² = σ² s²/(α² s² + σ²)

Wu et al. 2023 (TDS), eq. 5 to 9, with r_t = 0; s = 1 is ΠGDM's r_t (Song et al. 2023), and their choice for inpainting.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sde_toolkit.checks import is_number
from sde_toolkit.errors import ArgumentError
from sde_toolkit.guidance.measurement import Measurement
from sde_toolkit.guidance.weight_rules import Proposal, WeightRule
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.models.wrapper import Inside

__all__ = ["TDS"]


@dataclass(frozen=True, eq=False)
class TDS(WeightRule):
    """Particles of p(x_0 | y) ∝ p(x_0) p(y | x_0). One evaluation and one product per step.

    Args:
        measurement: with noise. If it has no y of its own, the condition is each ensemble's y.
        prior_std: s, the standard deviation of the data that r_t assumes. None: the model's ``sigma_data``; 0: x̂_0 is
            taken for x_0, as published.

    Raises:
        ArgumentError: for a measurement without noise; for a ``prior_std`` that is negative.
    """

    measurement: Measurement
    prior_std: float | None = None

    def __post_init__(self) -> None:
        self.measurement.check_noise("TDS")
        if self.prior_std is not None and not (is_number(self.prior_std) and self.prior_std >= 0):
            raise ArgumentError("prior_std", self.prior_std, "must be at least 0", "Leave it out: then it is sigma_data.")

    def propose(self, x_t: Tensor, inside: Inside, condition: Any) -> Proposal:
        y, condition = self._y_of(condition)
        x_0, products = inside.vjp(x_t, condition)
        s = inside.model.sigma_data if self.prior_std is None else self.prior_std
        s_squared, sigma_squared = s**2, inside.sigma**2
        r_squared = sigma_squared * s_squared / (inside.alpha**2 * s_squared + sigma_squared)
        e = self.measurement.residual(x_0, y)
        solved = self.measurement.solve(e, r_squared)
        score = products(self.measurement.A.adjoint(solved))
        log_potential = -0.5 * (e * solved).flatten(1).sum(1)
        return Proposal(x_0 + sigma_squared / inside.alpha * score, x_0, log_potential)

    def log_potential(self, x_0: Tensor, condition: Any) -> Tensor:
        """log p(y | x_0), in nats."""
        return self.measurement.log_likelihood(x_0, self._y_of(condition)[0])

    def check(self, model: ScoreModel, shape: tuple[int, ...], condition: Any) -> None:
        """Refuse an operator for other events, and y of another shape."""
        if tuple(shape[1:]) != self.measurement.A.event_shape:
            problem = f"the operator of the measurement takes events of shape {self.measurement.A.event_shape}"
            raise ArgumentError("shape", shape, problem, "Pass (n, *event) with this event.")

    def _y_of(self, condition: Any) -> tuple[Tensor | None, Any]:
        """y, and the condition that the model gets."""
        return (None, condition) if self.measurement.y is not None else (condition, None)
