"""``auto`` against the configurations that people use, on networks and mixtures that were kept out of its choice.

    python benchmarks/train_small_networks.py --to FOLDER --mnist path/to/mnist.npz
    python benchmarks/auto_on_networks.py --networks FOLDER

The error is the RMSE to the end of a fine solve of the same network from the same noises, over the size of that end.
The peers are the methods and grids of diffusers, k-diffusion and azula, written as ours (``python
benchmarks/agreement.py`` shows that they are equal). The best peer of a problem is the one configuration with the least
geometric mean of its errors over all budgets.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch
from auto_problems import NOISES, Problem, problems
from report import Report, parser
from torch import Tensor

from sde_toolkit import Integrator, auto
from sde_toolkit.integrators import (
    AdamsBashforth,
    Corrected,
    FrozenNoise,
    Heun,
    Landing,
    Multistep,
    NoiseToSignal,
    Time,
    bh2,
)
from sde_toolkit.sampling.bending import least_time

EAB = {order: Multistep(order, FrozenNoise(), NoiseToSignal()) for order in (1, 2, 3)}
TWO_M, UNIPC = Multistep(2, two_point=bh2), Corrected(Multistep(2, two_point=bh2))
# method, spacing, last σ/α over σ_d, and the ending: an evaluation of Tweedie's, or a last step to σ = 0. The spacing
# "sgm" is that of Stable Diffusion XL, equal steps in t from 1 to 0, the last of which goes to σ = 0.
PEERS: dict[str, tuple[Integrator, str, float, str]] = {
    "DDIM, Karras": (EAB[1], "karras", 0.004, "tweedie"),
    "DPM++ 2M, Karras": (TWO_M, "karras", 0.004, "tweedie"),
    "DPM++ 2M, Karras to 0.02": (TWO_M, "karras", 0.02, "tweedie"),
    "DPM++ 2M, uniform λ": (TWO_M, "lambda", 0.02, "tweedie"),
    "DPM++ 2M, uniform t": (TWO_M, "time", 0.02, "tweedie"),
    "DPM++ 3M, uniform λ": (Multistep(3), "lambda", 0.02, "tweedie"),
    "UniPC-2, Karras": (UNIPC, "karras", 0.004, "tweedie"),
    "UniPC-2, Karras to 0.02": (UNIPC, "karras", 0.02, "tweedie"),
    "UniPC-2, uniform λ": (UNIPC, "lambda", 0.02, "tweedie"),
    "UniPC-3, uniform λ": (Corrected(Multistep(3, two_point=bh2)), "lambda", 0.02, "tweedie"),
    "DEIS-3, √t": (Multistep(3, FrozenNoise(), Time()), "root", 0.02, "tweedie"),
    "DEIS-3, uniform t": (Multistep(3, FrozenNoise(), Time()), "time", 0.02, "tweedie"),
    "exponential AB-2 of ε̂, Karras": (Landing(EAB[2]), "karras", 0.004, "zero"),
    "exponential AB-2 of ε̂, Karras to 0.02": (Landing(EAB[2]), "karras", 0.02, "zero"),
    "exponential AB-3 of ε̂, Karras to 0.02": (Landing(EAB[3]), "karras", 0.02, "zero"),
    "iPNDM, Karras": (Landing(AdamsBashforth()), "karras", 0.004, "zero"),
    "iPNDM, uniform t": (Landing(AdamsBashforth()), "time", 0.02, "zero"),
    "Heun, Karras": (Heun(), "karras", 0.004, "tweedie"),
    "Heun, Karras to 0.02": (Heun(), "karras", 0.02, "tweedie"),
    "DDIM, SGM uniform": (EAB[1], "sgm", 0.0, "tweedie"),
    "DPM++ 2M, SGM uniform": (TWO_M, "sgm", 0.0, "tweedie"),
}
PAID = 1  # evaluations per sample: 62 of one sample, over 64 samples, rounded up
HIGHEST = 160.0  # σ/α over σ_d at which peers start where α(1) = 0


def peer_grid(problem: Problem, spacing: str, low: float, ending: str, n: int) -> Tensor:
    """``n`` times from the highest to the lowest noise level, and 0 after them for the ending "zero"."""
    model = problem.model
    sde, size = model.sde, model.sigma_data
    known = [torch.exp(-sde.half_log_snr(t)).item() for t in (1.0, least_time(model))]
    ends = torch.tensor([min(known[0], HIGHEST * size), max(known[1], low * size)], dtype=torch.float64)
    share = torch.linspace(0, 1, n, dtype=torch.float64)
    t = sde.inverse_half_log_snr(-torch.log(ends))
    if spacing in ("karras", "lambda"):
        u = ends ** (1 / 7) if spacing == "karras" else torch.log(ends)
        u = u[0] + share * (u[1] - u[0])
        ratios = u**7 if spacing == "karras" else torch.exp(u)
        times = sde.inverse_half_log_snr(-torch.log(ratios.clamp(ends[1].item(), ends[0].item())))
    elif spacing == "sgm":
        times = t[0] * (1 - torch.arange(n, dtype=torch.float64) / n)
    elif spacing == "time":
        times = t[0] + share * (t[1] - t[0])
    else:
        times = (t[0].sqrt() + share * (t[1].sqrt() - t[0].sqrt())) ** 2
    times[-1] = times[-1].clamp(min=1e-9)  # a noise level of t = 0 itself, for SDEs that begin with noise
    return torch.cat([times, torch.zeros(1, dtype=torch.float64)]) if ending == "zero" else times


Errors = tuple[float, float]  # root mean square, median


def of_auto(problem: Problem, nfe: int) -> Errors:
    """The errors of ``auto``."""
    plan = auto(problem.model, nfe)
    return problem.error(f"auto {digest()}, {nfe}", plan.solver.integrator, plan.grid, tweedie=plan.tweedie)


def digest() -> str:
    """Of the code of ``auto``: an error of another version is not used."""
    import hashlib

    from sde_toolkit.sampling import automatic, bending

    code = "".join(Path(str(module.__file__)).read_text(encoding="utf-8") for module in (automatic, bending))
    return hashlib.sha256(code.encode()).hexdigest()[:8]


def of_peer(problem: Problem, name: str, nfe: int, first: int | None = None) -> Errors:
    """The errors of a peer; of the first so many noises alone, if that is given."""
    method, spacing, low, ending = PEERS[name]
    per_step = method.evals_per_step or 1
    grid = peer_grid(problem, spacing, low, ending, 1 + (nfe - 1) // per_step)  # the last evaluation is one alone
    return problem.error(f"{name}, {nfe}", method, grid, tweedie=ending == "tweedie", first=first)


def best_peers(problem: Problem, budgets: Sequence[int]) -> list[str]:
    """Five peers with the least geometric mean of the root mean squares over all budgets, of a few noises."""
    means = {name: mean([of_peer(problem, name, nfe, problem.few)[0] for nfe in budgets]) for name in PEERS}
    return sorted(PEERS, key=means.__getitem__)[:5]


def mean(values: list[float]) -> float:
    """Geometric."""
    return math.exp(sum(map(math.log, values)) / len(values))


def main() -> None:
    words = parser(__doc__)
    words.add_argument("--networks", type=Path, required=True, help="folder of train_small_networks.py")
    words.add_argument("--budgets", type=int, nargs="+", default=[5, 7, 10, 13, 20, 25, 50])
    words.add_argument("--n", type=int, nargs=3, default=NOISES, help="noises: images, small images and signals, points")
    words.add_argument("--half", choices=["kept-out", "choice"], default="kept-out")
    given = words.parse_args()
    torch.set_num_threads(1)
    budgets, kept_out = given.budgets, given.half == "kept-out"
    chosen = problems(given.networks, given.n, kept_out=kept_out)
    name = "auto" if kept_out else "auto-choice"
    report = Report(given.results, name, f"auto against usual configurations: problems of the {given.half} half")
    ours, paid, peers, own, measuring = {}, {}, {}, {}, {}
    for problem in chosen:
        ours[problem.name] = [of_auto(problem, nfe) for nfe in budgets]
        paid[problem.name] = [of_auto(problem, max(1, nfe - PAID)) for nfe in budgets]
        peers[problem.name] = {name: [of_peer(problem, name, nfe) for nfe in budgets] for name in PEERS}
        own[problem.name] = problem.flow()["error"].item()
        measuring[problem.name] = auto(problem.model, 20).measuring
        print(problem.name, *(f"{e:.4f}" for e in ours[problem.name]), flush=True)
    noises = sorted({problem.n for problem in chosen})
    report.line(f"{len(chosen)} problems, {' and '.join(map(str, noises))} noises each. Errors are relative RMSE.")
    single = min(PEERS, key=lambda name: mean([e for found in peers.values() for e in found[name]]))
    best = {name: min(PEERS, key=lambda peer: mean(peers[name][peer])) for name in ours}
    report.table("problem", "", *map(str, budgets))
    for name, errors in ours.items():
        measured = f"auto ({measuring[name]} evaluations of one sample to measure)"
        report.row(f"{name} (own error {own[name]:.0e})", measured, *(f"{e:.4f}" for e in errors))
        report.row("", best[name], *(f"{e:.4f}" for e in peers[name][best[name]]))
        report.row("", "ratio", *(f"{a / b:.2f}" for a, b in zip(errors, peers[name][best[name]], strict=True)))
    everywhere = dict.fromkeys(ours, single)
    for title, against, errors_of in (
        ("Ratio to the best single peer of each problem", best, ours),
        (f"Ratio to the best single peer of all problems ({single})", everywhere, ours),
        (f"The first ratio if a single draw of 64 samples pays for the measurement ({PAID} evaluations)", best, paid),
    ):
        report.line(f"{title}:")
        report.table("", *map(str, budgets), "all")
        columns = [[errors_of[name][k] / peers[name][against[name]][k] for name in ours] for k in range(len(budgets))]
        columns.append([ratio for column in columns for ratio in column])
        for label, summary in (("median", statistics.median), ("largest", max)):
            report.row(label, *(f"{summary(column):.2f}" for column in columns))
        report.row("problems above 1.3", *(sum(ratio > 1.3 for ratio in column) for column in columns))
    report.save()


if __name__ == "__main__":
    main()
