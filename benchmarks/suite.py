"""The suite of solvers: our presets and those of other libraries on problems whose answer is known.

    python benchmarks/suite.py            # nine presets, and what is installed of diffusers, k-diffusion and azula

The tables are those of ``sde-toolkit bench``: in each cell (truth and budget) a value is divided by the smallest one
of all solvers. The figure is the geometric mean over truths, in brackets its 95 % interval over truths and noises.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from report import Report, parser

from sde_toolkit.interop import azula_solver, diffusers_solver, k_diffusion_solver
from sde_toolkit.suite import SUITE_BUDGETS, Measure, rank, ranking_table, run_suite, truth_names

OURS = ("auto", "ipndm", "dpmpp_2m", "unipc", "deis", "heun", "ddim", "ddpm", "euler_maruyama")
PEERS: dict[str, Any] = {  # their first word is the package
    "diffusers UniPC": lambda: diffusers_solver("UniPCMultistepScheduler", solver_order=2),
    "diffusers DPM-Solver++ 2M": lambda: diffusers_solver("DPMSolverMultistepScheduler"),
    "k-diffusion DPM-Solver++ 2M": lambda: k_diffusion_solver("dpmpp_2m"),
    "k-diffusion LMS": lambda: k_diffusion_solver("lms"),
    "azula zAB": lambda: azula_solver("zAB", order=3),
}
TITLES = {
    Measure.ERROR: "Error against the exact flow (RMSE), solvers of the flow",
    Measure.MEDIAN: "The same for the typical sample (median)",
    Measure.DISTANCE: "Distance to real samples (sliced Wasserstein, whitened), all solvers",
}


def installed(name: str) -> bool:
    """Whether the package of a peer can be imported."""
    return importlib.util.find_spec(name.split()[0].replace("-", "_")) is not None


if __name__ == "__main__":
    words = parser(__doc__)
    words.add_argument("--solvers", nargs="*", default=list(OURS), help="presets")
    words.add_argument("--peers", nargs="*", default=[name for name in PEERS if installed(name)], choices=list(PEERS))
    words.add_argument("--truths", nargs="+", default=truth_names())
    words.add_argument("--budgets", nargs="+", type=int, default=list(SUITE_BUDGETS))
    words.add_argument("--to", type=Path, help="folder for the page; results that are there join")
    given = words.parse_args()
    solvers = {name: name for name in given.solvers} | {name: PEERS[name]() for name in given.peers}
    report = Report(given.results, "suite", "Solvers on truths", sorted({name.split()[0] for name in given.peers}))
    found = run_suite(solvers, given.truths, given.budgets, to=given.to)
    report.line(f"Truths: {', '.join(found.truths)}.")
    for measure, title in TITLES.items():
        ranking = rank(found, measure)
        table = ranking_table(found, measure, ranking)
        report.line(f"## {title}")
        report.table(*(column.heading for column in table.columns))
        for line in table.lines:
            report.row(*line.cells)
        report.line(f"Not told apart from the first: {', '.join(ranking.leaders) or 'none'}.")
    report.save()
