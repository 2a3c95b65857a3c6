"""Adams' methods for the probability flow in φ. The states on the trajectory are the corrected ones.

With c² = σ² + s² α² and φ = atan(σ/(s α)) the flow is d(x/c) = −F dφ, F being EDM's raw output at σ_d = s, so that over
a step from t to t′

    predicted   x̂′/c′ = x/c − Σ_j b_j F_j              polynomial through F_0 at t and the p − 1 values before it
    evaluated   F′ = F(x̂′, t′)                         the step's only evaluation
    corrected   x′/c′ = x/c − b′ F′ − Σ_j b*_j F_j     polynomial through F′, too: order p + 1

Hairer, Nørsett & Wanner 1993, "Solving ODEs I", section III.5 (variable steps); PEC, section III.1. F_0 is not
evaluated again at the corrected state. :class:`~sde_toolkit.integrators.Corrected` takes the same steps, but evaluates
at the beginning of a step, so that its trajectory holds the predicted states, with the error of the lower order. Here a
whole solve takes one evaluation more, and the states between and at the end have the higher order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.checks import check_count
from sde_toolkit.equation import ReverseEquation
from sde_toolkit.errors import ArgumentError
from sde_toolkit.integrators import Angle, FrozenEDM, Integrator, StepRow, Table
from sde_toolkit.integrators.integrator import combine
from sde_toolkit.likelihood.polynomials import lagrange
from sde_toolkit.models.prediction import edm_input_scale
from sde_toolkit.noise.streams import Noise

__all__ = ["Adams"]


@dataclass(frozen=True)
class Adams(Integrator):
    """Adams-Bashforth of order ``predictor``, corrected once by Adams-Moulton of one order more, in φ.

    N steps take N + 1 evaluations. The first steps use fewer values, and have lower orders.

    Args:
        predictor: number of values that the predictor's polynomial goes through.
        sigma_data: s, the size of the data.

    Raises:
        ArgumentError: unless both are positive, and ``predictor`` is a whole number.
    """

    predictor: int = 3
    sigma_data: float = 1.0

    evals_per_step: ClassVar[int | None] = 1

    def __post_init__(self) -> None:
        check_count("predictor", self.predictor, "3 is usual.")
        FrozenEDM(self.sigma_data)

    @property
    def order(self) -> int:  # type: ignore[override]
        return self.predictor + 1

    def prepare(self, equation: ReverseEquation, grid: Tensor) -> Table:
        """``begin``, ``end``: m, n and inputs there; ``carry``: c′/c; ``predict``, ``correct``: −c′ times weights."""
        sde, begin = equation.sde, self._columns(equation, grid[:-1])
        c = 1 / edm_input_scale(sde.alpha(grid), sde.sigma(grid), self.sigma_data)
        b, b_star = _adams(Angle(self.sigma_data).position(sde, sde.half_log_snr(grid)), self.predictor)
        last = self._at_the_end(equation, grid[-1:])
        if last is None:
            last = [column[-1:] for column in begin]
            b_star[-1] = torch.cat([torch.zeros_like(b[-1, :1]), b[-1]])
        end = [torch.cat([column[1:], value]) for column, value in zip(begin, last, strict=True)]
        predict, correct = ((-c[1:, None] * weights).unbind(1) for weights in (b, b_star))
        named = {"begin": begin, "end": end, "carry": c[1:] / c[:-1], "predict": predict, "correct": correct}
        return self.table(equation, grid, **named)

    def _columns(self, equation: ReverseEquation, t: Tensor) -> list[Tensor]:
        return [column.expand_as(t) for column in (*FrozenEDM(self.sigma_data).view(equation, t), *equation.inputs(t))]

    def _at_the_end(self, equation: ReverseEquation, t: Tensor) -> list[Tensor] | None:
        """None where F cannot be read, such as from a network told λ where α = 0: the last step stays predicted."""
        try:
            columns = self._columns(equation, t)
        except ArgumentError:
            return None
        return columns if bool(torch.cat(columns).isfinite().all()) else None

    def step(self, equation: ReverseEquation, x: Tensor, row: StepRow, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        past = (_edm_output(equation, x, row.begin),) * self.predictor if state is None else state
        predicted = combine((row.carry, *row.predict), (x, *past))
        now = _edm_output(equation, predicted, row.end)
        return combine((row.carry, *row.correct), (x, now, *past)), (now, *past[:-1])


def _edm_output(equation: ReverseEquation, x: Tensor, columns: tuple[Tensor, ...]) -> Tensor:
    """F at x."""
    m, n, *inputs = columns
    return combine((m, n), (x, equation.output(x, tuple(inputs))))


def _adams(phi: Tensor, p: int) -> tuple[Tensor, Tensor]:
    """Weights (steps, p) of the values at φ_i, φ_{i−1}, ... and (steps, p + 1) of those at φ_{i+1}, φ_i, ..."""
    u, w = np.polynomial.legendre.leggauss(p // 2 + 1)  # exact for the degree p
    steps = len(phi) - 1
    explicit, implicit = (phi.new_zeros(steps, k) for k in (p, p + 1))
    for i in range(steps):
        h = (phi[i + 1] - phi[i]) / 2
        at, weight = phi[i] + h * (1 + torch.from_numpy(u)), h * torch.from_numpy(w)
        past = phi[max(0, i + 1 - p) : i + 1].flip(0)
        explicit[i, : len(past)] = weight @ lagrange(past, at)
        nodes = torch.cat([phi[i + 1 : i + 2], past])
        implicit[i, : len(nodes)] = weight @ lagrange(nodes, at)
    return explicit, implicit
