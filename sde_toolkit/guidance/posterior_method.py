"""What a posterior method is: a rule for E[x_0 | x_t, y] from the model's x̂_0, for y = A x_0 + N(0, Σ_y).

Exactly, E[x_0 | x_t, y] = x̂_0 + (σ²/α) ∇ log p(y | x_t). Methods differ in what they take for p(y | x_t). Notation:

    e = y − A x̂_0        V = (σ²/α) ∂x̂_0/∂x_t, which is Cov[x_0 | x_t] where the model is exact

A method is one file with one frozen dataclass. Everything is in the model's space.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.guidance.measurement import Measurement
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.models.wrapper import Inside

__all__ = ["PosteriorMethod", "conditional_variance", "estimate_and_covariance"]


class PosteriorMethod(ABC):
    """Base class: a frozen dataclass that implements :meth:`estimate`."""

    def check(self, measurement: Measurement, model: ScoreModel) -> None:
        """Refuse what the method cannot do, once, before any work.

        Raises:
            ArgumentError: for example for a noise of 0 that it would divide by.
        """
        return

    @abstractmethod
    def estimate(
        self, x_t: Tensor, inside: Inside, measurement: Measurement, y: Tensor | None, condition: Any
    ) -> Tensor:
        """x̂_0 given y, (B, *event).

        Args:
            x_t: (B, *event).
            inside: the model inside, at the time of x_t.
            measurement: A, Σ_y, and a y for all samples, if they share it.
            y: (B, *measured) if each sample has its own, else None.
            condition: of the model inside.
        """

    def settings(self) -> dict[str, Any]:
        """The method and its fields, for the record of a result; plain data."""
        return {"method": type(self).__qualname__, **{f.name: getattr(self, f.name) for f in dataclasses.fields(self)}}  # type: ignore[arg-type]


def estimate_and_covariance(x_t: Tensor, inside: Inside, condition: Any) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """x̂_0 by one evaluation, and u ↦ V u by one product each; both of the shape of x_t.

    Where α = 0, x̂_0 does not depend on x_t, and V cannot be read from it: it counts as 0.
    """
    x_0, products = inside.vjp(x_t, condition)
    seen = inside.alpha > 0
    scale = torch.where(seen, inside.sigma**2 / torch.where(seen, inside.alpha, 1), 0)
    return x_0, lambda u: scale * products(u)


def conditional_variance(inside: Inside, prior_std: float | None) -> Tensor:
    """r² = s² σ²/(s² α² + σ²): Cov[x_0 | x_t] of data N(m, s² I). By default s is the model's ``sigma_data``."""
    s = inside.model.sigma_data if prior_std is None else prior_std
    return s**2 * inside.sigma**2 / (s**2 * inside.alpha**2 + inside.sigma**2)
