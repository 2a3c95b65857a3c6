"""What a weighted ensemble is weighted for: the base of weight rules. Each rule is a file.

Particles follow the exponential step with the estimate that a rule proposes, and a weight says how much more likely the
law aimed at makes this than the proposal does. The law aimed at is that of a reference path, which the model itself
draws, times a potential: p(y | x_0), for example.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.models.wrapper import Inside

__all__ = ["ParticleProposal", "WeightRule"]


@dataclass(frozen=True, eq=False)
class ParticleProposal:
    """What a rule says at x_t, for B particles.

    Attributes:
        x_0: (B, *event), the x̂_0 with which particles move on.
        reference: (B, *event), the x̂_0 of the reference path.
        log_potential: (B,), log ψ_t(x_t): an estimate of the log-potential at x_0. Any estimate gives right weights; a
            good one gives even weights. None: 0.
        apart, apart_weight: (B, *event), and a number or (B,): a particle gains the log-weight apart_weight ‖apart‖²
            for each unit of (α/σ)² on its way. For a reference path that no model draws exactly. None: 0.
    """

    x_0: Tensor
    reference: Tensor
    log_potential: Tensor | None = None
    apart: Tensor | None = None
    apart_weight: float | Tensor = 0.0


class WeightRule(ABC):
    """Base class: says how particles move, and what they are weighted with."""

    @abstractmethod
    def propose(self, x_t: Tensor, inside: Inside, condition: Any) -> ParticleProposal:
        """The proposal at x_t (B, *event). ``inside`` is the model at t; ``condition`` has B rows."""

    def log_potential(self, x_0: Tensor, model: ScoreModel, condition: Any) -> Tensor | None:
        """The log-potential itself, at data x_0 (B, *event) in model space: (B,). None: 0."""
        return None

    def check(self, model: ScoreModel, shape: tuple[int, ...], condition: Any) -> None:
        """Refuse what does not fit, before any evaluation. ``shape`` is (n, *event); ``condition`` has n rows.

        Raises:
            ArgumentError: naming the argument.
        """
        return
