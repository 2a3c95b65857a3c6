"""Step operators as methods of a restoration: from a model and a measurement to a solver with its own η and grid.

If the measurement has no y, each sample has its own, as its condition.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.errors import ArgumentError
from sde_toolkit.evaluation.restoration.restoration_tasks import hidden_places
from sde_toolkit.guidance.daps_step import daps
from sde_toolkit.guidance.ddrm_step import ddrm
from sde_toolkit.guidance.dps_step import dps
from sde_toolkit.guidance.measurement import Measurement
from sde_toolkit.guidance.operators import LinearOperator
from sde_toolkit.guidance.posterior_model import y_and_condition
from sde_toolkit.guidance.repaint_step import RePaint, repaint
from sde_toolkit.guidance.step_operator import OneStep
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.solvers import Solver

__all__ = ["daps_steps", "ddrm_steps", "dps_steps", "repaint_steps"]


def dps_steps(model: ScoreModel, measurement: Measurement, *, zeta: float = 0.5, eta: float = 1.0) -> Solver:
    """:func:`sde_toolkit.guidance.dps`. It takes no account of σ_y."""
    return dps(measurement.A, measurement.y, zeta, eta=eta, space="model")


def ddrm_steps(model: ScoreModel, measurement: Measurement, *, eta: float = 0.85, eta_b: float = 1.0) -> Solver:
    """:func:`sde_toolkit.guidance.ddrm`."""
    return ddrm(model, measurement.A, measurement.y, _std(measurement), eta=eta, eta_b=eta_b, space="model")


def daps_steps(
    model: ScoreModel,
    measurement: Measurement,
    *,
    prior_std: float | None = None,
    flow_steps: int = 1,
    langevin_steps: int | None = None,
    step_size: float = 0.1,
) -> Solver:
    """:func:`sde_toolkit.guidance.daps`."""
    return daps(
        model, measurement.A, measurement.y, _std(measurement), space="model", prior_std=prior_std,
        flow_steps=flow_steps, langevin_steps=langevin_steps, step_size=step_size,
    )  # fmt: skip


def repaint_steps(
    model: ScoreModel, measurement: Measurement, *, repeats: int = 10, jump: int = 1, eta: float = 1.0
) -> Solver:
    """:func:`sde_toolkit.guidance.repaint`. It takes no account of σ_y.

    Raises:
        ArgumentError: unless the measurement is of single elements.
    """
    A = measurement.A
    known = ~hidden_places(A)
    if not _measures_elements(A, known):
        problem = "RePaint replaces known elements, and this is no measurement of single elements"
        raise ArgumentError("method", "repaint", problem, "Choose task=inpaint, or another method.")
    if measurement.y is None:
        solver = repaint(None, known, repeats, jump, eta=eta, space="model")
        own = _RePaintOfMeasured(None, known, repeats, jump, "model", measurement=measurement)
        return replace(solver, integrator=own)
    y = measurement.measured(torch.zeros(1, *A.event_shape))
    return repaint(A.adjoint(y[None])[0], known, repeats, jump, eta=eta, space="model")


@dataclass(frozen=True, eq=False)
class _RePaintOfMeasured(RePaint):
    """RePaint whose condition is y (n, *measured) instead of the known parts Aᵀ y."""

    measurement: Measurement = field(kw_only=True)

    def known_of(self, step: OneStep) -> tuple[Tensor, Any]:
        y, condition = y_and_condition(step.condition)
        return self.measurement.A.adjoint(self.measurement.measured(step.x_t, y)), condition


def _measures_elements(A: LinearOperator, known: torch.Tensor) -> bool:
    x = torch.linspace(1.0, 2.0, known.numel()).reshape(1, *A.event_shape)
    return bool(torch.equal(A.adjoint(A(x)), torch.where(known, x, 0)))


def _std(measurement: Measurement) -> float:
    variance = measurement.noise.variance
    return 0.0 if variance is None else float(variance**0.5)
