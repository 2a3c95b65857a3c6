"""The fine solve that a calibration is measured against, with its whole path.

UniPC's corrector around a third-order exponential multistep method, on a grid that is dense both in t and in λ. An
exact score is followed to t → 0, that is to λ = 11.5 for data of size 1, where the rest is below 1e-10. A network is
followed to the SDE's ``sampling_end``. A Tweedie step finishes, as after every calibrated grid.

Every λ here is for data of size σ_d = 1; for others it is moved by −log σ_d.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.calibration.descent import Descent
from sde_toolkit.integrators import Corrected, FrozenX0, Multistep
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.sde import SDE

__all__ = ["FineSolve", "fine_grid", "reference_end", "solve_finely"]

_LAST = 11.5  # λ, for data of size 1
_FIRST = -7.0


def reference_end(model: ScoreModel) -> float:
    """The time at which the fine solve ends: t → 0 for exact scores, the SDE's ``sampling_end`` for networks."""
    sde, last = model.sde, _LAST - math.log(model.sigma_data)
    if not model.has_exact_score:
        return sde.sampling_end
    if sde.half_log_snr(0.0).item() <= last:
        return 0.0
    return sde.inverse_half_log_snr(torch.tensor(last, dtype=torch.float64)).item()


def fine_grid(
    sde: SDE, steps: int, *, start: float = 1.0, end: float, in_time: float = 0.3, sigma_data: float = 1.0
) -> Tensor:
    """``steps`` + 1 times at equal steps of a mixture of t and λ. It is finite where λ is infinite."""
    low = max(_FIRST - math.log(sigma_data), sde.half_log_snr(start).item())
    high = sde.half_log_snr(end).item()
    dense_lambda = torch.linspace(low, high, 4001, dtype=torch.float64)[1:-1]
    dense = torch.cat([sde.inverse_half_log_snr(dense_lambda), torch.linspace(end, start, 2001, dtype=torch.float64)])
    t = torch.unique(dense.clamp(end, start)).flip(0)
    lambda_t = sde.half_log_snr(t).clamp(low, high)
    c = in_time * (start - t) / (start - end) + (1 - in_time) * (lambda_t - low) / (high - low)
    u = np.linspace(0.0, 1.0, steps + 1)
    grid = torch.from_numpy(np.interp(u, c.numpy(), t.numpy()))
    grid[0], grid[-1] = start, end
    return grid


@dataclass(frozen=True, eq=False)
class FineSolve:
    """A fine solve: ``times`` (K + 1,), ``states`` (K + 1, n, *event) or None, ``end`` (n, *event) after Tweedie."""

    times: Tensor
    states: Tensor | None
    end: Tensor


def solve_finely(descent: Descent, x: Tensor, times: Tensor, *, keep: bool = False) -> FineSolve:
    """The probability flow from ``x`` at ``times[0]`` down ``times``."""
    integrator = Corrected(Multistep(3, FrozenX0()))
    end, states = descent.run(integrator, times, x, tweedie=True, keep=keep)
    return FineSolve(times, states, end)
