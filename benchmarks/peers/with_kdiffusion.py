"""k-diffusion's samplers, as rows of the toolkit (:func:`sde_toolkit.interop.k_diffusion_solver`) on every grid."""

from __future__ import annotations

from itertools import product
from typing import Any

from peers.configuration import Configuration, OnGrid
from peers.ratio_grids import KINDS, LOWS

from sde_toolkit.interop import k_diffusion_solver
from sde_toolkit.interop.foreign_k_diffusion import k_diffusion_functions

__all__ = ["configurations", "sampling"]

sampling = k_diffusion_functions()

# row: (sampler, evaluations per step, options). A two-evaluation sampler saves one in its step to 0.
SAMPLERS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "euler": ("euler", 1, {}),
    **{f"lms-{order}": ("lms", 1, {"order": order}) for order in (2, 3, 4)},
    "dpmpp_2m": ("dpmpp_2m", 1, {}),
    "dpmpp_2m_sde-midpoint eta=0": ("dpmpp_2m_sde", 1, {"eta": 0.0}),
    "dpmpp_2m_sde-heun eta=0": ("dpmpp_2m_sde", 1, {"eta": 0.0, "solver_type": "heun"}),
    "dpmpp_3m_sde eta=0": ("dpmpp_3m_sde", 1, {"eta": 0.0}),
    "heun": ("heun", 2, {}),
    "dpm_2": ("dpm_2", 2, {}),
    "dpmpp_2s eta=0": ("dpmpp_2s_ancestral", 2, {"eta": 0.0}),
}


def configurations(kinds: list[str] = KINDS, lows: list[float] = LOWS) -> list[Configuration]:
    """Every deterministic sampler on every grid. DPM-Solver-fast plans its own orders, and cannot go to 0."""
    rows = []
    for (label, (sampler, per_step, options)), kind, low, ending in product(
        SAMPLERS.items(), kinds, lows, ("zero", "stop")
    ):
        run = OnGrid(k_diffusion_solver(sampler, **options), kind, low, ending, per_step, spared=per_step - 1)
        rows.append(Configuration("k-diffusion", label, f"{kind} {low:g} {ending}", run))
    for low, ending in product(lows, ("stop", "denoise")):
        run = OnGrid(k_diffusion_solver("dpm_fast"), "logsnr", low, ending)
        rows.append(Configuration("k-diffusion", "dpm_fast", f"logsnr {low:g} {ending}", run))
    return rows
