"""Predictor-corrector sampling: any integrator of the reverse SDE, with Langevin steps between its steps.

    at t:  x ← corrector(x, t)        then        from t to s:  x ← predictor(x, t, s)

This is the order of score_sde's code (Song et al. 2021, algorithm 1, prints the predictor first). The corrector is then
never evaluated at the end of the grid, where σ may be 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from sde_toolkit.equation import ReverseEquation
from sde_toolkit.errors import ArgumentError
from sde_toolkit.integrators.integrator import Integrator
from sde_toolkit.integrators.langevin import Corrector, Langevin
from sde_toolkit.integrators.reverse_diffusion import ReverseDiffusion
from sde_toolkit.integrators.tables import StepRow, Table
from sde_toolkit.noise.streams import Noise

__all__ = ["PredictorCorrector"]


@dataclass(frozen=True)
class PredictorCorrector(Integrator):
    """``corrector`` at every time of the grid but the last, each followed by a step of ``predictor``.

    The predictor keeps its own state: a multistep method remembers its own evaluations, not those of the corrector.
    The weak order is 0: Langevin steps of a fixed snr leave a bias of O(snr²), which finer grids do not
    remove. η > 0 is required.

    Raises:
        ArgumentError: if the predictor is adaptive or not an integrator, or the corrector is not a :class:`Corrector`.
    """

    predictor: Integrator = field(default_factory=ReverseDiffusion)
    corrector: Corrector = field(default_factory=Langevin)

    order: ClassVar[int | None] = None
    weak_order: ClassVar[float | None] = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.predictor, Integrator) or self.predictor.evals_per_step is None:
            problem = "not an integrator of fixed steps"
            raise ArgumentError("predictor", self.predictor, problem, "Pass ReverseDiffusion(), Exponential(), ...")
        if not isinstance(self.corrector, Corrector):
            raise ArgumentError("corrector", self.corrector, "not a corrector", "Pass Langevin(snr=0.16).")

    @property
    def evals_per_step(self) -> int | None:  # type: ignore[override]
        """The predictor's and the corrector's."""
        predictor = self.predictor.evals_per_step
        return None if predictor is None else predictor + self.corrector.evals_per_step

    def check(self, equation: ReverseEquation) -> None:
        """Refuse the ODE, and whatever the predictor refuses.

        Raises:
            ArgumentError: for η = 0, or from the predictor.
        """
        if equation.eta == 0:
            problem = "a Langevin corrector adds noise, and η = 0 has none"
            raise ArgumentError("eta", equation.eta, problem, "Use eta=1, or the predictor alone.")
        self.predictor.check(equation)

    def draws_noise(self, eta: float) -> bool:
        """Always: the corrector draws."""
        return True

    def prepare(self, equation: ReverseEquation, grid: Tensor) -> Table:
        t, s = grid[:-1], grid[1:]
        correction = self.corrector.coefficients(equation, t, s)
        predictor = self.predictor.prepare(equation, grid)
        return self.table(equation, grid, correction=correction, inputs=equation.inputs(t), predictor=predictor)

    def step(self, equation: ReverseEquation, x: Tensor, row: StepRow, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        x = self.corrector.correct(equation, x, row.inputs, row.correction, noise)
        return self.predictor.step(equation, x, row.predictor, state, noise)
