"""Moving averages are the integrals that define them, and an average made afterwards is the one tracked all along."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from runs import VECTORS, vectors, weights
from safetensors.torch import load_file
from scipy.integrate import quad

from sde_toolkit import MLP, VPSDE, ScoreModel
from sde_toolkit.data import checkerboard
from sde_toolkit.errors import ArgumentError, CheckpointError
from sde_toolkit.training import (
    TrainingOptions,
    WeightAverage,
    exponential_update,
    posthoc_average,
    power_function_update,
    train,
)
from sde_toolkit.training.averages import gamma_of, posthoc_weights, worth_using_from


def track(values, update):
    parameter = torch.zeros(1, dtype=torch.float64)
    average = WeightAverage([parameter], update)
    for value in values:
        parameter.fill_(value)
        average.update()
    return average.values[0].item()


def profile(n, update):
    """The share of each of n weights in their average."""
    return np.array([track(np.eye(n)[k], update) for k in range(n)])


def test_exponential_average_is_its_sum():
    decay = 0.9
    wanted = np.array([decay**49] + [(1 - decay) * decay ** (49 - k) for k in range(1, 50)])
    np.testing.assert_allclose(profile(50, exponential_update(decay, warm_up=False)), wanted, rtol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 3, 10, 100])
def test_a_warmed_up_average_has_shares_that_rise_as_a_power(n):
    """Below its decay: the share of weight k among n is in proportion to (k + 8)! / k!, and the first one's alone is
    more, as if it had stood for those before it."""
    shares = profile(n, exponential_update(1 - 1e-9))
    rising = np.array([math.perm(k + 8, 8) for k in range(1, n + 1)], float)
    np.testing.assert_allclose(shares[1:] / shares[-1], rising[1:] / rising[-1], rtol=1e-9)
    assert shares.sum() == pytest.approx(1, rel=1e-12)
    assert shares[0] == pytest.approx(math.factorial(10) / math.perm(n + 9, 9), rel=1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.99, 0.999])
@pytest.mark.parametrize("warm_up", [True, False])
def test_from_the_step_that_is_said_the_first_weights_are_under_a_hundredth(decay, warm_up):
    said = worth_using_from(decay, warm_up)

    def first(n):
        return track([1.0] + [0.0] * (n - 1), exponential_update(decay, warm_up))

    assert first(said) < 0.01 <= first(said - 1)
    assert TrainingOptions(ema_decay=decay, ema_warmup=warm_up).average_from == said
    assert not warm_up or said <= 10


@pytest.mark.parametrize("decay", [0.9, 0.999])
def test_after_its_warm_up_an_average_is_the_exponential_one(decay):
    """The last shares fall by the decay, once (1 + n)/(10 + n) has reached it."""
    reached = math.ceil((10 * decay - 1) / (1 - decay))
    averages = [
        track([0.0] * k + [1.0] + [0.0] * (reached + 5 - k), exponential_update(decay))
        for k in range(reached, reached + 5)
    ]
    np.testing.assert_allclose(np.array(averages[:-1]) / averages[1:], decay, rtol=1e-9)


@pytest.mark.parametrize("sigma_rel", [0.03, 0.05, 0.1, 0.2])
@pytest.mark.parametrize("n", [1, 2, 3, 5, 60])
def test_the_shares_of_a_power_average_are_the_integrals_of_its_profile(sigma_rel, n):
    """Weight k of n has ∫ s^γ ds over [(k − 1)/n, k/n], of ∫ s^γ ds over [0, 1]: exactly, for every n."""
    gamma = gamma_of(sigma_rel)
    whole = quad(lambda s: s**gamma, 0, 1)[0]
    wanted = [quad(lambda s: s**gamma, k / n, (k + 1) / n)[0] / whole for k in range(n)]
    np.testing.assert_allclose(profile(n, power_function_update(sigma_rel)), wanted, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("sigma_rel", [0.03, 0.05, 0.1, 0.2])
def test_the_profile_of_a_power_average_has_the_width_that_was_asked_for(sigma_rel):
    gamma = gamma_of(sigma_rel)
    moments = [quad(lambda s, k=k: s ** (gamma + k), 0, 1)[0] for k in range(3)]
    mean, square = moments[1] / moments[0], moments[2] / moments[0]
    assert (square - mean**2) ** 0.5 == pytest.approx(sigma_rel, rel=1e-6)


def test_in_place_gives_back_every_bit():
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(5, generator=generator)) for _ in range(3)]
    average = WeightAverage(parameters, exponential_update(0.5))
    average.update()
    with torch.no_grad():
        for p in parameters:
            p.add_(1.0)
    before = [p.detach().clone() for p in parameters]
    with average.in_place():
        assert all(torch.equal(p, value) for p, value in zip(parameters, average.values, strict=True))
    assert all(torch.equal(p, old) for p, old in zip(parameters, before, strict=True))
    with pytest.raises(RuntimeError), average.in_place():
        raise RuntimeError
    assert all(torch.equal(p, old) for p, old in zip(parameters, before, strict=True))


@pytest.mark.parametrize("wanted", [0.05, 0.07, 0.1, 0.15])
def test_average_made_afterwards_is_the_one_tracked_all_along(wanted):
    """Of a random walk, from 2 × 20 snapshots, to 1 % of the distance to the last weight (0.15 lies outside)."""
    steps, snapshots = 4000, 20
    walk = np.cumsum(np.random.default_rng(1).normal(size=(steps, 200)), axis=0)
    parameter = torch.zeros(200, dtype=torch.float64)
    tracked = {width: WeightAverage([parameter], power_function_update(width)) for width in (0.05, 0.1, wanted)}
    kept = []
    for step in range(1, steps + 1):
        parameter.copy_(torch.from_numpy(walk[step - 1]))
        for average in tracked.values():
            average.update()
        if step % (steps // snapshots) == 0:
            kept += [(width, step, tracked[width].values[0].clone()) for width in (0.05, 0.1)]
    x = posthoc_weights([(width, step) for width, step, _ in kept], wanted, steps)
    made = sum(factor * value for factor, (_, _, value) in zip(x, kept, strict=True))
    error = (made - tracked[wanted].values[0]).norm() / (tracked[wanted].values[0] - parameter).norm()
    assert error < 0.01


def test_coefficients_of_a_snapshot_itself_are_one_and_zero():
    kept = [(width, step) for step in (100, 200, 300) for width in (0.05, 0.1)]
    torch.testing.assert_close(posthoc_weights(kept, 0.1, 200), np.array([0, 0, 0, 1.0, 0, 0]), rtol=0, atol=1e-6)


def test_the_averages_of_a_run_are_those_of_its_weights(tmp_path):
    """Summed from the raw weights of every step with the shares of the laws above, every tensor of them."""
    options = dataclasses.replace(VECTORS, steps=12, evaluate_every=1, keep=12, snapshots=1, ema_decay=0.5)
    vectors(tmp_path, options=options)
    raw = [weights(tmp_path, "raw", step) for step in range(1, 13)]
    gamma = gamma_of(0.1)
    power = [(k / 12) ** (gamma + 1) - ((k - 1) / 12) ** (gamma + 1) for k in range(1, 13)]
    warm, ema = [min(0.5, (1 + n) / (10 + n)) for n in range(1, 12)], [1.0]
    for decay in warm:
        ema = [decay * share for share in ema] + [1 - decay]
    snapshot = load_file(tmp_path / "averages/sigma_rel-0.1/step-000000012.safetensors")
    for shares, found in ((ema, weights(tmp_path, "ema")), (power, snapshot)):
        assert found.keys() == raw[0].keys()
        for name, value in found.items():
            wanted = sum(share * each[name].double() for share, each in zip(shares, raw, strict=True))
            torch.testing.assert_close(value.double(), wanted, rtol=1e-5, atol=1e-7)
            assert value.equal(raw[-1][name]) == (not value.is_floating_point() or raw[0][name].equal(raw[-1][name]))


def test_posthoc_average_of_a_run_is_a_model(tmp_path):
    """The average of 0.07 from snapshots of 0.05 and 0.1 is the one that a run with 0.07 kept."""

    def run(folder, widths):
        torch.manual_seed(0)
        model = ScoreModel(MLP(event_shape=(2,), width=16, depth=1), VPSDE(), "edm", event_shape=(2,))
        options = TrainingOptions(
            steps=200, batch_size=32, learning_rate=1e-2, cosine_decay=False, evaluate_every=200, power_averages=widths
        )
        train(model, checkerboard(n=500), folder, options)

    run(tmp_path / "a", (0.05, 0.1))
    run(tmp_path / "b", (0.07,))
    made, kept = posthoc_average(tmp_path / "a", 0.07), posthoc_average(tmp_path / "b", 0.07)
    raw = ScoreModel.from_pretrained(tmp_path / "a", weights="raw")
    far, near = 0.0, 0.0
    for a, b, c in zip(made.parameters(), kept.parameters(), raw.parameters(), strict=True):
        near, far = near + (a - b).square().sum(), far + (c - b).square().sum()
    assert near < 0.05**2 * far
    assert not made.training
    with pytest.raises(ArgumentError, match="step=500"):
        posthoc_average(tmp_path / "a", 0.07, step=500)
    with pytest.raises(CheckpointError, match="power_averages"):
        posthoc_average(tmp_path / "a/checkpoints", 0.07)


@given(width=st.one_of(st.floats(max_value=0), st.floats(min_value=0.28), st.just(float("nan"))))
def test_impossible_widths_are_named(width):
    with pytest.raises(ArgumentError, match="sigma_rel"):
        gamma_of(width)


def test_an_average_follows_parameters_that_have_moved():
    """Wrappers of several processes give parameters other memory."""
    weight = torch.nn.Parameter(torch.zeros(3))
    average = WeightAverage([weight], exponential_update(0.5, warm_up=False))
    average.update()
    weight.data = torch.ones(3)
    average.update()
    assert torch.equal(average.values[0], torch.full((3,), 0.5))
    with average.in_place():
        assert torch.equal(weight.data, torch.full((3,), 0.5))
    assert torch.equal(weight.data, torch.ones(3))
