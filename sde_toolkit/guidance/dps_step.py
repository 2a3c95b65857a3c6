"""Diffusion posterior sampling as published (Chung et al. 2023, algorithm 1): a step down the misfit after each step.

    x_s = exponential step with x̂_0 − ζ/‖e‖ ∇_{x_t} ‖e‖²        e = y − A(x̂_0(x_t))

A may be nonlinear. ζ sets the strength per step, so that the spread of the samples depends on ζ and on the number of
steps. Exact for no prior. The published code has the gradient of ‖e‖, not of its square: its ``scale`` is 2 ζ.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from sde_toolkit.batching import expand_to
from sde_toolkit.checks import is_number
from sde_toolkit.errors import ArgumentError
from sde_toolkit.guidance.constants import Constant
from sde_toolkit.guidance.foreign_operators import as_operator
from sde_toolkit.guidance.posterior_model import y_and_condition
from sde_toolkit.guidance.step_operator import OneStep, StepOperator
from sde_toolkit.guidance.steps_to_data import uniform_to_data
from sde_toolkit.models.inspection import name_of
from sde_toolkit.models.pullback import pullback
from sde_toolkit.sampling.arguments import check_space
from sde_toolkit.solvers import Solver
from sde_toolkit.transforms import Identity

__all__ = ["DPS", "dps"]


def dps(
    A: Any, y: Tensor | None = None, zeta: float = 0.5, *, eta: float = 1.0, space: Literal["data", "model"] = "data"
) -> Solver:
    """The solver of :class:`DPS`, at η = 1 as in the paper: ``sample(model, dps(A, y), steps=1000, shape=...)``."""
    return Solver("dps" if eta == 1 else f"dps[eta={eta:g}]", eta, DPS(A, y, zeta, space), uniform_to_data)


@dataclass(frozen=True, eq=False)
class DPS(StepOperator):
    """One evaluation and one product per step.

    Args:
        A: any function (B, *event) to (B, *measured), through which autograd finds its way; or a matrix, or scipy's
            operator.
        y: the measurement, (*measured). None: each sample has its own, as its condition: y (n, *measured), or
            ``{"y": y, "condition": labels}``.
        zeta: ζ ≥ 0, in units of x_t in model space; 0: the exponential step.
        space: of what A takes: the caller's data ("data"), or model space.

    Raises:
        ArgumentError: for an A that is none, a negative ζ. From ``sample``: for a y of another shape than A(x).
    """

    A: Any
    y: Tensor | None = None
    zeta: float = 0.5
    space: Literal["data", "model"] = "data"
    _y: Constant | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        check_space(self.space)
        if not callable(self.A):
            object.__setattr__(self, "A", as_operator(self.A))
        if not (is_number(self.zeta) and self.zeta >= 0):
            raise ArgumentError("zeta", self.zeta, "a step size is a number, at least 0", "The paper has 0.1 to 1.")
        if self.y is not None and not isinstance(self.y, Tensor):
            raise ArgumentError("y", self.y, "not a tensor", "Pass the measurement, (*measured).")
        object.__setattr__(self, "_y", None if self.y is None else Constant(self.y))

    def move(self, step: OneStep) -> Tensor:
        y, condition = self._y_of(step)
        x_0, products = step.inside.vjp(step.x_t, condition)
        transform = step.inside.model.transform if self.space == "data" else Identity()

        def misfit(x_0: Tensor) -> Tensor:
            measured = self.A(transform.inverse(x_0))
            if measured.shape not in (y.shape, (x_0.shape[0], *y.shape)):
                problem = f"A(x) has shape {tuple(measured.shape)} for {x_0.shape[0]} samples"
                raise ArgumentError("y", tuple(y.shape), problem, "Pass y of the shape of A(x) for one x.")
            return y - measured

        e, pull = pullback(misfit, x_0, name_of(self.A))
        norm = e.flatten(1).square().sum(1).sqrt()
        rate = torch.where(norm > 0, 2 * self.zeta / norm, 0.0)
        return step.exponential(x_0) - expand_to(rate, x_0) * products(pull(e))

    def _y_of(self, step: OneStep) -> tuple[Tensor, Any]:
        if self._y is not None:
            return self._y.beside(step.x_t), step.condition
        y, condition = y_and_condition(step.condition)
        if y is None:
            remedy = 'Pass condition=y, or {"y": y, "condition": labels}; or DPS(A, y).'
            raise ArgumentError(
                "condition", condition, "DPS was made without a y, so each sample needs its own", remedy
            )
        return y.to(step.x_t.device, step.x_t.dtype), condition
