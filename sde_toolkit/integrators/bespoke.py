"""A solver without a rule: after every evaluation, any linear combination of the start and of all outputs so far.

    x_i/c_i = a_i x_0/c_0 + Σ_{j<i} b_ij F_j        i = 1 ... N,        c_i = √(σ_i² + α_i² σ_d²)

x_0 is the state at the grid's first time, F_j the raw output of EDM's preconditioning at x_j, and c_i the size of x_i,
so that all numbers are of size 1 and do not depend on units. The last state is at the data, where c_N = σ_d.
Every multistep method, with or without a corrector, is one of these solvers (:meth:`Bespoke.of`). The coefficients are
learned for one model and one grid (``sde_toolkit.calibration``), and have no order of convergence.

Shaul et al. 2024 (Bespoke Non-Stationary Solvers), eq. 11 and section 3.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from sde_toolkit.checks import check_positive, is_number
from sde_toolkit.equation import ReverseEquation
from sde_toolkit.errors import ArgumentError, GridError
from sde_toolkit.integrators.frozen import FrozenEDM
from sde_toolkit.integrators.gaussian_start import GaussianStart
from sde_toolkit.integrators.integrator import Integrator
from sde_toolkit.integrators.tables import StepRow, Table
from sde_toolkit.models.prediction import edm_input_scale
from sde_toolkit.noise.streams import Noise

__all__ = ["Bespoke", "as_bespoke"]


@dataclass(frozen=True)
class Bespoke(Integrator):
    """The solver with these ``coefficients``, on a grid of N steps that ends at t = 0, which stands for the data.

    Args:
        coefficients: N rows of 1 + N numbers (a_i, b_i0, ..., b_i(N−1)); those of outputs to come are 0.
        sigma_data: σ_d, in F and in the sizes c_i.

    Raises:
        ArgumentError: for other rows, or a σ_d that is not positive.
        GridError: from ``prepare``, for a grid with another number of steps, or another end.
    """

    coefficients: tuple[tuple[float, ...], ...]
    sigma_data: float = 1.0

    order: ClassVar[int | None] = None
    evals_per_step: ClassVar[int | None] = 1
    sees_alpha_sigma_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_positive("sigma_data", self.sigma_data, "Pass √E[x_0²] of the data.")
        rows = tuple(tuple(row) for row in self.coefficients)
        known = all(is_number(v) and (v == 0 or j <= i + 1) for i, row in enumerate(rows) for j, v in enumerate(row))
        if not (rows and known and all(len(row) == 1 + len(rows) for row in rows)):
            problem = "not N rows of 1 + N finite numbers, those of outputs to come 0"
            raise ArgumentError("coefficients", self.coefficients, problem, "Use Bespoke.of(...), or calibrate.")
        object.__setattr__(self, "coefficients", tuple(tuple(float(v) for v in row) for row in rows))

    @classmethod
    @torch.no_grad()
    def of(cls, integrator: Integrator, equation: ReverseEquation, grid: Tensor, *, tweedie: bool) -> Bespoke:
        """The solver that does what a linear ``integrator`` of one evaluation per step does on ``grid``.

        Its steps are applied to unit outputs. ``tweedie``: whether a last evaluation denoises; it becomes a step to 0.

        Raises:
            ArgumentError: for an integrator with another number of evaluations.
        """
        size, steps = equation.model.sigma_data, len(grid) - 1
        times = grid if tweedie else grid[:-1]
        m, n = FrozenEDM(size).view(equation, times)
        units = torch.eye(1 + len(times), dtype=torch.float64)
        asked = 0

        def evaluate(x: Tensor, *_: Any) -> Tensor:
            nonlocal asked
            if asked == len(times):
                raise ArgumentError("integrator", integrator, "it evaluates more than once in a step", "Use Multistep.")
            asked += 1
            return (units[asked] - m[asked - 1] * x) / n[asked - 1]

        unit = ReverseEquation(equation.model, 0.0, equation.condition, evaluate)
        c = _sizes(equation, times, size)
        x, state, found = c[0] * units[:1], None, []
        for row in integrator.prepare(equation, grid):
            x, state = integrator.step(unit, x, row, state, _no_draws)
            found.append(x[0])
        if tweedie:
            to_x, to_y = equation.view("x0", grid[-1])
            found.append((to_x * x + to_y * evaluate(x))[0])
        if asked != steps + tweedie:
            raise ArgumentError("integrator", integrator, "it does not evaluate once in a step", "Use Multistep.")
        rows = torch.stack(found) / c[1:, None]
        return cls(tuple(tuple(row) for row in rows.tril(1).tolist()), size)

    @property
    def learned_factors(self) -> tuple[tuple[float, ...], ...] | None:
        return self.coefficients

    def relearned(self, factors: tuple[tuple[float, ...], ...]) -> Bespoke:
        return replace(self, coefficients=factors)

    def __repr__(self) -> str:
        return f"Bespoke({len(self.coefficients)} steps)"

    def prepare(self, equation: ReverseEquation, grid: Tensor) -> Table:
        if len(grid) - 1 != len(self.coefficients) or grid[-1] != 0:
            problem = f"these coefficients are for {len(self.coefficients)} steps, the last of them to t=0"
            raise GridError("grid", tuple(grid.shape), problem, "Use the grid of the calibration they come from.")
        return self.apply(equation, grid, torch.tensor(self.coefficients, dtype=torch.float64, device=grid.device))

    def apply(self, equation: ReverseEquation, grid: Tensor, factors: Tensor) -> Table:
        """The table for a tensor of coefficients (N, 1 + N); differentiable in ``grid`` and ``factors``.

        ``begin``: what x_0 adds to all states; ``adds``: what the output adds to this state and to all later ones.
        """
        times, steps = grid[:-1], len(factors)
        c = _sizes(equation, times, self.sigma_data)
        scaled = factors.tril(1) * c[1:, None]
        here = torch.arange(steps, device=grid.device)
        later = here[:, None] + here  # of step j the states j, j + 1, ...
        adds = torch.where(later < steps, scaled[later.clamp(max=steps - 1), 1 + here[:, None]], 0.0)
        view = tuple(FrozenEDM(self.sigma_data).view(equation, times))
        begin = tuple((scaled[:, 0] / c[0]).unbind())
        return self.table(
            equation, grid, inputs=equation.inputs(times), view=view, begin=begin, adds=tuple(adds.unbind(1))
        )

    def step(self, equation: ReverseEquation, x: Tensor, row: StepRow, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        """``state``: all states to come (N, B, *event), as far as they are known, the next one first."""
        m, n = row.view
        F = m * x + n * equation.output(x, row.inputs)
        known = _times(row.begin, x) if state is None else state[0]
        known = known + _times(row.adds, F)
        return known[0], (known.roll(-1, 0),)


def as_bespoke(integrator: Integrator, equation: ReverseEquation, grid: Tensor, *, tweedie: bool) -> Integrator:
    """The integrator as a bespoke solver (:meth:`Bespoke.of`); a Gaussian start stays around it."""
    if not isinstance(integrator, GaussianStart):
        return Bespoke.of(integrator, equation, grid, tweedie=tweedie)
    within = torch.cat([grid.new_tensor([integrator.begin]), grid[1:]])
    return replace(integrator, integrator=Bespoke.of(integrator.integrator, equation, within, tweedie=tweedie))


def _times(coefficients: tuple[Tensor, ...], x: Tensor) -> Tensor:
    """Every coefficient times x: (coefficients, *x.shape)."""
    return torch.stack(coefficients).reshape(-1, *[1] * x.ndim) * x


def _sizes(equation: ReverseEquation, times: Tensor, sigma_data: float) -> Tensor:
    """c at the times, and at the data."""
    c = 1 / edm_input_scale(equation.sde.alpha(times), equation.sde.sigma(times), sigma_data)
    return torch.cat([c, c.new_full((1,), sigma_data)])


def _no_draws() -> Tensor:
    raise ArgumentError("integrator", None, "it draws noise", "Use a method of the ODE.")
