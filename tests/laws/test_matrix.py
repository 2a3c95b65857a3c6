"""No holes: every SDE × every solver, each with every event shape, and the right marginal at the end."""

import math

import pytest
import torch
from catalogue import EVENT_SHAPES, SDES, SOLVERS, model_of, name

from sde_toolkit import grids, sample
from sde_toolkit.batching import expand_to

pytestmark = pytest.mark.on_device

# The shape is a third index of a Latin square: every SDE and every solver meets each of them.
MATRIX = [
    (sde, solver, EVENT_SHAPES[(i + j) % len(EVENT_SHAPES)])
    for i, sde in enumerate(SDES)
    for j, solver in enumerate(SOLVERS)
]


@pytest.mark.parametrize(("sde", "solver", "event"), MATRIX, ids=name)
def test_the_whole_matrix_gives_the_right_marginal(sde, solver, event):
    """Every SDE × solver takes p_0.9 of Gaussian data to its p_0.3, in events of any shape."""
    begin, end, mean, std = 0.9, 0.3, 0.8, 0.6
    n = max(4, 4096 // math.prod(event))
    generator = torch.Generator().manual_seed(9)

    def exact(x, time):  # ε
        times, place = time.unique(return_inverse=True)  # a user's quadrature is not asked the same thing twice
        alpha, sigma = (expand_to(schedule(times)[place], x) for schedule in (sde.alpha, sde.sigma))
        return sigma * (x - alpha * mean) / (alpha**2 * std**2 + sigma**2)

    model = model_of(exact, sde)
    x_0 = mean + std * torch.randn(n, *event, generator=generator)
    start = sde.perturb(x_0, begin, torch.randn(n, *event, generator=generator))
    grid = grids.uniform_lambda(sde, 40, start=begin, end=end)
    x = sample(model, solver, grid, x_start=start, generator=generator).x
    assert x.shape == (n, *event)
    true_mean = sde.alpha(end).item() * mean
    true_std = math.sqrt((sde.alpha(end).item() * std) ** 2 + sde.sigma(end).item() ** 2)
    # 40 steps of order 1 leave up to 6 %, 4096 numbers up to 5 standard errors.
    assert abs(x.mean().item() - true_mean) < (0.06 + 5 / math.sqrt(x.numel())) * true_std
    assert abs(x.std().item() / true_std - 1) < 0.06 + 5 / math.sqrt(2 * x.numel())
