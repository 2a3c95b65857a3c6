"""``auto`` against the configurations that people use, on networks and mixtures that were kept out of its choice.

    python benchmarks/train_small_networks.py --to FOLDER --mnist path/to/mnist.npz
    python benchmarks/auto_on_networks.py --networks FOLDER

The error is the RMSE to the end of a fine solve of the same network from the same noises, over the size of that end.
The peers are the methods and grids of diffusers, k-diffusion and azula, written as ours (``python
benchmarks/agreement.py`` shows that they are equal). The best peer of a problem is the one configuration with the least
geometric mean of its errors over all budgets; those that are clearly worse on a few noises are not run on all.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from auto_problems import NOISES, Problem, problems
from report import Report, parser
from torch import Tensor

from sde_toolkit import Integrator, Solver, auto, deis, dpmpp_2m, grids, unipc
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
from sde_toolkit.sampling.automatic import usual_plan
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


@dataclass(frozen=True)
class Found:
    """Errors of one problem by budget: of ``auto``, of ``auto`` with what measuring leaves of the budget, of peers."""

    problem: Problem
    ours: list[Errors]
    paid: list[Errors]
    peers: dict[str, list[Errors]]
    measuring: int

    @property
    def best(self) -> str:
        """The one peer with the least geometric mean of root mean squares over all budgets."""
        return min(self.peers, key=lambda name: mean([rms for rms, _ in self.peers[name]]))

    def ratios(self, ours: list[Errors], sense: int = 0) -> list[float]:
        """To the best peer; ``sense``: 0 of root mean squares, 1 of medians."""
        return [a[sense] / b[sense] for a, b in zip(ours, self.peers[self.best], strict=True)]


def found_of(problem: Problem, budgets: Sequence[int]) -> Found:
    """Everything that is reported of a problem."""
    found = Found(
        problem,
        [of_auto(problem, nfe) for nfe in budgets],
        [of_auto(problem, max(1, nfe - PAID)) for nfe in budgets],
        {name: [of_peer(problem, name, nfe) for nfe in budgets] for name in best_peers(problem, budgets)},
        auto(problem.model, 20).measuring,
    )
    print(problem.name, *(f"{ratio:.2f}" for ratio in found.ratios(found.ours)), flush=True)
    return found


def tell_summary(report: Report, title: str, budgets: Sequence[int], rows: list[list[float]]) -> None:
    """Median and largest of the ratios, by budget and over all."""
    report.line(f"{title}:")
    report.table("", *map(str, budgets), "all")
    columns = [list(column) for column in zip(*rows, strict=True)]
    columns.append([ratio for row in rows for ratio in row])
    for label, summary in (("median", statistics.median), ("largest", max)):
        report.row(label, *(f"{summary(column):.2f}" for column in columns))
    report.row("problems above 1.3", *(sum(ratio > 1.3 for ratio in column) for column in columns))


def of_preset(problem: Problem, solver: Solver, nfe: int) -> Errors:
    """The errors of a solver of ours on Karras' grid."""
    plan = usual_plan(problem.model, solver, nfe=nfe, build=grids.karras)
    key = f"preset {solver.name}, Karras, {nfe}"
    return problem.error(key, solver.integrator, plan.grid, tweedie=plan.tweedie)


def tell_one(report: Report, found: Found, budgets: Sequence[int]) -> None:
    """The errors of ``auto``, of plain choices and of all peers that were run, on one problem."""
    report.line(f"{found.problem.name}: RMSE of all that were run on its {found.problem.n} noises.")
    report.table("", *map(str, budgets))
    rows = {"auto": found.ours, **found.peers}
    for name in (name for name in PEERS if name.startswith("exponential AB-2")):
        rows[name] = [of_peer(found.problem, name, nfe) for nfe in budgets]
    for solver in (unipc(), dpmpp_2m(), deis()):
        rows[f"our {solver.name}, Karras"] = [of_preset(found.problem, solver, nfe) for nfe in budgets]
    for name, errors in rows.items():
        report.row(name, *(f"{rms:.4f}" for rms, _ in errors))


def main() -> None:
    words = parser(__doc__)
    words.add_argument("--networks", type=Path, required=True, help="folder of train_small_networks.py")
    words.add_argument("--budgets", type=int, nargs="+", default=[5, 7, 10, 13, 20, 25, 50])
    words.add_argument(
        "--n", type=int, nargs=3, default=NOISES, help="noises: images, small images and signals, points"
    )
    words.add_argument("--half", choices=["kept-out", "choice"], default="kept-out")
    given = words.parse_args()
    torch.set_num_threads(1)
    budgets, kept_out = given.budgets, given.half == "kept-out"
    chosen = problems(given.networks, given.n, kept_out=kept_out)
    name = "auto" if kept_out else "auto-choice"
    report = Report(given.results, name, f"auto against usual configurations: problems of the {given.half} half")
    every = [found_of(problem, budgets) for problem in chosen]
    of_images, of_small, of_vectors = given.n
    report.line(
        f"{len(chosen)} problems; noises: {of_images} for images, {of_small} for small ones, {of_vectors} for"
        f" vectors. Of {len(PEERS)} peers, the five that are best on a few noises of a problem are run on all. Errors "
        f"are relative RMSE. The {every[0].measuring} evaluations of one sample with which auto measures a model count "
        f"in the last table of ratios alone."
    )
    report.table("problem", "", *map(str, budgets))
    for found in every:
        own = found.problem.flow()["error"].item()
        report.row(f"{found.problem.name} (own error {own:.0e})", "auto", *(f"{rms:.4f}" for rms, _ in found.ours))
        report.row("", found.best, *(f"{rms:.4f}" for rms, _ in found.peers[found.best]))
        report.row("", "ratio", *(f"{ratio:.2f}" for ratio in found.ratios(found.ours)))
        report.row("", "ratio of medians", *(f"{ratio:.2f}" for ratio in found.ratios(found.ours, 1)))
    title = "Ratio to the best single peer of each problem"
    tell_summary(report, title, budgets, [found.ratios(found.ours) for found in every])
    tell_summary(report, f"{title}, of median errors", budgets, [found.ratios(found.ours, 1) for found in every])
    title += f", if a single draw of 64 samples pays for the measurement ({PAID} evaluation)"
    tell_summary(report, title, budgets, [found.ratios(found.paid) for found in every])
    for found in every:
        if found.problem.name.startswith("mnist, VE"):
            tell_one(report, found, budgets)
    report.save()


if __name__ == "__main__":
    main()
