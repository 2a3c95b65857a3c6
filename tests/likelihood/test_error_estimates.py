"""Errors that are reported are of the size of the true ones: quadrature, truncation, prior."""

import itertools
import math
import warnings

import pytest
import torch
from densities import (
    F64,
    PUBLIC_SDES,
    UserCoefficients,
    full_covariance,
    mixture,
    name,
    one_gaussian,
    points,
    truth,
)
from torch.distributions import MultivariateNormal, kl_divergence

from sde_toolkit import VESDE, VPSDE, Affine, FlowMatching, ScoreModel, SubVPSDE, gaussian, log_likelihood
from sde_toolkit.likelihood import GaussianPrior, Quadrature

SMOOTH = [VPSDE(), VESDE(), FlowMatching()]


@pytest.mark.parametrize("sde", SMOOTH, ids=name)
def test_the_quadrature_error_bounds_the_true_one_for_most_samples_and_vanishes(sde):
    model = mixture(sde)
    x = points(model, 64)

    def solved(Q):
        return log_likelihood(model, x, nfe=200, quadrature=Quadrature(Q), **F64)

    fine, reported = solved(64).nats, []
    for Q, at_most in ((8, 120), (12, 180), (16, 400), (20, 1000), (24, 2000)):
        found = solved(Q)
        true, estimate = (found.nats - fine).abs(), found.quadrature_error
        seen = true > 1e-7  # below it is the interpolation of the path, which differs between rules
        assert (estimate >= true)[seen].double().sum() >= 0.95 * seen.sum(), Q
        assert not seen.any() or estimate[seen].mean() < at_most * true[seen].mean(), Q
        reported.append(estimate.mean())
    assert all(later < 0.3 * earlier for earlier, later in itertools.pairwise(reported))
    assert reported[-1] < 1e-3 * reported[0]


def test_without_richardson_there_is_no_estimate():
    model = mixture(VPSDE())
    found = log_likelihood(model, points(model, 2), nfe=8)
    assert found.solver_error is None
    assert found.numerical_error is None


@pytest.mark.parametrize("sde", PUBLIC_SDES, ids=name)
def test_truncation_predicts_what_stopping_early_adds(sde):
    """log p_end(x) − log p_data(x) to first order: a hundredth of it is left at 1e-3, and less nearer to the data.

    α counts as σ does: where α_end < 1 the density at the end is that of smaller data.
    """
    model = mixture(sde)
    x = points(model, 32)
    data = truth(model, x, None)
    for end in (1e-2, 1e-3, 1e-5):
        found = log_likelihood(model, x, nfe=120, end=end, quadrature=Quadrature(40), prior=model.log_prob, **F64)
        added = truth(model, x, end) - data
        left = (added - found.truncation).abs().mean()
        assert left < (0.1 if end == 1e-2 else 0.01) * added.abs().mean(), (end, left, added.abs().mean())
        if end == 1e-3 and added.abs().mean() > 1e-5:  # more than what the solver errs by
            assert (found.nats - found.truncation - data).abs().mean() < 0.1 * (found.nats - data).abs().mean()


@pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE(), FlowMatching(), VESDE()], ids=name)
def test_truncation_predicts_the_difference_between_ends(sde):
    model = mixture(sde)
    x = points(model, 32)
    late, early = (log_likelihood(model, x, nfe=120, end=end, prior=model.log_prob, **F64) for end in (3e-3, 1e-4))
    difference = late.nats - early.nats
    predicted = late.truncation - early.truncation
    assert (difference - predicted).abs().mean() < 0.05 * difference.abs().mean()


def test_truncation_is_zero_only_without_noise():
    model = mixture(UserCoefficients())
    assert log_likelihood(model, points(model, 4), nfe=20, end=0.0, **F64).truncation.abs().min() > 0


@pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE(), VESDE(sigma_max=3.0), UserCoefficients()], ids=name)
def test_a_gaussian_prior_from_the_moments_is_exact_for_gaussian_data(sde):
    model, covariance = one_gaussian(sde), full_covariance(2)
    mean = torch.tensor([0.5, -2.0], dtype=torch.float64)
    model = gaussian(mean, sde, covariance=covariance)
    prior = GaussianPrior.of_moments(sde, mean, covariance)
    x = points(model)
    for t in (1.0, 0.5):
        torch.testing.assert_close(prior(3 * x, t), model.log_prob(3 * x, t))
    found = log_likelihood(model, x, nfe=100, prior=prior, **F64)
    assert (found.nats - model.log_prob(x, sde.likelihood_end)).abs().max() < 2e-5


@pytest.mark.parametrize("covariance", ["full", "diagonal", "isotropic"])
def test_a_gaussian_prior_from_data(covariance):
    """Through the transform; the covariance is that of N − 1 degrees of freedom, or its part that is asked for."""
    data = 5 + torch.randn(400, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).cumsum(2)
    model = gaussian(torch.zeros(2, 3), VPSDE(), std=1.0)
    model = ScoreModel(model.network, VPSDE(), "v", time_input=model.time_input, transform=Affine(5.0, -0.5))
    y = (-0.5 * (data - 5)).reshape(400, 6)
    full = (y - y.mean(0)).T @ (y - y.mean(0)) / 399
    C = {"full": full, "diagonal": full.diag().diag(), "isotropic": full.trace() / 6 * torch.eye(6).double()}[
        covariance
    ]
    prior = GaussianPrior.of_data(model, data, covariance)
    t = torch.tensor(0.6, dtype=torch.float64)
    alpha, sigma = VPSDE().alpha(t), VPSDE().sigma(t)
    expected = MultivariateNormal(alpha * y.mean(0), alpha**2 * C + sigma**2 * torch.eye(6).double())
    torch.testing.assert_close(prior(data, 0.6), expected.log_prob(data.reshape(400, 6)))


@pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE(), VESDE(), VESDE(sigma_max=2.0)], ids=name)
@pytest.mark.parametrize("t", [1.0, 0.4])
def test_mismatch_is_the_kl_of_the_moments_from_the_prior(sde, t):
    mean, covariance = torch.linspace(-2, 3, 5, dtype=torch.float64), full_covariance(5)
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    ours = MultivariateNormal(alpha * mean, alpha**2 * covariance + sigma**2 * torch.eye(5).double())
    expected = kl_divergence(ours, MultivariateNormal(torch.zeros(5).double(), sigma**2 * torch.eye(5).double()))
    found = GaussianPrior.of_moments(sde, mean, covariance).mismatch(t)
    assert found == pytest.approx(expected.item(), rel=1e-9, abs=1e-14)


def test_the_priors_mismatch_is_what_the_likelihood_loses_on_average():
    """E[log p with the exact prior − log p with N(0, σ² I)] = KL, where both integrate the same flow."""
    sde = VESDE(sigma_max=2.0)
    model = gaussian([1.0, -0.5], sde, covariance=[[1.0, 0.4], [0.4, 0.5]])
    prior = GaussianPrior.of_moments(
        sde, torch.tensor([1.0, -0.5]).double(), torch.tensor([[1, 0.4], [0.4, 0.5]]).double()
    )
    x = points(model, 20_000)
    exact, own = (
        log_likelihood(model, x, nfe=30, prior=p, quadrature=Quadrature(4), **F64).nats for p in (prior, None)
    )
    lost = exact - own
    assert abs(lost.mean() - prior.mismatch()) < 4 * lost.std() / math.sqrt(len(x)) + 1e-3
    assert prior.mismatch() > 0.05


@pytest.mark.parametrize("std", [0.01, 0.1])
@pytest.mark.parametrize("sde", [VPSDE(), VESDE(0.002, 50.0)], ids=name)
def test_structure_much_finer_than_the_grid_is_made_for_is_measured_and_warned_of(sde, std):
    model = gaussian(torch.zeros(3), sde, std=std)
    model.sigma_data = 1.0  # as the caller of a network might think
    x = model.draw(20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = log_likelihood(model, x, **F64)
    scale = math.hypot(std, torch.exp(-sde.half_log_snr(torch.tensor(found.end))).item())
    assert found.finest == pytest.approx(scale, rel=0.05)
    assert bool(caught) == (std < 0.22 / 8)
    if caught:
        assert "detail=" in str(caught[0].message)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            better = log_likelihood(model, x, detail=found.finest, **F64)
        exact = model.log_prob(x, found.end)
        assert (better.nats - exact).abs().mean() < 0.1 * (found.nats - exact).abs().mean()
