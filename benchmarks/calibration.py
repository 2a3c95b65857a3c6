"""Calibrated solvers against the best configuration of every peer, on the truths of the suite, cell by cell.

    python benchmarks/calibration.py                          # twelve truths, budgets 4, 5, 6, 8, 10: half an hour
    python benchmarks/calibration.py --truths ring --budgets 5

Errors are those to the exact flow (of the network, where there is one), as parts of the data's size, on the truth's own
noises, which no calibration has seen: root mean square and median over the noises. The peers are methods of diffusers
and k-diffusion as our parts express them (``python benchmarks/agreement.py``), each on its grids, to three ends, with
and without a last denoising. The best of all is taken anew for every cell and each of the two errors, after the fact,
which favours the peers. A calibration has :func:`seconds` of this
process's own work. Cells are kept in ``--keep``, and a second call computes only what is missing.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from report import ROOT, Report, parser

from sde_toolkit import auto, calibrate, sample
from sde_toolkit.calibration.published_plans import published_plans
from sde_toolkit.errors import SDEToolkitError
from sde_toolkit.sampling.automatic import Plan
from sde_toolkit.suite import Truth, truths

SECONDS = {"small_network": 15.0, "image_network": 30.0, "real_digits": 25.0}  # the last has 1,797 modes


def seconds(truth: Truth) -> float:
    """For one calibration: 6 below 64 dimensions, 12 from there on, more where an evaluation costs more."""
    return SECONDS.get(truth.name, 6.0 if math.prod(truth.event_shape) < 64 else 12.0)


def judged(truth: Truth, plan: Plan) -> dict[str, Any]:
    """The errors of a plan on the noises of a truth."""
    dtype = torch.float64 if truth.is_exact else torch.float32
    x = truth.start(plan.grid[0].item(), dtype)
    drawn = sample(truth.model, plan.solver, plan.grid, tweedie=plan.tweedie, x_start=x, dtype=dtype)
    found = truth.error(drawn.x)
    return {"rmse": found.rmse, "standard_error": found.standard_error, "median": found.median, "nfe": drawn.nfe}


def best_peers(truth: Truth, nfe: int) -> dict[str, Any]:
    """The smallest error of all configurations in each of the two senses, with the configuration's name."""
    rows: dict[str, dict[str, Any]] = {}
    for plan in published_plans(truth.model, nfe):
        try:
            rows[plan.label] = judged(truth, Plan(plan.solver, plan.grid, plan.tweedie))
        except SDEToolkitError:
            continue
    best = {sense: min(rows, key=lambda name: rows[name][sense]) for sense in ("rmse", "median")}
    return {"all": rows, "best": best}


def ours(truth: Truth, nfe: int, time_limit: float) -> dict[str, Any]:
    """The errors of a calibration, and what it said of itself."""
    clocks = {"monotonic": time.process_time, "perf_counter": time.process_time}
    with patch.multiple(time, **clocks):  # other work on the machine does not count
        found = calibrate(truth.model, None, nfe, time_limit=time_limit, event_shape=truth.event_shape)
    stated = {
        "before": found.before.value,
        "after": found.after.value,
        "own_error": found.record["reference"]["own_error"],
    }
    spent = {"method": found.record["method"], "seconds": found.record["seconds"], "reason": found.reason}
    row = judged(truth, Plan(found.solver, found.grid, found.tweedie))
    return {**row, **stated, **spent, "solver": repr(found.solver.integrator), "start": found.record["start"]["grid"]}


class Cells:
    """What was computed before, by truth, budget and row; every new cell is written at once."""

    def __init__(self, file: Path | None) -> None:
        self.file = file
        self.known: dict[str, Any] = json.loads(file.read_text()) if file is not None and file.exists() else {}

    def get(self, truth: str, nfe: int, row: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        key = f"{truth}, {nfe}, {row}"
        if key not in self.known:
            self.known[key] = compute()
            if self.file is not None:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                self.file.write_text(json.dumps(self.known, indent=0, ensure_ascii=False))
        found: dict[str, Any] = self.known[key]
        return found


def ratio(one: float, other: float) -> str:
    return f"{one / other:.2f}" if other > 0 else "-"


if __name__ == "__main__":
    words = parser(__doc__)
    words.add_argument("--truths", nargs="+", default=None)
    words.add_argument("--budgets", nargs="+", type=int, default=[4, 5, 6, 8, 10])
    words.add_argument("--patience", type=float, default=1.0, help="times the usual seconds of a calibration")
    words.add_argument("--keep", type=Path, default=ROOT / "runs" / "calibration.json", help="file of finished cells")
    given = words.parse_args()
    report, cells = (
        Report(given.results, "calibration", "Calibrated solvers against the best of all peers"),
        Cells(given.keep),
    )
    report.table("truth", "evaluations", "best peer", "its error (median)", "auto", "calibrated", "over peer (median)")
    ratios: dict[str, list[float]] = {"rmse": [], "median": []}
    for nfe in given.budgets:
        for name, truth in truths(given.truths).items():
            limit = given.patience * seconds(truth)
            theirs = cells.get(name, nfe, "peers", lambda truth=truth, nfe=nfe: best_peers(truth, nfe))
            plain = cells.get(name, nfe, "auto", lambda truth=truth, nfe=nfe: judged(truth, auto(truth.model, nfe)))
            mine = cells.get(name, nfe, "calibrated", lambda t=truth, n=nfe, s=limit: ours(t, n, s))
            best = {sense: theirs["all"][theirs["best"][sense]][sense] for sense in ratios}
            for sense, values in ratios.items():
                values.append(mine[sense] / best[sense])
            report.row(
                name,
                nfe,
                theirs["best"]["rmse"],
                f"{best['rmse']:.3g} ({best['median']:.3g})",
                f"{plain['rmse']:.3g} ({plain['median']:.3g})",
                f"{mine['rmse']:.3g} ({mine['median']:.3g})",
                f"{ratio(mine['rmse'], best['rmse'])} ({ratio(mine['median'], best['median'])})",
            )
    for sense, values in ratios.items():
        won = sum(value < 1 for value in values)
        middle = sorted(values)[len(values) // 2]
        spread = f"the ratio is {middle:.2f} as the median, {max(values):.2f} at most"
        report.line(f"{sense}: smaller than the best peer's in {won} of {len(values)} cells; {spread}.")
    report.save()
