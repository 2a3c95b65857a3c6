"""A multistep method whose coefficients were tuned for one grid: every column of its table times a learned factor.

    x_s = f_A A x_t + f_B B y + Σ_j f_j w_j F_j + κ z        one row (f_A, f_B, f_1, ...) for every step

y is the network's output, except for networks that predict v = α ε − σ x_0. The meaning of v depends on the units of x,
and so would its factors: there y is EDM's F at the model's σ_d, which on a VP path at σ_d = 1 is −v.

The network's inputs, m and n of F, and the noise κ are not changed. If all factors are 1, the result is the inner
method's, bit for bit. A table of factors is for one number of steps, and has no order of convergence.
``sde_toolkit.calibration`` finds the factors, as coefficients of few-step solvers are found by distillation (Tong et
al. 2025, LD3; Zhou et al. 2024, AMED; Zheng et al. 2023, DPM-Solver-v3, there from statistics of the network).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from sde_toolkit.checks import is_number
from sde_toolkit.equation import ReverseEquation
from sde_toolkit.errors import ArgumentError, GridError
from sde_toolkit.integrators.frozen import FrozenEDM
from sde_toolkit.integrators.integrator import Integrator
from sde_toolkit.integrators.tables import StepRow, Table
from sde_toolkit.noise.streams import Noise

__all__ = ["Tuned", "multiplied", "tilt"]


def tilt(equation: ReverseEquation, grid: Tensor, begin: float | None = None) -> Tensor:
    """m/n for the steps of the grid, where F = m x + n y is EDM's and y a network's v; 0 for other networks.

    ``begin``: the time of the first evaluation, where it is below the grid's first time.
    """
    times = grid[:-1]
    if equation.model.prediction != "v":
        return torch.zeros_like(times)
    if begin is not None and begin < times[0]:
        times = torch.cat([torch.full_like(times[:1], begin), times[1:]])
    m, n = FrozenEDM(equation.model.sigma_data).view(equation, times)
    return m / n


def multiplied(integrator: Integrator, table: Table, factors: Tensor, tilts: Tensor) -> Table:
    """The table with the last coefficients of its rows multiplied: ``factors`` (steps, c), ``tilts`` (steps,).

    A x + B y = (A − B m/n) x + (B/n) F: where ``tilts`` m/n are not 0, f_A multiplies x and f_B multiplies F.
    """
    values, place = table.values, integrator.place_of_x
    fixed = values.shape[1] - factors.shape[1]
    f_A, f_B, B = factors[:, place], factors[:, place + 1], values[:, fixed + place + 1]
    found = values * torch.cat([values.new_ones(len(values), fixed), factors], dim=1)
    columns = list(found.unbind(1))
    columns[fixed + place] = columns[fixed + place] + (f_B - f_A) * B * tilts
    return Table(torch.stack(columns, dim=1), table.layout, table.switches)


@dataclass(frozen=True)
class Tuned(Integrator):
    """``integrator`` with its coefficients multiplied by ``factors``, one row per step.

    Args:
        integrator: a :class:`Multistep`, a :class:`Corrected` or an affine step such as ``Exponential()``.
        factors: steps × coefficients, in the order of the integrator's table.

    Raises:
        ArgumentError: for an integrator without tunable coefficients, or factors that are not rows of finite numbers.
        GridError: from ``prepare``, for a grid with another number of steps.
    """

    integrator: Integrator
    factors: tuple[tuple[float, ...], ...]

    order: ClassVar[int | None] = None
    evals_per_step: ClassVar[int | None] = 1

    @property
    def first_evaluation(self) -> float | None:
        return self.integrator.first_evaluation

    def __post_init__(self) -> None:
        count = self.integrator.tunable_weights
        if count is None:
            remedy = "Tune a Multistep, a Corrected or an Exponential."
            raise ArgumentError("integrator", self.integrator, "it has no tunable coefficients", remedy)
        rows = tuple(tuple(row) for row in self.factors)
        if not rows or not all(len(row) == count and all(map(is_number, row)) for row in rows):
            problem = f"{self.integrator} has {count} coefficients in every step"
            raise ArgumentError("factors", self.factors, problem, "Pass rows of as many finite numbers.")
        object.__setattr__(self, "factors", tuple(tuple(float(f) for f in row) for row in rows))

    @property
    def learned_factors(self) -> tuple[tuple[float, ...], ...] | None:
        return self.factors

    def relearned(self, factors: tuple[tuple[float, ...], ...]) -> Tuned:
        return replace(self, factors=factors)

    @property
    def weak_order(self) -> float | None:  # type: ignore[override]
        return self.integrator.weak_order

    def __repr__(self) -> str:
        return f"Tuned({self.integrator}, {len(self.factors)} steps)"

    def prepare(self, equation: ReverseEquation, grid: Tensor) -> Table:
        """The table of the inner integrator, with its coefficients multiplied."""
        if len(grid) - 1 != len(self.factors):
            problem = f"it has {len(grid) - 1} steps, and these coefficients were tuned for {len(self.factors)}"
            raise GridError("grid", tuple(grid.shape), problem, "Use the grid of the calibration they come from.")
        return self.apply(equation, grid, torch.tensor(self.factors, dtype=torch.float64, device=grid.device))

    def apply(self, equation: ReverseEquation, grid: Tensor, factors: Tensor) -> Table:
        """The table for a tensor of factors; differentiable in ``grid`` and ``factors``."""
        table = self.integrator.prepare(equation, grid)
        return multiplied(self.integrator, table, factors, tilt(equation, grid, self.first_evaluation))

    def step(self, equation: ReverseEquation, x: Tensor, row: StepRow, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        return self.integrator.step(equation, x, row, state, noise)
