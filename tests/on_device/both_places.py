"""Models and data of the laws that compare a device with the CPU, and how they compare."""

import inspect

import torch
from torch import nn

from sde_toolkit import VPSDE, GaussianMixture, ScoreModel
from sde_toolkit.models.conditions import tensors_of

CPU = torch.device("cpu")
SDE = VPSDE()
F64 = {"dtype": torch.float64}
NOISE = 1e-5  # the normals of two devices agree to a few units in the last place of float32


def public(room, base):
    """The classes of a room that are of this kind."""
    found = [value for value in vars(room).values() if inspect.isclass(value) and issubclass(value, base)]
    return [cls for cls in found if cls is not base and not inspect.isabstract(cls)]


def on_host(x):
    """Tensors on the CPU, in any nesting of lists, tuples and dicts."""
    if isinstance(x, torch.Tensor):
        return x.detach().to(CPU)
    if isinstance(x, dict):
        return {key: on_host(value) for key, value in x.items()}
    return [on_host(part) for part in x] if isinstance(x, list | tuple) else x


def assert_the_same(compute, places, tolerance=NOISE):
    """``compute(place)`` gives tensors, which are of that place, and the same on the CPU and on the device."""
    here, there = (compute(place) for place in places)
    assert all(x.device.type == places[1].type for x in tensors_of(there))
    torch.testing.assert_close(on_host(there), on_host(here), rtol=tolerance, atol=tolerance)


class Network(nn.Module):
    """Smooth, with parameters, and a condition that is a label."""

    def __init__(self, channels=2):
        super().__init__()
        torch.manual_seed(0)
        self.enter = nn.Linear(channels + 1, 16, dtype=torch.float64)
        self.leave = nn.Linear(16, channels, dtype=torch.float64)
        self.label = nn.Embedding(4, 16, dtype=torch.float64)

    def forward(self, x, time, condition=None):
        y = self.enter(torch.cat([x, time.to(x)[:, None]], 1))
        y = y if condition is None else y + self.label(condition)
        return self.leave(torch.tanh(y))


def network_model(place, sde=SDE, kind="v", **options):
    return ScoreModel(Network(), sde, kind, event_shape=(2,), **options).to(place).eval()


def mixture(place, sde=SDE):
    means = torch.tensor([[1.0, -0.5], [-1.0, 1.0], [0.0, 2.0]], dtype=torch.float64, device=place)
    return GaussianMixture(means, sde, std=0.5, weights=[0.2, 0.5, 0.3])


def points(place, n=5, dimension=2, dtype=torch.float64):
    x = torch.randn(n, dimension, generator=torch.Generator().manual_seed(1), dtype=dtype, device=CPU)
    return x.to(place)
