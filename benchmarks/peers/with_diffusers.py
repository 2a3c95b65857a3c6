"""diffusers' schedulers, as rows of the toolkit (:func:`sde_toolkit.interop.diffusers_solver`).

A scheduler knows 1000 noise levels. Here they are those of t from t(low) to 1 (``table`` names low; ``native`` is the
usual 1/1000 ... 1), and it chooses among them by its own spacing. Rows ``by hand`` are on a grid of :mod:`ratio_grids`,
which reaches grids that diffusers has no option for.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product
from typing import Any

import diffusers
import torch
from peers.configuration import Configuration, OnGrid
from peers.problems import Problem
from peers.ratio_grids import ENDINGS, KINDS, LOWS
from torch import Tensor

from sde_toolkit.interop import diffusers_solver
from sde_toolkit.interop.diffusers_levels import own_levels

__all__ = ["configurations"]

diffusers.utils.logging.set_verbosity_error()  # DPMSolverSinglestep says at every odd budget that it changed an option
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


def run(kind: str, table: str, options: dict[str, Any], problem: Problem, nfe: int) -> Tensor:
    """On the levels that the scheduler chooses among the problem's, most steps within the budget."""
    low = 1e-3 if table == "native" else problem.time(float(table))
    trained = problem.ratio(torch.linspace(low, 1.0, 1000, dtype=torch.float64))
    two_evaluations = kind in ("HeunDiscrete", "KDPM2Discrete")
    n = (nfe + 1) // 2 if two_evaluations else nfe - (kind == "PNDM")
    levels = own_levels(getattr(diffusers, f"{kind}Scheduler"), options, n, trained)
    ends_above_0 = kind.startswith("DEIS") or options.get("final_sigmas_type") == "sigma_min"
    ends_above_0 |= options.get("set_alpha_to_one") is False
    levels = torch.cat([levels, trained[:1] if ends_above_0 else levels.new_zeros(1)])
    return diffusers_solver(kind, last="step", **options).run(
        problem.denoise, levels, problem.y_start, lambda: torch.zeros_like(problem.y_start)
    )


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
            runner = OnGrid(diffusers_solver(kind, last="step", **options), grid, low, ending)
            rows.append(Configuration("diffusers", _label(kind, options), f"by hand {grid} {low:g} {ending}", runner))
    for kind, options, spacings in _others():
        known = tables if not kind.startswith(("EDM", "IPNDM")) else ["native"]
        for spacing, table in product(spacings, known):
            add(kind, options, table, spacing)
    return rows
