"""azula's samplers, on tables of σ/α with α=1 (its samplers see only σ/α, up to scale) and on its own schedules."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import product
from types import SimpleNamespace
from typing import Any

import torch
from azula import noise
from azula import sample as samplers
from peers.configuration import Configuration
from peers.problems import Problem
from peers.ratio_grids import KINDS, LOWS, build
from torch import Tensor

__all__ = ["AzulaDenoiser", "TableSchedule", "configurations"]

SAMPLERS: dict[str, tuple[Callable[..., Any], int]] = {
    "DDIM": (samplers.DDIMSampler, 1),
    "Euler": (samplers.EulerSampler, 1),
    "Heun": (samplers.HeunSampler, 2),
    "Ito eta=0": (partial(samplers.ItoSampler, eta=0.0), 1),
    **{
        f"{name}-{order}": (partial(getattr(samplers, f"{name}Sampler"), order=order), 1)
        for name, order in product(("zAB", "vAB", "zEAB", "xEAB", "REAB"), (2, 3, 4))
    },
    "PC delta=0": (partial(samplers.PCSampler, delta=0.0), 2),
}


class TableSchedule:
    """α = 1 and σ from a grid: time 1 is its first entry, 0 its last."""

    def __init__(self, grid: Tensor) -> None:
        self.grid = grid

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        sigma = self.grid[((1 - t) * (len(self.grid) - 1)).round().long()]
        return torch.ones_like(sigma), sigma


class AzulaDenoiser:
    """What azula's samplers ask of a denoiser: ``schedule``, and a call whose result has ``mean``."""

    def __init__(self, problem: Problem, schedule: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        self.problem, self.schedule = problem, schedule

    def __call__(self, x_t: Tensor, t: Tensor) -> SimpleNamespace:
        alpha, sigma = self.schedule(t)
        return SimpleNamespace(mean=self.problem.denoise(x_t / alpha, sigma / alpha))


def simulate(sampler: str, problem: Problem, schedule: Callable[..., Any], steps: int) -> Tensor:
    """x/α at azula's time 0."""
    solver = SAMPLERS[sampler][0](AzulaDenoiser(problem, schedule), steps=steps, silent=True, dtype=torch.float64)
    ends = [schedule(torch.tensor(t, dtype=torch.float64))[0] for t in (1.0, 0.0)]
    return solver(ends[0] * problem.y_start) / ends[1]


def run(sampler: str, kind: str, low: float, ending: str, problem: Problem, nfe: int) -> Tensor:
    per_step = SAMPLERS[sampler][1]
    if ending == "denoise":
        grid = build(problem, kind, (nfe - 1) // per_step + 1, low, ending)
        return problem.denoise(simulate(sampler, problem, TableSchedule(grid), len(grid) - 1), low)
    grid = build(problem, kind, nfe // per_step, low, ending)
    return simulate(sampler, problem, TableSchedule(grid), len(grid) - 1)


def native(kind: str, problem: Problem, low: float) -> Callable[..., Any]:
    """azula's schedule with σ/α at its times 1 and 0 as asked (for VP and cosine, σ_min is σ/α at 0 as α is 1)."""
    high = problem.highest
    if kind in ("VP", "Cosine"):
        alpha = math.sqrt((1 + low**2) / (1 + high**2))
        return {"VP": noise.VPSchedule, "Cosine": noise.CosineSchedule}[kind](alpha, low)
    return {"Rectified": noise.RectifiedSchedule, "Decay": noise.DecaySchedule}[kind](1 / high, low)


def run_native(sampler: str, kind: str, low: float, ending: str, problem: Problem, nfe: int) -> Tensor:
    per_step, schedule = SAMPLERS[sampler][1], native(kind, problem, low)
    if ending == "stop":
        return simulate(sampler, problem, schedule, nfe // per_step)
    return problem.denoise(simulate(sampler, problem, schedule, (nfe - 1) // per_step), low)


def configurations(kinds: list[str] = KINDS, lows: list[float] = LOWS) -> list[Configuration]:
    """Every deterministic sampler on every grid, its own schedules included."""
    endings = ("zero", "stop", "denoise")
    rows = [
        Configuration("azula", sampler, f"{kind} {low:g} {ending}", partial(run, sampler, kind, low, ending))
        for sampler, kind, low, ending in product(SAMPLERS, kinds, lows, endings)
    ]
    return rows + [
        Configuration("azula", sampler, f"own {kind} {low:g} {ending}", partial(run_native, sampler, kind, low, ending))
        for sampler, kind, low, ending in product(SAMPLERS, ("VP", "Cosine", "Rectified", "Decay"), lows, endings[1:])
    ]
