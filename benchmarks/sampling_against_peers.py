"""Error at the end of the probability flow at a budget of evaluations: ours, and the deterministic samplers of peers.

    python benchmarks/sampling_against_peers.py                              # the ring: five minutes on one core
    python benchmarks/sampling_against_peers.py --problem mnist --budgets 10 --keep 4    # a network: ten minutes
    python benchmarks/sampling_against_peers.py --screen                     # makes the shortlist: 20 minutes

Error: root mean square over noises and elements of the distance to the flow's endpoint in float64; ± one standard
error over noises. The ring has eight modes of standard deviation 0.1 and an exact score, under VP.

Peers: diffusers, azula and k-diffusion, every sampler, option and grid, some 8300 configurations. ``--screen`` tries
all of them with 64 noises and writes the best of each budget and library to peers/shortlist.txt. The shortlist then
runs on all noises. The best peer is chosen after the fact at each budget; users do not know beforehand which one that
is. It is given twice: on grids that some peer offers, and on any grid (uniform in √t is one that none of them
offers).

Ours: ``auto``, which knows the budget only, and ``calibrate``, which was fitted to this problem on other noises.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path

import torch
from peers import ours
from peers.configuration import Configuration, Row, measure
from peers.configurations import all_configurations
from peers.problems import NAMES, Problem, load
from report import Report, parser

SHORTLIST = Path(__file__).resolve().parent / "peers" / "shortlist.txt"
FOREIGN = "quadratic_t"  # a grid no peer offers
DEFAULT = (
    r"(UniPC|DPMSolver) order=2 .*(bh2 x0=True|\+\+ midpoint) lower=True final_sigmas_type=zero \[linspace table=native"
)


def best(rows: Iterable[Row]) -> Row:
    """The row of the smallest error; a peer that failed has none."""
    return min((row for row in rows if not math.isnan(row.error)), key=lambda row: row.error)


def best_names(rows: list[Row], keep: int) -> list[str]:
    """Names of the ``keep`` best of each budget and library, and of diffusers' defaults."""
    names = {row.name for row in rows if re.search(DEFAULT, row.name)}
    for budget, library in {(row.budget, row.library) for row in rows}:
        here = [r for r in rows if (r.budget, r.library) == (budget, library) and not math.isnan(r.error)]
        names |= {row.name for row in sorted(here, key=lambda row: row.error)[:keep]}
    return sorted(names)


def run(problem: Problem, configurations: list[Configuration], budgets: list[int]) -> list[Row]:
    return [measure(problem, each, budget) for each in configurations for budget in budgets]


def compare(report: Report, problem: Problem, rows: list[Row], time_limit: float, budgets: list[int]) -> None:
    """A line for each budget, then who the best peers were."""
    report.table(
        "evaluations", "diffusers, default", "best peer, own grids", "best peer, any grid", "`auto`", "`calibrate`"
    )
    winners = []
    for budget in budgets:
        here = [row for row in rows if row.budget == budget]
        own = best(row for row in here if FOREIGN not in row.grid)
        found = [best(row for row in here if re.search(DEFAULT, row.name)), own, best(here)]
        found += [measure(problem, each, budget) for each in ours.configurations(time_limit)]
        report.row(budget, *(f"{row.error:.1e} ± {row.deviation:.0e}" for row in found))
        winners.append((budget, own.name, best(here).name))
    report.table("evaluations", "best peer on its own grids", "best peer on any grid")
    for winner in winners:
        report.row(*winner)


def main() -> None:
    words = parser(__doc__)
    words.add_argument("--problem", choices=NAMES, default="ring")
    words.add_argument("--budgets", type=int, nargs="+", default=[5, 10, 20, 50])
    words.add_argument("--n", type=int, default=None, help="number of noises (2048; mixtures in 64-D 512; mnist 64)")
    words.add_argument("--keep", type=int, default=10, help="shortlisted peers for each budget and library")
    words.add_argument("--screen", action="store_true", help="make the shortlist, among all configurations")
    words.add_argument("--time-limit", type=float, default=300.0, help="seconds for a calibration")
    given = words.parse_args()
    torch.manual_seed(0)
    everything = all_configurations()
    if given.screen:
        names = best_names(run(load("ring", n=64), everything, given.budgets), given.keep)
        SHORTLIST.write_text("\n".join(names) + "\n", encoding="utf-8")
        return
    listed = SHORTLIST.read_text(encoding="utf-8").splitlines()
    shortlist = [each for each in everything if each.name in listed]
    problem = load(given.problem, n=given.n)
    if given.keep < 10 and given.problem != "ring":  # fewer of them, chosen on the ring, for a network that is slow
        names = best_names(run(load("ring", n=256), shortlist, given.budgets), given.keep)
        shortlist = [each for each in shortlist if each.name in names]
    title = f"Sampling against peers: error at the end of the flow, {given.problem}"
    report = Report(given.results, f"sampling-{given.problem}", title, ["diffusers", "azula", "k-diffusion"])
    report.line(f"{len(problem.noise)} noises; {len(shortlist)} of {len(everything)} configurations of peers.")
    rows = run(problem, shortlist, given.budgets)
    compare(report, problem, rows, given.time_limit, given.budgets)
    report.save()


if __name__ == "__main__":
    main()
