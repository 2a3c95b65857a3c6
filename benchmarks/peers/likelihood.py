"""Exact likelihoods by us and by others: on the same points of known density, and on the MNIST network.

    python benchmarks/peers/likelihood.py bar                    # error and evaluations, two mixtures: ten minutes
    OMP_NUM_THREADS=2 python benchmarks/peers/likelihood.py trace      # wall time of exact traces in 64 dimensions
    OMP_NUM_THREADS=2 python benchmarks/peers/likelihood.py network  # error, time and memory on MNIST: half an hour

Who they are and what equation they are given: :mod:`with_likelihood`. Points are those of benchmarks/likelihood.py.
``network``: the first 64 test images, dequantised once, one Rademacher probe, the same for all; the error is against
our own solve of 150 + 100 on a grid that is wide in λ; tight solves of the peers say whether that is right. Every solve
is a process of its own, in rounds; memory is its peak, the libraries' included.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from problems import mixture_means, ring_means
from torch import Tensor
from with_likelihood import END, PEERS, Answer, Task

from sde_toolkit import VPSDE, GaussianMixture, ScoreModel, Solver, grids
from sde_toolkit.data import mnist_test_images
from sde_toolkit.likelihood import Adams, Exact, Hutchinson, Quadrature, log_likelihood

SPAN = 1.5  # peers step to t ≤ 1.5, see Task
LONGER = VPSDE(0.1 * SPAN, SPAN * (0.1 + SPAN * 19.9))  # VP 0.1..20, going on, its own time t/SPAN
MIXTURES = {"ring": (ring_means(), 0.1), "mixture64": (mixture_means(64), 0.2)}
TOLERANCES = (1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 1e-5, 1e-6)
BUDGETS = ((30, 14), (48, 25), (100, 50))


@dataclass(frozen=True)
class Given(Hutchinson):
    """One probe that is handed over."""

    probes: int = 1
    probe: Tensor = field(default_factory=lambda: torch.zeros(0))

    def directions(self, events: tuple[int, ...], seed: int, first_index: int) -> Tensor:
        return self.probe.unsqueeze(0)


def rademacher(x: Tensor, seed: int) -> Tensor:
    return 2 * torch.randint(2, x.shape, generator=torch.Generator().manual_seed(seed)).float() - 1


def ours(
    task: Task,
    model: ScoreModel,
    nfe: int,
    nodes: int,
    exact: bool,
    sech: tuple[float, float] | None = None,
    scale: float | None = None,
) -> Answer:
    """The defaults, or the default method on ``grids.sech`` of another (center, width), with another quadrature."""
    divergence = Exact() if exact else Given(probe=task.probe)
    flow: dict[str, Any] = {"nfe": nfe}
    if sech is not None:
        grid = grids.sech(model.sde, nfe - 1, center=sech[0], width=sech[1], end=END)
        flow = {"solver": Solver("likelihood", 0.0, Adams(3, model.sigma_data)), "grid": grid}
    quadrature = Quadrature(nodes, scale)
    done = log_likelihood(model, task.x, quadrature=quadrature, divergence=divergence, space="model", **flow)
    return Answer(done.nats, done.nfe, done.divergence_nfe)


def bar(names: list[str], n: int, draws: int, tolerances: list[float]) -> None:
    for name in names:
        means, std = MIXTURES[name]
        model, longer = (GaussianMixture(means, sde, std=std) for sde in (VPSDE(0.1, 20.0), LONGER))
        points = [model.draw(n, generator=torch.Generator().manual_seed(1000 + draw)) for draw in range(draws)]
        tasks = [Task(longer, x, rademacher(x, 2000 + i), SPAN) for i, x in enumerate(points)]
        truths = [model.log_prob(x.double(), 0.0) for x in points]
        print(f"{name}: |error| in nats/dim, mean ± standard deviation over {draws} draws of {n} points; evaluations")

        def line(
            label: str, solve: Callable[[Task], Answer], tasks: list[Task] = tasks, truths: object = truths
        ) -> None:
            answers = [solve(task) for task in tasks]
            errors = [
                (answer.nats.double() - truth).abs().mean().item() / task.x[0].numel()
                for answer, truth, task in zip(answers, truths, tasks, strict=True)  # type: ignore[call-overload]
            ]
            deviation = statistics.stdev(errors) if len(errors) > 1 else math.nan
            counts = [statistics.mean(count) for count in zip(*((a.field, a.divergence) for a in answers), strict=True)]
            print(
                f"  {label:<28} {statistics.mean(errors):.1e} ± {deviation:.0e}   {counts[0]:.0f} + {counts[1]:.0f}",
                flush=True,
            )

        for exact in (True, False):
            kind = "exact" if exact else "one probe"
            for nfe, nodes in BUDGETS:
                line(f"ours {kind}", lambda task, N=nfe, Q=nodes, e=exact, m=model: ours(task, m, N, Q, e))  # type: ignore[misc]
            for peer, (solve, has_exact) in PEERS.items():
                if exact and not has_exact:
                    continue
                for tolerance in tolerances if exact else (1e-3, 1e-5):
                    label = f"{peer} {kind} {tolerance:.0e}"
                    line(label, lambda task, s=solve, tol=tolerance, e=exact: s(task, tol, e))  # type: ignore[misc]


def trace(n: int, repeats: int) -> None:
    """Whole solves in 64 dimensions, exact and with one probe, interleaved."""
    means, std = MIXTURES["mixture64"]
    model, longer = (GaussianMixture(means, sde, std=std) for sde in (VPSDE(0.1, 20.0), LONGER))
    x = model.draw(n, generator=torch.Generator().manual_seed(1000))
    task = Task(longer, x, rademacher(x, 2000), SPAN)
    solves: dict[str, Callable[[bool], Answer]] = {
        f"ours {nfe} + {nodes}": lambda exact, N=nfe, Q=nodes: ours(task, model, N, Q, exact) for nfe, nodes in BUDGETS
    }
    for peer, (solve, has_exact) in PEERS.items():
        if has_exact:
            solves |= {f"{peer} {tol:.0e}": lambda e, s=solve, tol=tol: s(task, tol, e) for tol in (1e-3, 1e-5)}
    seconds: dict[tuple[str, bool], list[float]] = {(name, exact): [] for name in solves for exact in (True, False)}
    for _ in range(repeats + 1):
        for (name, exact), taken in seconds.items():
            began = time.perf_counter()
            solves[name](exact)
            taken.append(time.perf_counter() - began)
    print(f"64 dimensions, {n} points, {torch.get_num_threads()} threads, median of {repeats}")
    for name in solves:
        full, probe = (statistics.median(seconds[name, exact][1:]) for exact in (True, False))
        print(f"  {name:<22} exact {full:6.2f} s, one probe {probe:6.2f} s, ratio {full / probe:.1f}", flush=True)


def network(n: int, rounds: int, settings: list[str], fine: tuple[int, int]) -> None:
    model = ScoreModel.from_pretrained("mnist")
    generator = torch.Generator().manual_seed(0)
    levels = mnist_test_images().test[:n].double()
    images = levels + torch.rand(levels.shape, generator=generator, dtype=torch.float64) - 0.5
    x = model.transform.forward(images).float()
    task = Task(model, x, rademacher(x, 1))
    began = time.perf_counter()
    reference, coarser = (
        ours(task, model, N, Q, False, sech=(0.75, 5.0), scale=0.1).nats
        for N, Q in (fine, (2 * fine[0] // 3, 2 * fine[1] // 3))
    )
    difference = (reference - coarser).abs().mean().item() / x[0].numel()
    print(f"reference {fine}: {time.perf_counter() - began:.0f} s, {difference:.1e} nats/dim from two thirds of it")
    rows: dict[str, list[dict[str, float]]] = {setting: [] for setting in settings}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "task.pt"
        torch.save({"x": x, "probe": task.probe, "reference": reference}, file)
        for _ in range(rounds):
            for setting, found in rows.items():
                words = [sys.executable, __file__, "one", "--settings", setting, "--file", str(file)]
                done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
                found.append(json.loads(done.stdout))
                print(f"    {setting}: {done.stdout.strip()}", flush=True)
    print(f"MNIST network, batch {n}, one probe, {torch.get_num_threads()} threads, median of {rounds}")
    for setting, found in rows.items():
        row = {key: statistics.median(each[key] for each in found) for key in found[0]}
        print(
            f"  {setting:<22} error {row['error']:.1e}   {row['field']:.0f} + {row['divergence']:.0f}   "
            f"{row['seconds']:6.1f} s ({row['cpu']:.1f} s of processor time)   {row['memory']:5.0f} MB"
        )


def one(setting: str, file: Path) -> None:
    """A solve in this process, as a line of JSON.

    ``setting``: "ours 48 25", with center, width of the grid and scale of the quadrature "ours 48 25 0.75 5 0.1", or
    "flow_matching 1e-3".
    """
    model, stored = ScoreModel.from_pretrained("mnist"), torch.load(file)
    task = Task(model, stored["x"], stored["probe"])
    model(task.x[:2], 0.5)
    name, *numbers = setting.split()
    began, own_time = time.perf_counter(), time.process_time()
    if name == "ours":
        own = [float(number) for number in numbers[2:]]
        options: dict[str, Any] = {"sech": (own[0], own[1]), "scale": own[2]} if own else {}
        answer = ours(task, model, int(numbers[0]), int(numbers[1]), exact=False, **options)
    else:
        answer = PEERS[name][0](task, float(numbers[0]), False)
    seconds, own_time = time.perf_counter() - began, time.process_time() - own_time
    error = (answer.nats.double() - stored["reference"]).abs().mean().item() / task.x[0].numel()
    status = Path("/proc/self/status").read_text().splitlines()  # getrusage would count the parent's peak
    memory = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024
    counts = {"field": answer.field, "divergence": answer.divergence}
    print(json.dumps({"error": error, **counts, "seconds": seconds, "cpu": own_time, "memory": memory}))


SETTINGS = ["ours 20 10", "ours 30 14", "ours 48 25", "ours 100 50", "ours 48 25 0.75 5 0.1", "ours 48 50 0.75 5 0.1"]
SETTINGS += [f"{peer} {tolerance}" for peer in PEERS for tolerance in ("1e-2", "1e-3", "1e-4", "1e-5")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["bar", "trace", "network", "one"])
    parser.add_argument("--problems", nargs="+", choices=list(MIXTURES), default=list(MIXTURES))
    parser.add_argument("--n", type=int, default=None, help="points (256; network: 64)")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--tolerances", type=float, nargs="+", default=list(TOLERANCES))
    parser.add_argument("--repeats", type=int, default=3, help="of trace, and rounds of network")
    parser.add_argument("--settings", nargs="+", default=SETTINGS, help="of network")
    parser.add_argument("--fine", type=int, nargs=2, default=[150, 100], help="the reference of network")
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.what == "bar":
        bar(a.problems, a.n or 256, a.draws, a.tolerances)
    elif a.what == "trace":
        trace(a.n or 256, a.repeats)
    elif a.what == "network":
        network(a.n or 64, a.repeats, a.settings, (a.fine[0], a.fine[1]))
    else:
        one(a.settings[0], a.file)


if __name__ == "__main__":
    main()
