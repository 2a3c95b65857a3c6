"""Orders of convergence of multistep methods, ours and the peers', on a Gaussian whose flow is known in closed form.

    python benchmarks/orders.py            # one minute

The grid is smooth and starts with steps so small (λ ~ u³) that the low-order steps every multistep method begins with
do not show; it stops at σ/α = 0.05, so that no last step to 0 shows either. float64, but for schedulers that cast.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise, product
from typing import Any

import torch
from peers.problems import Problem
from report import Report, parser
from torch import Tensor

from sde_toolkit import VPSDE, Solver, dpmpp_2m, dpmpp_3m, gaussian, sample, unipc
from sde_toolkit.integrators import FrozenNoise, Multistep
from sde_toolkit.interop import azula_solver, diffusers_solver, k_diffusion_solver
from sde_toolkit.sampling import ForeignSolver

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


def by(solver: ForeignSolver, problem: Problem, levels: Tensor) -> Tensor:
    return solver.run(problem.denoise, levels, problem.y_start, lambda: torch.zeros_like(problem.y_start))


def scheduler(kind: str, **options: Any) -> Callable[[Problem, Tensor], Tensor]:
    return partial(by, diffusers_solver(kind, last="step", lower_order_final=False, **options))


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
    k_diffusion: dict[str, tuple[str, dict[str, Any]]] = {
        "dpmpp_2m": ("dpmpp_2m", {}),
        "dpmpp_3m_sde eta=0": ("dpmpp_3m_sde", {"eta": 0.0}),
        "lms-3": ("lms", {"order": 3}),
        "heun": ("heun", {}),
        "dpm_2": ("dpm_2", {}),
        "dpmpp_2s eta=0": ("dpmpp_2s_ancestral", {"eta": 0.0}),
    }
    rows: dict[str, Callable[[Problem, Tensor], Tensor]] = {
        f"k-diffusion {name}": partial(by, k_diffusion_solver(sampler, **options))
        for name, (sampler, options) in k_diffusion.items()
    }
    for name, order in (("xEAB", 2), ("xEAB", 3), ("xEAB", 4), ("zEAB", 3), ("vAB", 3), ("REAB", 3)):
        rows[f"azula {name}-{order}"] = partial(by, azula_solver(name, last="step", order=order))
    for algorithm, order in product(("dpmsolver++", "dpmsolver"), (2, 3)):
        made = scheduler("DPMSolverMultistep", solver_order=order, algorithm_type=algorithm)
        rows[f"diffusers DPMSolverMultistep {order} {algorithm}"] = made
    for order, kind in product((1, 2, 3), ("bh1", "bh2")):
        options = {"solver_order": order, "solver_type": kind}
        rows[f"diffusers UniPC {order} {kind}"] = scheduler("UniPCMultistep", **options)
        plain = {**options, "disable_corrector": list(range(10_000))}
        rows[f"diffusers UniPC {order} {kind}, no corrector"] = scheduler("UniPCMultistep", **plain)
    for order in (2, 3):
        rows[f"diffusers DEIS {order}"] = scheduler("DEISMultistep", solver_order=order)
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
