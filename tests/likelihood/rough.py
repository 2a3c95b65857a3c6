"""Networks that are not smooth, and how often an estimate is at least as large as the error that it is of."""

import torch
from densities import mixture
from torch import nn

from sde_toolkit import ScoreModel


class Steps(nn.Module):
    """A network that is told one of N times, the next one to the true one: an embedding of whole numbers."""

    def __init__(self, network, N):
        super().__init__()
        self.network, self.N = network, N

    def forward(self, x, time):
        return self.network(x, torch.round(time * self.N).clamp(min=1) / self.N)


class Kinks(nn.Module):
    """Straight pieces in x and t, by ReLU, of x at unit size."""

    def __init__(self, sde, width=24):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        shapes = (2, width), (width,), (width,), (width, 2)
        self.A, self.b, self.c, self.B = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
        self.sde = sde

    def forward(self, x, time):
        size = (self.sde.alpha(time) ** 2 + self.sde.sigma(time) ** 2).sqrt()
        return torch.relu((x / size[:, None]) @ self.A + self.b + 3 * time[:, None] * self.c) @ self.B / len(self.b)


def rough_models(sde):
    """By name: the exact mixture told a rounded time, and a network of straight pieces."""
    exact = mixture(sde)
    told = {f"{N} times": Steps(exact.network, N) for N in (20, 100, 1000)}
    networks = {**told, "straight pieces": Kinks(sde)}
    how = {"time_input": exact.time_input, "sigma_data": exact.sigma_data, "event_shape": (2,)}
    return {kind: ScoreModel(network, sde, "v", **how) for kind, network in networks.items()}


def share(error, estimate):
    """Of the errors, that are not above the estimate (a rounding unit is forgiven)."""
    return (error <= estimate + 1e-9).double().mean().item()
