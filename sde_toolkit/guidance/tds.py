"""Twisted diffusion sampler: weighted particles of the posterior given a measurement.

    ψ_t(x_t) = exp(−½ eᵀ (r² A Aᵀ + Σ_y)⁻¹ e)        e = y − A x̂_0        r² = s² σ²/(s² α² + σ²)

ψ_t is p(y | x_t) for data N(m, s² I), up to a factor that all particles share. Particles move by the estimate of any
posterior method. Wu et al. 2023 (TDS), eq. 5 to 9, has r = 0 and the gradient of log ψ_t, which is :class:`SigmaDPS`;
for inpainting it has s = 1 and :class:`PiGDM`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor

from sde_toolkit.checks import is_number
from sde_toolkit.errors import ArgumentError
from sde_toolkit.guidance.posterior_method import conditional_variance
from sde_toolkit.guidance.posterior_model import Posterior
from sde_toolkit.guidance.weight_rules import ParticleProposal, WeightRule
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.models.wrapper import Inside, Products

__all__ = ["TDS"]


@dataclass(frozen=True, eq=False)
class TDS(WeightRule):
    """Particles of p(x_0 | y) ∝ p(x_0) p(y | x_0), for any prior. Evaluations and products are those of the method.

    Args:
        posterior: the measurement, with noise, and the method by which particles move: ``posterior(model, A, y, ...)``.
        prior_std: s ≥ 0, in model space. Default: the model's ``sigma_data``. It changes how even the weights are, and
            not what they tend to.

    Raises:
        ArgumentError: for a measurement without noise, and a negative ``prior_std``.
    """

    posterior: Posterior
    prior_std: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.posterior, Posterior):
            problem, remedy = "not made by posterior()", "Pass posterior(model, A, y, noise_std)."
            raise ArgumentError("posterior", self.posterior, problem, remedy)
        self.posterior.measurement.check_noise("TDS")
        if self.prior_std is not None and not (is_number(self.prior_std) and self.prior_std >= 0):
            remedy = "Leave it out for the model's sigma_data."
            raise ArgumentError("prior_std", self.prior_std, "a standard deviation is at least 0", remedy)

    def propose(self, x_t: Tensor, inside: Inside, condition: Any) -> ParticleProposal:
        y, condition = self.posterior.own_measurement(x_t, condition)
        measurement = self.posterior.measurement
        remembering = _Remembering(**{f.name: getattr(inside, f.name) for f in fields(inside) if f.init})
        x_0 = self.posterior.method.estimate(x_t, remembering, measurement, y, condition)
        reference = remembering.estimate
        if reference is None:
            reference = inside(x_t, condition)
        e = measurement.residual(reference, y)
        solved = measurement.solve(e, conditional_variance(inside, self.prior_std))
        return ParticleProposal(x_0, reference, -0.5 * (e * solved).flatten(1).sum(1))

    def log_potential(self, x_0: Tensor, model: ScoreModel, condition: Any) -> Tensor:
        """log p(y | x_0), in nats, of the measurement in model space."""
        return self.posterior.measurement.log_likelihood(x_0, self.posterior.own_measurement(x_0, condition)[0])

    def check(self, model: ScoreModel, shape: tuple[int, ...], condition: Any) -> None:
        """Refuse events that the operator does not take."""
        event = self.posterior.measurement.A.event_shape
        if tuple(shape[1:]) != event:
            problem = f"the operator of the measurement takes events of shape {event}"
            raise ArgumentError("shape", shape, problem, f"Pass {(shape[0], *event)}.")


@dataclass(eq=False)
class _Remembering(Inside):
    """Remembers the x̂_0 of the first question at x_t itself."""

    estimate: Tensor | None = field(default=None, init=False)

    def __call__(self, x_t: Tensor, condition: Any = None) -> Tensor:
        return self._noted(super().__call__(x_t, condition))

    def vjp(self, x_t: Tensor, condition: Any = None) -> tuple[Tensor, Products]:
        x_0, products = super().vjp(x_t, condition)
        return self._noted(x_0), products

    def _noted(self, x_0: Tensor) -> Tensor:
        if self.estimate is None and x_0.shape[0] == self.batch:
            self.estimate = x_0
        return x_0
