"""What ``log_likelihood`` costs and how right it is: error against budget, the price of an exact trace.

    python benchmarks/likelihood.py bar [--draws 5] [--smallest]      # two mixtures of known density: 3 min, 10 min
    python benchmarks/likelihood.py trace                              # exact trace in 64 dimensions against one probe
    python benchmarks/likelihood.py choose                             # how the defaults were chosen, half an hour

The mixtures: 8 modes on a ring of radius 4/√8 in two dimensions, standard deviation 0.1, and 10 modes ~ N(0, I) in 64,
standard deviation 0.2; VP 0.1..20 from t = 1e-5, float32 state. Errors are |log p − truth| in nats per dimension, mean
over the points, truth the density of the data themselves, at t = 0. Peers: benchmarks/peers/likelihood.py.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_toolkit import VPSDE, GaussianMixture, ScoreModel, Solver, grids, probability_flow
from sde_toolkit.integrators import PerSample, Scipy, TorchDiffEq
from sde_toolkit.likelihood import (
    Adams,
    Exact,
    GaussianPrior,
    Hutchinson,
    Joint,
    LogLikelihood,
    Quadrature,
    log_likelihood,
    reverse,
)

SDE = VPSDE(0.1, 20.0)
BUDGETS = ((20, 10), (30, 14), (36, 18), (48, 25), (60, 30), (70, 35), (84, 42), (100, 50), (140, 70))
KINDS = ("N(0,I)", "N(0,I) −", "moments", "moments −", "exact", "exact −")
ASKED = {"ring": ((48, 25, 4e-3), (100, 50, 5e-5)), "mixture64": ((30, 14, 4e-3), (100, 50, 2e-4))}


def ring() -> GaussianMixture:
    angle = 2 * math.pi * torch.arange(8, dtype=torch.float64) / 8
    return GaussianMixture(4 / math.sqrt(8) * torch.stack([angle.cos(), angle.sin()], 1), SDE, std=0.1)


def mixture(dimension: int, modes: int, std: float, seed: int, spread: float = 1.0) -> GaussianMixture:
    """Modes ~ N(0, spread² I)."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(modes, dimension, generator=generator, dtype=torch.float64)
    return GaussianMixture(spread * means, SDE, std=std)


def points(model: GaussianMixture, n: int, draw: int) -> Tensor:
    """n draws of the data; the seeds are not those of any modes, whose numbers would come again in the draws."""
    return model.draw(n, generator=torch.Generator().manual_seed(1000 + draw))


@dataclass(frozen=True)
class Case:
    """A mixture, points of it, and their true density (n,) float64."""

    name: str
    model: GaussianMixture
    x: Tensor
    truth: Tensor

    @classmethod
    def of(cls, name: str, n: int, draw: int) -> Case:
        model = ring() if name == "ring" else mixture(64, 10, 0.2, seed=1)
        x = points(model, n, draw)
        return cls(name, model, x, model.log_prob(x.double(), 0.0))

    def error(self, nats: Tensor) -> float:
        return (nats.double() - self.truth).abs().mean().item() / self.x[0].numel()

    def errors(self, found: LogLikelihood) -> dict[str, float]:
        """With three priors, which need no second solve; "−": the estimated effect of the end time is subtracted."""
        start, rows = found.grid[0].item(), {}
        moments = GaussianPrior.of_data(self.model, points(self.model, 8192, -1))
        priors = {"N(0,I)": None, "moments": moments, "exact": self.model.log_prob}
        for name, prior in priors.items():
            density = found.prior if prior is None else prior(found.latent.double(), start)
            nats = density + found.integral
            rows |= {name: self.error(nats), f"{name} −": self.error(nats - found.truncation)}
        return rows


def spread(values: list[float]) -> str:
    """Mean and standard deviation over draws."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.1e} ± {deviation:.0e}"


def bar(names: Iterable[str], n: int, draws: int, tolerances: list[float]) -> None:
    for name in names:
        cases = [Case.of(name, n, draw) for draw in range(draws)]
        print(f"{name}: mean |error| in nats/dim, mean ± standard deviation over {draws} draws of {n} points")
        print("evaluations + nodes         | " + " | ".join(f"{kind:<15}" for kind in KINDS))

        def line(label: str, found: list[LogLikelihood], cases: list[Case] = cases) -> None:
            errors = [case.errors(each) for case, each in zip(cases, found, strict=True)]
            row = " | ".join(f"{spread([e[kind] for e in errors]):<15}" for kind in KINDS)
            print(f"{label:<27} | {row}", flush=True)

        for nfe, nodes in BUDGETS:
            quadrature = Quadrature(nodes)
            line(f"{nfe} + {nodes}", [log_likelihood(c.model, c.x, nfe=nfe, quadrature=quadrature) for c in cases])
        for kind in (PerSample, TorchDiffEq, Scipy):
            for tolerance in tolerances:
                solver = probability_flow(kind(rtol=tolerance, atol=tolerance))
                for label, rule in (("", None), (" joint", Joint())):
                    found = [log_likelihood(c.model, c.x, solver=solver, quadrature=rule) for c in cases]
                    taken = statistics.mean(each.statistics.evaluations.double().mean().item() for each in found)
                    nodes = statistics.mean(each.divergences.double().mean().item() for each in found)
                    line(f"{kind.__name__} {tolerance:.0e}{label}: {taken:.0f} + {nodes:.0f}", found)


def smallest(names: Iterable[str], n: int, draws: int) -> None:
    """The budgets of the least sum that reach what the bar asks for, on the mean over all draws."""
    for name in names:
        cases = [Case.of(name, n, draw) for draw in range(draws)]
        table: dict[tuple[int, int], dict[str, float]] = {}
        for nodes in (8, 10, 12, 14, 16, 18, 20, 22, 25, 30, 35, 40, 45, 50):
            for nfe in (16, 20, 24, 28, 30, 34, 38, 42, 48, 56, 64, 72, 80, 90, 100):
                if not 1.3 < nfe / nodes < 3.1:
                    continue
                errors = [c.errors(log_likelihood(c.model, c.x, nfe=nfe, quadrature=Quadrature(nodes))) for c in cases]
                table[nfe, nodes] = {kind: statistics.mean(e[kind] for e in errors) for kind in errors[0]}
        for kind in ("N(0,I)", "N(0,I) −", "exact", "exact −"):
            for _, _, wanted in ASKED[name]:
                good = [(sum(key), key) for key, row in table.items() if row[kind] <= wanted]
                found = f"{min(good)[1]}, error {table[min(good)[1]][kind]:.1e}" if good else "none of the tried"
                print(f"{name}, prior {kind}: to {wanted:.0e} with {found}", flush=True)


def interleaved(tasks: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each; the first round does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(repeats + 1):
        for name, task in tasks.items():
            began = time.perf_counter()
            task()
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def perceptron(dimension: int, width: int) -> ScoreModel:
    """A network of ordinary make, untrained: four layers with the time as one more input."""
    torch.manual_seed(0)
    layers = torch.nn.Sequential(
        torch.nn.Linear(dimension + 1, width),
        torch.nn.SiLU(),
        torch.nn.Linear(width, width),
        torch.nn.SiLU(),
        torch.nn.Linear(width, width),
        torch.nn.SiLU(),
        torch.nn.Linear(width, dimension),
    )

    class WithTime(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = layers

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.layers(torch.cat([x, t.to(x).reshape(-1, 1).expand(len(x), 1)], 1))

    return ScoreModel(WithTime(), SDE, event_shape=(dimension,)).eval()


def trace(n: int, repeats: int) -> None:
    """Wall time of a whole call, exact trace over one probe."""
    models = {"exact score, 10 modes": mixture(64, 10, 0.2, seed=1), "perceptron, width 256": perceptron(64, 256)}
    x = points(mixture(64, 10, 0.2, seed=1), n, 0)
    print(f"64 dimensions, {n} points, {torch.get_num_threads()} threads, median of {repeats}")
    for name, model in models.items():
        for nfe, nodes in ((48, 25), (30, 14)):
            tasks = {}
            for label, divergence in (("exact", Exact(mode=reverse)), ("probe", Hutchinson(1, mode=reverse))):
                tasks[label] = lambda m=model, d=divergence, N=nfe, Q=nodes: log_likelihood(  # type: ignore[misc]
                    m, x, nfe=N, divergence=d, quadrature=Quadrature(Q)
                )
            seconds = interleaved(tasks, repeats)
            ratio = seconds["exact"] / seconds["probe"]
            print(
                f"  {name}, {nfe} + {nodes}: exact {seconds['exact']:.2f} s, one probe {seconds['probe']:.2f} s, "
                f"ratio {ratio:.1f}",
                flush=True,
            )


# dimension, modes, standard deviation of a mode, seed, spread of the modes
MIXTURES = (
    (2, 10, 0.2, 31, 1.0),
    (2, 6, 0.05, 32, 1.5),
    (8, 10, 0.1, 33, 1.0),
    (8, 5, 0.4, 36, 0.8),
    (16, 10, 0.2, 34, 1.0),
    (32, 10, 0.3, 35, 1.0),
    (48, 20, 0.1, 37, 1.0),
)


def choose(budgets: list[int], nodes: list[int], n: int, problems: int, top: int) -> None:
    """The path's method and knots with many nodes; then the quadrature's scale on the default path."""
    cases = []
    for which in MIXTURES[:problems]:
        model = mixture(*which)
        x = points(model, n, 0)
        cases.append(Case("", model, x, model.log_prob(x.double(), 0.0)))

    def rank(title: str, table: dict[str, list[float]]) -> None:
        def mean(row: list[float]) -> float:
            return math.exp(statistics.mean(math.log(max(e, 1e-6)) for e in row))

        print(f"{title}: geometric mean of the errors over {len(cases)} mixtures, and each")
        for key in sorted(table, key=lambda key: mean(table[key]))[:top]:
            print(f"  {mean(table[key]):.1e}  {key:<50} {' '.join(f'{e:.0e}' for e in table[key])}", flush=True)

    def errors(**options: object) -> list[float]:
        return [c.error(log_likelihood(c.model, c.x, prior=c.model.log_prob, **options).nats) for c in cases]  # type: ignore[arg-type]

    for nfe in budgets:
        table = {}
        for predictor in (2, 3, 4):
            solver = Solver("", 0.0, Adams(predictor))
            for center in (0.0, 0.5, 0.75, 1.0, 1.5):
                for width in (1.0, 1.25, 1.5, 2.0):
                    grid = grids.sech(SDE, nfe - 1, center=center, width=width, end=1e-5)
                    key = f"predictor of order {predictor}, sech({center}, {width})"
                    table[key] = errors(solver=solver, grid=grid, quadrature=Quadrature(50))
        rank(f"{nfe} evaluations, 50 nodes", table)
    for count in nodes:
        table = {}
        for scale in (0.45, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0):
            table[f"scale {scale} σ_d"] = errors(nfe=100, quadrature=Quadrature(count, scale))
        rank(f"{count} nodes, 100 evaluations", table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["bar", "trace", "choose"])
    parser.add_argument("--n", type=int, default=None, help="points (256; choose: 64)")
    parser.add_argument("--problems", nargs="+", choices=list(ASKED), default=list(ASKED), help="of bar")
    parser.add_argument("--mixtures", type=int, default=len(MIXTURES), help="of choose: the first so many")
    parser.add_argument("--draws", type=int, default=5, help="of bar: independent sets of points")
    parser.add_argument("--smallest", action="store_true", help="bar: look for the smallest sufficient budgets")
    parser.add_argument("--tolerances", type=float, nargs="*", default=[1e-3, 1e-4, 1e-5, 1e-6], help="of bar")
    parser.add_argument("--budgets", type=int, nargs="*", default=[20, 30, 48, 70, 100], help="of choose")
    parser.add_argument("--nodes", type=int, nargs="*", default=[14, 25, 50], help="of choose")
    parser.add_argument("--repeats", type=int, default=5, help="of trace")
    parser.add_argument("--top", type=int, default=6, help="of choose: rows shown")
    a = parser.parse_args()
    n = a.n or (64 if a.what == "choose" else 256)
    if a.what == "bar" and a.smallest:
        smallest(a.problems, n, a.draws)
    elif a.what == "bar":
        bar(a.problems, n, a.draws, a.tolerances)
    elif a.what == "trace":
        trace(n, a.repeats)
    else:
        choose(a.budgets, a.nodes, n, a.mixtures, a.top)


if __name__ == "__main__":
    main()
