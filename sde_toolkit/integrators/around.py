"""What an integrator around another one declares: what the one inside does."""

from __future__ import annotations

from dataclasses import dataclass

from sde_toolkit.equation import ReverseEquation
from sde_toolkit.integrators.frozen import Frozen
from sde_toolkit.integrators.integrator import Integrator

__all__ = ["IntegratorAround"]


@dataclass(frozen=True)
class IntegratorAround(Integrator):
    """Base of integrators that change the first or the last step of ``integrator``, and declare what it declares."""

    integrator: Integrator

    @property
    def order(self) -> int | None:  # type: ignore[override]
        return self.integrator.order

    @property
    def strong_order(self) -> float | None:  # type: ignore[override]
        return self.integrator.strong_order

    @property
    def weak_order(self) -> float | None:  # type: ignore[override]
        return self.integrator.weak_order

    @property
    def evals_per_step(self) -> int | None:  # type: ignore[override]
        return self.integrator.evals_per_step

    @property
    def sees_alpha_sigma_only(self) -> bool:  # type: ignore[override]
        return self.integrator.sees_alpha_sigma_only

    @property
    def place_of_x(self) -> int:  # type: ignore[override]
        return self.integrator.place_of_x

    @property
    def tunable_weights(self) -> int | None:
        return self.integrator.tunable_weights

    @property
    def linear_weights(self) -> int | None:
        return self.integrator.linear_weights

    @property
    def frozen_quantity(self) -> Frozen | None:
        return self.integrator.frozen_quantity

    def draws_noise(self, eta: float) -> bool:
        return self.integrator.draws_noise(eta)

    def check(self, equation: ReverseEquation) -> None:
        self.integrator.check(equation)
