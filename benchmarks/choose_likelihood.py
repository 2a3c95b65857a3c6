"""How the defaults of ``log_likelihood`` were chosen: method and knots of its path, scale of its quadrature.

    python benchmarks/choose_likelihood.py            # half an hour on one core

Errors are |log p − truth| in nats per dimension, mean over points of random mixtures. The first tables compare
methods and knots of ``grids.sech`` with many nodes; the last ones compare scales of the quadrature on the default
path. Ranked by the geometric mean over the mixtures.
"""

from __future__ import annotations

import math
import statistics

import torch
from report import Report, parser

from sde_toolkit import VPSDE, GaussianMixture, Solver, grids
from sde_toolkit.likelihood import Adams, Quadrature, log_likelihood

SDE = VPSDE(0.1, 20.0)

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


def mixture(dimension: int, modes: int, std: float, seed: int, spread: float) -> GaussianMixture:
    """Modes ~ N(0, spread² I)."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(modes, dimension, generator=generator, dtype=torch.float64)
    return GaussianMixture(spread * means, SDE, std=std)


def errors(models: list[GaussianMixture], n: int, **options: object) -> list[float]:
    """One for each mixture. The seed of the points is not that of any modes, which would draw the same numbers."""
    found = []
    for model in models:
        x = model.draw(n, generator=torch.Generator().manual_seed(1000))
        nats = log_likelihood(model, x, prior=model.log_prob, **options).nats.double()  # type: ignore[arg-type]
        found.append((nats - model.log_prob(x.double(), 0.0)).abs().mean().item() / x[0].numel())
    return found


def rank(report: Report, title: str, table: dict[str, list[float]], top: int) -> None:
    means = {key: math.exp(statistics.mean(math.log(max(e, 1e-6)) for e in row)) for key, row in table.items()}
    report.line(f"{title}: the best {top}.")
    report.table("setting", "geometric mean", "each mixture")
    for key in sorted(means, key=means.__getitem__)[:top]:
        report.row(key, f"{means[key]:.1e}", " ".join(f"{e:.0e}" for e in table[key]))


def main() -> None:
    words = parser(__doc__)
    words.add_argument("--n", type=int, default=64, help="points")
    words.add_argument("--mixtures", type=int, default=len(MIXTURES), help="the first so many")
    words.add_argument("--budgets", type=int, nargs="*", default=[20, 30, 48, 70, 100])
    words.add_argument("--nodes", type=int, nargs="*", default=[14, 25, 50])
    words.add_argument("--top", type=int, default=6, help="rows shown")
    given = words.parse_args()
    models = [mixture(*which) for which in MIXTURES[: given.mixtures]]
    report = Report(given.results, "choose-likelihood", "How the defaults of log_likelihood were chosen")
    for nfe in given.budgets:
        table = {}
        for order in (2, 3, 4):
            for center in (0.0, 0.5, 0.75, 1.0, 1.5):
                for width in (1.0, 1.25, 1.5, 2.0):
                    grid = grids.sech(SDE, nfe - 1, center=center, width=width, end=1e-5)
                    options = {"solver": Solver("", 0.0, Adams(order)), "grid": grid, "quadrature": Quadrature(50)}
                    table[f"predictor of order {order}, sech({center}, {width})"] = errors(models, given.n, **options)
        rank(report, f"{nfe} evaluations, 50 nodes", table, given.top)
    for nodes in given.nodes:
        scales = (0.45, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
        table = {f"scale {s} σ_d": errors(models, given.n, nfe=100, quadrature=Quadrature(nodes, s)) for s in scales}
        rank(report, f"{nodes} nodes, 100 evaluations", table, given.top)
    report.save()


if __name__ == "__main__":
    main()
