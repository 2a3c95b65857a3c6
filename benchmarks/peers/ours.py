"""Our own rows, measured beside the peers on the same noise: ``auto`` as it is, and calibrated on other noise."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
from problems import Problem
from torch import Tensor

from sde_toolkit import Solver, auto, sample
from sde_toolkit.calibration import Calibration, calibrate, load_calibration

__all__ = ["rows", "stochastic_rows"]

CALIBRATION_SEED = 12345  # its streams have nothing to do with the generator that the problems' noises come from


def rows(problem: Problem, nfe: int) -> dict[str, Callable[[], Tensor]]:
    """Deterministic rows at a budget of ``nfe`` evaluations: name to a callable that returns x at t≈0.

    ``problem.model`` does not count: a row adds the ``nfe`` of its ``Sample`` to ``problem.calls``, and is recorded as
    failed if that exceeds the budget. Calibrations are kept in the folder that ``CALIBRATIONS`` names, if it is set.
    """

    def run(solver: Solver, grid: Tensor, tweedie: bool) -> Tensor:
        x = problem.x_start
        dtype = torch.float32 if problem.name == "mnist" else torch.float64
        done = sample(problem.model, solver, grid, x_start=x, tweedie=tweedie, dtype=dtype, batch_size=64)
        problem.calls += done.nfe
        return done.x

    plan = auto(problem.model, nfe)
    found = {"auto": lambda: run(plan.solver, plan.grid, plan.tweedie)}
    if "CALIBRATIONS" in os.environ:
        calibration = _calibrated(problem, nfe)
        found["calibrated"] = lambda: run(calibration.solver, calibration.grid, calibration.tweedie)
    return found


def stochastic_rows(problem: Problem, nfe: int) -> dict[str, Callable[[Tensor, int], Tensor]]:
    """Stochastic rows: name to a callable of x at t=1, float32 (n, *event), and a seed, that returns x at t≈0."""

    def run(x: Tensor, seed: int) -> Tensor:
        plan = auto(problem.model, nfe, eta=1.0)
        generator = torch.Generator().manual_seed(seed)
        return sample(
            problem.model,
            plan.solver,
            plan.grid,
            x_start=x,
            generator=generator,
            tweedie=plan.tweedie,
            batch_size=10**4,
        ).x

    return {"auto[eta=1]": run}


def _calibrated(problem: Problem, nfe: int) -> Calibration:
    file = Path(os.environ["CALIBRATIONS"]) / f"{problem.name}-{nfe}.json"
    if not file.exists():
        calibrate(problem.model, None, nfe, seed=CALIBRATION_SEED).save(file)
    return load_calibration(file)
