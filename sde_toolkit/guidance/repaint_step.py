"""RePaint (Lugmayr et al. 2022, algorithm 1): the known part is put in at its noise level, and steps are repeated.

    known      x_s = α_s x_known + σ_s z
    unknown    x_s of the exponential step
    back       x_t = (α_t/α_s) x_s + √(σ_t² − (α_t/α_s)² σ_s²) z′

Each step of the grid is divided into ``jump`` steps equal in λ; they are taken ``repeats`` times, with the noise back
to t between. The more repeats, the better the unknown part fits the known one: exact only in the limit.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from sde_toolkit.checks import check_count
from sde_toolkit.equation import ReverseEquation
from sde_toolkit.errors import ArgumentError
from sde_toolkit.guidance.constants import Constant
from sde_toolkit.guidance.inner_levels import inner_level, inner_times, inside_at_level
from sde_toolkit.guidance.posterior_model import y_and_condition
from sde_toolkit.guidance.step_operator import OneStep, StepOperator
from sde_toolkit.guidance.steps_to_data import uniform_to_data
from sde_toolkit.sampling.arguments import check_space
from sde_toolkit.solvers import Solver

__all__ = ["RePaint", "repaint"]


def repaint(
    known: Tensor | None,
    mask: Tensor,
    repeats: int = 10,
    jump: int = 1,
    *,
    eta: float = 1.0,
    space: Literal["data", "model"] = "data",
) -> Solver:
    """The solver of :class:`RePaint`: ``sample(model, repaint(known, mask), steps=100, shape=...)``."""
    name = f"repaint[repeats={repeats}, jump={jump}]"
    return Solver(name, eta, RePaint(known, mask, repeats, jump, space), uniform_to_data)


@dataclass(frozen=True, eq=False)
class RePaint(StepOperator):
    """``repeats`` × ``jump`` evaluations per step.

    Args:
        known: (*event); where the mask is 0 its values have no meaning. None: each sample has its own, as its
            condition: (n, *event), or ``{"y": known, "condition": labels}``.
        mask: 1 or True where x_0 is known, of the shape of an event, or one that broadcasts to it.
        repeats: how often each step is taken; 1 is no repetition.
        jump: steps in which a step of the grid is taken.
        space: of ``known``: the caller's data ("data"), or model space.

    Raises:
        ArgumentError: for a mask of other numbers than 0 and 1. From ``sample``: for η = 0, and another shape.
    """

    known: Tensor | None
    mask: Tensor
    repeats: int = 10
    jump: int = 1
    space: Literal["data", "model"] = "data"
    _mask: Constant = field(init=False, repr=False)
    _known: Constant | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        check_space(self.space)
        check_count("repeats", self.repeats, "1 is no repetition; the paper has 10.")
        check_count("jump", self.jump, "The paper has 10, of 250 steps; 1 is usual on short grids.")
        if not isinstance(self.mask, Tensor) or not bool(((self.mask == 0) | (self.mask == 1)).all()):
            problem = "not a tensor of zeros and ones"
            raise ArgumentError("mask", self.mask, problem, "Compare with a level: mask > 0.5.")
        if self.known is not None and not isinstance(self.known, Tensor):
            raise ArgumentError("known", self.known, "not a tensor", "Pass the known part, (*event).")
        object.__setattr__(self, "_mask", Constant(self.mask == 1))
        object.__setattr__(self, "_known", None if self.known is None else Constant(self.known))

    @property
    def evals_per_step(self) -> int | None:  # type: ignore[override]
        """Repeats times jump."""
        return self.repeats * self.jump

    def check(self, equation: ReverseEquation) -> None:
        """Refuse the flow."""
        super().check(equation)
        if equation.eta == 0:
            raise ArgumentError("eta", 0.0, "RePaint's steps draw noise", "Use eta=1, as the paper does.")

    def columns(self, equation: ReverseEquation, t: Tensor, s: Tensor) -> dict[str, Any]:
        sde, times = equation.sde, inner_times(equation.sde, t, s, self.jump)
        ends = []
        for u, v in pairwise(times):
            rho, kappa = self.noise(equation.eta, sde.half_log_snr(u) - sde.half_log_snr(v))
            ends.append((sde.alpha(v), sde.sigma(v), sde.sigma(v) * rho, sde.sigma(v) * kappa))
        ratio = sde.alpha(t) / sde.alpha(s)
        back = (sde.sigma(t) ** 2 - (ratio * sde.sigma(s)) ** 2).clamp(min=0).sqrt()
        levels = tuple(inner_level(equation, u) for u in times[:-1])
        return {"levels": levels, "ends": tuple(ends), "back": (ratio, back)}

    def move(self, step: OneStep) -> Tensor:
        known, condition = self.known_of(step)
        mask, x = self._mask.beside(step.x_t), step.x_t
        for repeat in range(self.repeats):
            if repeat > 0:
                ratio, back = step.row.back
                x = ratio * x + back * step.noise()
            for level, (alpha, sigma, rho, kappa) in zip(step.row.levels, step.row.ends, strict=True):
                x_0 = inside_at_level(step.inside, x, level)(x, condition)
                z = step.noise()
                *_, alpha_u, sigma_u = level
                unknown = alpha * x_0 + rho * ((x - alpha_u * x_0) / sigma_u) + kappa * z
                x = torch.where(mask, alpha * known + sigma * z, unknown)
        return x

    def known_of(self, step: OneStep) -> tuple[Tensor, Any]:
        """The known part in model space, and the condition of the model."""
        known, condition = (None, step.condition) if self._known else y_and_condition(step.condition)
        if self._known is not None:
            known = self._known.beside(step.x_t)
        if known is None:
            problem, remedy = "RePaint was made without a known part", 'Pass condition=known, or {"y": known, ...}.'
            raise ArgumentError("condition", condition, problem, remedy)
        event = tuple(step.x_t.shape[1:])
        if tuple(known.shape) not in (event, tuple(step.x_t.shape)):
            raise ArgumentError("known", tuple(known.shape), f"events have shape {event}", "Pass a whole event.")
        known = known.to(step.x_t.device, step.x_t.dtype).expand(step.x_t.shape)
        return (step.inside.model.transform.forward(known) if self.space == "data" else known), condition
