"""The reference of a calibration: its own error is told as it is, and is a fifth of what is reported, or it says so."""

import math
import time

import pytest
import torch
from quickly import calibrate

from sde_toolkit import VPSDE, GaussianMixture, ScoreModel, ddim, gaussian, grids
from sde_toolkit.calibration.plan_errors import Measured
from sde_toolkit.calibration.problem import Problem
from sde_toolkit.calibration.refining import Refining

FLOAT = torch.float64
MEANS = torch.tensor([[1.2, 0.0], [-0.7, 0.9], [0.0, -1.1]], dtype=FLOAT)


def network(width=0.5):
    """A mixture behind a network: the reference cannot go to t = 0, nor is it told that the score is exact."""
    exact = GaussianMixture(MEANS, VPSDE(), std=0.3)
    return ScoreModel(lambda x, t: exact.network(x, t), VPSDE(), "v", event_shape=(2,))


@pytest.mark.parametrize("model", [GaussianMixture(MEANS, VPSDE(), std=0.1), network()], ids=["exact", "network"])
def test_the_error_that_it_states_is_no_smaller_than_the_true_one(model):
    """The truth: a solve with far more steps."""
    coarse, fine = (Problem(model, 0.0, 0, (2,), FLOAT, torch.device("cpu"), fine_steps=k) for k in (12, 1500))
    chosen, truth = coarse.noise_set(64), fine.noise_set(64)
    reference = Refining(coarse, chosen)
    for _ in range(2):
        true = (chosen.target - truth.target).square().mean(1)
        assert Measured.of(true).value <= reference.own_error.value < 100 * Measured.of(true).value
        assert Measured.typical(true).value <= reference.own_typical.value
        reference._double()


@pytest.mark.parametrize("model", [gaussian(torch.zeros(2), VPSDE(), std=0.3), network()], ids=["exact", "network"])
def test_a_coarse_reference_is_refined_until_it_resolves_what_is_reported(model):
    found = calibrate(model, ddim(), 12, strategy="search", n=32, effort=0.02, reference_steps=2, weights=False)
    stated = found.record["reference"]
    assert stated["steps"] > 4
    assert found.own_error.value == stated["own_error"]["value"] <= 0.2 * found.after.value
    assert stated["own_typical"]["value"] <= 0.2 * found.typical_after.value
    assert stated["noises"] == found.record["n"]["fresh"]
    assert "may be off" not in found.reason


def test_a_reference_that_has_no_time_to_be_refined_says_so():
    model = network()
    slow = ScoreModel(lambda x, t: (time.sleep(0.002), model.network(x, t))[1], VPSDE(), "v", event_shape=(2,))
    given = grids.uniform_lambda(VPSDE(), 11)
    how = {"grid": given, "strategy": "search", "n": 8, "effort": 0.01, "weights": False}
    found = calibrate(slow, ddim(), 12, **how, reference_steps=2, time_limit=1e-3)
    assert found.own_error.value > 0.2 * found.after.value
    assert f"may be off by {found.own_error.value:.2g}" in found.reason
    assert f"{found.own_error.value:.2g}" in str(found).partition(found.reason)[0]


def test_doubling_stops_in_time():
    """Errors of zero are never resolved: five doublings, or none at all after the deadline."""
    problem = Problem(network(), 0.0, 0, (2,), FLOAT, torch.device("cpu"), fine_steps=4)
    reference = Refining(problem, problem.noise_set(8))
    assert not reference.until(lambda: torch.zeros(8, dtype=FLOAT), time.monotonic() - 1)
    assert reference.chosen.steps == 8
    assert not reference.until(lambda: torch.zeros(8, dtype=FLOAT), math.inf)
    assert reference.chosen.steps == 4 * 2**5
    assert reference.until(lambda: torch.ones(8, dtype=FLOAT), math.inf)
    assert torch.equal(problem.fine_times(4)[[0, -1]], grids.check_grid(problem.fine_times(64))[[0, -1]])
