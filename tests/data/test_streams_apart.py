"""No two purposes share a random stream: the orders of data, augmentation, and the noise of samples, at one seed."""

import itertools

import numpy as np
import pytest
import torch
from noted_blocks import NotedBlocks

from sde_toolkit import VPSDE, BrownianPath, euler_maruyama, gaussian, grids, sample
from sde_toolkit.data import ShuffledStream, memory_map
from sde_toolkit.noise.streams import Purpose
from sde_toolkit.training.batches import Portion, Recipe
from sde_toolkit.training.draws import epoch_order, step_seed


class Numbers:
    """Shards of ten numbers each."""

    event_shape, dtype, labelled = (), torch.float32, False

    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def records(self, shard, start):
        yield from range(10 * shard + start, 10 * shard + 10)

    def decode(self, record):
        return torch.tensor(float(record)), None


@pytest.fixture
def states(monkeypatch):
    """What every random stream that is made begins with, in order."""
    found, made = [], np.random.SeedSequence

    def make(*args, **kwargs):
        sequence = made(*args, **kwargs)
        found.append(tuple(sequence.generate_state(4).tolist()))
        return sequence

    monkeypatch.setattr(np.random, "SeedSequence", make)
    return found


def taken(states, work):
    """The states that ``work`` makes."""
    states.clear()
    work()
    return list(states)


@pytest.mark.parametrize("seed", [0, 7])
def test_the_orders_of_a_stream_are_nobody_elses(states, seed):
    """Every block of every epoch and process has its own; that of the shards is one for each epoch, which all share."""
    made = []
    for size in (1, 2, 3):
        for rank in range(size):
            stream = ShuffledStream(Numbers(6), buffer=7, seed=seed, rank=rank, size=size)
            made.append(taken(states, lambda stream=stream, size=size: stream.next_batch(180 // size)))
    of_shards = set.intersection(*map(set, made))
    assert len(of_shards) == 3  # epochs
    of_blocks = [state for own in made for state in own if state not in of_shards]
    assert len(of_blocks) == len(set(of_blocks)) > 50

    model, grid = gaussian([0.0, 0.0], VPSDE(), std=1.0), grids.uniform(VPSDE(), 4)
    run = {"shape": (20, 2), "seed": seed, "path": BrownianPath()}
    assert taken(states, lambda: sample(model, euler_maruyama(), grid, **run)) == [], "samples have a cipher instead"


def test_the_rows_of_the_sample_are_drawn_apart_from_the_split(tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(50, 2)))
    keys, made = [], np.random.RandomState
    monkeypatch.setattr(np.random, "RandomState", lambda key: keys.append(repr(key)) or made(key))
    memory_map(tmp_path / "x.npy", sample=10, seed=3)
    assert len(keys) == len(set(keys)) == 2


def test_what_a_step_draws_is_drawn_once(monkeypatch):
    """Times, noise, augmentation's uniforms and normals, hidden labels, orders and what networks draw."""
    noted = NotedBlocks(monkeypatch)
    recipe = Recipe(5, 8, low_discrepancy=False, uniforms=3, normals=2, label_dropout=0.5, no_class=3)
    for step in range(3):
        for first in (0, 4):
            portion, labels = Portion(step, first, 4), torch.zeros(4, dtype=torch.int64)
            recipe.complete(portion, torch.zeros(4, 2), labels).noise.on("cpu")
        for rank, part in itertools.product(range(2), range(2)):
            step_seed(5, step, rank, part)
        epoch_order(5, step, 10)
    assert len(noted.walks) == 3 * (2 * 5 + 4 + 1)
    assert noted.purposes == {purpose for purpose in Purpose if purpose.name.startswith("TRAINING")}
    assert noted.shared() == []
