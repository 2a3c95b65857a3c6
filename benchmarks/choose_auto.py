"""How the table of ``sde_toolkit.auto`` was chosen: methods × grids on random mixtures, without the ring.

    python benchmarks/choose_auto.py --budgets 5 8 10 15 20 30 50     # about an hour on one core
    python benchmarks/choose_auto.py --eta 1 --budgets 10 20 50 100   # half an hour

For every problem and budget each configuration's RMSE to the flow's endpoint is divided by the best found; the table
takes the configuration with the smallest geometric mean of these ratios. For the SDE the figure is the variance
within modes over its true value, 1 being right, and its mean distance from 1 on a logarithmic scale decides.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from report import Report, parser
from torch import Tensor

from sde_toolkit import VPSDE, GaussianMixture, Integrator, Solver, grids, sample
from sde_toolkit.integrators import Corrected, FrozenEDM, FrozenNoise, FrozenX0, Multistep, bh2

# dimension, modes, standard deviation of a mode, seed, spread of the modes
MIXTURES = (
    (2, 5, 0.15, 1, 1.0),
    (2, 10, 0.05, 2, 1.5),
    (2, 3, 0.3, 21, 1.0),
    (4, 6, 0.1, 22, 1.2),
    (8, 10, 0.2, 3, 1.0),
    (16, 20, 0.1, 4, 1.0),
    (32, 8, 0.15, 23, 1.0),
    (64, 10, 0.2, 5, 1.0),
)
SDE = VPSDE()


def mixture(dimension: int, modes: int, std: float, seed: int, spread: float) -> GaussianMixture:
    """Modes ~ N(0, spread² I)."""
    generator = torch.Generator().manual_seed(seed)
    return GaussianMixture(spread * torch.randn(modes, dimension, generator=generator), SDE, std=std)


def methods() -> dict[str, Integrator]:
    """Multistep methods in noise, EDM and data prediction, with and without the corrector."""
    found: dict[str, Integrator] = {"x0, 2, corrected": Corrected(Multistep(2, FrozenX0()))}
    for name, frozen in (("noise", FrozenNoise()), ("edm", FrozenEDM(1.0))):
        for order in (2, 3, 4):
            found[f"{name}, {order}"] = Multistep(order, frozen)
            found[f"{name}, {order}, corrected"] = Corrected(Multistep(order, frozen))
    return found


def all_grids(steps: int) -> Iterator[tuple[str, Tensor]]:
    """Equal steps in λ, and ``grids.sech`` of several centers and widths, down to several λ."""
    for last in (2.0, 2.75, 3.5, 4.5, 6.0):
        end = SDE.inverse_half_log_snr(last).item()
        yield f"uniform_lambda to {last}", grids.uniform_lambda(SDE, steps, end=end)
        for center in (0.0, 0.75, 1.5):
            for width in (1.0, 1.5, 2.0, 3.0):
                grid = grids.sech(SDE, steps, center=center, width=width, end=end)
                yield f"sech({center}, {width}) to {last}", grid


def errors(model: GaussianMixture, budget: int, n: int) -> dict[str, float]:
    """RMSE to the flow's endpoint of every configuration, from the same n noises."""
    dimension = (model.event_shape or (1,))[0]
    x = torch.randn(n, dimension, generator=torch.Generator().manual_seed(7), dtype=torch.float64) * SDE.sigma(1.0)

    def end(integrator: Integrator, grid: Tensor) -> Tensor:
        return sample(model, Solver("", 0.0, integrator), grid, x_start=x, tweedie=True, dtype=torch.float64).x

    fine = grids.uniform_lambda(SDE, 400, end=SDE.inverse_half_log_snr(11.5).item())
    expected = end(Corrected(Multistep(4)), fine)
    return {
        f"{name} on {label}": (end(integrator, grid) - expected).square().mean().sqrt().item()
        for label, grid in all_grids(budget - 1)
        for name, integrator in methods().items()
    }


def spreads(model: GaussianMixture, budget: int, n: int) -> dict[str, float]:
    """Variance around the nearest mode over that of exact draws, of every configuration on the reverse SDE."""
    means = model.network.means.float()

    def spread(x: Tensor) -> float:
        return (x - means[torch.cdist(x, means).argmin(1)]).square().mean().item()

    true = spread(model.draw(4 * n, generator=torch.Generator().manual_seed(5)))
    found = {}
    for label, grid in all_grids(budget - 1):
        for name, integrator in {**methods(), "dpmpp": Multistep(2, two_point=bh2)}.items():
            noise = torch.Generator().manual_seed(1)
            shape = (n, *(model.event_shape or ()))
            done = sample(model, Solver("", 1.0, integrator), grid, shape=shape, generator=noise, tweedie=True)
            found[f"{name} on {label}"] = math.exp(abs(math.log(spread(done.x) / true)))
    return found


if __name__ == "__main__":
    words = parser(__doc__)
    words.add_argument("--budgets", type=int, nargs="+", default=[5, 8, 10, 15, 20, 30, 50])
    words.add_argument("--problems", type=int, default=len(MIXTURES), help="the first so many mixtures")
    words.add_argument("--n", type=int, default=128, help="noises")
    words.add_argument("--top", type=int, default=8, help="rows shown")
    words.add_argument("--eta", type=float, choices=[0.0, 1.0], default=0.0, help="0: the flow; 1: the SDE")
    given = words.parse_args()
    measure = errors if given.eta == 0 else spreads
    report = Report(given.results, f"choose-auto-eta-{given.eta:g}", "Methods and grids on random mixtures")
    report.table("evaluations", "method and grid", "× the best, geometric mean", "at most")
    for budget in given.budgets:
        found = [measure(mixture(*which), budget, given.n) for which in MIXTURES[: given.problems]]
        best = [min(table.values()) if given.eta == 0 else 1.0 for table in found]
        ratios = {key: [t[key] / b for t, b in zip(found, best, strict=True)] for key in found[0]}
        means = {key: math.exp(sum(map(math.log, row)) / len(row)) for key, row in ratios.items()}
        for key in sorted(means, key=means.__getitem__)[: given.top]:
            report.row(budget, key, f"{means[key]:.2f}", f"{max(ratios[key]):.2f}")
    report.save()
