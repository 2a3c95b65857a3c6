"""Classifier-free guidance (Ho & Salimans 2022): away from the estimate without a class.

    x̂_0 = x̂_u + γ (x̂_c − x̂_u)        x̂_c with the class, x̂_u without

γ = 1 is the conditional model and γ = 0 the unconditional one; Ho & Salimans' w is γ − 1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sde_toolkit.guidance.class_conditions import check_no_class, condition_without_class, with_and_without
from sde_toolkit.guidance.guided import checked_scale, guided_by, in_words, scale_of
from sde_toolkit.guidance.interval import Interval, WithinInterval, chosen
from sde_toolkit.models.conditions import map_rows, named_rows
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.models.wrapper import Inside

__all__ = ["ClassifierFree", "classifier_free"]


def classifier_free(
    model: ScoreModel,
    scale: float,
    interval: Interval | None = None,
    no_class: Any = None,
    stacked: bool = True,
) -> ClassifierFree:
    """``model`` with x̂_0 = x̂_u + γ (x̂_c − x̂_u), where γ = ``scale`` and the class is the caller's ``condition``.

    Two evaluations, but one where γ is the number 1 or 0, and outside of the interval. A γ for each sample, or another
    "no class" for each, goes through the condition: ``condition=Guided(labels, scale=scales)``.

    Args:
        model: a conditional score model.
        scale: γ: 1 is the conditional model, 0 the unconditional one. diffusers' ``guidance_scale`` is the same number.
        interval: (lo, hi), noise levels σ/α outside of which γ = 1. None: γ everywhere.
        no_class: what stands for "no class". None: the network's own row, the label ``model.num_classes``. Otherwise a
            condition in the structure of the caller's, each tensor with one row, or without the axis of rows; or
            ``UNCONDITIONAL``: the network is then called without a condition.
        stacked: both estimates by one call of the network with twice the rows, where the two conditions can be stacked;
            otherwise by two calls.

    Raises:
        ArgumentError: if the network has no row for "no class" and none is given; for a scale that is not a number, and
            an interval that is none. At the first evaluation: for a ``no_class`` that does not fit the condition.
    """
    return ClassifierFree(model, scale, interval, no_class, stacked)


class ClassifierFree(WithinInterval):
    """See :func:`classifier_free`."""

    def __init__(
        self, model: ScoreModel, scale: float, interval: Interval | None, no_class: Any, stacked: bool
    ) -> None:
        super().__init__(model, interval)
        check_no_class(model, no_class)
        self.scale, self.stacked = checked_scale(scale), bool(stacked)
        device = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))
        self.no_class = map_rows(no_class, lambda rows: rows.to(device))

    def _apply(self, fn: Any, recurse: bool = True) -> ClassifierFree:
        """``.to()`` takes what is given as no class along."""
        super()._apply(fn, recurse)
        self.no_class = map_rows(self.no_class, fn)
        return self

    def denoise(self, x_t: Tensor, inside: Inside, condition: Any) -> Tensor:
        """x̂_u + γ (x̂_c − x̂_u), and x̂_c outside of the interval."""
        told, acting = guided_by(condition), inside.own
        scale = scale_of(told, self.scale, x_t)
        if acting is False or (not isinstance(scale, Tensor) and scale == 1):
            return inside(x_t, told.condition)
        without = condition_without_class(self.network, told, self.no_class)
        if acting is True and not isinstance(scale, Tensor) and scale == 0:
            return inside(x_t, without)
        given, free = with_and_without(inside, x_t, told.condition, without, self.stacked)
        return chosen(acting, free + scale * (given - free), given)

    @property
    def evaluations_inside(self) -> int:
        """One under the class, and one without. A :class:`Guided` condition may need two where ``scale`` needs one."""
        once = not isinstance(self.scale, Tensor) and (self.scale == 1 or (self.scale == 0 and self.interval is None))
        return self.network.evaluations_inside * (1 if once else 2)

    def guidance_in_words(self) -> str:
        return f"a class at scale {in_words(self.scale)}"

    def settings(self) -> dict[str, Any]:
        """What was given; of tensors in ``no_class`` only the shapes."""
        shapes = {name: tuple(rows.shape) for name, rows in named_rows(self.no_class, "no_class")}
        return {**super().settings(), **({"no_class": shapes} if shapes else {})}
