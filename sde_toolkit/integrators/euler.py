"""Euler's method in t; with noise, Euler-Maruyama. On the flow in σ/α, Euler's method is :class:`Exponential`, DDIM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sde_toolkit.equation import ReverseEquation
from sde_toolkit.integrators.integrator import AffineStep

__all__ = ["Euler"]


@dataclass(frozen=True)
class Euler(AffineStep):
    """Euler's method in t; with η > 0, Euler-Maruyama (Kloeden & Platen 1992, eq. 9.2.3).

        x_s = x_t + (s − t) drift(x_t, t) + η g(t) √|t − s| z

    The noise is additive, so that the strong order is 1.
    """

    order: ClassVar[int | None] = 1
    strong_order: ClassVar[float | None] = 1.0
    weak_order: ClassVar[float | None] = 1.0

    def coefficients(self, equation: ReverseEquation, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        p, q = equation.drift_coefficients(t)
        h = s - t
        return 1 + h * p, h * q, equation.diffusion(t) * torch.sqrt(h.abs())
