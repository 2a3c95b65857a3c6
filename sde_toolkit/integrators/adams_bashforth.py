"""Adams-Bashforth in ε̂ with constant weights: iPNDM, whose weights are those of equal steps, whatever the grid.

    x_s = (α_s/α_t) x_t + α_s (τ_s − τ_t) Σ_j b_j ε̂_(−j),        τ = σ/α

b are the classical weights: (1), (3, −1)/2, (23, −16, 5)/12, (55, −59, 37, −9)/24. The first steps use as many values
as there are. On grids of unequal steps :class:`~sde_toolkit.integrators.Multistep` integrates the polynomial exactly
and has a higher order. At few evaluations these weights are often better, since they extrapolate less over long steps.

Liu et al. 2022 (PNDM): linear multistep method; Zhang & Chen 2023 (DEIS), appendix: iPNDM, which starts with fewer
values instead of Runge-Kutta steps. diffusers' IPNDMScheduler is the same with four values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sde_toolkit.checks import check_count
from sde_toolkit.equation import ReverseEquation
from sde_toolkit.integrators.frozen import Frozen, FrozenNoise
from sde_toolkit.integrators.integrator import Integrator
from sde_toolkit.integrators.multistep import Multistep, step_with_past
from sde_toolkit.integrators.tables import StepRow, Table
from sde_toolkit.noise.streams import Noise

__all__ = ["AdamsBashforth"]


@dataclass(frozen=True)
class AdamsBashforth(Integrator):
    """iPNDM with ``values`` values of ε̂, for the flow.

    The order is 2 at most where steps are unequal, however many values there are, and ``values`` where they are equal
    in σ/α.

    Raises:
        ArgumentError: if ``values`` is not a whole number, at least 1.
    """

    values: int = 4

    evals_per_step: ClassVar[int | None] = 1
    sees_alpha_sigma_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_count("values", self.values, "4 is usual.", most=12)

    @property
    def order(self) -> int:  # type: ignore[override]
        return min(self.values, 2)

    @property
    def tunable_weights(self) -> int | None:
        """A, B, and ``values`` − 1 weights of differences."""
        return 1 + self.values

    @property
    def frozen_quantity(self) -> Frozen | None:
        return FrozenNoise()

    def prepare(self, equation: ReverseEquation, grid: Tensor) -> Table:
        sde, t, s = equation.sde, grid[:-1], grid[1:]
        m, n, A, B, _, _ = Multistep(1, FrozenNoise()).columns(equation, grid)
        weights: list[Tensor] = []
        if self.values > 1:
            turn = sde.alpha(s) * (torch.exp(-sde.half_log_snr(s)) - torch.exp(-sde.half_log_snr(t)))
            turn = torch.where(torch.arange(len(t)) > 0, turn, 0.0)  # the first step has no earlier value
            known = [min(i + 1, self.values) for i in range(len(t))]
            b = torch.stack([_weights(p, self.values) for p in known])
            weights = [turn * b[:, j] for j in range(1, self.values)]
            taken = torch.stack(weights).sum(0)
            A, B = A - taken * m, B - taken * n
        view = (m, n) if self.values > 1 and not FrozenNoise().is_output_of(equation.model) else ()
        return self.table(equation, grid, inputs=equation.inputs(t), view=view, weights=(A, B, *weights))

    def step(self, equation: ReverseEquation, x: Tensor, row: StepRow, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        x, past = step_with_past(equation, x, row, state, noise, self.values - 1)
        if state is None:  # values of their own: torch compiles a step anew for tensors that are one and the same
            past = tuple(value.clone() for value in past)
        return x, past


def _weights(p: int, width: int) -> Tensor:
    """b_0 ... b_(p−1) and zeros: ∫ of the Lagrange polynomials of the nodes 0, −1, ... from 0 to 1, (width,)."""
    powers = torch.arange(p, dtype=torch.float64)
    nodes = -torch.arange(p, dtype=torch.float64)
    found = torch.linalg.solve(nodes[None, :] ** powers[:, None], 1 / (powers + 1))
    return torch.cat([found, found.new_zeros(width - p)])
