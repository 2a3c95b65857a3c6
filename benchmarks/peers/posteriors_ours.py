"""Our methods of posterior sampling, each with the solvers that people take, on the grid of everybody."""

from __future__ import annotations

from functools import partial

import torch
from peers.posterior_problems import PosteriorMethodRow, PosteriorProblem, on_both_grids
from torch import Tensor

from sde_toolkit import Solver, ddim, ddpm, dpmpp_2m, dpmpp_2m_sde, sample
from sde_toolkit.guidance import DDNM, JFPS, MMPS, SDA, TMPD, DiffPIR, PiGDM, SigmaDPS, posterior, sample_particles
from sde_toolkit.guidance.posterior_method import PosteriorMethod

__all__ = ["rows"]

WEAK = (SDA(), DDNM(), SigmaDPS())


def rows(problem: PosteriorProblem) -> list[PosteriorMethodRow]:
    """Every method with every solver."""
    prior = problem.covariance if problem.covariance is not None else problem.data_variance
    methods: dict[str, PosteriorMethod] = {
        "MMPS": MMPS(),
        "MMPS, 1 iteration": MMPS(max_iterations=1),
        "MMPS, 2 iterations": MMPS(max_iterations=2),
        "MMPS, tolerance 0.1": MMPS(tolerance=0.1),
        "PiGDM": PiGDM(),
        "PiGDM, s = 1": PiGDM(prior_std=1.0),
        "JFPS": JFPS(prior),
        "TMPD": TMPD(),
        "DiffPIR": DiffPIR(),
    }
    solvers = {"η=0 ddim": ddim(), "η=0 dpmpp_2m": dpmpp_2m(), "η=1 ddpm": ddpm(), "η=1 dpmpp_2m_sde": dpmpp_2m_sde()}
    rows = [
        PosteriorMethodRow("ours", f"{name}, {solver}", partial(_run, method, solvers[solver]), name == "MMPS")
        for name, method in methods.items()
        for solver in solvers
    ]
    weak = [PosteriorMethodRow("ours", f"{type(m).__name__}, η=0 ddim", partial(_run, m, ddim())) for m in WEAK]
    ensembles = [
        PosteriorMethodRow(
            "ours", f"TDS, proposal {name}, order {order}", partial(_run_particles, methods[name], order)
        )
        for name in ("PiGDM", "MMPS", "DiffPIR")
        for order in (1, 2)
    ]
    return on_both_grids(rows + (ensembles if problem.exact else [])) + weak


def _run_particles(
    method: PosteriorMethod, order: int, problem: PosteriorProblem, y: Tensor, steps: int, seed: int
) -> Tensor:
    """One ensemble of n particles; as many samples are drawn from it by their weights."""
    model = posterior(problem.model, problem.A, y, problem.noise_std, method=method, space="model")
    grid = model.sde.inverse_half_log_snr(-problem.levels(steps).log())
    found = sample_particles(
        model, grid=grid, particles=problem.n, shape=(1, *problem.A.event_shape), seed=seed, order=order
    )
    problem.calls += found.nfe
    problem.products += found.products
    return found.draw(problem.n, seed=seed)[0]


def _run(
    method: PosteriorMethod, solver: Solver, problem: PosteriorProblem, y: Tensor, steps: int, seed: int
) -> Tensor:
    model = posterior(problem.model, problem.A, y, problem.noise_std, method=method, space="model")
    grid = model.sde.inverse_half_log_snr(-problem.levels(steps).log())
    shape = (problem.n, *problem.A.event_shape)
    drawn = sample(model, solver, grid, shape=shape, seed=seed, tweedie=False)
    problem.calls += drawn.nfe
    problem.products += drawn.products
    return drawn.x / model.sde.alpha(grid[-1]).to(torch.float32)
