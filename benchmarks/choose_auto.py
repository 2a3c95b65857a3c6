"""How the tables of ``sde_toolkit.auto`` were chosen: methods, grids and ends on the half that is not kept out.

    python benchmarks/train_small_networks.py --to FOLDER --mnist path/to/mnist.npz
    python benchmarks/choose_auto.py --networks FOLDER                # the flow: about an hour on one core
    python benchmarks/choose_auto.py --eta 1 --budgets 10 20 50 100   # the SDE: half an hour

For every problem and budget each configuration's error is divided by the best found. The table takes the configuration
with the smallest geometric mean of these ratios, with a look at the largest. For the flow the error is the RMSE to the
end of a fine solve; the grids are those that ``auto`` measures, ended at several λ, and its fixed grid beside them. For
the SDE it is the variance within modes over its true value, 1 being right, on mixtures.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from auto_problems import Problem, mixture, problems
from report import Report, parser
from torch import Tensor

from sde_toolkit import VPSDE, GaussianMixture, Integrator, Solver, grids, sample
from sde_toolkit.integrators import (
    Angle,
    Corrected,
    FrozenEDM,
    FrozenNoise,
    FrozenX0,
    Landing,
    Multistep,
    NoiseToSignal,
    bh2,
)
from sde_toolkit.sampling.bending import assumed_bending, least_time, measured_bending

# dimension, modes, standard deviation of a mode, seed, spread of the modes: for the SDE
OF_THE_SDE = (
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
ENDS = (1.6, 2.0, 2.5, 3.0, 3.5, 4.25, 5.0, 5.5, 6.0)  # λ of the last evaluation, for data of size 1


def of_the_flow(size: float) -> dict[str, Multistep | Corrected]:
    """Multistep methods in EDM's F, in the data and in the noise."""
    edm, noise = FrozenEDM(size), FrozenNoise()
    return {
        "edm, 2, corrected": Corrected(Multistep(2, edm)),
        "edm, 3, corrected": Corrected(Multistep(3, edm)),
        "edm, 2": Multistep(2, edm),
        "edm, 2, corrected, in φ": Corrected(Multistep(2, edm, Angle(size))),
        "noise, 2, in σ/α": Multistep(2, noise, NoiseToSignal()),
        "x0, 2, corrected": Corrected(Multistep(2, FrozenX0())),
    }


def errors(problem: Problem, budget: int) -> dict[str, float]:
    """RMSE to the flow's endpoint of every configuration, from the same noises."""
    model = problem.model
    sde, least, found = model.sde, least_time(model), {}
    bends = {"fixed": assumed_bending(model), "measured": measured_bending(model, model.event_shape or ())}
    for kind, bending in bends.items():
        if bending is None:
            continue
        for end in ENDS:
            last = min(end - math.log(bending.sigma_data), sde.half_log_snr(least).item())
            time = max(sde.inverse_half_log_snr(last).item(), least, 1e-9)
            grid = torch.cat([bending.grid(sde, budget - 1, time), torch.zeros(1, dtype=torch.float64)])
            for name, method in of_the_flow(bending.sigma_data).items():
                key = f"{name} on the {kind} grid to {end}"
                found[key] = problem.error(f"{key}, {budget}", Landing(method), grid, tweedie=False)[0]
    return found


def of_the_reverse_sde() -> dict[str, Integrator]:
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


def spreads(model: GaussianMixture, budget: int, n: int) -> dict[str, float]:
    """Variance around the nearest mode over that of exact draws, of every configuration on the reverse SDE."""
    means = model.network.means.float()

    def spread(x: Tensor) -> float:
        return (x - means[torch.cdist(x, means).argmin(1)]).square().mean().item()

    true = spread(model.draw(4 * n, generator=torch.Generator().manual_seed(5)))
    found = {}
    for label, grid in all_grids(budget - 1):
        for name, integrator in {**of_the_reverse_sde(), "dpmpp": Multistep(2, two_point=bh2)}.items():
            noise = torch.Generator().manual_seed(1)
            shape = (n, *(model.event_shape or ()))
            done = sample(model, Solver("", 1.0, integrator), grid, shape=shape, generator=noise, tweedie=True)
            found[f"{name} on {label}"] = math.exp(abs(math.log(spread(done.x) / true)))
    return found


def main() -> None:
    words = parser(__doc__)
    words.add_argument("--networks", type=Path, default=Path("networks"), help="folder of train_small_networks.py")
    words.add_argument("--budgets", type=int, nargs="+", default=[5, 7, 10, 13, 20, 25, 50])
    words.add_argument("--problems", type=int, default=99, help="the first so many problems")
    words.add_argument("--n", type=int, default=32, help="noises")
    words.add_argument("--top", type=int, default=8, help="rows shown")
    words.add_argument("--eta", type=float, choices=[0.0, 1.0], default=0.0, help="0: the flow; 1: the SDE")
    given = words.parse_args()
    report = Report(given.results, f"choose-auto-eta-{given.eta:g}", "Methods, grids and ends: the half of the choice")
    report.table("evaluations", "method and grid", "× the best, geometric mean", "at most")
    of_flow = given.eta == 0
    chosen = problems(given.networks, 3 * [given.n], kept_out=False)[: given.problems] if of_flow else []
    for budget in given.budgets:
        if of_flow:
            found = [errors(problem, budget) for problem in chosen]
        else:
            found = [spreads(mixture(*which), budget, given.n) for which in OF_THE_SDE[: given.problems]]
        best = [min(table.values()) if of_flow else 1.0 for table in found]
        ratios = {key: [t[key] / b for t, b in zip(found, best, strict=True)] for key in found[0]}
        means = {key: math.exp(sum(map(math.log, row)) / len(row)) for key, row in ratios.items()}
        for key in sorted(means, key=means.__getitem__)[: given.top]:
            report.row(budget, key, f"{means[key]:.2f}", f"{max(ratios[key]):.2f}")
    report.save()


if __name__ == "__main__":
    main()
