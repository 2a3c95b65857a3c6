"""Samples of x_0 given a measurement y = A x_0 + noise: a score model around a score model, by a choice of methods."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from sde_toolkit.errors import ArgumentError
from sde_toolkit.guidance.data_space import IntoModelSpace, measurement_of_data
from sde_toolkit.guidance.foreign_operators import as_operator
from sde_toolkit.guidance.measurement import Measurement
from sde_toolkit.guidance.mmps import MMPS
from sde_toolkit.guidance.posterior_method import PosteriorMethod
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.models.wrapper import Inside, Wrapper
from sde_toolkit.sampling.arguments import check_model, check_space, device_of

__all__ = ["Posterior", "posterior", "y_and_condition"]


def posterior(
    model: ScoreModel,
    A: Any,
    y: Tensor | None = None,
    noise_std: float | Tensor | None = None,
    *,
    noise_covariance: Tensor | None = None,
    method: PosteriorMethod | None = None,
    space: Literal["data", "model"] = "data",
) -> Posterior:
    """``model`` given the measurement y = A x + noise: ``sample`` it, with any solver, as any other model.

    Args:
        model: a score model of x; a wrapper too.
        A: a linear operator (:mod:`sde_toolkit.guidance`), or what :func:`~sde_toolkit.guidance.as_operator` takes: a
            matrix (m, D), a function of a batch, scipy's or deepinv's.
        y: the measurement, (*measured), the same for all samples. None: each sample has its own. It comes by the
            condition then, ``condition=y`` with y (n, *measured), or ``condition={"y": y, "condition": labels}`` if the
            model is told a condition as well.
        noise_std: standard deviation of the noise, a number or (*measured). 0 where the method allows it.
        noise_covariance: the covariance of the noise instead, (m, m).
        method: how x̂_0 given y is found. Default: :class:`MMPS`, exact for Gaussian data.
        space: where A, y and the noise belong: the caller's data ("data"), or the model's space, after
            ``model.transform``.

    Raises:
        ArgumentError: for an A that is not linear, a y of another shape than A(x), a noise that the method cannot
            divide by, a method that is none.
    """
    check_model(model)
    check_space(space)
    A = as_operator(A, model.event_shape, device=device_of(model, None))
    if space == "model":
        return Posterior(model, Measurement(A, y, noise_std, noise_covariance), method or MMPS())
    measurement, into = measurement_of_data(model.transform, A, y, noise_std, noise_covariance)
    return Posterior(model, measurement, method or MMPS(), into)


class Posterior(Wrapper):
    """A score model given a measurement: made by :func:`posterior`.

    Args:
        model: the score model of x_0.
        measurement: in model space.
        method: how x̂_0 given y is found.
        into_model_space: for a y that comes by the condition, if it is one of data.

    Raises:
        ArgumentError: if the method is none, or cannot take the measurement.
    """

    def __init__(
        self,
        model: ScoreModel,
        measurement: Measurement,
        method: PosteriorMethod,
        into_model_space: IntoModelSpace | None = None,
    ) -> None:
        super().__init__(model)
        if not isinstance(method, PosteriorMethod):
            problem = "not a posterior method"
            raise ArgumentError("method", method, problem, "Pass an object of sde_toolkit.guidance: MMPS(), PiGDM().")
        method.check(measurement, model)
        self.measurement, self.method, self._into = measurement, method, into_model_space

    def denoise(self, x_t: Tensor, inside: Inside, condition: Any) -> Tensor:
        """x̂_0 given y.

        Raises:
            ArgumentError: before any evaluation, for a y that is missing, or of another shape than A(x).
        """
        y, condition = self.own_measurement(x_t, condition)
        return self.method.estimate(x_t, inside, self.measurement, y, condition)

    def own_measurement(self, x_t: Tensor, condition: Any) -> tuple[Tensor | None, Any]:
        """(y, condition of the model inside): y (B, *measured) in model space, None if all samples share one.

        Raises:
            ArgumentError: for a y that is missing, or of another shape than A(x).
        """
        if self.measurement.y is not None:
            return None, condition
        y, condition = y_and_condition(condition)
        if y is None:
            problem = "the posterior was made without a y, so each sample needs its own"
            raise ArgumentError("condition", condition, problem, 'Pass condition=y, or {"y": y, "condition": labels}.')
        return self.measurement.measured(x_t, y if self._into is None else self._into(y)), condition

    def settings(self) -> dict[str, Any]:
        """The method, A, the noise, and y by its hash."""
        given = self.measurement
        return {
            **self.method.settings(),
            "A": repr(given.A),
            "y": "of each sample" if given.y is None else _summary(given.y),
            "noise": _summary(given.noise_std if given.noise_covariance is None else given.noise_covariance),
        }

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, method={self.method}, A={self.measurement.A}"


def y_and_condition(condition: Any) -> tuple[Tensor | None, Any]:
    """(y, what the model inside is told)."""
    if isinstance(condition, Mapping) and "y" in condition and set(condition) <= {"y", "condition"}:
        return condition["y"], condition.get("condition")
    if isinstance(condition, Tensor):
        return condition, None
    return None, condition


def _summary(value: Any) -> Any:
    if not isinstance(value, Tensor) or value.numel() == 1:
        return float(value)
    content = value.detach().to("cpu", torch.float64).contiguous()
    return f"{tuple(value.shape)} numbers, sha256 {hashlib.sha256(content.numpy().tobytes()).hexdigest()[:12]}"
