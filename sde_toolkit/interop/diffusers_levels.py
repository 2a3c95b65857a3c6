"""Schedulers of diffusers on noise levels that we choose, and the levels that they choose by themselves.

A scheduler has one of four languages. With r = σ/α and y = x/α:

    language   state        its level      made from                          network's output
    vp         y/√(1+r²)    r              betas: DDIM, DPM-Solver, UniPC     ε, x_0 or v
    ve         y            r              betas: Euler, Heun, LMS, KDPM2     ε, x_0 or v
    edm        y            r              sigma_data: EDM Euler, EDM DPM     F or −F of EDM
    flow       y/(1+r)      t = r/(1+r)    flow matching                      ε − x_0, or x_0

Those with betas get a table that holds the chosen levels and no others, in float64, and one timestep for each. That
puts the ones that step in whole timesteps (DDIM, DDPM, PNDM) on any grid.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.errors import ArgumentError
from sde_toolkit.interop.diffusers_training import UNREADABLE

__all__ = ["Language", "language_of", "own_levels", "ratio_of", "scheduler_at"]

Language = Literal["vp", "ve", "edm", "flow"]

_EXPLODING = ("Euler", "Heun", "LMS", "KDPM2", "DPMSolverSDE")
_OF_FLOW_MATCHING = ("FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete", "LTXEulerAncestralRF")
_REFUSED = {
    **UNREADABLE,
    "LCMScheduler": "networks that were distilled into consistency models",
    "FlowMatchLCMScheduler": "networks that were distilled into consistency models",
    "TCDScheduler": "networks that were distilled into consistency models",
    "DDIMInverseScheduler": "the way from data to noise",
    "DPMSolverMultistepInverseScheduler": "the way from data to noise",
    "RePaintScheduler": "pictures with a hole",
    "SASolverScheduler": "noise that depends on the numbers of its training timesteps, without a constant tau_func",
    "CogVideoXDPMScheduler": "a loop of its own pipeline",
}
_OF_A_GRID = {
    "timestep_spacing": "trailing",
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_lu_lambdas": False,
    "use_dynamic_shifting": False,
    "steps_offset": 0,
    "shift": 1.0,
    "shift_terminal": None,
    "rescale_betas_zero_snr": False,
    "set_alpha_to_one": True,
    "interpolation_type": "linear",
}
"""Options that choose levels. They are set so where we choose them."""


def language_of(kind: Any, config: Mapping[str, Any]) -> Language:
    """The language of a class of scheduler, with these options.

    Raises:
        ArgumentError: for a class whose levels cannot be chosen, with the reason.
    """
    name, takes = kind.__name__, inspect.signature(kind.__init__).parameters
    if name in _REFUSED and not (name == "SASolverScheduler" and config.get("tau_func")):
        problem, remedy = f"it is for {_REFUSED[name]}", "Choose another one, such as DPMSolverMultistepScheduler."
        raise ArgumentError("scheduler", name, problem, remedy)
    if name.startswith(_OF_FLOW_MATCHING) or config.get("use_flow_sigmas"):
        return "flow"
    if "sigma_data" in takes:
        return "edm"
    if "trained_betas" not in takes or not hasattr(kind, "set_timesteps"):
        remedy = "Choose one with betas, with sigma_data, or of flow matching."
        raise ArgumentError("scheduler", name, "its noise levels cannot be chosen", remedy)
    return "ve" if name.startswith(_EXPLODING) else "vp"


def _alphas_cumprod(levels: Tensor) -> Tensor:
    return 1 / (1 + levels.double() ** 2)


def _with_table(kind: Any, config: Mapping[str, Any], levels: Tensor) -> Any:
    """A scheduler whose training levels are these, rising, in float64."""
    kept = _alphas_cumprod(levels)
    scheduler = kind(**{**config, "trained_betas": np.array([0.1, 0.1], np.float32), "num_train_timesteps": 2})
    scheduler.register_to_config(num_train_timesteps=len(levels))  # some set all timesteps when they are made: slow
    exact = {
        "betas": 1 - kept / torch.cat([kept.new_ones(1), kept[:-1]]),
        "alphas": kept / torch.cat([kept.new_ones(1), kept[:-1]]),
        "alphas_cumprod": kept,
        "alpha_t": kept.sqrt(),
        "sigma_t": (1 - kept).sqrt(),
        "lambda_t": -levels.log(),
    }
    for name, value in exact.items():
        if hasattr(scheduler, name):
            setattr(scheduler, name, value)
    return scheduler


def scheduler_at(kind: Any, config: Mapping[str, Any], ratios: Tensor, device: torch.device) -> Any:
    """A scheduler with its timesteps set, which steps along these levels σ/α and ends at the last one.

    ``ratios``: at least two, decreasing float64; the last one may be 0.
    """
    takes = inspect.signature(kind.__init__).parameters
    told = {**config, **{key: value for key, value in _OF_A_GRID.items() if key in takes}}
    if "final_sigmas_type" in takes:
        told["final_sigmas_type"] = "zero" if ratios[-1] == 0 else "sigma_min"
    if "sigma_max" in takes:
        told.update(sigma_max=ratios[0].item(), sigma_min=0.999 * ratios[ratios > 0][-1].item())
    language, n = language_of(kind, config), len(ratios) - 1
    if kind.__name__ == "IPNDMScheduler":
        return _ipndm(kind(**told), ratios, device)
    if language in ("vp", "ve") or "trained_betas" in takes:
        scheduler = _with_table(kind, told, ratios[:-1].flip(0))
    else:
        scheduler = kind(**told)
    scheduler.set_timesteps(n, device=device)
    if getattr(scheduler, "sigmas", None) is not None and not hasattr(scheduler, "sigmas_interpol"):
        levels = ratios / (1 + ratios) if language == "flow" else ratios
        if len(scheduler.sigmas) == 2 * n and n > 1:  # each inner level twice, for two evaluations in a step
            levels = torch.cat([levels[:1], levels[1:-1].repeat_interleave(2), levels[-1:]])
        scheduler.sigmas = levels
    else:
        for name in ("final_alpha_cumprod", "one"):  # α² after the last step
            if hasattr(scheduler, name):
                setattr(scheduler, name, _alphas_cumprod(ratios[-1]))
    if hasattr(scheduler, "set_begin_index"):  # otherwise equal rounded timesteps make it skip its first step
        scheduler.set_begin_index(0)
    if hasattr(scheduler, "is_scale_input_called"):
        scheduler.is_scale_input_called = True
    return scheduler


def _ipndm(scheduler: Any, ratios: Tensor, device: torch.device) -> Any:
    """It keeps σ in ``betas``, α in ``alphas``, and (2/π) atan(σ/α) of all but the last in ``timesteps``."""
    scheduler.set_timesteps(len(ratios) - 1, device=device)
    scheduler.alphas = (1 + ratios**2).rsqrt()
    scheduler.betas = ratios * scheduler.alphas
    scheduler.timesteps = (torch.atan(ratios[:-1]) * 2 / math.pi).to(device)
    return scheduler


def ratio_of(scheduler: Any, language: Language, timestep: Tensor) -> float:
    """σ/α at which the scheduler wants its next evaluation."""
    if isinstance(getattr(scheduler, "sigmas", None), Tensor):
        index = scheduler.step_index or 0
        second = not getattr(scheduler, "state_in_first_order", True)
        if second and hasattr(scheduler, "mid_point_sigma"):
            return float(scheduler.mid_point_sigma)
        if second and hasattr(scheduler, "sigmas_interpol"):
            index -= "Ancestral" in type(scheduler).__name__
            return float(scheduler.sigmas_interpol[index])
        level = float(scheduler.sigmas[index])
        return level / (1 - level) if language == "flow" else level
    if type(scheduler).__name__ == "IPNDMScheduler":
        return math.tan(float(timestep) * math.pi / 2)
    kept = float(scheduler.alphas_cumprod[int(timestep)])
    return math.sqrt((1 - kept) / kept)


def own_levels(kind: Any, config: Mapping[str, Any], n: int, trained: Tensor, lowest: float = 0.0) -> Tensor:
    """The n levels σ/α at which a scheduler evaluates its network by its own spacing: decreasing float64, above 0.

    Args:
        trained: levels of its training, rising float64.
        lowest: the smallest level of the SDE, for schedulers that are not told their training levels.
    """
    language, takes = language_of(kind, config), inspect.signature(kind.__init__).parameters
    config = {**config, **({"final_sigmas_type": "sigma_min"} if "final_sigmas_type" in takes else {})}
    high = trained[-1].item()
    if kind.__name__ == "IPNDMScheduler":  # σ = sin²(πs/2) at equal steps of s, from that of the highest level
        first = math.asin(math.sqrt(high / math.sqrt(1 + high**2)))
        sigma = torch.sin(first * torch.linspace(1, 0, n + 1, dtype=torch.float64)[:-1]) ** 2
        return sigma / torch.sqrt(1 - sigma**2)
    if language == "edm":
        ends = {"sigma_min": max(float(config.get("sigma_min", 0.002)), lowest), "sigma_max": high}
        scheduler = kind(**{**config, **ends})
    elif "trained_betas" in takes:
        scheduler = _with_table(kind, config, trained)
    else:
        scheduler = kind(**config)
    scheduler.set_timesteps(n)
    if not isinstance(getattr(scheduler, "sigmas", None), Tensor):
        kept = scheduler.alphas_cumprod[scheduler.timesteps.unique_consecutive().long()]
        return torch.sqrt((1 - kept) / kept)
    levels = scheduler.sigmas.double().unique_consecutive()[:n]
    if language == "flow":  # times of the straight path, moved into the range of the SDE
        last = max(lowest / (1 + lowest), levels[-1].item())
        scale = (high / (1 + high) - last) / (levels[0] - levels[-1]) if n > 1 else 1.0
        levels = high / (1 + high) + (levels - levels[0]) * scale
        levels = levels / (1 - levels)
    return torch.cat([levels[:1].clamp(max=high), levels[1:]])
