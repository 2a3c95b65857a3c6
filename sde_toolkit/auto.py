"""The best known solver and grid for a budget, without calibration: ``solver="auto"``.

For the flow and for the SDE alike: exponential multistep in EDM prediction on a grid that is dense around the λ at
which data take shape (:func:`sde_toolkit.grids.sech`), then a Tweedie step. The table holds order, corrector, grid and
last λ for each budget. It was chosen by the geometric mean, over random mixtures in 2 to 64 dimensions, of the ratio
to the best configuration found for each of them, at every budget (``python benchmarks/choose_auto.py``). The ring of
eight modes, on which the result is compared with other packages, was left out.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sde_toolkit.checking import is_count
from sde_toolkit.equation import check_eta
from sde_toolkit.errors import ArgumentError
from sde_toolkit.grids import sech
from sde_toolkit.integrators import Corrected, FrozenEDM, Integrator, Multistep
from sde_toolkit.score_model import ScoreModel
from sde_toolkit.solvers import Solver

__all__ = ["Plan", "auto"]

# Budget from which the row holds, order, corrected, center and width of grids.sech, and the λ at which it ends.
_FLOW = (
    (1, 2, True, 0.75, 1.5, 2.0),
    (8, 2, True, 1.5, 2.0, 2.75),
    (10, 2, True, 1.5, 1.5, 2.75),
    (15, 3, True, 1.5, 2.0, 3.5),
    (20, 3, True, 0.75, 1.5, 4.5),
    (30, 3, True, 0.75, 1.5, 6.0),
    (50, 4, True, 0.75, 1.5, 6.0),
)
_SDE = (
    (1, 2, False, 0.75, 3.0, 2.75),
    (20, 2, False, 0.75, 3.0, 3.5),
    (50, 2, False, 0.75, 3.0, 4.25),
    (100, 2, False, 0.75, 3.0, 5.0),
)


@dataclass(frozen=True, eq=False)
class Plan:
    """What to run: ``sample(model, plan.solver, plan.grid, tweedie=plan.tweedie)``."""

    solver: Solver
    grid: Tensor
    tweedie: bool

    @property
    def nfe(self) -> int:
        """Evaluations per sample."""
        return (self.solver.integrator.evals_per_step or 1) * (len(self.grid) - 1) + self.tweedie


def auto(model: ScoreModel, nfe: int, eta: float = 0.0) -> Plan:
    """The best known solver and grid for ``nfe`` evaluations, the last of them the Tweedie step.

    η = 0 is the flow; any other η gets the table that was made for η = 1.

    Raises:
        ArgumentError: if ``nfe`` is not a whole number of at least 2, or ``eta`` is negative.
    """
    if not is_count(nfe, least=2):
        raise ArgumentError("nfe", nfe, "a step and the denoising at the end take two evaluations", "Pass nfe >= 2.")
    check_eta(eta)
    rows = _FLOW if eta == 0 else _SDE
    _, order, corrected, center, width, last = max(row for row in rows if row[0] <= nfe)
    frozen = FrozenEDM(model.sigma_data if model.prediction == "edm" else 1.0)
    integrator: Integrator = Multistep(order, frozen)
    if corrected:
        integrator = Corrected(Multistep(order, frozen))
    name = "auto" if eta == 0 else f"auto[eta={eta:g}]"
    sde = model.sde
    end = sde.inverse_half_log_snr(min(last, sde.half_log_snr(0.0).item())).item()
    return Plan(Solver(name, eta, integrator), sech(sde, nfe - 1, center=center, width=width, end=end), True)
