"""Feynman-Kac correction of classifier-free guidance: weighted particles of p(x_0 | c)^γ p(x_0)^(1 − γ).

Particles follow the guided estimate x̄_0 = x̂_u + γ (x̂_c − x̂_u). Its score is that of π_t ∝ p_t(· | c)^γ p_t^(1 − γ), but
its flow does not carry π_t to π_s: the Fokker-Planck equations of p_t(· | c) and of p_t add up to that of π_t, for any
η, only with the weights

    d log w = ½ γ (γ − 1) g² ‖∇log p_t(x | c) − ∇log p_t(x)‖² dt = ½ γ (γ − 1) ‖x̂_c − x̂_u‖² d(α²/σ²)

At η = 1 the sum over steps is exact for the product of the two samplers: with one normal density of a step for each,
N_c^γ N_u^(1 − γ) is N(x̄_0) times exp(½ γ (γ − 1) ‖x̂_c − x̂_u‖² Δ(α²/σ²)).

Skreta et al. 2025 ("Feynman-Kac correctors in diffusion", proposition 3.1), where the derivation is for η = 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sde_toolkit.errors import ArgumentError
from sde_toolkit.guidance.class_conditions import condition_without_class, with_and_without
from sde_toolkit.guidance.class_guidance import ClassifierFree
from sde_toolkit.guidance.guided import guided_by, scale_of
from sde_toolkit.guidance.weight_rules import ParticleProposal, WeightRule
from sde_toolkit.models.wrapper import Inside

__all__ = ["TiltedClass"]


@dataclass(frozen=True, eq=False)
class TiltedClass(WeightRule):
    """Particles of p(x_0 | c)^γ p(x_0)^(1 − γ), normalised. Two evaluations per step.

    The evidence is ∫ p(x | c)^γ p(x)^(1 − γ) dx, in model space.

    Args:
        guided: ``classifier_free(model, scale)``; without an interval, since the law of one is not known.

    Raises:
        ArgumentError: for anything else.
    """

    guided: ClassifierFree

    def __post_init__(self) -> None:
        if not isinstance(self.guided, ClassifierFree):
            problem, remedy = "not made by classifier_free()", "Pass classifier_free(model, scale)."
            raise ArgumentError("guided", self.guided, problem, remedy)
        if self.guided.interval is not None:
            problem = "γ would change at its ends, and the ratio of the two densities there is not known"
            raise ArgumentError("interval", self.guided.interval, problem, "Leave it out.")

    def propose(self, x_t: Tensor, inside: Inside, condition: Any) -> ParticleProposal:
        told = guided_by(condition)
        scale = scale_of(told, self.guided.scale, x_t)
        without = condition_without_class(self.guided.network, told, self.guided.no_class)
        given, free = with_and_without(inside, x_t, told.condition, without, self.guided.stacked)
        apart = given - free
        x_0 = free + scale * apart
        each = scale.flatten() if isinstance(scale, Tensor) and scale.ndim > 0 else scale
        return ParticleProposal(x_0, x_0, apart=apart, apart_weight=0.5 * each * (each - 1))
