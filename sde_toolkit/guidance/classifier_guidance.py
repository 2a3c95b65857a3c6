"""Classifier guidance (Dhariwal & Nichol 2021): by the gradient of a classifier of noisy samples.

    x̂_0 = x̂_0 + (σ²/α) s ∇ log p(c | x_t)

At s = 1 this is the model of p(x_0 | c), if model and classifier are exact.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from sde_toolkit.errors import ArgumentError
from sde_toolkit.guidance.guided import checked_scale, guided_by, in_words, scale_of
from sde_toolkit.guidance.interval import Interval, WithinInterval, chosen
from sde_toolkit.models.conditions import map_rows
from sde_toolkit.models.inspection import name_of
from sde_toolkit.models.pullback import of_inference, ordinary, pullback
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.models.wrapper import Inside

__all__ = ["ClassifierGuided", "LogProb", "classifier"]

LogProb: TypeAlias = Callable[[Tensor, Tensor, Any], Tensor]
"""(x_t (B, *event), t (B,), condition) to log p(condition | x_t), (B,)."""


def classifier(
    model: ScoreModel,
    log_prob: LogProb,
    scale: float = 1.0,
    interval: Interval | None = None,
    *,
    conditional: bool = False,
) -> ClassifierGuided:
    """``model`` with x̂_0 + (σ²/α) s ∇ log p(c | x_t), where s = ``scale`` and c is the caller's ``condition``.

    One evaluation of the model, and one gradient of ``log_prob``, which autograd takes; no gradient where s is the
    number 0, and outside of the interval. Where α = 0 the model is not guided: x_t knows nothing of the class there. An
    s for each sample goes through the condition: ``condition=Guided(labels, scale=scales)``.

    Args:
        model: the model, unconditional by default.
        log_prob: (x_t, t, condition) to log p(c | x_t), (B,), up to a constant: x_t is (B, *event) in model space, t is
            (B,) in the dtype of x_t. A module's parameters become the wrapper's. It must be differentiable by x_t.
        scale: s: 0 is the model, 1 Bayes' rule.
        interval: (lo, hi), noise levels σ/α outside of which s = 0. None: s everywhere.
        conditional: whether the model is told the condition, too.

    Raises:
        ArgumentError: if ``log_prob`` is not callable; for a scale that is not a number, and an interval that is none.
            At the first evaluation: if it returns another shape than (B,), or has no gradient.
    """
    return ClassifierGuided(model, log_prob, scale, interval, conditional)


class ClassifierGuided(WithinInterval):
    """See :func:`classifier`."""

    def __init__(
        self, model: ScoreModel, log_prob: LogProb, scale: float, interval: Interval | None, conditional: bool
    ) -> None:
        super().__init__(model, interval)
        if not callable(log_prob):
            raise ArgumentError("log_prob", log_prob, "not callable", "Pass a function (x_t, t, condition) -> (B,).")
        self.log_prob, self.scale, self.conditional = log_prob, checked_scale(scale), bool(conditional)

    def denoise(self, x_t: Tensor, inside: Inside, condition: Any) -> Tensor:
        """x̂_0 + (σ²/α) s ∇ log p(c | x_t), and x̂_0 outside of the interval."""
        told, acting = guided_by(condition), inside.own
        scale = scale_of(told, self.scale, x_t)
        x_0 = inside(x_t, told.condition if self.conditional else None)
        if acting is False or (not isinstance(scale, Tensor) and scale == 0):
            return x_0
        there = inside.alpha > 0
        variance = torch.where(there, inside.sigma**2 / torch.where(there, inside.alpha, 1.0), 0.0)
        return chosen(acting, x_0 + variance * scale * self._gradient(x_t, inside.t, told.condition), x_0)

    def _gradient(self, x_t: Tensor, t: Tensor, condition: Any) -> Tensor:
        n, t = x_t.shape[0], t.reshape(-1).expand(x_t.shape[0])
        if of_inference(x_t) or of_inference(t):  # autograd keeps no such tensors
            x_t, t, condition = ordinary(x_t), ordinary(t), map_rows(condition, ordinary)

        def log_probs(x: Tensor) -> Tensor:
            found: Any = self.log_prob(x, t, condition)
            if not isinstance(found, Tensor) or found.shape != (n,):
                shown = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
                raise ArgumentError("log_prob", shown, f"it must return log p(c | x_t) of shape ({n},)", _REMEDY)
            return found

        value, product = pullback(log_probs, x_t, name_of(self.log_prob), "log_prob")
        return product(torch.ones_like(value))

    def guidance_in_words(self) -> str:
        return f"a classifier at scale {in_words(self.scale)}"

    def settings(self) -> dict[str, Any]:
        """What was given; the classifier by its name."""
        return {**super().settings(), "log_prob": name_of(self.log_prob)}


_REMEDY = "Pick the class's own column: log_softmax(logits)[torch.arange(n), labels]."
