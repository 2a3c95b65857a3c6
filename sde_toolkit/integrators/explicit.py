"""Explicit methods in t: Euler (with noise: Euler-Maruyama) and Heun."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sde_toolkit.equation import ReverseEquation
from sde_toolkit.integrators.integrator import AffineStep, Integrator, StepRow, combine
from sde_toolkit.noise.streams import Noise

__all__ = ["Euler", "Heun"]


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


@dataclass(frozen=True)
class Heun(Integrator):
    """Heun's method in t, the explicit trapezoidal rule, for the probability flow.

        x′ = x_t + h v(x_t, t)        x_s = x_t + ½h (v(x_t, t) + v(x′, s)),    h = s − t

    The grid must end where the velocity is finite: above t=0 wherever σ(0) = 0.
    """

    order: ClassVar[int | None] = 2
    evals_per_step: ClassVar[int | None] = 2

    def prepare(self, equation: ReverseEquation, grid: Tensor) -> Tensor:
        t, s = grid[:-1], grid[1:]
        h = s - t
        p_t, q_t = equation.drift_coefficients(t)
        p_s, q_s = equation.drift_coefficients(s)
        predictor = (1 + h * p_t, h * q_t)
        corrector = (
            1 + 0.5 * h * (p_t + p_s * predictor[0]),
            0.5 * h * (q_t + p_s * predictor[1]),
            0.5 * h * q_s,
        )
        return self.table(equation, grid, *equation.inputs(t), *equation.inputs(s), *predictor, *corrector)

    def step(self, equation: ReverseEquation, x: Tensor, row: StepRow, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        inputs, predictor, corrector = row[:-5], row[-5:-3], row[-3:]
        half = len(inputs) // 2
        y_t = equation.output(x, inputs[:half])
        y_s = equation.output(combine(predictor, (x, y_t)), inputs[half:])
        return combine(corrector, (x, y_t, y_s)), None
