"""The base class of integrators: how the equation of a solver is discretised.

``prepare(equation, grid)`` computes all coefficients of a grid once, in float64, one row per step.
``step(equation, x, row, state, noise)`` is pure: it takes x from one time to the next, and may evaluate
the equation's network as often as it needs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from sde_toolkit.equation import ReverseEquation
from sde_toolkit.errors import ArgumentError, GridError
from sde_toolkit.integrators.stepping import Statistics
from sde_toolkit.integrators.tables import StepRow, Table
from sde_toolkit.noise.streams import Noise

if TYPE_CHECKING:
    from sde_toolkit.integrators.frozen import Frozen

__all__ = ["AffineStep", "DenseIntegrator", "Integrator", "combine"]


def combine(coefficients: Iterable[Tensor], values: Iterable[Tensor]) -> Tensor:
    """Σ_j coefficient_j value_j, a new tensor.

    The first product is the only one that takes memory: the others are added to it in place, one pass each.
    """
    pairs = list(zip(coefficients, values, strict=True))  # torch 2.4 would compile a zip begun by next() from its start
    total = pairs[0][0] * pairs[0][1]
    for coefficient, value in pairs[1:]:
        total.addcmul_(coefficient, value)
    return total


@dataclass(frozen=True)
class Integrator(ABC):
    """Base class: immutable, with its declared properties.

    ``order``: convergence order on the ODE (η = 0); None if the method is adaptive or needs noise. ``strong_order`` and
    ``weak_order``: on the SDE (η > 0); None for a method of the ODE. ``evals_per_step``: None if adaptive.
    ``sees_alpha_sigma_only``: whether its steps depend on α and σ alone, not on their slopes in t. Such a method keeps
    its order where α and σ have kinks in t. ``samples_the_model``: whether shorter and shorter steps lead to samples of
    the equation's model. Methods that put in a measurement or a guidance of their own lead elsewhere.
    ``place_of_x``: position of the coefficient of x_t among the tunable ones.
    """

    order: ClassVar[int | None]
    strong_order: ClassVar[float | None] = None
    weak_order: ClassVar[float | None] = None
    evals_per_step: ClassVar[int | None]
    sees_alpha_sigma_only: ClassVar[bool] = False
    samples_the_model: ClassVar[bool] = True
    place_of_x: ClassVar[int] = 0

    @property
    def tunable_weights(self) -> int | None:
        """How many coefficients, the last ones of every row, may be multiplied by factors; None where none may.

        Before them are the network's inputs, m, n and κ.
        """
        return None

    @property
    def linear_weights(self) -> int | None:
        """How many of the tunable coefficients, counted from the first, x_s is linear in."""
        return self.tunable_weights

    @property
    def frozen_quantity(self) -> Frozen | None:
        """What an exponential method freezes in a step, or continues by a polynomial; None for other methods."""
        return None

    @property
    def first_evaluation(self) -> float | None:
        """The time of the first evaluation where a method makes none at a grid's first time; None for other methods."""
        return None

    @property
    def learned_factors(self) -> tuple[tuple[float, ...], ...] | None:
        """The numbers that were learned for the method, one row per step; None for other methods."""
        return None

    def relearned(self, factors: tuple[tuple[float, ...], ...]) -> Integrator:
        """The method with other learned numbers.

        Raises:
            ArgumentError: for a method without any.
        """
        raise ArgumentError("integrator", self, "it has no learned numbers", "Use Tuned(...) or Bespoke(...).")

    def apply(self, equation: ReverseEquation, grid: Tensor, factors: Tensor) -> Table:
        """The table of :meth:`prepare` for learned numbers as a tensor; differentiable in ``grid`` and ``factors``.

        Raises:
            ArgumentError: for a method without any.
        """
        raise ArgumentError("integrator", self, "it has no learned numbers", "Use Tuned(...) or Bespoke(...).")

    def check(self, equation: ReverseEquation) -> None:
        """Refuse an equation that this integrator cannot solve.

        Raises:
            ArgumentError: for a stochastic equation and a method of the ODE.
        """
        if equation.eta > 0 and self.weak_order is None:
            raise ArgumentError(
                "eta",
                equation.eta,
                f"{self} integrates ODEs only",
                "Use eta=0, or an integrator with a weak order, such as Euler() or Exponential().",
            )

    def draws_noise(self, eta: float) -> bool:
        """Whether its steps draw noise in the equation of this η: by default where η > 0."""
        return eta > 0

    @abstractmethod
    def prepare(self, equation: ReverseEquation, grid: Tensor) -> Table:
        """Coefficients of all steps by name, float64: what :meth:`table` returns."""

    @abstractmethod
    def step(self, equation: ReverseEquation, x: Tensor, row: StepRow, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        """One step: (x at the next time, state for the next step). ``state`` is None at the first.

        ``row`` has the names that ``prepare`` gave to the columns: ``row.inputs``, for example.
        Every call of ``noise()`` is a standard normal draw of the shape of x; a method of the ODE makes none.
        """

    def table(self, equation: ReverseEquation, grid: Tensor, **columns: Any) -> Table:
        """The table of these columns: each a tensor (steps,), a tuple of such, or another table.

        Raises:
            GridError: if one of them is not finite.
        """
        table = Table.of(len(grid) - 1, columns)
        finite = table.values.isfinite().all(1)
        if not bool(finite.all()):
            i = int((~finite).int().argmax())
            raise GridError(
                "grid",
                grid[i : i + 2].tolist(),
                f"{self} has no finite coefficients for step {i} of {equation.sde}",
                _where_it_is_finite(equation, grid[i : i + 2]),
            )
        return table


def _where_it_is_finite(equation: ReverseEquation, step: Tensor) -> str:
    """The remedy for a step without finite coefficients: it depends on the end of [0, 1] at which the step lies."""
    start = "Start the grid a little below t=1, at 0.999 for example"
    end = f"End the grid at sampling_end={equation.sde.sampling_end} and finish with tweedie=True"
    remedies = [start] if step.max().item() == 1 else []
    if step.min().item() < equation.sde.sampling_end or not remedies:
        remedies.append(end)
    return ". ".join(remedies) + "."


class AffineStep(Integrator):
    """One evaluation at the beginning of the step, and an update that is linear in x and the output:

        x_s = A x_t + B y + K z,        y = network(x_t, t),    z ~ N(0, I)

    Euler-Maruyama, ancestral DDPM and DDIM all have this form; they differ only in A, B and K.
    """

    evals_per_step: ClassVar[int | None] = 1

    @property
    def tunable_weights(self) -> int | None:
        """A and B."""
        return 2

    @abstractmethod
    def coefficients(self, equation: ReverseEquation, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(A, B, K) for the steps from the times t to the times s, float64."""

    def prepare(self, equation: ReverseEquation, grid: Tensor) -> Table:
        A, B, K = self.coefficients(equation, grid[:-1], grid[1:])
        fresh = {"K": K} if equation.eta > 0 else {}
        return self.table(equation, grid, inputs=equation.inputs(grid[:-1]), **fresh, A=A, B=B)

    def step(self, equation: ReverseEquation, x: Tensor, row: StepRow, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        y = equation.output(x, row.inputs)
        x = (row.A * x).addcmul_(row.B, y)  # one pass and one tensor less than A * x + B * y
        return (x.addcmul_(row.K, noise()) if equation.eta > 0 else x), None


@dataclass(frozen=True)
class DenseIntegrator(Integrator):
    """An adaptive method of the probability flow in λ that also gives the solution between its steps.

    ``step`` and ``states`` are the same solve; ``states`` also returns the solution at times on the way.
    """

    order: ClassVar[int | None] = None
    evals_per_step: ClassVar[int | None] = None

    def prepare(self, equation: ReverseEquation, grid: Tensor) -> Table:
        """λ at the two ends of every interval. Other coefficients are computed during the solve."""
        lambdas = equation.sde.half_log_snr(grid)
        return self.table(equation, grid, begin=lambdas[:-1], end=lambdas[1:])

    @abstractmethod
    def states(self, equation: ReverseEquation, x: Tensor, times: Tensor) -> tuple[Tensor, Statistics]:
        """The solution through ``x`` at all ``times``, and the numbers of steps and evaluations.

        ``times`` (K,), K >= 2, float64 in [0, 1], strictly increasing or strictly decreasing; ``x`` (B, *event) is
        the state at ``times[0]``. It is one solve with steps as long as the tolerances allow, and it ends exactly at
        ``times[-1]``. The states between come from the method's interpolant: they do not change the steps, and
        their error is of the size of the steps' error. The result is differentiable with respect to x and to
        everything that the network's output depends on; the step lengths are not differentiated.

        Shapes: (K, B, *event) in the dtype and on the device of x; the first state is x.

        Raises:
            ArgumentError: for a stochastic equation, as :meth:`check`; if gradients are needed and autograd cannot
                follow the method.
            GridError: for times that are not such a sequence, or if λ is infinite at one (σ = 0 or α = 0).
        """

    def lambdas(self, equation: ReverseEquation, times: Tensor) -> Tensor:
        """λ at the times of :meth:`states`, float64 on the CPU, after all checks."""
        self.check(equation)
        times = times.detach().to("cpu", torch.float64)
        steps = times.diff() if times.ndim == 1 else times.new_empty(0)
        inside = bool(((times >= 0) & (times <= 1)).all())
        if not (len(steps) and inside and bool((steps > 0).all() | (steps < 0).all())):
            problem = "not a strictly monotone sequence of at least two times in [0, 1]"
            raise GridError("times", times.tolist(), problem, "Sort the times and leave out what is repeated.")
        self.prepare(equation, times)  # it refuses times at which λ is infinite
        return equation.sde.half_log_snr(times)
