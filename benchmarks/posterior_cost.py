"""What a posterior method costs beside the network: time and memory of an evaluation with its products, MNIST network.

    python benchmarks/posterior_cost.py            # two minutes

Times are ratios to a plain evaluation, measured in turn. The memory is by how much the first
run raises the peak of its process, as Linux counts it.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from report import Report, parser

from sde_toolkit import ScoreModel, ddim, grids, sample
from sde_toolkit.guidance import JFPS, MMPS, DiffPIR, Mask, PiGDM, posterior
from sde_toolkit.models.wrapper import Wrapper


def methods() -> dict[str, Callable[[ScoreModel], ScoreModel]]:
    """Each way from the plain model to the one that is measured."""
    known = torch.ones(1, 28, 28)
    known[:, 8:20, 8:20] = 0
    A, y = Mask(known), torch.zeros(int(known.sum()))

    def given(method: object) -> Callable[[ScoreModel], ScoreModel]:
        return lambda model: posterior(model, A, y, 0.05, method=method, space="model")  # type: ignore[arg-type]

    return {
        "plain": lambda model: model,
        "Wrapper": Wrapper,
        "DiffPIR": given(DiffPIR()),
        "JFPS": given(JFPS(0.3)),
        "PiGDM": given(PiGDM()),
        "MMPS-1": given(MMPS(max_iterations=1)),
        "MMPS-4": given(MMPS(tolerance=0.0, max_iterations=4)),
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--batch", type=int, default=64)
    options.add_argument("--methods", nargs="+", help="beside the plain model; default: all")
    given = options.parse_args()
    torch.set_num_threads(1)
    found = methods()
    wanted = ["plain", *(given.methods or [name for name in found if name != "plain"])]
    memory = {name: _memory(name, given.batch) for name in wanted}  # forked before this process has run anything
    model = ScoreModel.from_pretrained("mnist")
    models = {name: found[name](model) for name in wanted}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    products: dict[str, float] = {}
    for _ in range(given.rounds):
        for name, around in models.items():
            began = time.perf_counter()
            products[name] = _run(around, given.batch)
            seconds[name].append(time.perf_counter() - began)
    title = f"Cost of posterior methods: MNIST network, batch {given.batch}, one thread"
    report = Report(given.results, "posterior-cost", title)
    report.table("method", "products per evaluation", "time / plain", "memory, MB")
    for name in models:
        ratio = statistics.median(s / p for s, p in zip(seconds[name], seconds["plain"], strict=True))
        report.row(name, f"{products[name]:.1f}", f"{ratio:.2f}", f"{memory[name]:.0f}")
    report.save()


def _run(model: ScoreModel, batch: int) -> float:
    """Three steps: products per evaluation."""
    grid = grids.uniform_lambda(model.sde, 3, start=0.8, end=0.2)
    drawn = sample(model, ddim(), grid, shape=(batch, 1, 28, 28), tweedie=False)
    return drawn.products / drawn.nfe


def _memory(name: str, batch: int) -> float:
    """Of a process of its own, over what it had with the model loaded."""
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_measure_memory, args=(name, batch, queue))
    process.start()
    grown: float = queue.get()
    process.join()
    return grown


def _measure_memory(name: str, batch: int, queue: multiprocessing.Queue[float]) -> None:
    torch.set_num_threads(1)
    model = methods()[name](ScoreModel.from_pretrained("mnist"))
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = _megabytes("VmRSS")
    _run(model, batch)
    queue.put(_megabytes("VmHWM") - before)


def _megabytes(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(field)) / 1024


if __name__ == "__main__":
    main()
