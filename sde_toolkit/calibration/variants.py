"""Other ends and beginnings of a plan, at the same number of evaluations.

*Landing*: the last evaluation makes a step of the method to the data, instead of denoising. The step has weights of its
own, and the order of the method where its polynomial is finite at the data (:mod:`~sde_toolkit.integrators.landing`).

*Gaussian start*: no evaluation above a time at which the data still look Gaussian
(:mod:`~sde_toolkit.integrators.gaussian_start`); the grid begins there, so that all steps are finer. Mean and
covariance are those of samples, or of the ends of the network's own flow. Without directions it is the free first step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from sde_toolkit.calibration.problem import Problem
from sde_toolkit.calibration.starts import Contender, usual_grids
from sde_toolkit.errors import ArgumentError
from sde_toolkit.integrators import Landing
from sde_toolkit.integrators.gaussian_start import GaussianStart

__all__ = ["gaussian_starts", "with_landing"]

_RATIOS = (20.0, 10.0, 5.0, 2.5, 1.25, 0.6)  # noise over data at the first evaluation
_RANK = 16


def with_landing(problem: Problem, plan: Contender) -> Contender | None:
    """The plan with a last step to the data in place of its denoising; None where it has none, or cannot go there."""
    solver = plan.solver
    if not plan.tweedie:
        return None
    if problem.model.sde.sigma(0.0).item() > 0:
        try:
            solver = replace(solver, integrator=Landing(solver.integrator))  # type: ignore[arg-type]
        except ArgumentError:
            return None
    grid = torch.cat([plan.grid, plan.grid.new_zeros(1)])
    return replace(plan, solver=solver, grid=grid, label=f"{plan.label}, landing", tweedie=False)


def gaussian_starts(problem: Problem, plan: Contender, samples: Tensor) -> Iterator[Contender]:
    """The plan from several later beginnings, on grids of its own kind; first without, then with directions."""
    sde, inner = problem.model.sde, plan.solver.integrator
    landed = plan.grid[-1:] if plan.grid[-1].item() == 0 else plan.grid[:0]
    core = plan.grid[: len(plan.grid) - len(landed)]
    if len(core) < 3:
        return
    size = samples.double().square().mean().sqrt().item() or problem.model.sigma_data
    lowest, highest = sde.half_log_snr(problem.start).item() + 0.3, sde.half_log_snr(core[-1]).item() - 0.5
    for value in (-math.log(ratio * size) for ratio in _RATIOS):
        if not lowest < value < highest:
            continue
        begin = sde.inverse_half_log_snr(torch.tensor(value, dtype=torch.float64)).item()
        grid = torch.cat([_of_its_kind(problem, plan.label, core, begin), landed])
        for rank in (0, min(_RANK, len(samples) // 4)):
            made = GaussianStart.of_samples(inner, begin, samples, rank)
            label = f"{plan.label}, from {begin:.3g} with {len(made.variances)} directions"
            yield replace(plan, solver=replace(plan.solver, integrator=made), grid=grid, label=label)


def _of_its_kind(problem: Problem, label: str, core: Tensor, begin: float) -> Tensor:
    """A grid from ``begin`` to the same end: the usual one of the same name, else the one it has, moved in λ."""
    sde, steps, end = problem.model.sde, len(core) - 1, core[-1].item()
    kind, first = label.partition(" to t=")[0], core[:1]
    sigma_data = problem.model.sigma_data
    for name, times in usual_grids(sde, steps, start=begin, earliest=problem.earliest, sigma_data=sigma_data):
        if name.startswith(f"{kind} to t=") and math.isclose(times[-1].item(), end, rel_tol=1e-6):
            return torch.cat([first, times[1:]])
    lambdas = sde.half_log_snr(core[1:])
    high, start = lambdas[-1], sde.half_log_snr(begin)
    room = (high - start) * (steps - 1) / steps  # for the steps after the first
    return torch.cat([first, sde.inverse_half_log_snr(high - (high - lambdas) * room / (high - lambdas[0]))])
