"""Tilting by a function: weighted particles of p(x_0) exp(w(x_0)), for any log-weight w that can be differentiated.

    ψ_t(x_t) = exp(w(x̂_0))        x̂_0 ↦ x̂_0 + (σ²/α) ∇_{x_t} w(x̂_0)

Wu et al. 2023 (TDS), eq. 5 to 9: a likelihood, a classifier of clean data, a reward, a measurement that is not linear.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from sde_toolkit.errors import ArgumentError
from sde_toolkit.guidance.weight_rules import ParticleProposal, WeightRule
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.models.wrapper import Inside
from sde_toolkit.sampling.arguments import check_space

__all__ = ["Tilt"]


@dataclass(frozen=True, eq=False)
class Tilt(WeightRule):
    """Particles of p(x_0) exp(w(x_0)). One evaluation and one product per step.

    Args:
        log_weight: w, (B, *event) to (B,), in nats. Its gradient is autograd's.
        space: of x_0: the caller's data ("data"), or the model's.

    Raises:
        ArgumentError: for a ``log_weight`` that is no function, or answers in another shape.
    """

    log_weight: Callable[[Tensor], Tensor]
    space: Literal["data", "model"] = "data"

    def __post_init__(self) -> None:
        check_space(self.space)
        if not callable(self.log_weight):
            raise ArgumentError("log_weight", self.log_weight, "not a function", "Pass a function (B, *event) -> (B,).")

    def propose(self, x_t: Tensor, inside: Inside, condition: Any) -> ParticleProposal:
        x_0, products = inside.vjp(x_t, condition)
        with torch.inference_mode(False), torch.enable_grad():
            leaf = x_0.detach().clone().requires_grad_()
            value = self._value(leaf, inside.model)
            if not value.requires_grad:
                problem, remedy = "autograd finds no way through it", "Remove detach(), no_grad() and numpy from it."
                raise ArgumentError("log_weight", self.log_weight, problem, remedy)
            (slope,) = torch.autograd.grad(value.sum(), leaf)
        return ParticleProposal(x_0 + inside.sigma**2 / inside.alpha * products(slope), x_0, value.detach())

    def log_potential(self, x_0: Tensor, model: ScoreModel, condition: Any) -> Tensor:
        """w(x_0)."""
        return self._value(x_0, model)

    def _value(self, x_0: Tensor, model: ScoreModel) -> Tensor:
        value = self.log_weight(model.transform.inverse(x_0) if self.space == "data" else x_0)
        if not isinstance(value, Tensor) or value.shape != x_0.shape[:1]:
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            problem = f"for x_0 of shape {tuple(x_0.shape)} it answered with {found}"
            raise ArgumentError("log_weight", self.log_weight, problem, "Return one log-weight per sample, (B,).")
        return value
