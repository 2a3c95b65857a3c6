"""The random numbers of training: functions of (seed, purpose, step, index), spread as they say."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from noted_blocks import NotedBlocks
from scipy.stats import kstest

from sde_toolkit import MLP, VPSDE, ScoreModel
from sde_toolkit.data import Dataset
from sde_toolkit.data.augmentation import Draws as AugmentationDraws
from sde_toolkit.losses.times import TimeDistribution
from sde_toolkit.noise.keyed_draws import KeyedDraws
from sde_toolkit.noise.streams import Purpose
from sde_toolkit.training import TrainingOptions, train
from sde_toolkit.training.batches import Portion, Recipe
from sde_toolkit.training.draws import epoch_order, step_seed

X = torch.zeros(24, 3, 5)


def drawn(read):
    """What was read, with its noise drawn."""
    return read._replace(noise=read.noise.on("cpu"))


@given(cut=st.integers(1, 23), step=st.integers(0, 10**9), seed=st.integers(0, 2**40), spread=st.booleans())
def test_a_batch_is_the_same_in_any_portions(cut, step, seed, spread):
    recipe = Recipe(seed, 24, spread, uniforms=2, normals=3, label_dropout=0.5, no_class=7)
    labels = torch.arange(24)
    whole = drawn(recipe.complete(Portion(step, 0, 24), X, labels))
    first = drawn(recipe.complete(Portion(step, 0, cut), X[:cut], labels[:cut]))
    second = drawn(recipe.complete(Portion(step, cut, 24 - cut), X[cut:], labels[cut:]))
    for part, one, two in zip(whole, first, second, strict=True):
        assert torch.equal(part, torch.cat([one, two]))


def test_noise_and_independent_times_have_their_distributions():
    recipe = Recipe(3, 4000, low_discrepancy=False, uniforms=1, normals=1)
    batch = drawn(recipe.complete(Portion(5, 0, 4000), torch.zeros(4000, 4), None))
    assert kstest(batch.noise.flatten().numpy(), "norm").pvalue > 1e-4
    assert kstest(batch.normal.flatten().numpy(), "norm").pvalue > 1e-4
    assert kstest(batch.u.numpy(), "uniform").pvalue > 1e-4
    assert kstest(batch.uniform.flatten().numpy(), "uniform").pvalue > 1e-4


def test_low_discrepancy_times_are_evenly_spread_and_each_is_uniform():
    recipe = Recipe(0, 8)
    times = torch.stack([recipe.complete(Portion(step, 0, 8), torch.zeros(8, 1), None).u for step in range(2000)])
    gaps = times.sort(dim=1).values.diff(dim=1)
    torch.testing.assert_close(gaps, torch.full_like(gaps, 1 / 8), rtol=0, atol=1e-12)
    assert kstest(times[:, 5].numpy(), "uniform").pvalue > 1e-4


def test_neighbouring_keys_are_uncorrelated():
    """Steps, indices, purposes and seeds that differ by one share nothing."""
    n = 20_000

    def draw(seed, purpose, step, index):
        return KeyedDraws(seed, purpose).normal(step, index, (1, n))[0].numpy()

    noise = Purpose.TRAINING_NOISE
    drawn = [draw(0, noise, 4, 9), draw(1, noise, 4, 9), draw(0, Purpose.TRAINING_AUGMENTATION, 4, 9)]
    drawn += [draw(0, noise, 5, 9), draw(0, noise, 4, 10)]
    correlation = np.corrcoef(drawn) - np.eye(len(drawn))
    assert np.abs(correlation).max() < 5 / n**0.5


def test_a_label_is_hidden_as_often_as_asked():
    recipe = Recipe(0, 5000, label_dropout=0.3, no_class=10)
    labels = recipe.complete(Portion(0, 0, 5000), torch.zeros(5000, 1), torch.arange(5000) % 10).labels
    hidden = labels == 10
    assert abs(hidden.double().mean() - 0.3) < 5 * (0.21 / 5000) ** 0.5
    assert torch.equal(labels[~hidden], (torch.arange(5000) % 10)[~hidden])


@given(n=st.integers(1, 500), epoch=st.integers(0, 100), seed=st.integers(0, 2**32))
def test_every_epoch_visits_every_sample_once(n, epoch, seed):
    assert sorted(epoch_order(seed, epoch, n)) == list(range(n))


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [tuple(epoch_order(seed, epoch, 50)) for seed in range(3) for epoch in range(3)]
    assert len(set(orders)) == 9


def test_what_the_network_draws_differs_by_step_process_and_pass():
    seeds = {step_seed(0, step, rank, part) for step in range(4) for rank in range(4) for part in range(4)}
    assert len(seeds) == 64


@pytest.mark.parametrize("size", [7, 40, 100])
def test_steps_walk_through_the_epochs(size):
    """Any run of len(data) consecutive positions from an epoch's start sees each sample once, across batch borders."""
    from sde_toolkit.training.batches import _Portions

    portions = _Portions(torch.arange(40), None, Recipe(0, size))
    seen = torch.cat([portions[Portion(step, 0, size)].x for step in range(40)])
    for epoch in range(40 * size // 40):
        assert sorted(seen[40 * epoch : 40 * (epoch + 1)].tolist()) == list(range(40))


class Stirred:
    """An augmentation that draws both kinds of numbers."""

    width = 0
    draws = AugmentationDraws(uniforms=2, normals=3)

    def __call__(self, x, uniform, normal):
        return x + 0.1 * uniform[:, :1] + 0.1 * normal[:, :1], None


@pytest.fixture
def batches(monkeypatch):
    """Every batch that is made while a run trains."""
    found, complete = [], Recipe.complete

    def recording_complete(self, portion, x, labels):
        read = complete(self, portion, x, labels)
        found.append(drawn(read))
        return read

    monkeypatch.setattr(Recipe, "complete", recording_complete)
    return found


def labelled(steps, folder, **given):
    """A run that draws all there is: orders, times, noise, augmentation, hidden labels, dropout, held-out noise."""
    torch.manual_seed(0)
    network = MLP(event_shape=(2,), width=8, depth=1, num_classes=3)
    model = ScoreModel(network, VPSDE(), "edm", event_shape=(2,))
    x, labels = torch.randn(40, 2), torch.arange(40) % 3
    data = Dataset("points", x, x[:16] + 1, labels, labels[:16])
    given = {"label_dropout": 0.5, "held_out": 16, "log_every": steps, **given}
    options = TrainingOptions(steps=steps, batch_size=16, evaluate_every=steps, **given)
    train(model, data, folder, options, augmentation=Stirred())


def test_no_two_purposes_share_a_random_stream(tmp_path, monkeypatch):
    """In a run of several epochs and passes no block is drawn twice, whatever it was for."""
    noted = NotedBlocks(monkeypatch)
    labelled(8, tmp_path, low_discrepancy=False, pass_size=8, held_out=8)
    assert noted.purposes == {purpose for purpose in Purpose if purpose.name.startswith("TRAINING")}
    assert noted.shared() == []


@pytest.mark.parametrize("spread", [True, False])
def test_held_out_noise_and_times_are_not_those_of_training(tmp_path, batches, spread):
    """Not of any step: else the held-out loss would be of noise that the network has seen."""
    labelled(30, tmp_path, low_discrepancy=spread)
    *trained, held_out = batches
    assert len(trained) == 30
    seen = torch.stack([batch.noise for batch in trained])
    assert (seen - held_out.noise).abs().min() > 0
    agreement = (seen * held_out.noise).mean((1, 2)) * held_out.noise.numel() ** 0.5
    assert agreement.abs().max() < 5
    assert not set(held_out.u.tolist()) & {u for batch in trained for u in batch.u.tolist()}


def test_every_evaluation_sees_the_same_held_out_noise(tmp_path, batches):
    labelled(10, tmp_path / "a")
    labelled(20, tmp_path / "b")
    one, two = batches[10], batches[-1]
    assert torch.equal(one.noise, two.noise)
    assert torch.equal(one.u, two.u)


class Noted(TimeDistribution):
    """Uniform times, which are noted."""

    def __init__(self):
        self.seen = []

    def draw(self, sde, u, t_min):
        self.seen.append(u.detach().clone())
        return t_min + (1 - t_min) * u, torch.ones_like(u)


def test_training_spreads_its_times_unless_told_otherwise(tmp_path):
    data = Dataset("points", torch.randn(40, 2), torch.randn(10, 2))
    gaps = {}
    for name, told in (("default", {}), ("independent", {"low_discrepancy": False})):
        noted = Noted()
        model = ScoreModel(MLP(event_shape=(2,), width=8, depth=1), VPSDE(), "v", event_shape=(2,))
        train(model, data, tmp_path / name, TrainingOptions(steps=3, batch_size=8, **told), times=noted)
        u = next(u for u in noted.seen if len(u) == 8)
        gaps[name] = (u.sort().values.diff() - 1 / 8).abs().max().item()
    assert gaps["default"] < 1e-6
    assert gaps["independent"] > 1e-2
