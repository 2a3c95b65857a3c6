"""Stochastic peers (η = 1) on mixtures: sliced Wasserstein to fresh exact samples, and the spread inside the modes.

    python benchmarks/peers/stochastic.py --problems ring mixture2 mixture8 mixture16 mixture64 --out stochastic.json

Samples × dimension is ``--elements`` (10⁶); each of the ``--repeats`` draws noise and an exact set of its own; the
error bars are the standard error over them. The floor is the distance between two fresh exact sets. A sampler's grid is
chosen after the fact, at each budget, by its sliced distance.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import ours
import torch
from moments import directions, sliced_wasserstein, spread
from problems import Problem, load
from stochastic_peers import StochasticPeer, peers
from torch import Tensor

CHUNK = 1 << 14


@dataclass(frozen=True)
class Row:
    """Means over the repeats, and their standard errors."""

    problem: str
    library: str
    sampler: str
    grid: str
    budget: int
    nfe: int
    sliced: float
    sliced_error: float
    variance: float
    variance_error: float
    median: float
    strays: float
    failure: str = ""

    def __str__(self) -> str:
        name = f"{self.library} {self.sampler} [{self.grid}]"
        figures = (
            f"{self.sliced:.4f} ± {self.sliced_error:.4f}   variance {self.variance:.3f} ± {self.variance_error:.3f}"
        )
        return f"  {figures}   median {self.median:.3f}   strays {self.strays:.1e}   {name}, {self.nfe} calls"


def our_peers(problem: Problem, budget: int) -> list[StochasticPeer]:
    """The rows of :mod:`ours`; they take x at t=1."""
    alpha = float(problem.sde.alpha(torch.tensor(1.0, dtype=torch.float64)))

    def wrap(name: str):  # type: ignore[no-untyped-def]
        def run(problem: Problem, nfe: int, y: Tensor, seed: int) -> Tensor:
            return ours.stochastic_rows(problem, nfe)[name](alpha * y, seed)

        return run

    return [StochasticPeer("ours", name, "", wrap(name)) for name in ours.stochastic_rows(problem, budget)]


def draw(problem: Problem, peer: StochasticPeer, budget: int, n: int, seed: int) -> tuple[Tensor, int]:
    """n samples in chunks, from noise that is every peer's, and the evaluations of one chunk."""
    generator = torch.Generator().manual_seed(1000 + seed)
    parts = []
    for i in range(0, n, CHUNK):
        shape = (min(CHUNK, n - i), *problem.noise.shape[1:])
        y = problem.highest * torch.randn(shape, generator=generator)
        problem.calls = 0
        parts.append(peer.run(problem, budget, y, 7919 * seed + i).float())
    return torch.cat(parts), problem.calls


class Judge:
    """Fresh exact samples and the figures that compare with them."""

    def __init__(self, problem: Problem, n: int, repeats: int) -> None:
        self.model, self.n, self.repeats = problem.model, n, repeats
        network = self.model.network
        self.means, self.std = network.means, float(network.variances.flatten()[0].sqrt())
        self.lines = directions(self.means.shape[1])
        self.exact = [self.fresh(seed) for seed in range(repeats)]

    def fresh(self, seed: int) -> Tensor:
        return self.model.draw(self.n, generator=torch.Generator().manual_seed(seed))  # type: ignore[operator]

    def figures(self, x: Tensor, repeat: int) -> tuple[float, float, float, float]:
        if not bool(x.isfinite().all()):
            raise FloatingPointError("not finite")
        inside = spread(x, self.means, self.std, self.exact[repeat])
        distance = sliced_wasserstein(x, self.exact[repeat], self.lines)
        return distance, inside.variance, inside.median, inside.strays

    def floor(self) -> Row:
        """Exact samples judged as if a sampler had made them."""
        values = [self.figures(self.fresh(500 + repeat), repeat) for repeat in range(self.repeats)]
        return summary(("", "exact", "two fresh sets", ""), 0, 0, values)


def summary(identity: tuple[str, str, str, str], budget: int, nfe: int, values: list[tuple[float, ...]]) -> Row:
    columns = list(zip(*values, strict=True))
    errors = [statistics.stdev(c) / math.sqrt(len(c)) if len(c) > 1 else math.nan for c in columns]
    means = [statistics.fmean(c) for c in columns]
    return Row(*identity, budget, nfe, means[0], errors[0], means[1], errors[1], means[2], means[3])


def measure(problem: Problem, peer: StochasticPeer, budget: int, judge: Judge) -> Row:
    """A failing peer is a row with its failure, not a missing row."""
    identity, nfe = (problem.name, peer.library, peer.sampler, peer.grid), 0
    values = []
    try:
        for repeat in range(judge.repeats):
            x, nfe = draw(problem, peer, budget, judge.n, repeat)
            values.append(judge.figures(x, repeat))
        if nfe > budget and peer.library != "ours":
            raise ValueError(f"over budget: {nfe}")
    except Exception as error:  # whatever a peer raises is its result
        nothing = [math.nan] * 6
        return Row(*identity, budget, nfe, *nothing, failure=f"{type(error).__name__}: {error}"[:120])
    return summary(identity, budget, nfe, values)


def report(rows: list[Row], budget: int) -> None:
    """The best grid of every sampler, best samplers first, then the failures."""
    here = sorted((r for r in rows if r.budget == budget and not r.failure), key=lambda r: r.sliced)
    seen: set[tuple[str, str]] = set()
    print(f"{rows[-1].problem}, NFE {budget}")
    for row in here:
        if (row.library, row.sampler) not in seen:
            print(row)
        seen.add((row.library, row.sampler))
    for row in rows:
        if row.budget == budget and row.failure:
            print(f"  failed: {row.library} {row.sampler} [{row.grid}]: {row.failure}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", default=["ring", "mixture2", "mixture8", "mixture16", "mixture64"])
    parser.add_argument("--budgets", type=int, nargs="+", default=[10, 20, 50, 100])
    parser.add_argument("--elements", type=float, default=1e6, help="samples × dimension")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default="", help="a regular expression on 'library sampler [grid]'")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--cache", type=Path, default=None)
    arguments = parser.parse_args()
    rows: list[Row] = []
    for name in arguments.problems:
        problem = load(name, arguments.cache, n=16)
        n = math.ceil(arguments.elements / problem.noise[0].numel())
        judge = Judge(problem, n, arguments.repeats)
        print(f"{name}: {n} samples, {arguments.repeats} repeats; the floor:\n{judge.floor()}", flush=True)
        for budget in arguments.budgets:
            start = time.monotonic()
            for peer in [*peers(), *our_peers(problem, budget)]:
                if peer.library == "ours" or re.search(arguments.only, f"{peer.library} {peer.sampler} [{peer.grid}]"):
                    with torch.no_grad():
                        rows.append(measure(problem, peer, budget, judge))
                    if arguments.out is not None:
                        arguments.out.write_text(json.dumps([asdict(row) for row in rows], indent=0))
            report([row for row in rows if row.problem == name], budget)
            print(f"  ({time.monotonic() - start:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
