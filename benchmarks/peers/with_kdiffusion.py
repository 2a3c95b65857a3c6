"""k-diffusion's samplers, in their own language: D(x/α, σ/α) and a grid of σ/α."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from peers.configuration import Configuration
from peers.problems import Problem
from peers.ratio_grids import ENDINGS, KINDS, LOWS, build
from torch import Tensor

__all__ = ["configurations", "sampling"]


def _sampling() -> Any:
    """``k_diffusion.sampling`` without its package, whose other modules import image libraries."""
    specification = importlib.util.find_spec("k_diffusion")
    if specification is None or specification.origin is None:
        raise ImportError("k-diffusion is not installed: pip install --no-deps k-diffusion torchsde trampoline")
    package, utils = types.ModuleType("k_diffusion"), types.ModuleType("k_diffusion.utils")
    package.__path__ = [str(Path(specification.origin).parent)]
    utils.append_dims = lambda x, dims: x[(...,) + (None,) * (dims - x.ndim)]  # type: ignore[attr-defined]
    package.utils = utils  # type: ignore[attr-defined]
    sys.modules.update({"k_diffusion": package, "k_diffusion.utils": utils})
    return importlib.import_module("k_diffusion.sampling")


sampling = _sampling()

# sampler: (function, evaluations per step). With the last sigma 0, a two-evaluation sampler saves one in its last step.
SAMPLERS: dict[str, tuple[Callable[..., Tensor], int]] = {
    "euler": (sampling.sample_euler, 1),
    **{f"lms-{order}": (partial(sampling.sample_lms, order=order), 1) for order in (2, 3, 4)},
    "dpmpp_2m": (sampling.sample_dpmpp_2m, 1),
    "dpmpp_2m_sde-midpoint eta=0": (partial(sampling.sample_dpmpp_2m_sde, eta=0.0, noise_sampler=0), 1),
    "dpmpp_2m_sde-heun eta=0": (partial(sampling.sample_dpmpp_2m_sde, eta=0.0, noise_sampler=0, solver_type="heun"), 1),
    "dpmpp_3m_sde eta=0": (partial(sampling.sample_dpmpp_3m_sde, eta=0.0, noise_sampler=0), 1),
    "heun": (sampling.sample_heun, 2),
    "dpm_2": (sampling.sample_dpm_2, 2),
    "dpmpp_2s eta=0": (partial(sampling.sample_dpmpp_2s_ancestral, eta=0.0), 2),
}


def run(sampler: str, kind: str, low: float, ending: str, problem: Problem, nfe: int) -> Tensor:
    function, per_step = SAMPLERS[sampler]
    if ending == "denoise":
        raise ValueError("the same as zero")
    steps = nfe if per_step == 1 else (nfe + 1) // 2 if ending == "zero" else nfe // 2
    grid = build(problem, kind, steps, low, ending)
    return function(problem.denoise, problem.y_start, grid, disable=True)


def run_fast(low: float, ending: str, problem: Problem, nfe: int) -> Tensor:
    """DPM-Solver-fast plans its own orders; it cannot go to 0, so that ``denoise`` spends one evaluation."""
    budget = nfe - (ending == "denoise")
    y = sampling.sample_dpm_fast(problem.denoise, problem.y_start, low, problem.highest, budget, disable=True)
    return problem.denoise(y, low) if ending == "denoise" else y


def configurations(kinds: list[str] = KINDS, lows: list[float] = LOWS) -> list[Configuration]:
    """Every deterministic sampler on every grid."""
    rows = [
        Configuration("k-diffusion", sampler, f"{kind} {low:g} {ending}", partial(run, sampler, kind, low, ending))
        for sampler, kind, low, ending in product(SAMPLERS, kinds, lows, ("zero", "stop"))
    ]
    rows += [
        Configuration("k-diffusion", "dpm_fast", f"logsnr {low:g} {ending}", partial(run_fast, low, ending))
        for low, ending in product(lows, ENDINGS[1:])
    ]
    return rows
