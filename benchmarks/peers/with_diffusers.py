"""diffusers' schedulers, driven as its pipelines drive them, with ε read at the σ/α that the scheduler stands at.

A scheduler knows 1000 noise levels. Here they are those of t from t(low) to 1, written into ``alphas_cumprod`` in
float64 (``table`` names low; ``native`` is the usual 1/1000 … 1). Rows ``by hand`` overwrite the scheduler's
``sigmas`` with a grid of :mod:`ratio_grids`, which reaches grids that diffusers has no option for. Steps that a
scheduler makes in integer timesteps (DDIM, PNDM) are given as asked: their floor is the peer's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from itertools import product
from typing import Any

import diffusers
import numpy as np
import torch
from peers.configuration import Configuration
from peers.problems import Problem
from peers.ratio_grids import ENDINGS, KINDS, LOWS, build
from torch import Tensor

__all__ = ["configurations", "make", "simulate"]

diffusers.utils.logging.set_verbosity_error()  # DPMSolverSinglestep says at every odd budget that it changed an option
VARIANCE_EXPLODING = ("Euler", "Heun", "LMS", "KDPM2", "EDM")  # their sample is x/α; the others' is VP's x
INTEGER_TIME = ("DDIM", "DDPM", "PNDM")
SPACINGS = {
    "linspace": {"timestep_spacing": "linspace"},
    "leading": {"timestep_spacing": "leading"},
    "trailing": {"timestep_spacing": "trailing"},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
    "lu": {"use_lu_lambdas": True},
}
TABLES = ["native", "0.002", "0.03"]


def make(problem: Problem, kind: str, table: str = "native", **options: Any) -> Any:
    """A scheduler whose 1000 levels are the problem's."""
    name = f"{kind}Scheduler"
    if kind.startswith("EDM"):
        return getattr(diffusers, name)(sigma_max=problem.highest, **options)
    if kind == "IPNDM":  # it makes levels of its own, from σ/α = ∞ on
        return diffusers.IPNDMScheduler(**options)
    low = 1e-3 if table == "native" else problem.time(float(table))
    levels = problem.ratio(torch.linspace(low, 1.0, 1000, dtype=torch.float64))
    alphas_cumprod = 1 / (1 + levels**2)
    betas = 1 - alphas_cumprod / torch.cat([alphas_cumprod.new_ones(1), alphas_cumprod[:-1]])
    scheduler = getattr(diffusers, name)(trained_betas=betas.numpy().astype(np.float32), **options)
    scheduler.alphas_cumprod = alphas_cumprod
    return scheduler


def stands_at(scheduler: Any, kind: str, i: int, t: Tensor) -> float:
    """σ/α at which the scheduler wants its evaluation."""
    if kind.startswith(INTEGER_TIME):
        alpha_squared = float(scheduler.alphas_cumprod[int(t)])
        return math.sqrt((1 - alpha_squared) / alpha_squared)
    if kind == "IPNDM":
        return float(scheduler.betas[i] / scheduler.alphas[i].clamp(min=1e-8))
    index = 0 if scheduler.step_index is None else scheduler.step_index
    interpolated = kind == "KDPM2Discrete" and not scheduler.state_in_first_order
    return float((scheduler.sigmas_interpol if interpolated else scheduler.sigmas)[index])


def simulate(
    problem: Problem,
    scheduler: Any,
    kind: str,
    steps: int,
    grid: Tensor | None = None,
    y: Tensor | None = None,
    **step: Any,
) -> Tensor:
    """x/α after the scheduler's last step, from ``y`` (default: the problem's noise).

    ``grid`` overwrites the scheduler's sigmas; ``step`` goes to ``scheduler.step``.
    """
    scheduler.set_timesteps(len(grid) - 1 if grid is not None else steps)
    if grid is not None:
        scheduler.sigmas = grid
    if hasattr(scheduler, "set_begin_index"):  # without it, equal rounded timesteps make it skip its first step
        scheduler.set_begin_index(0)
    exploding = kind.startswith(VARIANCE_EXPLODING)
    y = problem.y_start if y is None else y
    x = y if exploding else y / math.sqrt(1 + problem.highest**2)
    ratio = problem.highest
    for i, t in enumerate(scheduler.timesteps):
        ratio = min(stands_at(scheduler, kind, i, t), 1e6)
        y = x if exploding else x * math.sqrt(1 + ratio**2)
        x_0 = problem.denoise(y, ratio)
        if kind.startswith("EDM"):
            data = scheduler.config.sigma_data
            skip, out = data**2 / (ratio**2 + data**2), ratio * data / math.sqrt(ratio**2 + data**2)
            output = (x_0 - skip * y) / out
        elif kind == "IPNDM":  # its arithmetic takes v = α ε − σ x_0
            output = ((y - x_0) / ratio - ratio * x_0) / math.sqrt(1 + ratio**2)
        else:
            output = (y - x_0) / ratio
        if hasattr(scheduler, "is_scale_input_called"):
            scheduler.is_scale_input_called = True
        x = scheduler.step(output, t, x, **step).prev_sample
    if kind.startswith(INTEGER_TIME):
        last = float(scheduler.final_alpha_cumprod) if hasattr(scheduler, "final_alpha_cumprod") else 1.0
    else:
        last = 1.0 if kind == "IPNDM" else 1 / (1 + float(scheduler.sigmas[-1]) ** 2)
    return x if exploding else x / math.sqrt(last)


def steps_for(kind: str, nfe: int) -> int:
    """The most steps within the budget."""
    if kind in ("HeunDiscrete", "KDPM2Discrete"):
        return (nfe + 1) // 2
    return nfe - (kind == "PNDM")


def run(kind: str, table: str, options: dict[str, Any], problem: Problem, nfe: int) -> Tensor:
    return simulate(problem, make(problem, kind, table, **options), kind, steps_for(kind, nfe))


def run_by_hand(
    kind: str, options: dict[str, Any], grid: str, low: float, ending: str, problem: Problem, nfe: int
) -> Tensor:
    y = simulate(problem, make(problem, kind, **options), kind, nfe, build(problem, grid, nfe, low, ending))
    return problem.denoise(y, low) if ending == "denoise" else y


def _label(kind: str, options: dict[str, Any]) -> str:
    short = {
        "solver_order": "order",
        "lower_order_final": "lower",
        "algorithm_type": "",
        "solver_type": "",
        "predict_x0": "x0",
    }
    words = [f"{short.get(key, key)}={value}".lstrip("=") for key, value in options.items()]
    return " ".join([kind.removesuffix("Discrete").removesuffix("Multistep"), *words])


def _multistep() -> Iterator[tuple[str, dict[str, Any]]]:
    """The multistep schedulers and their own options."""
    for lower in (True, False):
        for algorithm, (order, solver_type) in product(
            ("dpmsolver++", "dpmsolver"), ((2, "midpoint"), (2, "heun"), (3, "midpoint"))
        ):
            options = {"solver_order": order, "algorithm_type": algorithm, "solver_type": solver_type}
            yield "DPMSolverMultistep", {**options, "lower_order_final": lower}
        for order, solver_type, predict_x0 in product((1, 2, 3), ("bh1", "bh2"), (True, False)):
            options = {"solver_order": order, "solver_type": solver_type, "predict_x0": predict_x0}
            yield "UniPCMultistep", {**options, "lower_order_final": lower}
        for order in (2, 3):
            yield "DEISMultistep", {"solver_order": order, "lower_order_final": lower}


def _others() -> Iterator[tuple[str, dict[str, Any], list[str]]]:
    """The rest: scheduler, options, the spacings it knows."""
    everything = ["linspace", "leading", "trailing", "karras", "exponential", "beta"]
    for order, algorithm, lower in product((2, 3), ("dpmsolver++", "dpmsolver"), (True, False)):
        options = {"solver_order": order, "algorithm_type": algorithm, "lower_order_final": lower}
        for final in ("zero", "sigma_min"):
            own = {**options, "final_sigmas_type": final}
            yield "DPMSolverSinglestep", own, ["default", "karras", "exponential", "beta"]
    for kind in ("EulerDiscrete", "HeunDiscrete", "LMSDiscrete", "KDPM2Discrete"):
        yield kind, {}, everything
    yield "DDIM", {"clip_sample": False}, everything[:3]
    for to_one in (True, False):
        yield "PNDM", {"skip_prk_steps": True, "set_alpha_to_one": to_one}, everything[:3]
    for schedule, low in product(("karras", "exponential"), LOWS):
        yield "EDMEuler", {"sigma_schedule": schedule, "sigma_min": low}, ["default"]
        for order, solver_type in ((2, "midpoint"), (2, "heun"), (3, "midpoint")):
            options = {"solver_order": order, "solver_type": solver_type, "sigma_schedule": schedule, "sigma_min": low}
            yield "EDMDPMSolverMultistep", options, ["default"]
    yield "IPNDM", {}, ["default"]


def configurations(
    kinds: list[str] = KINDS, lows: list[float] = LOWS, tables: list[str] = TABLES
) -> list[Configuration]:
    """Every deterministic scheduler, option and spacing."""
    rows = []

    def add(kind: str, options: dict[str, Any], table: str, spacing: str) -> None:
        own = {**options, **SPACINGS.get(spacing, {})}
        final = f" {own['final_sigmas_type']}" if "final_sigmas_type" in own else ""
        runner = partial(run, kind, table, own)
        rows.append(Configuration("diffusers", _label(kind, options), f"{spacing} table={table}{final}", runner))

    for kind, options in _multistep():
        spacings = [name for name in SPACINGS if name != "lu" or kind.startswith("DPM")]
        finals = [{}] if kind.startswith("DEIS") else [{"final_sigmas_type": final} for final in ("zero", "sigma_min")]
        for spacing, final, table in product(spacings, finals, tables):
            add(kind, {**options, **final}, table, spacing)
        for grid, low, ending in product(kinds, lows, ENDINGS):
            final = (
                {} if kind.startswith("DEIS") else {"final_sigmas_type": "zero" if ending == "zero" else "sigma_min"}
            )
            own = {**options, **final}
            runner = partial(run_by_hand, kind, own, grid, low, ending)
            rows.append(Configuration("diffusers", _label(kind, options), f"by hand {grid} {low:g} {ending}", runner))
    for kind, options, spacings in _others():
        known = tables if not kind.startswith(("EDM", "IPNDM")) else ["native"]
        for spacing, table in product(spacings, known):
            add(kind, options, table, spacing)
    return rows
