"""iPNDM: the weights of the papers, on any grid and every SDE; diffusers' IPNDMScheduler is the same method."""

from itertools import pairwise

import pytest
import torch
from catalogue import SDES, RandomNetwork, doubles, model_of, name, relative_error, start_at

from sde_toolkit import VPSDE, ScoreModel, Solver, grids, ipndm, sample
from sde_toolkit.errors import ArgumentError
from sde_toolkit.integrators import AdamsBashforth, FrozenNoise, Multistep, NoiseToSignal

GRID = doubles(0.8, 0.74, 0.7, 0.61, 0.55, 0.43)
PUBLISHED = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def end_of(integrator, model, grid, x):
    return sample(model, Solver("", 0.0, integrator), grid, x_start=x, dtype=torch.float64).x


@pytest.mark.parametrize("values", [1, 3, 4])
@pytest.mark.parametrize("sde", SDES, ids=name)
def test_the_recursion_of_the_papers(sde, values):
    model, x = model_of(RandomNetwork(), sde), start_at(sde, GRID[0])
    expected, past = x, []
    for t, s in pairwise(GRID):
        past.insert(0, model(expected, t).epsilon)
        weights = PUBLISHED[min(len(past), values) - 1]
        epsilon = sum(w * e for w, e in zip(weights, past, strict=False))
        x_0 = (expected - sde.sigma(t) * epsilon) / sde.alpha(t)
        expected = sde.alpha(s) * x_0 + sde.sigma(s) * epsilon
    assert relative_error(end_of(AdamsBashforth(values), model, GRID, x), expected) < 1e-10


@pytest.mark.parametrize("values", [2, 5])
def test_on_equal_steps_it_is_the_exact_integral_of_the_polynomial(values):
    sde = VPSDE()
    grid = grids.from_sigmas(sde, torch.linspace(3.0, 0.5, 9))
    model, x = model_of(RandomNetwork(), sde), start_at(sde, grid[0])
    exact = end_of(Multistep(values, FrozenNoise(), NoiseToSignal()), model, grid, x)
    assert relative_error(end_of(AdamsBashforth(values), model, grid, x), exact) < 1e-9


def test_diffusers_scheduler_draws_the_same_samples():
    scheduler_of = pytest.importorskip("diffusers").IPNDMScheduler
    sde = VPSDE()
    grid = grids.karras(sde, 7)
    model, x = ScoreModel(RandomNetwork(), sde, "epsilon"), start_at(sde, grid[0])
    theirs = scheduler_of(num_train_timesteps=7)
    theirs.set_timesteps(7)
    theirs.alphas, theirs.betas, theirs.timesteps = sde.alpha(grid), sde.sigma(grid), grid[:-1]
    expected = x
    for t in theirs.timesteps:
        v = (model(expected, t).epsilon - sde.sigma(t) * expected) / sde.alpha(t)  # α v + σ x is their ε
        expected = theirs.step(v, t, expected).prev_sample
    assert relative_error(end_of(ipndm().integrator, model, grid, x), expected) < 1e-9


@pytest.mark.parametrize("values", [0, 2.5, None])
def test_a_bad_number_of_values_is_named(values):
    with pytest.raises(ArgumentError, match="values="):
        AdamsBashforth(values)
