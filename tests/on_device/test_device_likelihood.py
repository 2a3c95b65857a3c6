"""Likelihoods and bounds on a device are those of the CPU."""

import pytest
import torch
from both_places import CPU, F64, SDE, assert_the_same, mixture, network_model, points

from sde_toolkit import (
    Affine,
    Levels,
    bits_per_dim,
    grids,
    likelihood,
    log_likelihood,
    variational_bound,
)
from sde_toolkit.likelihood import ExactTrace, Hutchinson, HutchPlusPlus

DIVERGENCES = {
    "exact": ExactTrace(),
    "hutchinson": Hutchinson(3),
    "gaussian probes": Hutchinson(3, "gaussian"),
    "hutch++": HutchPlusPlus(1, 2),
}


@pytest.mark.parametrize("divergence", DIVERGENCES.values(), ids=DIVERGENCES)
def test_every_divergence(divergence, both):
    def run(place):
        return log_likelihood(network_model(place), points(place), nfe=8, divergence=divergence, **F64).nats

    assert_the_same(run, both)


def test_likelihood_of_a_mixture(both):
    def run(place):
        return log_likelihood(mixture(place), points(place), nfe=20, richardson=True, **F64).nats

    assert_the_same(run, both)


def test_gradients_of_the_likelihood(both):
    def run(place):
        x = points(place).requires_grad_()
        log_likelihood(network_model(place), x, nfe=4, differentiable=True, **F64).nats.sum().backward()
        return x.grad

    assert_the_same(run, both)


def test_bits_and_bounds(both):
    levels, grid = Levels(16, 0.0, 15.0), grids.uniform(SDE, 8, end=1e-3)
    x = torch.tensor([[0.0, 3.0], [15.0, 7.0], [8.0, 1.0]], device=CPU)

    def run(place):
        model, data = network_model(place, transform=Affine(7.5, 1 / 7.5)), x.to(place)
        bounds = [
            variational_bound(model, data, draws=6, levels=levels, **F64),
            likelihood.discrete_bound(model, data, grid, draws=3, levels=levels, **F64),
        ]
        return [bits_per_dim(model, data, levels, nfe=6, **F64).bits, *(bound.nats.to(place) for bound in bounds)]

    assert_the_same(run, both)


def test_data_that_are_elsewhere_are_the_mistake_that_is_named(both):
    """Not that the network had no derivatives."""
    with pytest.raises(RuntimeError, match="on the same device"):
        log_likelihood(network_model(both[1]), points(CPU), nfe=4, **F64)
