"""From a budget to a plan: the grid that is usual for a solver, or the best solver and grid known without calibration.

:func:`usual_plan` builds the grid that a solver names, ended as usual. :func:`auto` reads a table of solvers. For the
flow the steps are short where the flow of the model bends, which is measured once per model (:mod:`.bending`). The
table was chosen over small trained networks and mixtures, half of which were kept out
(``python benchmarks/choose_auto.py``). For the SDE the table was chosen by the variance within the modes of random
mixtures and their sliced Wasserstein distance (``--eta 1``).

The tables are for data of size σ_d = 1. For others every λ in them is moved by −log σ_d: data and noise of twice the
size get the same times, and samples of twice the size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.checks import MOST, check_count
from sde_toolkit.equation import ReverseEquation, check_eta
from sde_toolkit.errors import ArgumentError
from sde_toolkit.grids import sech, uniform
from sde_toolkit.integrators import Corrected, FrozenEDM, Landing, Multistep
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.sampling.bending import LAMBDA_FIRST, Bending, assumed_bending, least_time, measured_bending
from sde_toolkit.solvers import GridBuilder, Solver

__all__ = ["Plan", "auto", "usual_plan"]

# The flow. Budget from which the row holds, and λ of the last evaluation, at σ_d = 1.
_FLOW: tuple[tuple[int, float], ...] = ((1, 1.6), (6, 2.0), (9, 3.0), (12, 3.5), (16, 5.0), (40, 5.5))
# The SDE. Budget, order, whether UniPC's corrector is used, center and width of grids.sech, and the last λ, at σ_d = 1.
_SDE: tuple[tuple[int, int, bool, float, float, float], ...] = (
    (1, 2, False, 0.0, 3.0, 3.5),
    (20, 2, True, 0.0, 3.0, 3.5),
    (50, 2, True, 1.5, 2.0, 5.0),
    (100, 2, True, 1.5, 2.0, 6.0),
)


@dataclass(frozen=True, eq=False)
class Plan:
    """What to run: ``sample(model, plan.solver, plan.grid, tweedie=plan.tweedie)``.

    ``measuring``: evaluations, of one sample each, that were spent once on this model before the plan could be made.
    """

    solver: Solver
    grid: Tensor
    tweedie: bool
    measuring: int = 0

    @property
    def nfe(self) -> int:
        """Evaluations per sample."""
        return (self.solver.integrator.evals_per_step or 1) * (len(self.grid) - 1) + self.tweedie


def auto(
    model: ScoreModel,
    nfe: int,
    eta: float = 0.0,
    *,
    event_shape: tuple[int, ...] | None = None,
    condition: Any = None,
    dtype: torch.dtype = torch.float32,
    measure: bool = True,
) -> Plan:
    """The best known solver and grid for at most ``nfe`` evaluations per sample.

    η = 0: UniPC's corrector around the multistep method of order 2 in EDM's F, on a grid from t = 1 to the data. The
    last step lands at σ = 0, so that no evaluation is spent on denoising. A table says at which noise level the last
    evaluation is made. The steps are short where the flow of this model bends. This is measured once per model, by 62
    evaluations of one sample (:mod:`~sde_toolkit.sampling.bending`), and kept until its weights change. It does not
    depend on the samples that are drawn afterwards. ``plan.measuring`` has these evaluations; ``plan.nfe`` and
    the ``nfe`` of a result do not.

    Any other η gets the table that was made for η = 1, and a last evaluation that denoises.

    A guided model needs several evaluations of networks for one of its own (``model.evaluations_inside``). Data and
    noise of twice the size get the same plan in units of twice the size: ``model.sigma_data`` should be √E[x_0²]. The
    measurement corrects it if the samples are clearly larger or smaller.

    Args:
        model: any score model.
        nfe: evaluations per sample, at least 1; at least 2 if η is not 0.
        eta: stochasticity.
        event_shape: of one sample, if the model does not know it.
        condition: with which the model is measured, as :func:`~sde_toolkit.sample` takes it; of rows, the first two.
        dtype: of the state while the model is measured.
        measure: False takes a grid that is good for mixtures, without any evaluation. So does a model without a known
            event shape.

    Raises:
        ArgumentError: if ``nfe`` is not such a number, or ``eta`` is negative.
        Exception: whatever the network raises while it is measured. One that needs a condition needs ``condition``, or
            ``measure=False``.
    """
    check_eta(eta)
    least = 1 if eta == 0 else 2
    remedy = "Pass nfe=20, for example." if eta == 0 else "A step and the denoising at the end take two evaluations."
    check_count("nfe", nfe, remedy, least=least, most=MOST)
    inside = model.evaluations_inside
    if nfe < least * inside:
        needed = "one of them is" if least == 1 else "two of them are"
        problem = f"every evaluation of this model is {inside} of networks, and {needed} needed"
        raise ArgumentError("nfe", nfe, problem, f"Pass nfe={least * inside} or more.")
    if eta != 0:
        return _sde_plan(model, nfe // inside, eta)
    shape = model.event_shape if event_shape is None else tuple(event_shape)
    measure = measure and nfe // inside > 1
    found = measured_bending(model, shape, condition, dtype) if measure and shape is not None else None
    return _flow_plan(model, nfe // inside, found or assumed_bending(model))


def auto_for_run(
    model: ScoreModel,
    nfe: int,
    *,
    event_shape: tuple[int, ...] | None = None,
    dtype: torch.dtype = torch.float32,
    conditional: bool = True,
) -> Plan:
    """What a run by the name "auto" takes: measured without a condition, also if the run has one.

    The rows of a condition go with the samples of one call, and a sample must not depend on those beside it. A model
    that does not answer without a condition is not measured. ``conditional``: whether the run has a condition, or may
    have one; the run then shows what else is wrong with the network.
    """
    try:
        return auto(model, nfe, event_shape=event_shape, dtype=dtype)
    except Exception:
        if not conditional:
            raise
        return auto(model, nfe, event_shape=event_shape, measure=False)


def _flow_plan(model: ScoreModel, evaluations: int, bending: Bending) -> Plan:
    """That of the probability flow."""
    last = max(row for row in _FLOW if row[0] <= evaluations)[1]
    sde, size, least = model.sde, bending.sigma_data, least_time(model)
    method = Corrected(Multistep(2, FrozenEDM(size)))
    to_data = Solver("auto", 0.0, Landing(method) if sde.sigma(0.0) > 0 else method)
    data = torch.zeros(1, dtype=torch.float64)
    if evaluations == 1:
        return Plan(to_data, torch.cat([torch.ones_like(data), data]), False)
    wanted, known = last - math.log(size), sde.half_log_snr(least).item()
    end = least if wanted >= known else sde.inverse_half_log_snr(wanted).item()
    grid = bending.grid(sde, evaluations - 1, end)
    if end == least:  # where the model is known no further, x̂_0 is the sample
        return Plan(Solver("auto", 0.0, method), grid, True, bending.evaluations)
    return Plan(to_data, torch.cat([grid, data]), False, bending.evaluations)


def _sde_plan(model: ScoreModel, evaluations: int, eta: float) -> Plan:
    """That of the reverse SDE, from its table."""
    row = max((row for row in _SDE if row[0] <= evaluations), key=lambda row: row[0])
    _, order, corrected, center, width, last = row
    sde, size = model.sde, model.sigma_data
    method = Multistep(order, FrozenEDM(size))
    end = sde.inverse_half_log_snr(min(last - math.log(size), sde.half_log_snr(0.0).item())).item()
    grid = sech(sde, evaluations - 1, center=center, width=width, sigma_data=size, end=end)
    return Plan(Solver(f"auto[eta={eta:g}]", eta, Corrected(method) if corrected else method), grid, True)


def usual_plan(
    model: ScoreModel,
    solver: Solver,
    *,
    steps: int | None = None,
    nfe: int | None = None,
    build: GridBuilder | None = None,
) -> Plan:
    """A solver on the grid that is usual for it, ended as usual: the one rule from a budget to a number of steps.

    The grid runs from t = 1 to the SDE's ``sampling_end``. Where α(1) = 0 and the spacing or the integrator is infinite
    at t = 1, it starts at λ = −7 (for data of size 1) instead. A last evaluation denoises, unless the grid ends without
    noise. An integrator that chooses its own steps gets the two ends.

    Args:
        steps: of the grid; the last denoising is not one of them.
        nfe: evaluations per sample, the last denoising included. What is left over from whole steps is not spent.
        build: another grid than ``solver.usual_grid``. A function that takes no ``start`` keeps its own.

    Raises:
        ArgumentError: unless one of ``steps`` and ``nfe`` is given (neither, for an integrator that chooses its own
            steps), or if ``nfe`` is too small for one step.
        GridError: if the integrator cannot run on such a grid.
    """
    if solver.integrator.evals_per_step is None:
        if steps is not None or nfe is not None:
            problem = f"{solver.name} chooses its own steps"
            raise ArgumentError("steps, nfe", (steps, nfe), problem, "Leave both out; set its tolerances instead.")
        return _ended_as_usual(model, solver, _built(model, solver, uniform, 1))
    build = build or solver.usual_grid
    if (steps is None) == (nfe is None):
        remedy = "Pass steps=20, or nfe=20 to count evaluations, or a grid."
        raise ArgumentError("steps, nfe", (steps, nfe), "one of them says how long the grid is", remedy)
    if steps is None:
        ended = _ended_as_usual(model, solver, _built(model, solver, build, 1))
        steps = _whole_steps(solver, nfe, model.evaluations_inside, denoise=ended.tweedie)
    return _ended_as_usual(model, solver, _built(model, solver, build, steps))


def _ended_as_usual(model: ScoreModel, solver: Solver, grid: Tensor) -> Plan:
    """A plan that ends by denoising where the grid leaves noise."""
    return Plan(solver, grid, model.sde.sigma(grid[-1]).item() > 0)


def _whole_steps(solver: Solver, nfe: Any, inside: int, *, denoise: bool) -> int:
    """The largest number of steps that ``nfe`` evaluations of networks allow a solver of fixed steps.

    ``inside``: how many of them are in one evaluation of the model.
    """
    check_count("nfe", nfe, "Pass nfe=20, for example.")
    per_step = solver.integrator.evals_per_step or 1
    steps = (int(nfe) // inside - denoise) // per_step
    if steps < 1:
        least = inside * (per_step + denoise)
        problem = f"{solver.name} needs at least {least}" + ", the last one to denoise" * denoise
        raise ArgumentError("nfe", nfe, problem, f"Pass nfe={least} or more.")
    return steps


def first_time(model: ScoreModel) -> float:
    """The time of λ = −7 (for data of size 1): where grids start if σ/α is infinite at t = 1."""
    return model.sde.inverse_half_log_snr(LAMBDA_FIRST - math.log(model.sigma_data)).item()


def _built(model: ScoreModel, solver: Solver, build: GridBuilder, steps: int) -> Tensor:
    """The grid from t = 1, or from where it and the integrator are finite."""
    equation = ReverseEquation(model, solver.eta)
    solver.integrator.check(equation)
    try:
        grid = build(model.sde, steps)
        solver.integrator.prepare(equation, grid)
    except ArgumentError:
        if model.sde.alpha(1.0) > 0 or "start" not in signature(build).parameters:
            raise
    else:
        return grid
    grid = build(model.sde, steps, start=first_time(model))  # type: ignore[call-arg]
    solver.integrator.prepare(equation, grid)
    return grid
