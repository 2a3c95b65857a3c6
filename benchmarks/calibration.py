"""What calibration gains: endpoint errors on fresh noise before and after, for exact scores and for the MNIST network.

    python benchmarks/calibration.py                      # ring of eight modes, budgets 5 to 50, gradients
    python benchmarks/calibration.py --method search --budgets 10
    python benchmarks/calibration.py --model wide subvp ve --budgets 10
    python benchmarks/calibration.py --model mnist --budgets 5 10 20
    python benchmarks/calibration.py --model ring wide --eta 1 --budgets 10     # within-mode variance ratio

Exact scores are judged on 2,048 noises of another seed against the float64 flow at t → 0, solved on 1,200 steps (root
mean square over elements, and over norms per sample); the network on the calibration's own fresh noises.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor

from sde_toolkit import VESDE, VPSDE, GaussianMixture, ScoreModel, Solver, SubVPSDE, sample
from sde_toolkit.calibration import calibrate
from sde_toolkit.calibration.reference import fine_grid, reference_end
from sde_toolkit.cli.parts import ring_mixture
from sde_toolkit.integrators import Corrected, Exponential, FrozenEDM, Multistep

STOCHASTIC = [Exponential(), Multistep(2), Multistep(2, FrozenEDM(1.0))]


def wide(sde: SubVPSDE | VESDE | VPSDE) -> GaussianMixture:
    """Ten modes in 64 dimensions, standard deviation 0.2."""
    means = torch.randn(10, 64, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return GaussianMixture(means, sde, std=0.2)


def ring_under(sde: SubVPSDE | VESDE) -> GaussianMixture:
    return GaussianMixture(ring_mixture().network.means, sde, std=0.1)


MODELS = {
    "ring": ring_mixture,
    "wide": lambda: wide(VPSDE()),
    "subvp": lambda: ring_under(SubVPSDE()),
    "ve": lambda: ring_under(VESDE()),
    "mnist": lambda: ScoreModel.from_pretrained("mnist"),
}


def exact_flow(model: GaussianMixture, n: int) -> tuple[Tensor, Tensor]:
    """Starts from noises of their own, and where the flow takes them."""
    sde = model.sde
    x = torch.randn(n, *(model.event_shape or ()), generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    x = x * sde.sigma(1.0)
    grid = fine_grid(sde, 1200, end=reference_end(model))
    return x, sample(
        model, Solver("fine", 0.0, Corrected(Multistep(4))), grid, x_start=x, tweedie=True, dtype=torch.float64
    ).x


def variance_ratio(model: GaussianMixture, x: Tensor) -> float:
    """Mean squared deviation from the nearest mode over that of the mixture."""
    means = model.network.means
    nearest = means[torch.cdist(x, means).argmin(1)]
    return ((x - nearest).square().mean() / model.network.variances.mean()).item()


def report(name: str, nfe: int, eta: float, method: str | None, time_limit: float) -> str:
    """One row of the table."""
    model = MODELS[name]()
    solvers = [Solver(f"{i}", eta, i) for i in STOCHASTIC] if eta > 0 else None
    began, spent = time.perf_counter(), time.process_time()
    found = calibrate(model, solvers, nfe, method=method, time_limit=time_limit)  # type: ignore[arg-type]
    seconds, spent = time.perf_counter() - began, time.process_time() - spent
    row = f"{name}, {nfe}: {found.before} before, {found.after} after"
    if isinstance(model, GaussianMixture) and eta == 0:
        x, truth = exact_flow(model, 2048)
        drawn = sample(model, found.solver, found.grid, x_start=x, tweedie=found.tweedie, dtype=torch.float64)
        apart = drawn.x - truth
        norm = apart.flatten(1).norm(dim=1).square().mean().sqrt()
        row += f"; other noises: {apart.square().mean().sqrt():.2e}, norm {norm:.2e}, {drawn.nfe} evaluations"
    if isinstance(model, GaussianMixture) and eta > 0:
        drawn = found.sample(model, shape=(8192, *(model.event_shape or ())), seed=1234, dtype=torch.float64)
        row += f"; variance ratio {variance_ratio(model, drawn.x):.3f}"
    start = found.record["start"]
    row += f"; from {start['solver']} {start['grid']} to {found.solver.integrator}"
    return f"{row}; {found.record['method']}, {seconds:.0f} s ({spent:.0f} s of CPU)"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["ring"], choices=sorted(MODELS))
    parser.add_argument("--budgets", nargs="+", type=int, default=[5, 8, 10, 15, 20, 30, 50])
    parser.add_argument("--eta", type=float, default=0.0)
    parser.add_argument("--method", choices=("gradient", "search"), default=None)
    parser.add_argument("--time-limit", type=float, default=300.0)
    arguments = parser.parse_args()
    for chosen in arguments.model:
        for budget in arguments.budgets:
            print(report(chosen, budget, arguments.eta, arguments.method, arguments.time_limit), flush=True)
