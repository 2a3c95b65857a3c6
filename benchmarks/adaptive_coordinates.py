"""Why the adaptive solvers integrate in λ: evaluations and error of dopri5 on the flow, in t and in λ.

    python benchmarks/adaptive_coordinates.py

Exact scores of the 8-mode ring, 256 samples, float64, from t=1 to the SDE's sampling_end; the reference is dopri8 in λ
at 1e-11.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import torch
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
from sde_toolkit.integrators import TorchDiffEq
from sde_toolkit.sampling import Sample


def ring(sde: SDE) -> GaussianMixture:
    """Eight modes of standard deviation 0.1 on a circle of radius √2."""
    angle = torch.arange(8) * 2 * math.pi / 8
    return GaussianMixture(torch.stack([angle.cos(), angle.sin()], 1) * math.sqrt(2), sde, std=0.1)


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tolerances", type=float, nargs="+", default=[1e-3, 1e-5, 1e-7])
    parser.add_argument("--reference", type=float, default=1e-11, help="tolerance of the reference")
    given = parser.parse_args()
    print(f"{'SDE':<16}{'tolerance':>10}{'NFE in t':>10}{'NFE in λ':>10}{'error in t':>12}{'error in λ':>12}")
    for sde in (VPSDE(), SubVPSDE(), VESDE(sigma_max=20.0), DiscreteVPSDE()):
        compare(sde, given.tolerances, given.reference)


def compare(sde: SDE, tolerances: list[float], finest: float) -> None:
    """A line for each tolerance."""
    model, grid = ring(sde), grids.uniform(sde, 1)
    x = sde.prior_sampling((256, 2), generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def in_lambda(method: str, tolerance: float) -> Sample:
        solver = probability_flow(TorchDiffEq(method, rtol=tolerance, atol=tolerance))
        return sample(model, solver, grid, x_start=x, dtype=torch.float64)

    reference = in_lambda("dopri8", finest).x
    for tolerance in tolerances:
        (x_t, calls), by_lambda = in_t(model, grid, x, tolerance), in_lambda("dopri5", tolerance)
        e_t, e_lambda = ((end - reference).abs().max().item() for end in (x_t, by_lambda.x))
        counts = f"{calls:>10}{by_lambda.nfe:>10}{e_t:>12.1e}{e_lambda:>12.1e}"
        print(f"{type(sde).__name__:<16}{tolerance:>10.0e}{counts}")


if __name__ == "__main__":
    main()
