"""What the laws of the losses share: the catalogue of SDEs, batches, and networks whose gradient can be compared."""

import sys
from pathlib import Path

import torch
from torch import nn

sys.path.append(str(Path(__file__).resolve().parent.parent / "laws"))

from catalogue import (  # noqa: F401  (tests take them from here: this file knows where the catalogue is)
    SDES,
    SMOOTH_SDES,
    Flow,
    UserCoefficients,
    convergence_order,
    gaussian_data,
    integrate,
    kinds_of,
    name,
    own_moments,
    signal_at_the_end,
)

from sde_toolkit import ScoreModel
from sde_toolkit.models.prediction import KINDS

__all__ = ["KINDS", "SDES", "Small", "batch", "gradient", "model_with"]


class Small(nn.Module):
    """A smooth float64 network (B, *event) to (B, factor · first axis, ...), with a few weights."""

    def __init__(self, event=(2,), factor=1, seed=0):
        super().__init__()
        self.event, self.factor = tuple(event), factor
        features = torch.Size(event).numel()
        generator = torch.Generator().manual_seed(seed)

        def weights(*shape):
            return nn.Parameter(0.5 * torch.randn(shape, generator=generator, dtype=torch.float64))

        self.enter, self.time, self.leave = weights(features, 6), weights(6), weights(6, factor * features)

    def forward(self, x, time, condition=None):
        flat = x.reshape(len(x), -1)
        h = torch.tanh(flat @ self.enter.to(x) + torch.tanh(time[:, None]) * self.time.to(x))
        first, *others = self.event or (1,)
        shape = (len(x), self.factor * first, *others) if self.event or self.factor > 1 else (len(x),)
        return (h @ self.leave.to(x)).reshape(shape)


def model_with(sde, kind="v", event=(2,), **options):
    factor = 2 if options.get("learned_variance") else 1
    return ScoreModel(Small(event, factor), sde, kind, sigma_data=0.7, **options)


def batch(n=16, event=(2,), seed=0, dtype=torch.float64, t_min=0.02, t_max=0.98):
    """x_0, t, noise."""
    generator = torch.Generator().manual_seed(seed)
    x_0, noise = (torch.randn((n, *event), generator=generator, dtype=torch.float64) for _ in range(2))
    t = t_min + (t_max - t_min) * torch.rand(n, generator=generator, dtype=torch.float64)
    return x_0.to(dtype), t, noise.to(dtype)


def gradient(loss, model):
    """The gradient of a number with respect to all weights, flat."""
    weights = list(model.parameters())
    parts = torch.autograd.grad(loss, weights, allow_unused=True)
    full = [torch.zeros_like(p) if g is None else g for g, p in zip(parts, weights, strict=True)]
    return torch.cat([g.flatten() for g in full])
