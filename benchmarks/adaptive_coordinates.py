"""Adaptive solvers in t and in λ: evaluations and error of dopri5 on the flow. They integrate in λ by default.

    python benchmarks/adaptive_coordinates.py            # a minute on one core

Exact scores of a ring of eight modes, 256 samples, float64, from t = 1 to the SDE's sampling_end. Errors are the
largest of any coordinate; the reference is dopri8 in λ at 1e-11.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from report import Report, parser
from torch import Tensor
from torchdiffeq import odeint

from sde_toolkit import (
    SDE,
    VESDE,
    VPSDE,
    DiscreteVPSDE,
    GaussianMixture,
    ReverseEquation,
    SubVPSDE,
    grids,
    probability_flow,
    sample,
)
from sde_toolkit.cli.parts import ring_mixture
from sde_toolkit.integrators import TorchDiffEq
from sde_toolkit.sampling import Sample


def in_t(model: GaussianMixture, grid: Tensor, x: Tensor, tolerance: float) -> tuple[Tensor, int]:
    """The same equation, norm and method in t, and its number of evaluations."""
    equation, calls = ReverseEquation(model, 0.0), 0

    def velocity(t: Tensor, x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return equation.drift(x, t.clamp(grid[-1], grid[0]))

    norm: Callable[[Tensor], Tensor] = lambda e: e.square().mean(1).sqrt().max()  # noqa: E731
    options = {"norm": norm, "step_t": grid[1:]}
    path = odeint(velocity, x, grid, rtol=tolerance, atol=tolerance, method="dopri5", options=options)
    return path[-1], calls


def main() -> None:
    words = parser(__doc__)
    words.add_argument("--tolerances", type=float, nargs="+", default=[1e-3, 1e-5, 1e-7])
    words.add_argument("--reference", type=float, default=1e-11, help="tolerance of the reference")
    given = words.parse_args()
    report = Report(given.results, "adaptive-coordinates", "Adaptive solvers: evaluations and error in t and in λ")
    report.table("SDE", "tolerance", "evaluations in t", "in λ", "largest error in t", "in λ")
    for sde in (VPSDE(), SubVPSDE(), VESDE(sigma_max=20.0), DiscreteVPSDE()):
        compare(report, sde, given.tolerances, given.reference)
    report.save()


def compare(report: Report, sde: SDE, tolerances: list[float], finest: float) -> None:
    """A row for each tolerance."""
    model, grid = GaussianMixture(ring_mixture().network.means, sde, std=0.1), grids.uniform(sde, 1)
    x = sde.prior_sampling((256, 2), generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def in_lambda(method: str, tolerance: float) -> Sample:
        solver = probability_flow(TorchDiffEq(method, rtol=tolerance, atol=tolerance))
        return sample(model, solver, grid, x_start=x, dtype=torch.float64)

    reference = in_lambda("dopri8", finest).x
    for tolerance in tolerances:
        (x_t, calls), by_lambda = in_t(model, grid, x, tolerance), in_lambda("dopri5", tolerance)
        errors = [f"{(end - reference).abs().max().item():.1e}" for end in (x_t, by_lambda.x)]
        report.row(type(sde).__name__, f"{tolerance:.0e}", calls, by_lambda.nfe, *errors)


if __name__ == "__main__":
    main()
