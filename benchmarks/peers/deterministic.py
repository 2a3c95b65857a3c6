"""All deterministic peers against the probability flow's endpoint: the best of each budget, and the whole table.

    python benchmarks/peers/deterministic.py --problem ring --budgets 5 8 10 15 20 30 50 --out ring.json

The best peer is chosen after the fact at each budget, over every sampler, option and grid: a bar no user of a peer
has without knowing the answer. It is given twice: on grids that some peer offers, and on any grid, uniform in √t
among them, which none of them has. Rows of :mod:`ours` are measured beside it. How to install the peers: README.md.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import re
import time
from pathlib import Path

import ours
import torch
from configuration import Configuration, Row, measure
from configurations import all_configurations
from problems import NAMES, Problem, load
from torch import Tensor

FOREIGN = "quadratic_t"  # a grid no peer offers
DEFAULT = (
    r"(UniPC|DPMSolver) order=2 .*(bh2 x0=True|\+\+ midpoint) lower=True final_sigmas_type=zero \[linspace table=native"
)


def our_rows(problem: Problem, budget: int) -> list[Configuration]:
    """The rows of :mod:`ours` as configurations; their samples are x at t=0, where α is 1."""

    def wrap(name: str):  # type: ignore[no-untyped-def]
        def run(problem: Problem, nfe: int) -> Tensor:
            return ours.rows(problem, nfe)[name]()

        return run

    return [Configuration("ours", name, "", wrap(name)) for name in ours.rows(problem, budget)]


def run_all(problem: Problem, configurations: list[Configuration], budgets: list[int], out: Path | None) -> list[Row]:
    """Every configuration at every budget; ``out`` is rewritten every minute, for a run that is cut short."""
    rows: list[Row] = []
    saved = time.monotonic()
    for i, configuration in enumerate(configurations):
        rows += [measure(problem, configuration, budget) for budget in budgets]
        if out is not None and time.monotonic() - saved > 60:
            save(rows, out)
            saved = time.monotonic()
            print(f"  {i + 1} of {len(configurations)} configurations", flush=True)
    for budget in budgets:
        rows += [measure(problem, configuration, budget) for configuration in our_rows(problem, budget)]
    return rows


def save(rows: list[Row], out: Path) -> None:
    """The whole table as JSON, and as CSV beside it."""
    out.write_text(json.dumps([row.as_dict() for row in rows], indent=0))
    with out.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0].as_dict()))
        writer.writeheader()
        writer.writerows(row.as_dict() for row in rows)


def line(row: Row, dimension: int) -> str:
    norm, median = row.error * math.sqrt(dimension), math.nan if row.median is None else row.median
    error = f"{row.error:.2e} (per vector {norm:.2e}, median {median:.1e})"
    return f"{error}  {row.library} {row.sampler} [{row.grid}], {row.nfe} calls"


def report(rows: list[Row], budgets: list[int], dimension: int, top: int) -> None:
    """Best peers, what a diffusers user gets by default, and our rows at each budget; how many peers failed."""
    for budget in budgets:
        here = sorted((r for r in rows if r.budget == budget and not math.isnan(r.error)), key=lambda r: r.error)
        failed = sum(1 for r in rows if r.budget == budget and r.failure)
        print(f"NFE {budget}: {len(here)} rows, {failed} failed")
        peers = [r for r in here if r.library != "ours"]
        groups = {
            "a peer's grid": [r for r in peers if FOREIGN not in r.grid][:top],
            "any grid": peers[:top],
            "diffusers' defaults": [r for r in peers if re.search(DEFAULT, f"{r.sampler} [{r.grid}")],
            "ours": [r for r in here if r.library == "ours"],
        }
        for group, members in groups.items():
            for row in members:
                print(f"  {group:<20} {line(row, dimension)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problem", choices=NAMES, default="ring")
    parser.add_argument("--budgets", type=int, nargs="+", default=[5, 8, 10, 15, 20, 30, 50])
    parser.add_argument("--libraries", nargs="+", default=None)
    parser.add_argument("--only", default="", help="a regular expression on 'library sampler [grid]'")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--cache", type=Path, default=None, help="where references are kept (default: temporary)")
    parser.add_argument(
        "--best-of", type=Path, nargs="*", default=[], help="run only the best configurations of these tables"
    )
    parser.add_argument("--keep", type=int, default=15, help="with --best-of: how many per budget and library")
    parser.add_argument("--top", type=int, default=3)
    parser.add_argument("--n", type=int, default=None, help="number of noises")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    problem = load(arguments.problem, arguments.cache, arguments.n)
    configurations = [c for c in all_configurations(arguments.libraries) if re.search(arguments.only, c.name)]
    if arguments.best_of:
        wanted = best_names(arguments.best_of, arguments.keep)
        configurations = [c for c in configurations if c.name in wanted]
    print(f"{len(configurations)} configurations, {len(problem.noise)} noises", flush=True)
    rows = run_all(problem, configurations, arguments.budgets, arguments.out)
    if arguments.out is not None and rows:
        save(rows, arguments.out)
    report(rows, arguments.budgets, problem.noise[0].numel(), arguments.top)


def best_names(tables: list[Path], keep: int) -> set[str]:
    """Names of the best ``keep`` configurations of each budget and library in saved tables."""
    rows = [row for table in tables for row in json.loads(table.read_text()) if row["error"] is not None]
    rows.sort(key=lambda row: row["error"])
    counts: dict[tuple[str, int], int] = {}
    names = set()
    for row in rows:
        key = (row["library"], row["budget"])
        counts[key] = counts.get(key, 0) + 1
        if counts[key] <= keep:
            names.add(f"{row['library']} {row['sampler']} [{row['grid']}]")
    return names


if __name__ == "__main__":
    main()
