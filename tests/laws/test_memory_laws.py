"""What a run holds does not grow with its steps, unless the whole trajectory is asked for."""

import gc

import pytest
import torch
from catalogue import FIXED_STEP, model_of, name

from sde_toolkit import VPSDE, Solver, encode, grids, sample

SDE = VPSDE()


def network(x, time):
    return 0.5 * torch.tanh(x)


@pytest.fixture(autouse=True)
def only_what_is_new():
    """What lived before is left out of every look, for good: other modules have a million objects."""
    gc.collect()
    gc.freeze()


def live():
    """Bytes of all new tensors that live, whatever their size, each storage once, and the number of tensors."""
    tensors = [held for held in gc.get_objects() if type(held) in (torch.Tensor, torch.nn.Parameter)]
    storages = {held.untyped_storage().data_ptr(): held.untyped_storage().nbytes() for held in tensors}
    return sum(storages.values()), len(tensors)


def most(run, steps, **options):
    """The most that lives after any of 5 steps spread over the run, above what lived before."""
    gc.collect()
    before, seen = live(), []

    def look(step):
        if step.index % (steps // 5) == steps // 5 - 1:
            now = live()
            seen.append((now[0] - before[0], now[1] - before[1]))

    run(steps, callback=look, **options)
    return tuple(map(max, zip(*seen, strict=True)))


def sampled(integrator):
    def run(steps, **options):
        eta = 0.0 if integrator.weak_order is None else 1.0
        generator = torch.Generator().manual_seed(0)
        grid = grids.uniform(SDE, steps, end=0.1)
        sample(
            model_of(network, SDE), Solver("", eta, integrator), grid, shape=(50, 40), generator=generator, **options
        )

    return run


STATE = 50 * 40 * 4
FEW, MANY = 160, 640  # both longer than what of the coefficients is held at once


@pytest.mark.parametrize("integrator", FIXED_STEP, ids=name)
def test_memory_does_not_grow_with_the_steps(integrator):
    few, many = (most(sampled(integrator), steps) for steps in (FEW, MANY))
    assert many[0] - few[0] < STATE + 8 * 40 * (MANY - FEW)  # the table of coefficients, some numbers a step
    assert many[0] < 12 * STATE + 8 * 40 * MANY
    assert many[1] <= few[1] + 20  # tensors


def test_nor_does_encoding():
    def run(steps, **options):
        grid = grids.uniform(SDE, steps, end=0.1)
        encode(model_of(network, SDE), Solver("", 0.0, FIXED_STEP[-1]), grid, torch.ones(50, 40), **options)

    few, many = most(run, FEW), most(run, MANY)
    assert many[0] - few[0] < STATE + 8 * 40 * (MANY - FEW)
    assert many[1] <= few[1] + 20


def test_a_trajectory_grows():
    """The yardstick itself."""
    few, many = (most(sampled(FIXED_STEP[-1]), steps, trajectory=True) for steps in (FEW, MANY))
    assert many[0] - few[0] > 0.9 * (MANY - FEW) * STATE
