"""What evaluation says of its own accuracy: references finer than what they judge, errors that add in squares."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parent.parent / "laws"))
from catalogue import flow_solution, gaussian_data, start_at

from sde_toolkit import VPSDE, GaussianMixture, ScoreModel, ddim, gaussian, grids, probability_flow, sample
from sde_toolkit.evaluation import compare_solvers, local_errors
from sde_toolkit.evaluation.endpoint import endpoint_cost, flow_endpoint, solve_endpoint
from sde_toolkit.integrators import Heun, Time
from sde_toolkit.metrics.distances import Plausible, rmse, share
from sde_toolkit.metrics.judge import Judge, flat_features
from sde_toolkit.metrics.kernels import kernel_distance, rational_quadratic
from sde_toolkit.metrics.metric import Estimate
from sde_toolkit.metrics.sliced import SlicedWasserstein, sliced_wasserstein
from sde_toolkit.noise.streams import per_sample_noise
from sde_toolkit.transforms import Identity

SDE = VPSDE()


class Learned(ScoreModel):
    """The exact score of N(m, s²) as a network is asked for it: no exact mixture to whoever looks at its class."""

    def __init__(self):
        exact = gaussian(torch.tensor([1.0, -0.5]), SDE, std=0.5)
        super().__init__(exact.network, SDE, "v", time_input=lambda sde, t: t, event_shape=(2,))
        self.asked = []

    def output(self, x, inputs, condition=None):
        self.asked.append(len(x))
        return super().output(x, inputs, condition)


# References


@pytest.mark.parametrize("steps", [8, 20])
def test_the_endpoint_of_a_network_is_checked_on_a_grid_three_times_as_fine(steps):
    """By Heun's method on the quadratic grid, then Tweedie: as found by a run of one's own."""
    model, n, check = Learned(), 6, 4
    found = flow_endpoint(model, n, steps=steps, check=check, seed=3)
    x = per_sample_noise(3, 0, (n, 2))() * SDE.sigma(1.0).float()

    def run(count):
        grid = grids.quadratic(SDE, count)
        return sample(model, probability_flow(Heun(Time())), grid, x_start=x[:check], tweedie=True).x

    usual, finer = run(steps), run(3 * steps)
    assert torch.equal(found.x[:check], usual)
    assert found.error == rmse(usual, finer)
    assert (found.nfe, found.checked, found.n) == (2 * steps + 1, check, n)
    assert endpoint_cost(model, steps) == (2 * steps + 1, 6 * steps + 1)


def test_the_error_that_is_stated_is_nine_tenths_of_the_true_one():
    """Of second order: a third of the step has a ninth of the error, and the two differ by 8/9 of it."""
    model, x = Learned(), per_sample_noise(0, 0, (16, 2))() * SDE.sigma(1.0).float()
    exact = gaussian(torch.tensor([1.0, -0.5]), SDE, std=0.5)
    found = flow_endpoint(model, 16, steps=40, check=16)
    end = SDE.sampling_end
    spread = [(0.25 * SDE.alpha(t) ** 2 + SDE.sigma(t) ** 2).sqrt() for t in (1.0, end)]
    mean = torch.tensor([1.0, -0.5], dtype=torch.float64)
    last = SDE.alpha(end) * mean + (x.double() - SDE.alpha(1.0) * mean) * spread[1] / spread[0]
    truth = exact(last, torch.tensor(end, dtype=torch.float64)).x_0
    assert found.error.value == pytest.approx(8 / 9 * rmse(found.x, truth).value, rel=0.02)


def test_the_endpoint_of_exact_scores_is_checked_at_a_tenth_of_its_tolerance():
    model = GaussianMixture(torch.tensor([[-1.0], [1.0]]), SDE, std=0.2)
    how = {"seed": 0, "steps": 1, "batch_size": None, "condition": None, "device": "cpu"}
    (x, nfe, _), (finer, finer_nfe, _) = (solve_endpoint(model, 0, 3, finer=finer, **how) for finer in (False, True))
    assert finer_nfe > 1.2 * nfe  # a method of fifth order: 10^(1/5) times the steps
    found = flow_endpoint(model, 3, check=3)
    assert found.error.value == rmse(x, finer).value
    assert 0 < found.error.value < 1e-6
    assert found.nfe == nfe


@pytest.mark.parametrize("refine", [1, 2])
def test_the_reference_of_local_errors_is_judged_by_one_of_half_the_step(refine):
    """Runge and Kutta's method is of fourth order: the difference is 15/16 of the reference's own error."""
    begin, end = 0.8, 0.4
    x, grid = start_at(SDE, begin), grids.uniform_lambda(SDE, 3, start=begin, end=end)
    found = local_errors(gaussian_data(SDE), ddim(), grid, x_start=x, refine=refine, dtype=torch.float64)
    truth = flow_solution(SDE, x, begin, end)
    reached = sample(gaussian_data(SDE), ddim(), grid, x_start=x, dtype=torch.float64).x
    reference = reached - found.errors.sum(0)  # the c_k add up to the solver less its reference
    assert found.reference.value == pytest.approx(15 / 16 * rmse(reference, truth).value, rel=0.05)


# Errors of a comparison


def test_rows_carry_the_error_over_pairs_and_the_endpoint_its_own():
    model = Learned()
    found = compare_solvers(model, {"ddim": ddim()}, [6], n=12, endpoint_n=8, endpoint_steps=10, batch_size=5, seed=2)
    endpoint = flow_endpoint(model, 8, steps=10, batch_size=5, seed=2)
    assert found.endpoint.error == endpoint.error
    (row,) = found.rows
    drawn = sample(model, ddim(), grids.uniform(SDE, 5), shape=(8, 2), seed=2, tweedie=True)
    assert row.measured["rmse"].value == pytest.approx(rmse(drawn.x, endpoint.x).value, rel=1e-5)
    assert row.measured["rmse"].error == pytest.approx(rmse(drawn.x, endpoint.x).error, rel=1e-4)


def test_scores_are_means_over_splits_with_the_error_of_the_first():
    """The jackknife over the samples and over the first split's real ones; for the floor the spread of the splits."""
    real = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    features = flat_features(Identity(), real)
    judge = Judge(real, 10, features, metrics=features.usual_metrics(3, 16), splits=5, seed=3)
    samples = torch.randn(10, 2, generator=torch.Generator().manual_seed(1)) + 0.3
    values, g = features.extract(real)[0], features.extract(samples)[0]
    parts, how = judge.parts.parts, {"projections": 16, "seed": 3}
    sliced = [sliced_wasserstein(g, values[b], **how) for _, b in parts]
    kernel = [kernel_distance(g, values[b], features.kernel) for _, b in parts]
    found = judge(samples)
    for part, parts_of in ((found["sliced_wasserstein"], sliced), (found["kernel_distance"], kernel)):
        assert part.value == pytest.approx(np.mean([e.value for e in parts_of]), rel=1e-9)
        assert part.error == pytest.approx(parts_of[0].error, rel=1e-9)
    floors = [sliced_wasserstein(values[a], values[b], blocks=0, **how).value for a, b in parts]
    assert judge.floor["sliced_wasserstein"].value == pytest.approx(np.mean(floors), rel=1e-9)
    assert judge.floor["sliced_wasserstein"].error == pytest.approx(np.std(floors, ddof=1), rel=1e-9)


@pytest.mark.parametrize("metric", [SlicedWasserstein(), Plausible("p", "plausible")], ids=lambda metric: metric.name)
def test_independent_errors_add_in_squares(metric):
    """3 and 4 make 5: a gap just under 10 is within two standard errors of the difference, one just over is not."""
    worse = 1 if metric.lower_is_better else -1
    assert metric.reaches(Estimate(worse * 9.99, 3.0), Estimate(0.0, 4.0))
    assert not metric.reaches(Estimate(worse * 10.01, 3.0), Estimate(0.0, 4.0))
    assert metric.reaches(Estimate(worse * -50.0, 0.0), Estimate(0.0, 0.0))


def test_shares_have_the_binomial_error():
    assert share([True] * 9 + [False]).error == pytest.approx(0.3 / math.sqrt(10), rel=1e-14)


# The kernel's length


def test_the_kernels_length_is_the_tenth_quantile_of_distances():
    """Eleven pairs at the distances 0, 2, ..., 20: a tenth of them lies below 2."""
    real = torch.cat([torch.zeros(11), torch.arange(0.0, 22.0, 2.0)]).unsqueeze(1)
    features = flat_features(Identity(), real)
    a, b = np.array([[0.0], [1.0]]), np.array([[3.0], [7.5], [0.2]])
    assert np.allclose(features.kernel(a, b), rational_quadratic(2.0)(a, b), rtol=1e-12)
    assert "ℓ = 2 " in features.kernel_name


def test_a_tenth_of_all_distances_are_shorter():
    """Whatever the number of dimensions, and of the first thousand samples alone: a share of 500 pairs."""
    for D in (1, 3, 40):
        real = torch.randn(3000, D, generator=torch.Generator().manual_seed(D), dtype=torch.float64)
        real[1000:] *= 50
        kernel = flat_features(Identity(), real).kernel
        base = np.zeros((1, D))
        at = np.zeros((4001, D))
        at[:, 0] = np.linspace(0, 20, 4001)
        half = rational_quadratic(1.0)(np.zeros((1, 1)), np.ones((1, 1)))[0, 0]  # the kernel at its own length
        length = np.interp(-half, -kernel(base, at)[0], at[:, 0])
        first, second = (part.numpy() for part in real[:1000].split(500))
        shorter = np.mean(np.sqrt(((first[:, None] - second) ** 2).sum(-1)) < length)
        assert abs(shorter - 0.1) < 4 * math.sqrt(0.09 / 500)
