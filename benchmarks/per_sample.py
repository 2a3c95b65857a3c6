"""Evaluations that steps per sample save: ``PerSample`` against ``TorchDiffEq``, whose batch shares its steps.

    python benchmarks/per_sample.py            # a minute on one core

Exact score of a ring of eight modes under VP, float64, dopri5 in λ in both, from t = 1 to the SDE's sampling_end.
Evaluations are counted per batch: for ``TorchDiffEq`` the number of evaluations times the batch size, for
``PerSample`` the sum over samples. Errors are the largest of any coordinate against ``PerSample`` at 1e-10. Mean ±
standard deviation over draws of the noise.
"""

from __future__ import annotations

import statistics

import torch
from report import Report, parser

from sde_toolkit import Solver, grids, probability_flow, sample
from sde_toolkit.cli.parts import ring_mixture
from sde_toolkit.integrators import PerSample, TorchDiffEq
from sde_toolkit.sampling import Sample

RING = ring_mixture()


def solve(solver: Solver, n: int, seed: int) -> Sample:
    return sample(RING, solver, grids.uniform(RING.sde, 1), shape=(n, 2), dtype=torch.float64, seed=seed)


def evaluations(drawn: Sample, n: int) -> int:
    """Of all samples together."""
    return n * drawn.nfe if drawn.statistics is None else int(drawn.statistics.evaluations.sum())


def main() -> None:
    words = parser(__doc__)
    words.add_argument("--n", type=int, nargs="+", default=[64, 256, 2048], help="batch sizes")
    words.add_argument("--tolerances", type=float, nargs="+", default=[1e-3, 1e-5])
    words.add_argument("--draws", type=int, default=5)
    given = words.parse_args()
    report = Report(given.results, "per-sample", "Adaptive solvers: evaluations that steps per sample save")
    report.table(
        "batch", "tolerance", "shared steps", "own steps", "saved", "largest error, shared", "largest error, own"
    )
    for n in given.n:
        exact = [solve(probability_flow(PerSample(rtol=1e-10, atol=1e-10)), n, seed).x for seed in range(given.draws)]
        for tolerance in given.tolerances:
            counts: list[list[int]] = [[], []]
            errors = [0.0, 0.0]
            for k, kind in enumerate((TorchDiffEq, PerSample)):
                for seed in range(given.draws):
                    drawn = solve(probability_flow(kind(rtol=tolerance, atol=tolerance)), n, seed)
                    counts[k].append(evaluations(drawn, n))
                    errors[k] = max(errors[k], (drawn.x - exact[seed]).abs().max().item())
            saved = [100 * (1 - own / shared) for shared, own in zip(*counts, strict=True)]
            share = f"{statistics.mean(saved):.0f} ± {statistics.pstdev(saved):.0f} %"
            means = [f"{statistics.mean(each):,.0f}" for each in counts]
            report.row(n, f"{tolerance:.0e}", *means, share, *(f"{error:.1e}" for error in errors))
    report.save()


if __name__ == "__main__":
    main()
