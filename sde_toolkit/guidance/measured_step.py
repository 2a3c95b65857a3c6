"""Step operators that know a linear measurement: where they take it from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from sde_toolkit.equation import ReverseEquation
from sde_toolkit.errors import ArgumentError
from sde_toolkit.guidance.data_space import IntoModelSpace, measurement_of_data
from sde_toolkit.guidance.foreign_operators import as_operator
from sde_toolkit.guidance.measurement import Measurement
from sde_toolkit.guidance.posterior_model import y_and_condition
from sde_toolkit.guidance.step_operator import OneStep, StepOperator
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.sampling.arguments import check_model, check_space

__all__ = ["MeasuredStep", "measurement_for"]


def measurement_for(
    model: ScoreModel,
    A: Any,
    y: Tensor | None,
    noise_std: float | Tensor | None,
    space: Literal["data", "model"],
) -> tuple[Measurement, IntoModelSpace | None]:
    """The measurement in the model's space, and what brings a y of the caller's there; None: it is there.

    Raises:
        ArgumentError: as :func:`~sde_toolkit.guidance.posterior`.
    """
    check_model(model)
    check_space(space)
    A = as_operator(A, model.event_shape)
    if space == "model":
        return Measurement(A, y, noise_std), None
    return measurement_of_data(model.transform, A, y, noise_std, None)


@dataclass(frozen=True, eq=False)
class MeasuredStep(StepOperator):
    """Base class of step operators with a :class:`Measurement` in model space.

    If the measurement has no y, each sample has its own, as its condition: y (n, *measured), or ``{"y": y,
    "condition": labels}``; ``into_model_space`` is applied to it.
    """

    measurement: Measurement
    into_model_space: IntoModelSpace | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.measurement, Measurement):
            remedy = "Pass Measurement(A, y, noise_std), in model space."
            raise ArgumentError("measurement", self.measurement, "not a Measurement", remedy)

    def check(self, equation: ReverseEquation) -> None:
        """Refuse a model of other events than those that the operator takes."""
        super().check(equation)
        event, own = equation.model.event_shape, self.measurement.A.event_shape
        if event is not None and event != own:
            problem = f"it takes events of shape {own}, and the model's have shape {event}"
            raise ArgumentError("A", self.measurement.A, problem, "Make it for events of that shape.")

    def y_of(self, step: OneStep) -> tuple[Tensor, Any]:
        """y, (*measured) or (B, *measured), beside x_t; and the condition of the model.

        Raises:
            ArgumentError: for a y that is missing, or of another shape than A(x).
        """
        if self.measurement.y is not None:
            return self.measurement.measured(step.x_t), step.condition
        y, condition = y_and_condition(step.condition)
        if y is not None and self.into_model_space is not None:
            y = self.into_model_space(y)
        return self.measurement.measured(step.x_t, y), condition
