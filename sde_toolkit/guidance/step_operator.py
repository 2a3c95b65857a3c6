"""Step operators: methods that change a step, not only what the model says of x_0. They are integrators.

A wrapper gives a new x̂_0, and ε̂ follows from it. A step operator sees the two apart, and the level that comes next, and
returns x_s. Without guidance it is the exponential step of order 1,

    x_s = α_s x̂_0 + ρ ε̂ + κ z,        ε̂ = (x_t − α_t x̂_0)/σ_t

with ρ and κ of a noise rule (:mod:`sde_toolkit.integrators.exponential`). A new operator implements
:meth:`StepOperator.move`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from sde_toolkit.equation import ReverseEquation
from sde_toolkit.integrators.exponential import NoiseRule, eta_family
from sde_toolkit.integrators.integrator import Integrator
from sde_toolkit.integrators.tables import StepRow, Table
from sde_toolkit.models.score_model import Inputs
from sde_toolkit.models.wrapper import Inside
from sde_toolkit.noise.streams import Noise

__all__ = ["Level", "OneStep", "StepOperator"]


class Level(NamedTuple):
    """α and σ of a time, 0-dim, in the dtype and on the device of the state."""

    alpha: Tensor
    sigma: Tensor


@dataclass(frozen=True, eq=False)
class OneStep:
    """What a step operator sees: the step from t to s < t.

    Attributes:
        x_t: (B, *event).
        condition: the caller's, the rows of this batch.
        inside: the model at t: ``inside(x, condition)`` is its x̂_0 at (x, t) by one evaluation, and
            ``inside.vjp(x, condition)`` gives products with the Jacobian, too.
        now, next: α and σ at t and at s; σ_s may be 0.
        rho, kappa: of the step, 0-dim; κ is 0 in the flow, and where σ_s = 0.
        eta: the equation's stochasticity.
        noise: every call is a standard normal draw of the shape of x_t, the same for a sample whatever the batch. The
            number of draws must not depend on the state.
        row: the coefficients of the step by name, those of :meth:`StepOperator.columns` with them.
    """

    x_t: Tensor
    condition: Any
    inside: Inside
    now: Level
    next: Level
    rho: Tensor
    kappa: Tensor
    eta: float
    noise: Noise
    row: StepRow

    def estimate(self) -> Tensor:
        """x̂_0 at x_t under the caller's condition, by one evaluation."""
        return self.inside(self.x_t, self.condition)

    def epsilon(self, x_0: Tensor) -> Tensor:
        """The ε̂ = (x_t − α_t x̂_0)/σ_t that belongs to an x̂_0."""
        return (self.x_t - self.now.alpha * x_0) / self.now.sigma

    def exponential(self, x_0: Tensor, epsilon: Tensor | None = None) -> Tensor:
        """x_s = α_s x̂_0 + ρ ε̂ + κ z. Without ``epsilon``: the one that belongs to x̂_0. One draw of noise if η > 0."""
        x_s = self.next.alpha * x_0 + self.rho * (self.epsilon(x_0) if epsilon is None else epsilon)
        return x_s if self.eta == 0 else x_s + self.kappa * self.noise()


@dataclass(frozen=True, eq=False)
class StepOperator(Integrator):
    """Base class: a frozen dataclass that implements :meth:`move`.

    ``noise`` is the rule for ρ and κ, the η-family by default.
    Evaluations and products are counted in ``move``, wherever they are made. A subclass states ``evals_per_step``, a
    class attribute or a property; 1 by default. A subclass that holds tensors is declared with ``eq=False`` and is
    equal to itself alone; any other is declared with ``@dataclass(frozen=True)``, so that its fields are compared.
    The declared orders are those of a method that equals the exponential step at its neutral setting.
    """

    noise: NoiseRule = field(default=eta_family, kw_only=True, repr=False)

    order: ClassVar[int | None] = 1
    strong_order: ClassVar[float | None] = 1.0
    weak_order: ClassVar[float | None] = 1.0
    evals_per_step: ClassVar[int | None] = 1
    sees_alpha_sigma_only: ClassVar[bool] = True
    samples_the_model: ClassVar[bool] = False

    __eq__ = object.__eq__  # not the inherited one, which would call two operators with other fields equal
    __hash__ = object.__hash__

    @abstractmethod
    def move(self, step: OneStep) -> Tensor:
        """x_s, of the shape of x_t, which stays unchanged."""

    def columns(self, equation: ReverseEquation, t: Tensor, s: Tensor) -> dict[str, Any]:
        """Coefficients of the method's own, by name: each (steps,) float64, or a tuple of such, computed once per grid.

        ``step.row`` has them. ``equation.inputs(u)`` and ``equation.view("x0", u)`` are what :meth:`inside` needs of
        other times u.
        """
        return {}

    def prepare(self, equation: ReverseEquation, grid: Tensor) -> Table:
        t, s, sde = grid[:-1], grid[1:], equation.sde
        rho, kappa = self.noise(equation.eta, sde.half_log_snr(t) - sde.half_log_snr(s))
        sigma_s = sde.sigma(s)
        return self.table(
            equation,
            grid,
            inputs=equation.inputs(t),
            view=equation.view("x0", t),
            time=t,
            now=(sde.alpha(t), sde.sigma(t)),
            next=(sde.alpha(s), sigma_s),
            rho=sigma_s * rho,
            kappa=sigma_s * kappa,
            **self.columns(equation, t, s),
        )

    def step(self, equation: ReverseEquation, x: Tensor, row: StepRow, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        """One step; no state is kept."""

        def move(x_t: Tensor, inputs: Inputs, condition: Any) -> Tensor:
            inside = inside_of(equation, x_t, inputs, row.view, row.time, row.now)
            return self.move(
                OneStep(
                    x_t=x_t,
                    condition=condition,
                    inside=inside,
                    now=Level(*row.now),
                    next=Level(*row.next),
                    rho=row.rho,
                    kappa=row.kappa,
                    eta=equation.eta,
                    noise=noise,
                    row=row,
                )
            )

        call: Callable[..., Any] = move
        if equation.evaluate is None:
            return call(x, row.inputs, equation.condition), None
        return equation.evaluate(x, row.inputs, equation.condition, call), None


def inside_of(
    equation: ReverseEquation,
    x_t: Tensor,
    inputs: Inputs,
    view: tuple[Tensor, Tensor],
    time: Tensor,
    level: tuple[Tensor, Tensor],
) -> Inside:
    """The model of an equation at one time: its inputs, the (m, n) of its x̂_0, t, and (α, σ), all 0-dim."""
    return Inside(equation.model, x_t.shape[0], inputs, *view, time, *level)
