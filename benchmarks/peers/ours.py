"""Our own rows, measured beside the peers on the same noise: ``auto`` as it is, and calibrated on other noise."""

from __future__ import annotations

import torch
from peers.configuration import Configuration
from peers.problems import Problem
from torch import Tensor

from sde_toolkit import Solver, auto, sample
from sde_toolkit.calibration import calibrate

__all__ = ["configurations"]

CALIBRATION_SEED = 12345  # its streams have nothing to do with the generator that the problems' noises come from


def configurations(time_limit: float) -> list[Configuration]:
    """``auto``, and ``calibrate`` within ``time_limit`` seconds."""

    def run(problem: Problem, solver: Solver, grid: Tensor, tweedie: bool) -> Tensor:
        """x at t = 0, where α is 1. ``problem.model`` does not count its calls, so that they are added here."""
        dtype = torch.float32 if problem.name == "mnist" else torch.float64
        drawn = sample(
            problem.model, solver, grid, x_start=problem.x_start, tweedie=tweedie, dtype=dtype, batch_size=64
        )
        problem.calls += drawn.nfe
        return drawn.x

    def automatic(problem: Problem, nfe: int) -> Tensor:
        plan = auto(problem.model, nfe)
        return run(problem, plan.solver, plan.grid, plan.tweedie)

    def calibrated(problem: Problem, nfe: int) -> Tensor:
        with torch.enable_grad():
            found = calibrate(problem.model, None, nfe, seed=CALIBRATION_SEED, time_limit=time_limit)
        return run(problem, found.solver, found.grid, found.tweedie)

    return [Configuration("ours", "auto", "", automatic), Configuration("ours", "calibrate", "", calibrated)]
