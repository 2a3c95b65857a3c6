"""Orders of convergence of multistep methods, ours and the peers', on a Gaussian whose flow is known in closed form.

    python benchmarks/orders.py            # one minute

The grid is smooth and starts with steps so small (λ ~ u³) that the low-order steps every multistep method begins with
do not show; it stops at σ/α = 0.05, so that no last step to 0 shows either. float64, but for schedulers that cast.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from peers import with_azula, with_diffusers
from peers.problems import Problem
from peers.with_kdiffusion import sampling
from report import Report, parser
from torch import Tensor

from sde_toolkit import VPSDE, Solver, dpmpp_2m, dpmpp_3m, gaussian, sample, unipc
from sde_toolkit.integrators import FrozenNoise, Multistep

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


def with_us(solver: Solver, problem: Problem, levels: Tensor) -> Tensor:
    """x/α at the end, from x/α at the start."""
    sde = problem.model.sde
    times = sde.inverse_half_log_snr(-torch.log(levels))
    x = sde.alpha(times[0]) * problem.y_start
    drawn = sample(problem.model, solver, times, x_start=x, dtype=torch.float64)
    return drawn.x / sde.alpha(times[-1])


def mine() -> dict[str, Callable[[Problem, Tensor], Tensor]]:
    solvers = {
        "dpmpp_2m": dpmpp_2m(),
        "dpmpp_3m": dpmpp_3m(),
        "unipc(2)": unipc(2),
        "unipc(3)": unipc(3),
        "DEIS 3": Solver("", 0.0, Multistep(3, FrozenNoise())),
    }
    return {f"ours `{name}`": partial(with_us, solver) for name, solver in solvers.items()}


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
    words = parser(__doc__)
    words.add_argument("--steps", type=int, nargs="+", default=[20, 40, 80, 160, 320])
    words.add_argument("--power", type=float, default=3.0, help="1 is uniform in λ, and shows the first steps")
    given = words.parse_args()
    case = problem()
    title = "Measured orders of convergence of multistep methods, ours and peers'"
    report = Report(given.results, "orders", title, ["diffusers", "azula", "k-diffusion"])
    report.line(
        "Largest errors at the end of the flow of a Gaussian; the order between a number of steps and its double."
    )
    report.table("method", *(f"{n} steps" for n in given.steps), *(f"order from {n}" for n in given.steps[:-1]))
    for name, run in {**mine(), **peers()}.items():
        with torch.no_grad():
            samples = [run(case, grid(n, given.power)) for n in given.steps]
        errors = [float((x - case.reference).abs().max()) for x in samples]
        orders = [math.log2(a / b) if a and b else math.nan for a, b in pairwise(errors)]
        report.row(name, *(f"{e:.1e}" for e in errors), *(f"{order:.2f}" for order in orders))
    report.save()


if __name__ == "__main__":
    main()
