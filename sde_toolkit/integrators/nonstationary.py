"""A few steps that each have weights of their own, over all evaluations so far, with noise in some of them or in all.

    x_s = α_s Σ_j b_j x̂_0(x_j, t_j) + σ_s e_s,      Σ_j b_j = 1        j: this evaluation and all before it
    e_s = ρ e + κ z,   ρ = (σ_s α_r / (α_s σ_r))^(η²),   ρ² + κ² = 1        in a noisy step, r the time of the last one
    e_s = e                                                                in the others
    x_s = α_s Σ_j b_j x̂_0(x_j, t_j)                                        in the last, if it denoises

e is the noise in x, (x_t − α_t Σ_j b_j x̂_0)/σ_t with the weights that led to x_t, at first (x_t − α_t x̂_0)/σ_t.
From one noisy step to the next it is renewed as the equation with this η renews it; between them x follows a flow
whose values only the next noisy step makes use of, so that a step of the SDE may take several evaluations, as those
of the ancestral samplers do (:class:`Ancestral`). Exponential and multistep methods in data prediction are of this
form, with noise in every step.

Shaul et al. 2024 (Bespoke Non-Stationary Solvers) for the flow; Xu et al. 2023 (Restart Sampling) for noise that is
added after several evaluations at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sde_toolkit.checking import is_number
from sde_toolkit.equation import ReverseEquation
from sde_toolkit.errors import ArgumentError, GridError
from sde_toolkit.integrators.base import Integrator, Row, combine
from sde_toolkit.integrators.exponential import eta_family
from sde_toolkit.noise import Noise

__all__ = ["NonStationary"]


@dataclass(frozen=True)
class NonStationary(Integrator):
    """Steps with weights of their own. The weights belong to one grid, and the method has no order of convergence.

    Args:
        weights: row i, of i + 1 numbers that sum to one: the weights of the evaluations 0, ..., i in step i.
        noisy: whether step i adds noise (where η > 0), for each; by default all do.
        denoise: whether the last step leaves the noise out and ends on a mean of denoised estimates, as a Tweedie step
            ends on one of them.

    Raises:
        ArgumentError: for rows of other lengths or sums, or not of finite numbers; for other than one flag a step.
        GridError: from ``prepare``, for a grid with another number of steps.
    """

    weights: tuple[tuple[float, ...], ...]
    noisy: tuple[bool, ...] | None = None
    denoise: bool = False

    order: ClassVar[int | None] = None
    weak_order: ClassVar[float | None] = 0.0
    evals_per_step: ClassVar[int | None] = 1

    def __post_init__(self) -> None:
        rows = tuple(tuple(row) for row in self.weights)
        if not rows or not all(len(row) == i + 1 and all(map(is_number, row)) for i, row in enumerate(rows)):
            problem = "row i weights the evaluations 0, ..., i"
            raise ArgumentError("weights", self.weights, problem, "Pass rows of 1, 2, 3, ... finite numbers.")
        for i, row in enumerate(rows):
            if not math.isclose(math.fsum(row), 1.0, abs_tol=1e-6):
                problem = f"row {i} sums to {math.fsum(row):.6g}, and data that are known for certain would be missed"
                raise ArgumentError("weights", self.weights, problem, "Divide the row by its sum.")
        noisy = (True,) * len(rows) if self.noisy is None else tuple(self.noisy)
        if len(noisy) != len(rows) or not all(isinstance(flag, bool) for flag in noisy):
            raise ArgumentError("noisy", self.noisy, f"there are {len(rows)} steps", "Pass True or False for each.")
        object.__setattr__(self, "weights", tuple(tuple(float(b) for b in row) for row in rows))
        object.__setattr__(self, "noisy", noisy)

    def __repr__(self) -> str:
        return f"NonStationary({len(self.weights)} steps, noise in {sum(self.noisy or ())})"

    def prepare(self, equation: ReverseEquation, grid: Tensor) -> Tensor:
        """Columns: inputs, m, n, A, κ, and the weights of this step's x̂_0 and of all before it, the newest first."""
        steps = len(self.weights)
        if len(grid) - 1 != steps:
            problem = f"it has {len(grid) - 1} steps, and these weights are for {steps}"
            raise GridError("grid", tuple(grid.shape), problem, "Use the grid the weights were made for.")
        t, s, sde = grid[:-1], grid[1:], equation.sde
        rho, kappa = self._renewal(equation, grid)
        sigma_s = sde.sigma(s)
        if self.denoise:
            sigma_s = torch.cat([sigma_s[:-1], torch.zeros_like(sigma_s[-1:])])
        A = sigma_s * rho / sde.sigma(t)
        led_here = torch.zeros(steps, steps, dtype=grid.dtype, device=grid.device)
        leads_on = torch.zeros_like(led_here)
        for i, row in enumerate(self.weights):  # the newest first
            leads_on[i, : i + 1] = torch.tensor(row[::-1], dtype=grid.dtype, device=grid.device)
        led_here[0, 0], led_here[1:, 1:] = 1.0, leads_on[:-1, :-1]
        weights = sde.alpha(s)[:, None] * leads_on - (A * sde.alpha(t))[:, None] * led_here
        m, n = equation.view("x0", t)
        return self.table(equation, grid, *equation.inputs(t), m, n, A, sigma_s * kappa, *weights.unbind(1))

    def _renewal(self, equation: ReverseEquation, grid: Tensor) -> tuple[Tensor, Tensor]:
        """ρ and κ of every step."""
        noisy = torch.tensor(self.noisy, device=grid.device)
        places = torch.arange(len(noisy), device=grid.device)
        since = torch.cat([places[:1], (places + 1)[:-1] * noisy[:-1]]).cummax(0).values
        half_log_snr = equation.sde.half_log_snr(grid)
        rho, kappa = eta_family(equation.eta, half_log_snr[since] - half_log_snr[1:])
        return torch.where(noisy, rho, 1.0), torch.where(noisy, kappa, 0.0)

    def step(self, equation: ReverseEquation, x: Tensor, row: Row, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        split = len(row) - len(self.weights)
        inputs, (m, n, A, kappa), weights = row[: split - 4], row[split - 4 : split], row[split:]
        y = equation.output(x, inputs)
        x_0 = y if equation.model.prediction == "x0" else combine((m, n), (x, y))
        if state is None:  # the weights of what was not evaluated are zero; a state of one size compiles once
            state = tuple(torch.zeros_like(x) for _ in weights[1:])
        found = (x_0, *state)
        x = combine((A, *weights), (x, *found))
        return (x.addcmul_(kappa, noise()) if equation.eta > 0 else x), found[:-1]
