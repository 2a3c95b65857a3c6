"""What steps per sample save: evaluations × samples of PerSample against TorchDiffEq, whose batch shares its steps.

    python benchmarks/per_sample.py [--n 64 256 2048] [--tolerances 1e-3 1e-5]

Exact score of the 8-mode ring under VP, float64, from t=1 to sampling_end, dopri5 in λ in both. "full batch" is what
PerSample would cost if samples that have arrived were evaluated on.
"""

from __future__ import annotations

import argparse
import math
import time

import torch

from sde_toolkit import VPSDE, GaussianMixture, Solver, grids, probability_flow, sample
from sde_toolkit.integrators import PerSample, TorchDiffEq
from sde_toolkit.sampling import Sample

SDE = VPSDE()
ANGLE = torch.arange(8) * 2 * math.pi / 8
RING = GaussianMixture(torch.stack([ANGLE.cos(), ANGLE.sin()], 1) * math.sqrt(2), SDE, std=0.1)


def solve(solver: Solver, n: int) -> tuple[Sample, float]:
    begin = time.perf_counter()
    return sample(RING, solver, grids.uniform(SDE, 1), shape=(n, 2), dtype=torch.float64), time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, nargs="+", default=[64, 256, 2048])
    parser.add_argument("--tolerances", type=float, nargs="+", default=[1e-3, 1e-5])
    arguments = parser.parse_args()
    print("|     n | tolerance | TorchDiffEq | PerSample | full batch | saved | largest errors  | seconds      |")
    print("|-------|-----------|-------------|-----------|------------|-------|-----------------|--------------|")
    for n in arguments.n:
        exact = solve(probability_flow(PerSample(rtol=1e-10, atol=1e-10)), n)[0].x
        for tolerance in arguments.tolerances:
            coupled, coupled_seconds = solve(probability_flow(TorchDiffEq(rtol=tolerance, atol=tolerance)), n)
            own, own_seconds = solve(probability_flow(PerSample(rtol=tolerance, atol=tolerance)), n)
            shared = coupled.nfe * n
            evaluations = int(own.statistics.evaluations.sum()) if own.statistics else 0
            errors = [(found.x - exact).abs().max().item() for found in (coupled, own)]
            print(
                f"| {n:5d} | {tolerance:9.0e} | {shared:11d} | {evaluations:9d} | {own.nfe * n:10d} "
                f"| {1 - evaluations / shared:5.0%} | {errors[0]:.1e} {errors[1]:.1e} "
                f"| {coupled_seconds:.2f} {own_seconds:.2f}    |"
            )


if __name__ == "__main__":
    main()
