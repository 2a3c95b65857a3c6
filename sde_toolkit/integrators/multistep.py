"""Exponential multistep methods: order p from one evaluation per step, on any grid.

    x_s = u x̂_0 + w ε̂ + Σ_j w_j (F_{−j} − F_0) + κ z

F is what the step freezes (:mod:`frozen`). The w_j integrate the polynomial through its last p values
(:mod:`interpolation`). u, w and κ are those of the first-order step. With p = 1 and data prediction this is DDIM at
η = 0 and ancestral DDPM at η = 1; with p = 2, 3 it is exponential Adams-Bashforth: DPM-Solver++ 2M and 3M, their SDE
forms, DEIS. The first steps have fewer values and lower orders.

``Corrected`` adds UniPC's corrector: the evaluation at the predicted point is used twice, once to correct the
step just taken (its polynomial now also goes through the end of the step), and once for the next step. The corrector
costs no evaluation.

Lu et al. 2022b (DPM-Solver++), algorithm 2 and appendix A; Zhang & Chen 2023 (DEIS), eq. 14 to 16; Zhao et al. 2023
(UniPC), algorithms 1 and 2; Xue et al. 2023 (SA-Solver), eq. 14 and 17 for the stochastic forms.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from sde_toolkit.checks import check_count
from sde_toolkit.equation import ReverseEquation
from sde_toolkit.errors import ArgumentError
from sde_toolkit.integrators.coordinates import Coordinate, HalfLogSNR
from sde_toolkit.integrators.frozen import Frozen, FrozenX0
from sde_toolkit.integrators.integrator import Integrator, combine
from sde_toolkit.integrators.interpolation import TwoPoint, difference_weights
from sde_toolkit.integrators.tables import StepRow, Table
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.noise.streams import Noise

__all__ = ["Corrected", "Multistep", "step_with_past"]


@dataclass(frozen=True)
class Multistep(Integrator):
    """Exponential Adams-Bashforth of order ``order``.

    Args:
        order: number of values the polynomial goes through, at least 1.
        frozen: what a step freezes: ``FrozenX0()``, ``FrozenNoise()`` or ``FrozenEDM(sigma_data)``.
        coordinate: the variable of the polynomial.
        two_point: replaces the exact integral of a polynomial of degree one (``bh2``: DPM-Solver++ 2M's own).

    The first steps have fewer values and are of order 1, 2, ...: above order 2 the declared order shows only on grids
    whose first steps are small against the others. The weak order on the SDE is declared as 2 at most.

    Raises:
        ArgumentError: if ``order`` is not a whole number, at least 1.
    """

    order: int = 2  # type: ignore[misc]
    frozen: Frozen = field(default_factory=FrozenX0)
    coordinate: Coordinate = field(default_factory=HalfLogSNR)
    two_point: TwoPoint | None = None

    evals_per_step: ClassVar[int | None] = 1
    strong_order: ClassVar[float | None] = 1.0

    def __post_init__(self) -> None:
        check_count("order", self.order, "2 and 3 are usual.")
        if not isinstance(self.coordinate, Coordinate):
            raise ArgumentError("coordinate", self.coordinate, "not a Coordinate", "Pass HalfLogSNR() or Time().")

    @property
    def sees_alpha_sigma_only(self) -> bool:  # type: ignore[override]
        """As the coordinate."""
        return self.coordinate.sees_alpha_sigma_only

    @property
    def weak_order(self) -> float | None:  # type: ignore[override]
        return float(min(self.order, 2))

    def __repr__(self) -> str:
        two = self.two_point
        rule = "" if two is None else f", two_point={getattr(two, '__name__', two)}"
        return f"Multistep(order={self.order}, frozen={self.frozen}, coordinate={self.coordinate}{rule})"

    @property
    def tunable_weights(self) -> int | None:
        """A, B, and p − 1 weights of differences."""
        return 1 + self.order

    @property
    def frozen_quantity(self) -> Frozen | None:
        return self.frozen

    def prepare(self, equation: ReverseEquation, grid: Tensor) -> Table:
        m, n, A, B, kappa, weights = self.columns(equation, grid)
        taken = sum(weights) if weights else torch.zeros_like(A)
        A, B = A - taken * m, B - taken * n
        view = (m, n) if self.views(equation.model) else ()
        return self.table(equation, grid, **_head(equation, grid, view, kappa), weights=(A, B, *weights))

    def columns(self, equation: ReverseEquation, grid: Tensor) -> tuple[Any, ...]:
        """(m, n, A, B, κ, weights): F = m x + n y; A, B, κ of the first-order step; weights of the differences."""
        sde, eta, t, s = equation.sde, equation.eta, grid[:-1], grid[1:]
        m, n = self.frozen.view(equation, t)
        u, w, kappa = self.frozen.first_order(sde, eta, t, s)
        x_0, epsilon = equation.views(t, "x0", "epsilon")
        A, B = (u * a + w * b for a, b in zip(x_0, epsilon, strict=True))
        lambda_t = sde.half_log_snr(t)
        nodes = [_earlier(lambda_t, j) for j in range(self.order)]
        weights = []
        if self.order > 1:
            weights = difference_weights(sde, eta, self.frozen, self.coordinate, self.two_point, lambda_t, s, nodes)
        return m, n, A, B, kappa, weights

    def views(self, model: ScoreModel) -> bool:
        """Whether F must be computed from x and y, because later steps use it."""
        return self.order > 1 and not self.frozen.is_output_of(model)

    def step(self, equation: ReverseEquation, x: Tensor, row: StepRow, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        return step_with_past(equation, x, row, state, noise, self.order - 1)


@dataclass(frozen=True)
class Corrected(Integrator):
    """UniPC's corrector around a multistep predictor: order p + 1 for a predictor of order p (UniPC-p).

    The corrector's polynomial goes through the value at the predicted point and the p values of the predictor. The
    last step is not corrected. With η > 0 the corrected step has the same noise as the predicted one (SA-Solver).

    Raises:
        ArgumentError: if ``predictor`` is not a :class:`Multistep`.
    """

    predictor: Multistep = field(default_factory=Multistep)

    evals_per_step: ClassVar[int | None] = 1
    strong_order: ClassVar[float | None] = 1.0
    place_of_x: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not isinstance(self.predictor, Multistep):
            problem = "the corrector reuses the values of a multistep predictor"
            raise ArgumentError("predictor", self.predictor, problem, "Pass Multistep(...).")

    @property
    def order(self) -> int:  # type: ignore[override]
        return self.predictor.order + 1

    @property
    def sees_alpha_sigma_only(self) -> bool:  # type: ignore[override]
        """As the predictor."""
        return self.predictor.sees_alpha_sigma_only

    @property
    def weak_order(self) -> float | None:  # type: ignore[override]
        return self.predictor.weak_order

    @property
    def tunable_weights(self) -> int | None:
        """Carry, A, B, p weights of the predictor, p + 1 weights of the corrector."""
        return 4 + 2 * self.predictor.order

    @property
    def linear_weights(self) -> int | None:
        """All but those of the corrector, which belong to the step before."""
        return 3 + self.predictor.order

    @property
    def frozen_quantity(self) -> Frozen | None:
        return self.predictor.frozen

    def prepare(self, equation: ReverseEquation, grid: Tensor) -> Table:
        """``correct`` is the weights of the corrector of the step before."""
        own, sde, t, s = self.predictor, equation.sde, grid[:-1], grid[1:]
        m, n, A, B, kappa, weights = own.columns(equation, grid)
        lambda_t = sde.half_log_snr(t)
        nodes = [_earlier(lambda_t, j) for j in range(own.order)]
        nodes.insert(1, sde.half_log_snr(s))
        how = (own.frozen, own.coordinate, own.two_point)
        new, *old = difference_weights(sde, equation.eta, *how, lambda_t, s, nodes)
        corrections = [_of_the_step_before(c) for c in (new, -(new + sum(old)), *old)]
        carry = own.frozen.carry(sde, equation.eta, t, s)
        carry[0] = 0.0  # nothing has been corrected yet
        predictions = [-sum(weights) if weights else torch.zeros_like(A), *weights]
        view = () if own.frozen.is_output_of(equation.model) else (m, n)
        named = {"carry": carry, "A": A - carry, "B": B, "predict": predictions, "correct": corrections}
        return self.table(equation, grid, **_head(equation, grid, view, kappa), **named)

    def step(self, equation: ReverseEquation, x: Tensor, row: StepRow, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        p = self.predictor.order
        y, now = _output_and_frozen(equation, x, row)
        base, past = (x, (now,) * p) if state is None else state
        corrected = _add(base, row.correct, (now, *past))
        base = combine((row.A, row.B, row.carry), (x, y, corrected))
        if equation.eta > 0:
            base.addcmul_(row.kappa, noise())
        past = (now, *past[:-1])
        return _add(base, row.predict, past), (base, past)


def step_with_past(
    equation: ReverseEquation, x: Tensor, row: StepRow, state: Any, noise: Noise, length: int
) -> tuple[Tensor, Any]:
    """One evaluation, and a combination of x, y and the last ``length`` values of F, which are the state."""
    y, now = _output_and_frozen(equation, x, row)
    past = (now,) * length if state is None else state
    x = combine(row.weights, (x, y, *past))
    if equation.eta > 0:
        x.addcmul_(row.kappa, noise())
    return x, (now, *past)[:length]


def _head(equation: ReverseEquation, grid: Tensor, view: tuple[Tensor, ...], kappa: Tensor) -> dict[str, Any]:
    """The columns before the weights. Each costs time in every step, so there are only those that a step uses.

    ``view``: (m, n), or () if F is the output or is not needed.
    """
    columns = {"inputs": equation.inputs(grid[:-1]), "view": view}
    return {**columns, "kappa": kappa} if equation.eta > 0 else columns


def _output_and_frozen(equation: ReverseEquation, x: Tensor, row: StepRow) -> tuple[Tensor, Tensor]:
    """The output y, and F = m x + n y; (y, y) if the row has no m and n."""
    y = equation.output(x, row.inputs)
    return y, combine(row.view, (x, y)) if row.view else y


def _earlier(values: Tensor, j: int) -> Tensor:
    """values[i − j] at position i, NaN where there is none."""
    return torch.cat([values.new_full((min(j, len(values)),), torch.nan), values[: max(0, len(values) - j)]])


def _of_the_step_before(weights: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(weights[:1]), weights[:-1]])


def _add(x: Tensor, weights: tuple[Tensor, ...], values: tuple[Tensor, ...]) -> Tensor:
    """x + Σ_j weight_j value_j, a new tensor; at least one value."""
    pairs = list(zip(weights, values, strict=True))
    total = torch.addcmul(x, *pairs[0])
    for weight, value in pairs[1:]:
        total.addcmul_(weight, value)
    return total
