"""Autoguidance (Karras et al. 2024): away from a weaker version of the same model.

    x̂_0 = x̂_weak + w (x̂ − x̂_weak)

The weaker model is smaller, or less trained, and makes the same errors more strongly. w = 1 is the model itself.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sde_toolkit.batching import expand_to
from sde_toolkit.errors import ArgumentError
from sde_toolkit.guidance.guided import checked_scale, guided_by, in_words, scale_of
from sde_toolkit.guidance.interval import Interval, WithinInterval, chosen
from sde_toolkit.models.score_model import Inputs, ScoreModel
from sde_toolkit.models.wrapper import Inside

__all__ = ["Autoguided", "autoguidance"]


def autoguidance(model: ScoreModel, weak: ScoreModel, scale: float, interval: Interval | None = None) -> Autoguided:
    """``model`` with x̂_0 = x̂_weak + w (x̂ − x̂_weak), w = ``scale``. Both are told the caller's condition.

    Two evaluations, one of each model; one where w is the number 1 or 0, and outside of the interval. ``nfe`` counts
    both. A w for each sample goes through the condition: ``condition=Guided(labels, scale=scales)``.

    Args:
        model: the model.
        weak: the weaker one, of the same SDE, event shape and transform. Its prediction and time input may differ.
        scale: w: 1 is the model, 0 the weak one.
        interval: (lo, hi), noise levels σ/α outside of which w = 1. None: w everywhere.

    Raises:
        ArgumentError: for a weak model of another SDE, event shape or transform; a scale that is not a number; an
            interval that is none.
    """
    return Autoguided(model, weak, scale, interval)


class Autoguided(WithinInterval):
    """See :func:`autoguidance`."""

    def __init__(self, model: ScoreModel, weak: ScoreModel, scale: float, interval: Interval | None = None) -> None:
        super().__init__(model, interval)
        _check_weak(model, weak)
        self.scale, self.weak = checked_scale(scale), weak
        self._of_weak = 0  # how many inputs the weak model has

    def network_inputs(self, t: Tensor) -> Inputs:
        """Those of the model; then those of the weak model, and (m, n) of its x̂_0."""
        of_weak = (*self.weak.network_inputs(t), *self.weak.readout(t).view("x0"))
        self._of_weak = len(of_weak)
        return *super().network_inputs(t), *of_weak

    def inside_at(self, x_t: Tensor, inputs: Inputs) -> Inside:
        """The model; ``own`` is whether guidance acts, and the weak model."""
        inside = super().inside_at(x_t, inputs[: -self._of_weak])
        *of_weak, m, n = inputs[-self._of_weak :]
        at_time = inside.t, inside.alpha, inside.sigma
        weak = Inside(self.weak, inside.batch, tuple(of_weak), expand_to(m, x_t), expand_to(n, x_t), *at_time)
        inside.own = (inside.own, weak)
        return inside

    def denoise(self, x_t: Tensor, inside: Inside, condition: Any) -> Tensor:
        """x̂_weak + w (x̂ − x̂_weak), and x̂ outside of the interval."""
        told, (acting, weak) = guided_by(condition), inside.own
        scale = scale_of(told, self.scale, x_t)
        if acting is False or (not isinstance(scale, Tensor) and scale == 1):
            return inside(x_t, told.condition)
        if acting is True and not isinstance(scale, Tensor) and scale == 0:
            return weak(x_t, told.condition)
        strong, weaker = inside(x_t, told.condition), weak(x_t, told.condition)
        return chosen(acting, weaker + scale * (strong - weaker), strong)

    def check_times(self, times: Tensor) -> None:
        """As both models do."""
        super().check_times(times)
        self.weak.check_times(times)

    @property
    def evaluations_inside(self) -> int:
        """Those of both models. A :class:`Guided` condition may need both where ``scale`` needs one."""
        if not isinstance(self.scale, Tensor) and self.scale == 1:
            return self.network.evaluations_inside
        if not isinstance(self.scale, Tensor) and self.scale == 0 and self.interval is None:
            return self.weak.evaluations_inside
        return self.network.evaluations_inside + self.weak.evaluations_inside

    def guidance_in_words(self) -> str:
        return f"a weaker model at scale {in_words(self.scale)}"

    def settings(self) -> dict[str, Any]:
        """The scale and interval, and what the weak model is."""
        return {**super().settings(), "weak": self.weak.description()}


def _check_weak(model: ScoreModel, weak: Any) -> None:
    if not isinstance(weak, ScoreModel):
        raise ArgumentError("weak", weak, "not a ScoreModel", "Wrap the network: ScoreModel(network, sde, ...).")
    if weak.sde != model.sde:
        remedy = "Bring it onto the same path: reschedule(weak, model.sde)."
        raise ArgumentError("weak", weak.sde, f"the model has {model.sde}", remedy)
    shapes = weak.event_shape, model.event_shape
    if None not in shapes and shapes[0] != shapes[1]:
        raise ArgumentError("weak", shapes[0], f"the model has events of shape {shapes[1]}", "Take two of one shape.")
    if weak.transform != model.transform:
        problem = f"the model works on data seen through {model.transform}"
        raise ArgumentError("weak", weak.transform, problem, "Take a weak model trained on the same scale of the data.")
