"""Stochastic peers (η = 1) as callables from a problem, a budget, the state at t=1 and a seed, to samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
import with_azula
import with_diffusers
from azula import sample as azula_samplers
from problems import Problem
from ratio_grids import build
from torch import Tensor
from with_kdiffusion import sampling

__all__ = ["GRIDS", "Brownian", "StochasticPeer", "peers"]

GRIDS = [("karras7", 2e-3), ("karras7", 1e-2), ("logsnr", 1e-2), ("uniform_t", 2e-3), ("quadratic_t", 1e-2)]


@dataclass(frozen=True)
class StochasticPeer:
    """A named sampler on a grid; ``run(problem, nfe, y, seed)`` takes and returns x/α, (n, *event)."""

    library: str
    sampler: str
    grid: str
    run: Callable[[Problem, int, Tensor, int], Tensor]


class Brownian:
    """Unit-variance increments of one Brownian motion in σ, at the price of a draw each.

    k-diffusion asks for increments over consecutive intervals, or (``dpmpp_sde``) over the first part of an interval
    and then over the whole of it; the second is then made of the first and a fresh rest, as its Brownian tree would.
    """

    def __init__(self, x: Tensor, generator: torch.Generator) -> None:
        self.x, self.generator = x, generator
        self.start = self.stop = math.nan
        self.increment = x

    def __call__(self, sigma: Any, sigma_next: Any) -> Tensor:
        start, stop = float(sigma), float(sigma_next)
        known = abs(start - self.start) <= 1e-5 * start and stop < self.stop
        begin = self.stop if known else start
        fresh = torch.randn(self.x.shape, generator=self.generator, dtype=self.x.dtype) * math.sqrt(begin - stop)
        self.increment = self.increment + fresh if known else fresh
        self.start, self.stop = start, stop
        return self.increment / math.sqrt(start - stop)


KDIFFUSION: dict[str, tuple[Callable[..., Tensor], int]] = {
    "euler_ancestral": (sampling.sample_euler_ancestral, 1),
    "dpmpp_2m_sde midpoint": (sampling.sample_dpmpp_2m_sde, 1),
    "dpmpp_2m_sde heun": (partial(sampling.sample_dpmpp_2m_sde, solver_type="heun"), 1),
    "dpmpp_3m_sde": (sampling.sample_dpmpp_3m_sde, 1),
    "dpmpp_sde": (sampling.sample_dpmpp_sde, 2),
    "dpm_2_ancestral": (sampling.sample_dpm_2_ancestral, 2),
    "dpmpp_2s_ancestral": (sampling.sample_dpmpp_2s_ancestral, 2),
}
AZULA: dict[str, Callable[..., Any]] = {
    "DDPM": azula_samplers.DDPMSampler,
    "Ito eta=1": partial(azula_samplers.ItoSampler, eta=1.0),
    "PC": azula_samplers.PCSampler,
}


def run_kdiffusion(name: str, kind: str, low: float, problem: Problem, nfe: int, y: Tensor, seed: int) -> Tensor:
    function, per_step = KDIFFUSION[name]
    steps = nfe if per_step == 1 else (nfe + 1) // 2
    grid = build(problem, kind, steps, low, "zero").to(y.dtype)
    noise = Brownian(y, torch.Generator().manual_seed(seed))
    return function(problem.denoise, y, grid, disable=True, noise_sampler=noise)


def run_azula(name: str, kind: str, low: float, problem: Problem, nfe: int, y: Tensor, seed: int) -> Tensor:
    """azula draws from torch's global generator."""
    torch.manual_seed(seed)
    ending = "denoise" if name.startswith("Ito") else "zero"
    grid = build(problem, kind, nfe // 2 if name == "PC" else nfe, low, ending)
    denoiser = with_azula.AzulaDenoiser(problem, with_azula.TableSchedule(grid))
    sampler = AZULA[name](denoiser, steps=len(grid) - 1, silent=True, dtype=torch.float64)
    y = sampler(y)
    return problem.denoise(y, low) if ending == "denoise" else y  # Itô's last noise would stay in the sample


def run_diffusers(
    kind: str,
    options: dict[str, Any],
    by_hand: tuple[str, float] | None,
    problem: Problem,
    nfe: int,
    y: Tensor,
    seed: int,
) -> Tensor:
    scheduler = with_diffusers.make(problem, kind, **options)
    grid = None if by_hand is None else build(problem, by_hand[0], nfe, by_hand[1], "zero").float()
    generator = torch.Generator().manual_seed(seed)
    return with_diffusers.simulate(problem, scheduler, kind, nfe, grid, y=y, generator=generator)


def _diffusers() -> Iterator[StochasticPeer]:
    solvers: list[tuple[str, str, dict[str, Any]]] = [
        (f"DPMSolverMultistep sde++ {order} {solver_type}", "DPMSolverMultistep",
         {"algorithm_type": "sde-dpmsolver++", "solver_order": order, "solver_type": solver_type})
        for order, solver_type in ((1, "midpoint"), (2, "midpoint"), (2, "heun"), (3, "midpoint"))
    ]  # fmt: skip
    solvers += [
        (f"SASolver P{p}C{c} tau=1", "SASolver", {"predictor_order": p, "corrector_order": c, "tau_func": lambda t: 1})
        for p, c in ((2, 2), (3, 3))
    ]
    for label, kind, options in solvers:
        for spacing in ("linspace", "trailing", "karras", "exponential"):
            own = {**options, **with_diffusers.SPACINGS[spacing]}
            yield StochasticPeer("diffusers", label, spacing, partial(run_diffusers, kind, own, None))
        if kind != "SASolver":  # its last noise level must not be 0
            for name, low in GRIDS:
                runner = partial(run_diffusers, kind, options, (name, low))
                yield StochasticPeer("diffusers", label, f"by hand {name} {low:g}", runner)
    for spacing, kind in product(("leading", "trailing", "linspace"), ("DDPM", "EulerAncestralDiscrete")):
        own = {"timestep_spacing": spacing, **({"clip_sample": False} if kind == "DDPM" else {})}
        yield StochasticPeer("diffusers", kind, spacing, partial(run_diffusers, kind, own, None))


def peers() -> list[StochasticPeer]:
    """Every stochastic sampler on every grid of :data:`GRIDS`, or on its own spacings."""
    rows = [
        StochasticPeer("k-diffusion", name, f"{kind} {low:g}", partial(run_kdiffusion, name, kind, low))
        for name, (kind, low) in product(KDIFFUSION, GRIDS)
    ]
    rows += [
        StochasticPeer("azula", name, f"{kind} {low:g}", partial(run_azula, name, kind, low))
        for name, (kind, low) in product(AZULA, GRIDS)
    ]
    return rows + list(_diffusers())
