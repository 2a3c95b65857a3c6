"""Convergence orders of the peers' multistep methods, on a Gaussian whose flow is known in closed form.

    python benchmarks/peers/orders.py

The grid is smooth and starts with steps so small (λ ~ u³) that the low-order steps every multistep method begins with
do not show; it stops at σ/α = 0.05, so that no last step to 0 shows either. float64, but for schedulers that cast.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import with_azula
import with_diffusers
from problems import Problem
from torch import Tensor
from with_kdiffusion import sampling

from sde_toolkit import VPSDE, gaussian

HIGH, LOW, STD, MEAN = 10.0, 0.05, 0.4, 0.7


class GaussianProblem(Problem):
    """N(m, s²) started at σ/α = HIGH instead of at t=1."""

    @property
    def highest(self) -> float:
        return HIGH


def problem(n: int = 16) -> Problem:
    def denoise(y: Tensor, ratio: float) -> Tensor:
        return (STD**2 * y + ratio**2 * MEAN) / (STD**2 + ratio**2)

    noise = torch.linspace(-2, 2, n, dtype=torch.float64).unsqueeze(1)
    model = gaussian([MEAN], VPSDE(), std=STD)
    made = GaussianProblem("gaussian", model, denoise, noise)
    made.reference = MEAN + (made.y_start - MEAN) * math.sqrt((STD**2 + LOW**2) / (STD**2 + HIGH**2))
    return made


def grid(steps: int, power: float) -> Tensor:
    u = torch.linspace(0, 1, steps + 1, dtype=torch.float64) ** power
    return HIGH * (LOW / HIGH) ** u


def with_k(function: Callable[..., Tensor], problem: Problem, levels: Tensor) -> Tensor:
    return function(problem.denoise, problem.y_start, levels, disable=True)


def with_a(name: str, problem: Problem, levels: Tensor) -> Tensor:
    return with_azula.simulate(name, problem, with_azula.TableSchedule(levels), len(levels) - 1)


def with_d(kind: str, options: dict[str, Any], problem: Problem, levels: Tensor) -> Tensor:
    final = {} if kind.startswith("DEIS") else {"final_sigmas_type": "sigma_min"}
    scheduler = with_diffusers.make(problem, kind, lower_order_final=False, **final, **options)
    return with_diffusers.simulate(problem, scheduler, kind, 0, levels)


def peers() -> dict[str, Callable[[Problem, Tensor], Tensor]]:
    sde = {"eta": 0.0, "noise_sampler": 0}
    rows: dict[str, Callable[[Problem, Tensor], Tensor]] = {
        "k-diffusion dpmpp_2m": partial(with_k, sampling.sample_dpmpp_2m),
        "k-diffusion dpmpp_3m_sde eta=0": partial(with_k, partial(sampling.sample_dpmpp_3m_sde, **sde)),
        "k-diffusion lms-3": partial(with_k, partial(sampling.sample_lms, order=3)),
        "k-diffusion heun": partial(with_k, sampling.sample_heun),
        "k-diffusion dpm_2": partial(with_k, sampling.sample_dpm_2),
        "k-diffusion dpmpp_2s eta=0": partial(with_k, partial(sampling.sample_dpmpp_2s_ancestral, eta=0.0)),
    }
    rows |= {
        f"azula {name}": partial(with_a, name) for name in ("xEAB-2", "xEAB-3", "xEAB-4", "zEAB-3", "vAB-3", "REAB-3")
    }
    for algorithm in ("dpmsolver++", "dpmsolver"):
        for order in (2, 3):
            options: dict[str, Any] = {"solver_order": order, "algorithm_type": algorithm}
            rows[f"diffusers DPMSolverMultistep {order} {algorithm}"] = partial(with_d, "DPMSolverMultistep", options)
    for order in (1, 2, 3):
        for kind in ("bh1", "bh2"):
            options = {"solver_order": order, "solver_type": kind}
            rows[f"diffusers UniPC {order} {kind}"] = partial(with_d, "UniPCMultistep", options)
            plain = {**options, "disable_corrector": list(range(10_000))}
            rows[f"diffusers UniPC {order} {kind}, no corrector"] = partial(with_d, "UniPCMultistep", plain)
    for order in (2, 3):
        rows[f"diffusers DEIS {order}"] = partial(with_d, "DEISMultistep", {"solver_order": order})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=[20, 40, 80, 160, 320])
    parser.add_argument("--power", type=float, default=3.0, help="1 is uniform in λ, and shows the first steps")
    arguments = parser.parse_args()
    case = problem()
    print(f"{'':<45}" + "".join(f"{n:>10}" for n in arguments.steps) + "   orders")
    for name, run in peers().items():
        with torch.no_grad():
            samples = [run(case, grid(n, arguments.power)) for n in arguments.steps]
        errors = [float((x - case.reference).abs().max()) for x in samples]
        rates = [math.log2(a / b) if a and b else math.nan for a, b in pairwise(errors)]
        print(f"{name:<45}" + "".join(f"{e:10.1e}" for e in errors) + "   " + " ".join(f"{r:.2f}" for r in rates))


if __name__ == "__main__":
    main()
