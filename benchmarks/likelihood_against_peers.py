"""Log-likelihoods, ours and those of peers: on mixtures of known density, and on the embedded MNIST network.

    python benchmarks/likelihood_against_peers.py bar        # error and evaluations, two mixtures: five minutes
    python benchmarks/likelihood_against_peers.py trace      # wall time of exact traces in 64 dimensions: two minutes
    python benchmarks/likelihood_against_peers.py network    # error, time, memory on the network: three minutes

Who the peers are and what equation they are given: peers/with_likelihood.py.

``bar``: a ring of eight modes (standard deviation 0.1) in two dimensions and ten modes (0.2) in 64, VP from t = 1e-5,
state in float32. Errors are mean |log p − truth| in nats per dimension, where the truth is the density of the data.
Evaluations are those of the field + those of its divergence.

``network``: the first test images, dequantised once, with one Rademacher probe that is the same for all. The error is
the mean difference per dimension to our own solve with 300 evaluations and 200 nodes on a grid that is wide in λ.
Every solve is a process of its own, in rounds; memory is the process's peak, libraries included.
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
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peers.problems import mixture_means, ring_means
from peers.with_likelihood import END, PEERS, Answer, Task
from report import Report, parser
from torch import Tensor

from sde_toolkit import VPSDE, GaussianMixture, ScoreModel, Solver, grids
from sde_toolkit.data import mnist_test_images
from sde_toolkit.likelihood import Adams, ExactTrace, Hutchinson, Quadrature, log_likelihood

SPAN = 1.5  # peers step to t ≤ 1.5, see Task
LONGER = VPSDE(0.1 * SPAN, SPAN * (0.1 + SPAN * 19.9))  # VP 0.1..20, going on, its own time t/SPAN
MIXTURES = {"ring": (ring_means(), 0.1), "mixture64": (mixture_means(64), 0.2)}
BUDGETS = ((30, 14), (48, 25), (100, 50))
PACKAGES = ["flow_matching", "zuko", "k-diffusion"]


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
    divergence = ExactTrace() if exact else Given(probe=task.probe)
    flow: dict[str, Any] = {"nfe": nfe}
    if sech is not None:
        grid = grids.sech(model.sde, nfe - 1, center=sech[0], width=sech[1], end=END)
        flow = {"solver": Solver("likelihood", 0.0, Adams(3, model.sigma_data)), "grid": grid}
    quadrature = Quadrature(nodes, scale)
    done = log_likelihood(model, task.x, quadrature=quadrature, divergence=divergence, space="model", **flow)
    return Answer(done.nats, done.nfe, done.divergence_nfe)


def settings(model: ScoreModel, exact: bool, tolerances: list[float]) -> dict[str, Callable[[Task], Answer]]:
    """Ours at three budgets, and every peer at every tolerance: name to a function of the task."""
    found: dict[str, Callable[[Task], Answer]] = {}
    for nfe, nodes in BUDGETS:
        found[f"ours, nfe={nfe}, nodes={nodes}"] = partial(ours, model=model, nfe=nfe, nodes=nodes, exact=exact)
    for peer, (solve, has_exact) in PEERS.items():
        if has_exact or not exact:
            found |= {f"{peer}, tolerance {t:.0e}": partial(solve, tolerance=t, exact=exact) for t in tolerances}
    return found


def mixture_tasks(name: str, n: int, draws: int) -> tuple[GaussianMixture, list[Task]]:
    """The mixture, and tasks of n points each. The peers' model goes on beyond t = 1."""
    means, std = MIXTURES[name]
    model, longer = (GaussianMixture(means, sde, std=std) for sde in (VPSDE(0.1, 20.0), LONGER))
    points = [model.draw(n, generator=torch.Generator().manual_seed(1000 + draw)) for draw in range(draws)]
    return model, [Task(longer, x, rademacher(x, 2000 + i), SPAN) for i, x in enumerate(points)]


def bar(report: Report, names: list[str], n: int, draws: int, tolerances: list[float]) -> None:
    report.line(f"Mean |error| in nats/dim, mean ± standard deviation over {draws} draws of {n} points.")
    report.table("mixture", "trace", "solver", "error", "evaluations + divergences")
    for name in names:
        model, tasks = mixture_tasks(name, n, draws)
        truths = [model.log_prob(task.x.double(), 0.0) for task in tasks]
        for exact in (True, False):
            for label, solve in settings(model, exact, tolerances).items():
                if not exact and label in settings(model, True, tolerances):
                    continue  # who has an exact trace is judged by that
                answers = [solve(task) for task in tasks]
                errors = [
                    (answer.nats.double() - truth).abs().mean().item() / task.x[0].numel()
                    for answer, truth, task in zip(answers, truths, tasks, strict=True)
                ]
                deviation = statistics.stdev(errors) if draws > 1 else math.nan
                counts = [
                    statistics.mean(each) for each in ([a.field for a in answers], [a.divergence for a in answers])
                ]
                error = f"{statistics.mean(errors):.1e} ± {deviation:.0e}"
                kind = "exact" if exact else "one probe"
                report.row(name, kind, label, error, f"{counts[0]:.0f} + {counts[1]:.0f}")


def trace(report: Report, n: int, repeats: int, tolerances: list[float]) -> None:
    """Whole solves in 64 dimensions, exact and with one probe, interleaved."""
    model, (task,) = mixture_tasks("mixture64", n, 1)
    names = list(settings(model, True, tolerances))
    solves = {exact: settings(model, exact, tolerances) for exact in (True, False)}
    seconds: dict[tuple[str, bool], list[float]] = {(name, exact): [] for name in names for exact in (True, False)}
    for _ in range(repeats + 1):
        for (name, exact), taken in seconds.items():
            began = time.perf_counter()
            solves[exact][name](task)
            taken.append(time.perf_counter() - began)
    report.line(f"64 dimensions, exact score, {n} points; median of {repeats} rounds after one that does not count.")
    report.table("solver", "s, exact trace", "s, one probe", "ratio")
    for name in names:
        full, probe = (statistics.median(seconds[name, exact][1:]) for exact in (True, False))
        report.row(name, f"{full:.2f}", f"{probe:.2f}", f"{full / probe:.1f}")


def network(report: Report, n: int, rounds: int, chosen: list[str], fine: tuple[int, int]) -> None:
    model = ScoreModel.from_pretrained("mnist")
    generator = torch.Generator().manual_seed(0)
    levels = mnist_test_images().test[:n].double()
    images = levels + torch.rand(levels.shape, generator=generator, dtype=torch.float64) - 0.5
    x = model.transform.forward(images).float()
    task = Task(model, x, rademacher(x, 1))
    reference, coarser = (
        ours(task, model, N, Q, False, sech=(0.75, 5.0), scale=0.1).nats
        for N, Q in (fine, (2 * fine[0] // 3, 2 * fine[1] // 3))
    )
    difference = (reference - coarser).abs().mean().item() / x[0].numel()
    report.line(
        f"{n} images, one probe, {rounds} interleaved rounds. The reference differs by {difference:.1e} nats/dim "
        "from one of two thirds of its evaluations and nodes; errors below a few times this figure are not resolved."
    )
    rows: dict[str, list[dict[str, float]]] = {setting: [] for setting in chosen}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "task.pt"
        torch.save({"x": x, "probe": task.probe, "reference": reference}, file)
        for _ in range(rounds):
            for setting, found in rows.items():
                words = [sys.executable, __file__, "one", "--settings", setting, "--file", str(file)]
                done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
                found.append(json.loads(done.stdout))
    report.table("setting", "error, nats/dim", "evaluations + divergences", "s", "s of processor", "peak MB")
    for setting, found in rows.items():
        row = {key: statistics.median(each[key] for each in found) for key in found[0]}
        times = (f"{row['seconds']:.1f}", f"{row['cpu']:.1f}", f"{row['memory']:.0f}")
        report.row(setting, f"{row['error']:.1e}", f"{row['field']:.0f} + {row['divergence']:.0f}", *times)


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


SETTINGS = ["ours 48 25", "ours 48 33", "flow_matching 1e-2", "score_sde 1e-2"]


def main() -> None:
    words = parser(__doc__)
    words.add_argument("what", choices=["bar", "trace", "network", "one"])
    words.add_argument("--problems", nargs="+", choices=list(MIXTURES), default=list(MIXTURES))
    words.add_argument("--n", type=int, default=None, help="points (bar 64, trace 128, network 12)")
    words.add_argument("--draws", type=int, default=3, help="of bar")
    words.add_argument("--tolerances", type=float, nargs="+", default=[1e-3, 1e-5])
    words.add_argument("--repeats", type=int, default=3, help="of trace, and rounds of network")
    words.add_argument("--settings", nargs="+", default=SETTINGS, help="of network: solver and numbers, see one()")
    words.add_argument("--fine", type=int, nargs=2, default=[300, 200], help="the reference of network")
    words.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    given = words.parse_args()
    if given.what == "one":
        one(given.settings[0], given.file)
        return
    title = {
        "bar": "error and evaluations",
        "trace": "price of an exact trace",
        "network": "the embedded MNIST network",
    }
    report = Report(given.results, f"likelihood-{given.what}", f"Likelihood: {title[given.what]}", PACKAGES)
    if given.what == "bar":
        bar(report, given.problems, given.n or 64, given.draws, given.tolerances)
    elif given.what == "trace":
        trace(report, given.n or 128, given.repeats, given.tolerances)
    else:
        network(report, given.n or 12, given.repeats, given.settings, (given.fine[0], given.fine[1]))
    report.save()


if __name__ == "__main__":
    main()
