"""Weighted ensembles tend to the law aimed at, with evidence whose error is known."""

from dataclasses import dataclass

import pytest
import torch
from catalogue import SDES, RandomNetwork, kinds_of, model_of, name, relative_error

from sde_toolkit import VPSDE, GaussianMixture, Solver, grids, sample
from sde_toolkit.guidance import PiGDM, Proposal, WeightRule, posterior, sample_particles
from sde_toolkit.integrators import Exponential, FrozenX0, Multistep

MEANS, WEIGHTS, STD = [[-2.0], [0.0], [2.0]], [0.2, 0.5, 0.3], 0.3
A, Y, NOISE = torch.ones(1, 1), torch.tensor([0.4]), 1.5


def three_modes(method=None, **options):
    prior = GaussianMixture(MEANS, VPSDE(), std=STD, weights=WEIGHTS)
    return prior, posterior(prior, A, Y, NOISE, method=method or PiGDM(), **options)


@dataclass(frozen=True, eq=False)
class Nothing(WeightRule):
    """Neither a pull nor a weight."""

    def propose(self, x_t, inside, condition):
        x_0 = inside(x_t, condition)
        return Proposal(x_0, x_0)


@pytest.mark.parametrize(("order", "integrator"), [(1, Exponential()), (2, Multistep(2, FrozenX0()))])
@pytest.mark.parametrize("sde", SDES, ids=name)
def test_one_particle_without_a_target_is_the_plain_sampler(sde, order, integrator):
    model, grid = model_of(RandomNetwork(), sde, kinds_of(sde)[0]), grids.uniform(sde, 4, start=0.9, end=0.01)
    for eta in (0.5, 1.0):
        options = {"shape": (3, 2), "seed": 5, "dtype": torch.float64}
        plain = sample(model, Solver("", eta, integrator), grid, tweedie=True, **options)
        found = sample_particles(model, Nothing(), grid, particles=1, eta=eta, order=order, **options)
        assert relative_error(found.x[:, 0], plain.x) < 1e-10
        assert found.nfe == plain.nfe == 5
        assert bool((found.log_evidence == 0).all())
