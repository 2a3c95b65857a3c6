"""Keeping x̂_0 inside the range of the data: static clipping, and Imagen's dynamic thresholding. Off by default.

Both act in the model's space, on the denoised estimate at every evaluation, and so on every solver's step and on the
last Tweedie step; ε̂ and the rest follow from the limited x̂_0. They change the distribution that is sampled:
likelihoods and comparisons of solvers are for models without them. The wrapped model natively predicts x_0, so that
at t=0, where σ may be 0, its ε̂ is not defined: end there by a Tweedie step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.batching import as_floating, expand_to
from sde_toolkit.checks import check_positive, is_number
from sde_toolkit.errors import ArgumentError
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.models.wrapper import Inside, Wrapper

__all__ = ["Clip", "DynamicThreshold", "Thresholded", "clip_x0", "dynamic_threshold"]


def clip_x0(model: ScoreModel, low: float = -1.0, high: float = 1.0) -> Thresholded:
    """``model`` with x̂_0 clipped to [low, high], in the model's space (after ``model.transform``).

    Raises:
        ArgumentError: unless low < high, or if ``model`` is not a score model.
    """
    return Thresholded(model, Clip(low, high))


def dynamic_threshold(model: ScoreModel, p: float = 0.995, max_value: float = 1.0) -> Thresholded:
    """``model`` with Imagen's dynamic thresholding (Saharia et al. 2022, section 2.3).

    s is the p-quantile of |x̂_0| over each sample, at least ``max_value``; x̂_0 is clipped to [−s, s] and scaled
    by max_value/s, so that it stays within ``max_value``. The paper uses p = 0.995 for pixels in [−1, 1].

    Raises:
        ArgumentError: unless 0 < p <= 1 and max_value > 0, or if ``model`` is not a score model.
    """
    return Thresholded(model, DynamicThreshold(p, max_value))


@dataclass(frozen=True)
class Clip:
    """x̂_0 limited to [low, high], element by element."""

    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not (is_number(self.low) and is_number(self.high) and self.low < self.high):
            raise ArgumentError(
                "low, high",
                (self.low, self.high),
                "limits must be finite, low below high",
                "Use -1 and 1, for example.",
            )

    def __call__(self, x_0: Tensor) -> Tensor:
        return x_0.clamp(self.low, self.high)


@dataclass(frozen=True)
class DynamicThreshold:
    """x̂_0 clipped at its own quantile and scaled back, sample by sample."""

    p: float = 0.995
    max_value: float = 1.0

    def __post_init__(self) -> None:
        if not (is_number(self.p) and 0 < self.p <= 1):
            raise ArgumentError("p", self.p, "a quantile lies in (0, 1]", "Saharia et al. use 0.995.")
        check_positive("max_value", self.max_value, "Use 1 for [−1, 1].")

    def __call__(self, x_0: Tensor) -> Tensor:
        x_0 = as_floating(x_0, "x_0")
        sizes = x_0.abs().reshape(x_0.shape[0], -1)
        position = self.p * (sizes.shape[1] - 1)  # linear between order statistics
        k, fraction = math.floor(position), position - math.floor(position)
        s = sizes.kthvalue(k + 1, dim=1).values
        if fraction > 0:
            s = torch.lerp(s, sizes.kthvalue(k + 2, dim=1).values, fraction)
        scaled = x_0 * expand_to(self.max_value / s.clamp(min=self.max_value), x_0)
        return scaled.clamp(-self.max_value, self.max_value)


class Thresholded(Wrapper):
    """A score model whose x̂_0 goes through ``rule``: any map of (B, *event) to itself, sample by sample."""

    def __init__(self, model: ScoreModel, rule: Callable[[Tensor], Tensor]) -> None:
        super().__init__(model)
        self.rule = rule

    def denoise(self, x_t: Tensor, inside: Inside, condition: Any) -> Tensor:
        """The limited x̂_0."""
        return self.rule(inside(x_t, condition))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rule={self.rule}"
