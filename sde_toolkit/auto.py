"""The best known solver and grid for a budget, without calibration: ``solver="auto"``.

Exponential multistep methods on a grid that is dense around the λ at which data take shape
(:func:`sde_toolkit.grids.sech`), then a Tweedie step. For the flow the table was chosen by the geometric mean of the
ratio to the best configuration, over random mixtures in 2 to 64 dimensions (``python benchmarks/choose_auto.py``) and,
up to 10 evaluations, the embedded MNIST network; for the SDE by the variance within the modes of random mixtures and
their sliced Wasserstein distance. At few evaluations of the SDE it is the steps of ``few_steps.json``: knots in λ, the
weights of all evaluations in each step, and which steps add noise (:mod:`sde_toolkit.integrators.nonstationary`),
found by gradients through the sampler on random mixtures (``python benchmarks/fit_few_steps.py``). At 10 evaluations
events of at most three dimensions have steps of their own: modes lie at distances of every size there, in many
dimensions at much the same. benchmarks/README.md says how, and where the choice was constrained.

The tables are for data of size σ_d = 1. For others every λ in them is moved by −log σ_d: data and noise of twice the
size get the same times, and samples of twice the size.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import resources

import torch
from torch import Tensor

from sde_toolkit.amounts import check_countable
from sde_toolkit.checking import is_count
from sde_toolkit.equation import check_eta
from sde_toolkit.errors import ArgumentError
from sde_toolkit.grids import sech
from sde_toolkit.integrators import Corrected, FrozenEDM, Integrator, Multistep
from sde_toolkit.integrators.nonstationary import NonStationary
from sde_toolkit.score_model import ScoreModel
from sde_toolkit.solvers import Solver

__all__ = ["Plan", "auto"]

Method = Callable[[float], Integrator]
"""σ_d to an integrator."""


def _edm(order: int) -> Method:
    return lambda sigma_data: Multistep(order, FrozenEDM(sigma_data))


def _corrected(order: int) -> Method:
    return lambda sigma_data: Corrected(Multistep(order, FrozenEDM(sigma_data)))


# Budget from which the row holds, method, center and width of grids.sech, and the λ at which it ends, at σ_d = 1.
_FLOW: tuple[tuple[int, Method, float, float, float], ...] = (
    (1, _corrected(2), 0.0, 1.5, 1.6),
    (8, _edm(2), 0.75, 2.5, 2.75),
    (10, _corrected(2), 0.75, 2.0, 2.75),
    (15, _corrected(3), 0.75, 2.0, 3.5),
    (20, _corrected(3), 0.75, 1.5, 4.5),
    (30, _corrected(3), 0.75, 1.5, 6.0),
    (50, _corrected(4), 0.75, 1.5, 6.0),
)
_SDE: tuple[tuple[int, Method, float, float, float], ...] = (
    (1, _edm(2), 0.0, 3.0, 3.5),
    (20, _corrected(2), 0.0, 3.0, 3.5),
    (50, _corrected(2), 1.5, 2.0, 5.0),
    (100, _corrected(2), 1.5, 2.0, 6.0),
)


_LAST_OF_FEW = 25  # evaluations from which the rows above are about as good as the steps for 20


@dataclass(frozen=True, eq=False)
class _Few:
    """A row of ``few_steps.json``: the steps for ``nfe`` evaluations, and their λ at σ_d = 1, without the two ends.

    ``most_dimensions``: of the events that they are for.
    """

    nfe: int
    most_dimensions: float
    steps: NonStationary
    knots: Tensor


@cache
def _few_steps() -> tuple[_Few, ...]:
    rows = json.loads(resources.files("sde_toolkit").joinpath("few_steps.json").read_text())
    return tuple(
        _Few(
            row["nfe"],
            row.get("most_dimensions", math.inf),
            NonStationary(tuple(map(tuple, row["weights"])), tuple(row["noisy"]), denoise=True),
            torch.tensor(row["half_log_snr"], dtype=torch.float64),
        )
        for row in rows
    )


def _few(model: ScoreModel, nfe: int) -> tuple[NonStationary, Tensor] | None:
    """The steps for at most ``nfe`` evaluations and their times; None if there are none, or λ does not reach them."""
    sde, dimensions = model.sde, math.inf if model.event_shape is None else math.prod(model.event_shape)
    found = [row for row in _few_steps() if row.nfe <= nfe < _LAST_OF_FEW and dimensions <= row.most_dimensions]
    if not found:
        return None
    row = max(found, key=lambda row: (row.nfe, -row.most_dimensions))
    knots = row.knots - math.log(model.sigma_data)
    if not (sde.half_log_snr(1.0) < knots[0] and knots[-1] < sde.half_log_snr(0.0)):
        return None
    times = sde.inverse_half_log_snr(knots)
    return row.steps, torch.cat([times.new_ones(1), times, times.new_zeros(1)])


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
    """The best known solver and grid for at most ``nfe`` evaluations, the last of them to denoise.

    The grid is where the data take shape, which depends on their size: ``model.sigma_data`` should be √E[x_0²].

    η = 0 is the flow; any other η gets the table that was made for η = 1. With η = 1 and 10 to 24 evaluations the
    plan is one for 10, 14 or 20, which is better than what spends the rest, and adds noise in its outer steps only; for
    10 there are two, for an ``event_shape`` of at most three dimensions and for others (or none).

    Raises:
        ArgumentError: if ``nfe`` is not a whole number of at least 2, or ``eta`` is negative.
    """
    if not is_count(nfe, least=2):
        raise ArgumentError("nfe", nfe, "a step and the denoising at the end take two evaluations", "Pass nfe >= 2.")
    check_countable("nfe", nfe)
    check_eta(eta)
    name = "auto" if eta == 0 else f"auto[eta={eta:g}]"
    sde = model.sde
    if eta == 1 and (few := _few(model, nfe)) is not None:
        return Plan(Solver(name, eta, few[0]), few[1], False)
    rows = _FLOW if eta == 0 else _SDE
    _, method, center, width, last = max((row for row in rows if row[0] <= nfe), key=lambda row: row[0])
    size = model.sigma_data
    end = sde.inverse_half_log_snr(min(last - math.log(size), sde.half_log_snr(0.0).item())).item()
    grid = sech(sde, nfe - 1, center=center, width=width, sigma_data=size, end=end)
    return Plan(Solver(name, eta, method(size)), grid, True)
