"""Grids of r = σ/α, decreasing, float64: the peers' own kinds, and three ways of ending them.

``zero``: n points down to ``low`` and then 0, whose last step needs the evaluation at ``low``. ``stop``: n + 1
points, the sample is taken as it is at ``low``. ``denoise``: n points, one evaluation more at ``low``, and its
estimate is the sample; n steps of a one-evaluation sampler cost n evaluations in all three.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from peers.problems import Problem
from torch import Tensor

__all__ = ["ENDINGS", "KINDS", "LOWS", "build", "ratios"]

KINDS = ["karras7", "karras5", "karras3", "logsnr", "polyexp1.5", "uniform_t", "quadratic_t"]
KINDS += ["rectified", "cosine", "sine2"]  # uniform in σ/(α + σ), in arctan σ/α (azula's); σ = sin²(π s/2) (IPNDM's)
LOWS = [2e-3, 1e-2, 3e-2]
ENDINGS = ["zero", "stop", "denoise"]

# Coordinates in which a grid is uniform: of a number, and back from a tensor.
FUNCTIONS: dict[str, tuple[Callable[[float], float], Callable[[Tensor], Tensor]]] = {
    "rectified": (lambda r: r / (1 + r), lambda u: u / (1 - u)),
    "cosine": (math.atan, torch.tan),
    "sine2": (
        lambda r: math.asin(math.sqrt(r / math.sqrt(1 + r**2))),
        lambda s: torch.sin(s) ** 2 / torch.sqrt(1 - torch.sin(s) ** 4),
    ),
}


def ratios(problem: Problem, kind: str, n: int, low: float) -> Tensor:
    """n values from the problem's highest to ``low``."""
    high = problem.highest
    ramp = torch.linspace(0, 1, n, dtype=torch.float64) if n > 1 else torch.zeros(1, dtype=torch.float64)
    if kind.startswith("karras"):
        rho = float(kind.removeprefix("karras"))
        return (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    if kind == "logsnr":
        return high * (low / high) ** ramp
    if kind.startswith("polyexp"):
        return low * (high / low) ** ((1 - ramp) ** float(kind.removeprefix("polyexp")))
    if kind in FUNCTIONS:
        function, inverse = FUNCTIONS[kind]
        return inverse(function(high) + ramp * (function(low) - function(high)))
    if kind == "uniform_t":
        grid = problem.ratio(1 + ramp * (problem.time(low) - 1))
    elif kind == "quadratic_t":
        grid = problem.ratio((1 + ramp * (math.sqrt(problem.time(low)) - 1)) ** 2)
    else:
        raise ValueError(f"no grid {kind!r}")
    grid[0] = high
    return grid


def build(
    problem: Problem,
    kind: str,
    n: int,
    low: float,
    ending: str,
    between: Callable[[Problem, str, int, float], Tensor] | None = None,
) -> Tensor:
    """The grid for n evaluations of a sampler with one per step. ``between``: in place of :func:`ratios`."""
    grid = (between or ratios)(problem, kind, n + (ending == "stop"), low)
    return torch.cat([grid, grid.new_zeros(1)]) if ending == "zero" else grid
