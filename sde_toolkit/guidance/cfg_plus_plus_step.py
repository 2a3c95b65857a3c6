"""CFG++ (Chung et al. 2024): the guided x̂_0, and the noise of the unconditional model.

    x_s = α_s x̂_0^λ + ρ ε̂_u + κ z,        x̂_0^λ = x̂_u + λ (x̂_c − x̂_u),        ε̂_u = (x_t − α_t x̂_u)/σ_t

ρ and κ are those of a noise rule; without noise ρ = σ_s, which is the paper's algorithm. λ lies between 0 and 1. A step
equals the exponential step under classifier-free guidance at the scale γ = λ/(1 − α_t ρ/(α_s σ_t)): the shorter the
step, the larger γ.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from sde_toolkit.equation import ReverseEquation
from sde_toolkit.guidance.class_conditions import check_no_class, condition_without_class, with_and_without
from sde_toolkit.guidance.guided import checked_scale, guided_by, scale_of
from sde_toolkit.guidance.step_operator import OneStep, StepOperator
from sde_toolkit.solvers import Solver

__all__ = ["CFGPlusPlus", "cfg_plus_plus"]


def cfg_plus_plus(scale: float, eta: float = 0.0, no_class: Any = None, stacked: bool = True) -> Solver:
    """The solver of CFG++ at λ = ``scale`` and the η of the η-family, for a class-conditional model.

    ``sample(model, cfg_plus_plus(0.6), condition=labels)``: the model is not wrapped. The other arguments, and a λ for
    each sample, are those of :func:`~sde_toolkit.guidance.classifier_free`.
    """
    return Solver("cfg++" if eta == 0 else f"cfg++[eta={eta:g}]", eta, CFGPlusPlus(scale, no_class, stacked))


@dataclass(frozen=True)
class CFGPlusPlus(StepOperator):
    """See :func:`cfg_plus_plus`. Two evaluations per step.

    Raises:
        ArgumentError: for a scale that is not a number. From ``sample``: if the network has no row for "no class" and
            none is given.
    """

    scale: float = 1.0
    no_class: Any = field(default=None, compare=False, repr=False)
    stacked: bool = True

    evals_per_step: ClassVar[int | None] = 2

    def __post_init__(self) -> None:
        checked_scale(self.scale)

    def check(self, equation: ReverseEquation) -> None:
        """Refuse a model without a row for "no class", where none is given."""
        super().check(equation)
        check_no_class(equation.model, self.no_class)

    def move(self, step: OneStep) -> Tensor:
        told = guided_by(step.condition)
        scale = scale_of(told, self.scale, step.x_t)
        without = condition_without_class(step.inside.model, told, self.no_class)
        given, free = with_and_without(step.inside, step.x_t, told.condition, without, self.stacked)
        return step.exponential(free + scale * (given - free), step.epsilon(free))
