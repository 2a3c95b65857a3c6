"""Moving averages are the integrals that define them, and an average made afterwards is the one tracked all along."""

import dataclasses

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
from sde_toolkit.training import TrainingOptions, WeightAverage, exponential, posthoc_average, power_function, train
from sde_toolkit.training.averages import gamma_of, posthoc_weights


def track(values, update):
    parameter = torch.zeros(1, dtype=torch.float64)
    average = WeightAverage([parameter], update)
    for value in values:
        parameter.fill_(value)
        average.update()
    return average.values[0].item()


def test_exponential_average_is_its_sum():
    values, decay = np.random.default_rng(0).normal(size=50), 0.9
    weights = np.array([decay**49] + [(1 - decay) * decay ** (49 - k) for k in range(1, 50)])
    assert track(values, exponential(decay)) == pytest.approx(weights @ values, rel=1e-12)


@pytest.mark.parametrize("sigma_rel", [0.03, 0.05, 0.1, 0.2])
def test_power_average_tends_to_its_integral(sigma_rel):
    """Of a smooth path w(s): ∫ s^γ w ds / ∫ s^γ ds, with the γ whose profile has that relative width."""
    n = 20_000
    gamma = gamma_of(sigma_rel)
    moments = [quad(lambda s, k=k: s ** (gamma + k), 0, 1)[0] for k in range(3)]
    mean, square = moments[1] / moments[0], moments[2] / moments[0]
    assert (square - mean**2) ** 0.5 == pytest.approx(sigma_rel, rel=1e-6)
    wanted = quad(lambda s: s**gamma * np.cos(5 * s), 0, 1)[0] / moments[0]
    path = np.cos(5 * np.arange(1, n + 1) / n)
    assert track(path, power_function(sigma_rel)) == pytest.approx(wanted, abs=30 / n)


def test_in_place_gives_back_every_bit():
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(5, generator=generator)) for _ in range(3)]
    average = WeightAverage(parameters, exponential(0.5))
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
    tracked = {width: WeightAverage([parameter], power_function(width)) for width in (0.05, 0.1, wanted)}
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
    """Computed once more from the raw weights of every step."""
    options = dataclasses.replace(VECTORS, steps=12, evaluate_every=1, keep=12, snapshots=1, ema_decay=0.8)
    vectors(tmp_path, options=options)
    name = "network.leave.weight"
    parameter = torch.zeros_like(weights(tmp_path, "raw")[name])
    averages = [WeightAverage([parameter], update) for update in (exponential(0.8), power_function(0.1))]
    for step in range(1, 13):
        parameter.copy_(weights(tmp_path, "raw", step)[name])
        for average in averages:
            average.update()
    assert torch.equal(averages[0].values[0], weights(tmp_path, "ema")[name])
    snapshot = load_file(tmp_path / "averages/sigma_rel-0.1/step-000000012.safetensors")
    assert torch.equal(averages[1].values[0], snapshot[name])


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
