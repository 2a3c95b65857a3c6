"""azula's samplers, as rows of the toolkit (:func:`sde_toolkit.interop.azula_solver`) on every grid.

Its samplers see σ/α only, up to scale, so that its own schedules are grids of σ/α as well.
"""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import torch
from azula import noise
from peers.configuration import Configuration, OnGrid
from peers.problems import Problem
from peers.ratio_grids import ENDINGS, KINDS, LOWS
from torch import Tensor

from sde_toolkit.interop import azula_solver

__all__ = ["configurations"]

# row: (sampler, evaluations per step, options)
SAMPLERS: dict[str, tuple[str, int, dict[str, Any]]] = {
    **{name: (name, 1, {}) for name in ("DDIM", "Euler")},
    "Heun": ("Heun", 2, {}),
    "Ito eta=0": ("Ito", 1, {"eta": 0.0}),
    **{
        f"{name}-{order}": (name, 1, {"order": order})
        for name, order in product(("zAB", "vAB", "zEAB", "xEAB", "REAB"), (2, 3, 4))
    },
    "PC delta=0": ("PC", 2, {"delta": 0.0}),
}


def own_ratios(problem: Problem, kind: str, n: int, low: float) -> Tensor:
    """σ/α of azula's schedule at n equal times from 1 to 0, with the ends as asked.

    Of VP and cosine σ_min is σ/α at time 0, where α is 1.
    """
    name, high = kind.removeprefix("own "), problem.highest
    if name in ("VP", "Cosine"):
        schedule = getattr(noise, f"{name}Schedule")(math.sqrt((1 + low**2) / (1 + high**2)), low)
    else:
        schedule = getattr(noise, f"{name}Schedule")(1 / high, low)
    alpha, sigma = schedule(torch.linspace(1.0, 0.0, n, dtype=torch.float64))
    return sigma / alpha


def configurations(kinds: list[str] = KINDS, lows: list[float] = LOWS) -> list[Configuration]:
    """Every deterministic sampler on every grid, its own schedules included."""
    rows = []
    for label, (sampler, per_step, options) in SAMPLERS.items():
        solver = azula_solver(sampler, last="step", **options)
        for kind, low, ending in product(kinds, lows, ENDINGS):
            run = OnGrid(solver, kind, low, ending, per_step)
            rows.append(Configuration("azula", label, f"{kind} {low:g} {ending}", run))
        for name, low, ending in product(("VP", "Cosine", "Rectified", "Decay"), lows, ENDINGS[1:]):
            run = OnGrid(solver, f"own {name}", low, ending, per_step, ratios=own_ratios)
            rows.append(Configuration("azula", label, f"own {name} {low:g} {ending}", run))
    return rows
