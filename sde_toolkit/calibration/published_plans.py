"""The plans that others publish and use: methods of diffusers and k-diffusion, on their grids, to three ends.

Every calibration without a solver of yours tries them, so that it starts at least as well as the best of them.
``python benchmarks/agreement.py`` compares these methods with the libraries' own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from sde_toolkit.calibration.starts import Contender
from sde_toolkit.errors import SDEToolkitError
from sde_toolkit.grids import karras, quadratic, uniform_lambda
from sde_toolkit.integrators import (
    AdamsBashforth,
    Corrected,
    FrozenNoise,
    Integrator,
    Multistep,
    NoiseToSignal,
    Time,
    bh2,
)
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.solvers import Solver

__all__ = ["published_plans"]

_METHODS: dict[str, Callable[[], Integrator]] = {
    "DEIS-3": lambda: Multistep(3, FrozenNoise(), Time()),
    "iPNDM-4": lambda: AdamsBashforth(4),
    "UniPC-2": lambda: Corrected(Multistep(2, two_point=bh2)),
    "iPNDM-3": lambda: AdamsBashforth(3),
    "DPM++2M": lambda: Multistep(2, two_point=bh2),
    "ExpAB-2": lambda: Multistep(2, FrozenNoise(), NoiseToSignal()),
    "DDIM": lambda: Multistep(1),
}
_ENDS = (0.06, 0.02, 0.004)  # σ/α over the data's size: 0.03, 0.01, 0.002 for data of size 0.5
_GRIDS: dict[str, Callable[..., Tensor]] = {"karras": karras, "λ": uniform_lambda, "√t": quadratic}
_USUAL = {"DPM++2M": ("karras", "λ"), "UniPC-2": ("karras", "λ"), "DEIS-3": ("√t", "karras")}
_FIRST = 160.0  # σ/α over the data's size, where the SDE's is infinite


def published_plans(model: ScoreModel, nfe: int) -> Iterator[Contender]:
    """Every configuration that spends ``nfe`` evaluations, its name in ``label``: denoised at the end, or down to 0."""
    sde, size, start = model.sde, model.sigma_data, 1.0
    if sde.alpha(1.0).item() == 0:
        start = sde.inverse_half_log_snr(-math.log(_FIRST * size)).item()
    for low in _ENDS:
        value = min(-math.log(low * size), sde.half_log_snr(sde.sampling_end).item())
        end = sde.inverse_half_log_snr(torch.tensor(value, dtype=torch.float64)).item()
        for name, method in _METHODS.items():
            for kind in _USUAL.get(name, ("karras",)):
                try:
                    grid = _GRIDS[kind](sde, nfe - 1, start=start, end=end)
                except SDEToolkitError:
                    continue
                solver = Solver(name, 0.0, method())
                yield Contender(solver, grid, f"{name}, {kind} to {low:g}, denoised")
                if sde.sigma(0.0).item() == 0:
                    landed = torch.cat([grid, grid.new_zeros(1)])
                    yield Contender(solver, landed, f"{name}, {kind} to {low:g} and 0", False)
