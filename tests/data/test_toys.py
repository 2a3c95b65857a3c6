"""Toys are pure functions of their arguments, and have the distribution their docstrings state."""

import math

import numpy as np
import pytest
import torch

import sde_toolkit.data as data_package
from sde_toolkit.data import Dataset, checkerboard, rings, two_moons, waves
from sde_toolkit.errors import ArgumentError, DataError

TOYS = [checkerboard, two_moons, rings, waves]


@pytest.mark.parametrize("toy", TOYS)
def test_deterministic_in_the_seed(toy):
    one, same, other = toy(n=50, seed=4), toy(n=50, seed=4), toy(n=50, seed=5)
    assert torch.equal(one.train, same.train)
    assert torch.equal(one.test, same.test)
    assert not torch.equal(one.train, other.train)
    assert torch.equal(one.test, toy(n=7, seed=4).test)
    assert not set(map(tuple, one.train.flatten(1).tolist())) & set(map(tuple, one.test.flatten(1).tolist()))


@pytest.mark.parametrize("toy", TOYS)
def test_global_random_state_untouched(toy):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    np_before = np.random.get_state()[1].copy()  # noqa: NPY002
    toy(n=20)
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(np_before, np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize("toy", TOYS)
def test_shapes_and_unit_variance_after_the_transform(toy):
    data = toy(n=20_000, n_test=100)
    shape = (1, 64) if toy is waves else (2,)
    assert data.event_shape == shape
    assert data.train.shape == (20_000, *shape)
    assert data.test.shape == (100, *shape)
    assert data.train.dtype == torch.float32
    assert data.levels is None
    y = data.transform.forward(data.train)
    assert y.square().mean().item() == pytest.approx(1.0, abs=0.02)
    assert y.mean(dim=0).abs().max().item() < 0.05
    if data.train_labels is not None:
        assert data.train_labels.dtype == torch.int64
        share = data.train_labels.bincount() / 20_000
        assert (share - 1 / len(share)).abs().max().item() < 0.02


def test_checkerboard_fills_the_dark_squares_only():
    x = checkerboard(n=4000).train
    cell = ((x + 4.0) / 2.0).floor().long()
    assert cell.min() == 0
    assert cell.max() == 3
    assert torch.all((cell[:, 0] + cell[:, 1]) % 2 == 0)
    assert len(cell.unique(dim=0)) == 8


def test_moons_and_rings_lie_on_their_curves():
    moons = two_moons(n=500, noise=0.0)
    centres = torch.tensor([[-0.5, -0.25], [0.5, 0.25]])[moons.train_labels]
    radius = (moons.train - centres).norm(dim=1)
    torch.testing.assert_close(radius, torch.ones(500), rtol=0, atol=1e-5)
    circles = rings(n=500, radii=[0.5, 4.0], noise=0.0)
    expected = torch.tensor([0.5, 4.0])[circles.train_labels]
    torch.testing.assert_close(circles.train.norm(dim=1), expected, rtol=1e-5, atol=0)


def test_waves_are_smooth_periodic_and_band_limited():
    x = waves(n=100, length=48, modes=3).train
    assert x.shape == (100, 1, 48)
    amplitude = torch.fft.rfft(x[:, 0].double()).abs() / 24
    assert amplitude[:, 0].max() < 1e-5
    assert amplitude[:, 4:].max() < 1e-5
    for k in (1, 2, 3):
        assert (amplitude[:, k] * k).min() > 0.5 - 1e-5
        assert (amplitude[:, k] * k).max() < 1.0 + 1e-5


@pytest.mark.parametrize(
    ("toy", "arguments"),
    [
        (checkerboard, {"n": -1}),
        (checkerboard, {"n": 0, "n_test": 0}),
        (two_moons, {"noise": -0.1}),
        (two_moons, {"noise": math.nan}),
        (rings, {"radii": []}),
        (rings, {"radii": [1.0, 0.0]}),
        (rings, {"radii": [math.inf]}),
        (waves, {"modes": 0}),
        (waves, {"length": 8, "modes": 4}),
    ],
)
def test_unusable_arguments(toy, arguments):
    with pytest.raises(ArgumentError):
        toy(**arguments)


def test_empty_parts_are_allowed_one_at_a_time():
    assert len(waves(n=0, n_test=3).train) == 0
    assert len(rings(n=3, n_test=0).test) == 0


@pytest.mark.parametrize(
    "arguments",
    [
        {"train": torch.zeros(2, 3), "test": torch.zeros(2, 4)},
        {"train": torch.zeros(2, 3), "test": torch.zeros(2, 3, dtype=torch.float64)},
        {"train": torch.tensor(0.0), "test": torch.tensor(0.0)},
        {"train": torch.zeros(0, 3), "test": torch.zeros(0, 3)},
        {"train": torch.zeros(2, 3), "test": torch.zeros(2, 3), "test_labels": torch.zeros(3)},
    ],
)
def test_a_dataset_whose_parts_do_not_fit_is_refused(arguments):
    with pytest.raises(DataError):
        Dataset(name="odd", **arguments)


def test_all_names_are_there():
    for name in data_package.__all__:
        assert getattr(data_package, name) is not None
