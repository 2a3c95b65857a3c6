"""The best known solver and grid for a budget, without calibration: ``solver="auto"``.

For the flow and for the SDE alike: exponential multistep in EDM prediction, equal steps in λ from t=1 down to a λ that
depends on the budget, then a Tweedie step. The table holds order, corrector and last λ for each budget. It was chosen
by the geometric mean, over random mixtures in 2 to 64 dimensions and the embedded MNIST network, of the ratio to the
best configuration found for each of them (``python benchmarks/choose_auto.py``); the ring of eight modes, on which
the result is compared with other packages, was left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_toolkit.checking import is_count
from sde_toolkit.equation import check_eta
from sde_toolkit.errors import ArgumentError
from sde_toolkit.grids import check_grid
from sde_toolkit.integrators import Corrected, FrozenEDM, Integrator, Multistep
from sde_toolkit.score_model import ScoreModel
from sde_toolkit.sde import SDE
from sde_toolkit.solvers import Solver

__all__ = ["Plan", "auto"]

# (budget from which the row holds, order, corrected, last λ)
_FLOW = (
    (1, 2, False, 2.0),
    (8, 3, False, 3.5),
    (10, 4, False, 3.5),
    (20, 3, True, 3.5),
    (30, 4, True, 4.5),
    (50, 4, True, 5.0),
)
_SDE = ((1, 2, False, 2.75), (20, 2, False, 3.5), (50, 2, False, 4.25), (100, 2, False, 5.0))
_NOISE_ONLY = -5.0  # half log-SNR below which x_t is noise: VP's own at t=1


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
    _, order, corrected, last = max(row for row in (_FLOW if eta == 0 else _SDE) if row[0] <= nfe)
    frozen = FrozenEDM(model.sigma_data if model.prediction == "edm" else 1.0)
    integrator: Integrator = Multistep(order, frozen)
    if corrected:
        integrator = Corrected(Multistep(order, frozen))
    name = "auto" if eta == 0 else f"auto[eta={eta:g}]"
    return Plan(Solver(name, eta, integrator), _equal_steps(model.sde, nfe - 1, last), True)


def _equal_steps(sde: SDE, steps: int, last: float) -> Tensor:
    """Equal steps in λ down to ``last``, or to t=0 where the SDE ends before it; t=1 stands for all λ below −5."""
    first = max(sde.half_log_snr(1.0).item(), _NOISE_ONLY)
    last = min(last, sde.half_log_snr(0.0).item())
    times = sde.inverse_half_log_snr(torch.linspace(first, last, steps + 1, dtype=torch.float64))
    times[0] = 1.0
    if math.isclose(last, sde.half_log_snr(0.0).item()):
        times[-1] = 0.0
    return check_grid(times)
