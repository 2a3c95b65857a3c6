"""What a linear model would score: draws from the Gaussian with the data's mean and covariance.

That Gaussian is what the best linear denoiser generates. A network whose samples are farther from the data has not
learned what linear regression knows, or its solver has lost it.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from sde_toolkit.metrics.judge import Judge
from sde_toolkit.metrics.metric import Against, Estimate

__all__ = ["gaussian_like", "linear_scores"]

_KNOWN: WeakKeyDictionary[Judge, dict[str, Estimate]] = WeakKeyDictionary()


def linear_scores(judge: Judge) -> dict[str, Estimate]:
    """The judge's distances of ``judge.n`` draws from that Gaussian, by the metrics' names. Computed once."""
    if judge not in _KNOWN:
        drawn = judge.sample_set(gaussian_like(judge.real, judge.n, seed=judge.parts.seed))
        distances = [m for m in judge.metrics if m.against is Against.PARTS and m.lower_is_better is not None]
        _KNOWN[judge] = {metric.name: judge.parts.measure(metric, drawn) for metric in distances}
    return _KNOWN[judge]


def gaussian_like(real: Tensor, n: int, seed: int = 0) -> Tensor:
    """n draws (n, *event) from the Gaussian with the mean and the covariance of ``real`` (N, *event).

    μ + (x_1 − μ, …, x_N − μ) z/√(N − 1) with z standard normal has that covariance: no matrix of the size of the events
    squared is needed.
    """
    flat = real.reshape(len(real), -1).double()
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, len(flat), generator=generator, dtype=torch.float64).to(flat.device)
    mean = flat.mean(0)
    return (mean + z @ (flat - mean) / (len(flat) - 1) ** 0.5).reshape(n, *real.shape[1:]).float()
