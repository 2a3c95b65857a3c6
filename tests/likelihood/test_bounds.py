"""Laws of the variational bounds. Truth is log p_t of exact mixtures, quadrature over ε, and torch.distributions."""

import itertools
import math

import numpy as np
import pytest
import torch
from bound_truths import (
    F64,
    NODES,
    POINTS,
    SDES,
    WEIGHTS,
    Halfway,
    agree,
    copies,
    divergence_at,
    doubles,
    mixture,
    pooled,
)
from torch.distributions import MultivariateNormal, Normal, kl_divergence

import sde_toolkit
from sde_toolkit import (
    VESDE,
    VPSDE,
    CosineVPSDE,
    FlowMatching,
    GaussianMixture,
    ScoreModel,
    gaussian,
    grids,
    reschedule,
)
from sde_toolkit.integrators import forward_variance
from sde_toolkit.likelihood.bounds import discrete_bound, variational_bound
from sde_toolkit.likelihood.decoders import GaussianDensity
from sde_toolkit.likelihood.prior import GaussianPrior
from sde_toolkit.likelihood.proposals import Sigmoid, UniformLambda, UniformTime
from sde_toolkit.models.prediction import KINDS, Prediction
from sde_toolkit.models.time_inputs import ScaledTime


@pytest.mark.parametrize("sde", SDES, ids=repr)
def test_the_integral_of_an_exact_score_is_a_difference_of_divergences(sde):
    """Point by point: what the path forgets of x between the end and the start."""
    model = mixture(sde)
    x, back = copies(POINTS, 64)
    end = 0.01
    found = variational_bound(model, x, draws=640, end=end, **F64)
    points = doubles(*POINTS)
    first, last = torch.ones((), dtype=torch.float64), torch.as_tensor(end, dtype=torch.float64)
    at_start = divergence_at(model, points, first) if sde.alpha(1.0) > 0 else torch.zeros(5)
    value, error = pooled(found, back, "diffusion")
    agree(value, at_start - divergence_at(model, points, last), error, 0.06)
    assert torch.equal(found.nats, found.prior + found.diffusion + found.reconstruction)


@pytest.mark.parametrize("sde", SDES, ids=repr)
def test_never_above_the_likelihood_of_an_exact_score(sde):
    """The model's own density is p with noise of variance 2 τ_e²; what N(0, σ_1²) costs is below 2e-3 here."""
    model, points = mixture(sde), doubles(*POINTS).unsqueeze(1)
    x, back = copies(POINTS, 20)
    end = sde.inverse_half_log_snr(doubles(4.0)).item()
    for bound in (
        variational_bound(model, x, draws=100, end=end, **F64),
        variational_bound(model, x, draws=100, end=end, decoder=GaussianDensity(denoise=True), **F64),
        discrete_bound(model, x, grids.sech(sde, 30, end=end), repeats=4, **F64),
        discrete_bound(model, x, grids.sech(sde, 30, end=end), draws=100, **F64),
    ):
        std = (model.network.variances + 2 * math.exp(-2 * 4.0)).sqrt()
        wider = GaussianMixture(model.network.means, VPSDE(), std=std, weights=[0.4, 0.6]).log_prob(points)
        value, error = pooled(bound, back)
        assert bool((error < 0.3).all()), error
        assert bool((value <= wider + 4.5 * error + 2e-3).all())
        assert bool((value >= wider - (0.1 if bound.grid is None else 3.0) - 4.5 * error).all())  # no empty promise


@pytest.mark.parametrize("sde", [sde for sde in [*SDES, Halfway()] if sde.alpha(1.0) > 0], ids=repr)
def test_a_gaussian_prior_costs_its_divergence_and_nothing_else(sde):
    """KL(q(x_1|x) ‖ prior) against torch.distributions; a full covariance, a start before 1, both bounds."""
    C = torch.tensor([[0.5, 0.3], [0.3, 0.8]], dtype=torch.float64)
    m, x = doubles(0.7, -0.4), torch.tensor([[1.0, 2.0], [-0.5, 0.1]], dtype=torch.float64)
    prior, model = GaussianPrior.of_moments(sde, m, C), gaussian(m, sde, covariance=C)
    start, one = 0.8, torch.eye(2, dtype=torch.float64)
    alpha, sigma = sde.alpha(start), sde.sigma(start)
    ours = MultivariateNormal(alpha * m, alpha**2 * C + sigma**2 * one)
    cost = kl_divergence(MultivariateNormal(alpha * x, (sigma**2 * one).expand(2, 2, 2)), ours)
    grid = grids.sech(sde, 6, start=start, end=0.05)
    for bound in (
        lambda **how: variational_bound(model, x, draws=8, start=start, end=0.05, **how, **F64),
        lambda **how: discrete_bound(model, x, grid, **how, **F64),
    ):
        own, plain = bound(prior=prior), bound()
        torch.testing.assert_close(own.prior, -cost)
        torch.testing.assert_close(own.nats - plain.nats, own.prior - plain.prior)
        assert own.moments is prior
        assert plain.moments is None


@pytest.mark.parametrize("sde", [VESDE(sigma_max=1.0), VPSDE(beta_max=2.0)], ids=repr)
def test_with_the_exact_prior_the_bound_loses_nothing_at_the_start(sde):
    """E over the data of log p_e − bound is what the end loses, if the start is that of Gaussian data itself."""
    model = gaussian([0.5], sde, std=0.6)
    prior = GaussianPrior.of_moments(sde, doubles(0.5), doubles(0.36).reshape(1, 1))
    end, x = 0.05, model.draw(4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    bound = variational_bound(model, x, draws=64, end=end, prior=prior, **F64)
    lost = (
        bound.prior + bound.diffusion + divergence_at(model, x[:, 0], torch.tensor(end, dtype=torch.float64))
    ).mean()
    spread = (bound.standard_error.square().sum().sqrt() / len(x)).item()
    assert abs(lost) < 4.5 * spread
    assert prior.mismatch() > 10 * spread  # which is what N(0, σ² I) would lose


@pytest.mark.parametrize("sde", [*SDES, Halfway()], ids=repr)
def test_the_gap_on_gaussian_data_is_what_both_ends_lose(sde):
    """E[log p(x) − bound] = entropy gained until the end + KL(p_1 ‖ N(0, σ_1² I)); the path itself loses nothing."""
    D, mean, std, end = 2000, 0.3, 0.7, 0.02
    model = gaussian(torch.full((D,), mean), sde, std=std)
    x = model.draw(16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    bound = variational_bound(model, x, draws=64, end=end, **F64)
    tau = torch.exp(-sde.half_log_snr(torch.tensor(end).double()))
    alpha, sigma = sde.alpha(1.0).double(), sde.sigma(1.0).double()
    at_start = kl_divergence(Normal(alpha * mean, torch.hypot(alpha * std, sigma)), Normal(0.0 * sigma, sigma))
    gap = Normal(0, torch.hypot(tau, torch.tensor(std))).entropy() - Normal(0, std).entropy() + at_start
    lost = (Normal(mean, std).log_prob(x).sum(1) - bound.nats) / D
    error = lost.std() / 4
    assert error < 0.02
    assert abs(lost.mean() - gap) < 4.5 * error


def bounded_network(x, time):
    """An x̂_0 that is nobody's denoiser."""
    return torch.tanh(x - 0.3) + 0.2 * time.unsqueeze(1)


@pytest.mark.parametrize("variance", [None, forward_variance])
@pytest.mark.parametrize("sde", [VPSDE(), FlowMatching(), VESDE(), Halfway(), VPSDE.from_betas([0.05] * 40)], ids=repr)
def test_a_step_costs_the_divergence_of_two_gaussians(sde, variance):
    """Against torch.distributions, with the posterior from Bayes' rule for x_t = a x_s + noise."""
    model = ScoreModel(bounded_network, sde, "x0")
    grid = doubles(1.0, 0.7, 0.4, 0.1)
    x, back = copies(POINTS, 1200)
    bound = discrete_bound(model, x, grid, variance=variance, repeats=2, decoder=GaussianDensity(), **F64)
    points, expected = doubles(*POINTS).unsqueeze(1), torch.zeros(5, dtype=torch.float64)
    for t, s in itertools.pairwise(grid):
        a = sde.alpha(t) / sde.alpha(s)
        forward = sde.sigma(t) ** 2 - a**2 * sde.sigma(s) ** 2
        precision = 1 / sde.sigma(s) ** 2 + a**2 / forward

        def posterior_mean(x_0, x_t, a=a, s=s, forward=forward, precision=precision):
            return (sde.alpha(s) * x_0 / sde.sigma(s) ** 2 + a * x_t / forward) / precision

        x_t = sde.alpha(t) * points + sde.sigma(t) * NODES
        guess = bounded_network(x_t.reshape(-1, 1), t.expand(x_t.numel())).reshape(x_t.shape)
        true = Normal(posterior_mean(points, x_t), precision.rsqrt())
        model_std = precision.rsqrt() if variance is None else forward.sqrt()
        expected += (kl_divergence(true, Normal(posterior_mean(guess, x_t), model_std)) * WEIGHTS).sum(1)
    value, error = pooled(bound, back, "diffusion")
    agree(value, -expected, error, 0.06 * expected.max())
    at_start = kl_divergence(Normal(sde.alpha(1.0) * points[:, 0], sde.sigma(1.0)), Normal(0.0, sde.sigma(1.0)))
    assert torch.allclose(back(bound.prior)[:, 0], -at_start, rtol=1e-10)


@pytest.mark.parametrize("variance", [None, forward_variance])
def test_drawn_steps_stand_for_all_steps(variance):
    model = ScoreModel(bounded_network, VPSDE(), "x0")
    grid = grids.uniform(VPSDE(), 50, end=1e-3)
    x, back = copies(POINTS, 400)
    every, error_of_every = pooled(
        discrete_bound(model, x, grid, variance=variance, repeats=2, **F64), back
    )  # fmt: skip
    for options in ({}, {"proposal": UniformTime()}, {"proposal": UniformLambda()}, {"proposal": Sigmoid(2.0, 1.0)}):
        drawn = discrete_bound(model, x, grid, variance=variance, draws=9, seed=5, **options, **F64)
        value, error = pooled(drawn, back)
        assert drawn.nfe == 18
        agree(value, every, torch.hypot(error, error_of_every), 0.05 * every.abs().max())


@pytest.mark.parametrize("sde", [VPSDE(), FlowMatching(), VESDE()], ids=repr)
def test_finer_grids_close_in_on_the_continuous_bound_from_below_at_first_order(sde):
    D = 20000
    model = gaussian(torch.zeros(D), sde, std=0.8)
    x = model.draw(2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    limit = variational_bound(model, x, draws=400, end=0.01, **F64)
    gaps = [
        (
            limit.nats - discrete_bound(model, x, grids.sech(sde, N, end=0.01), decoder=GaussianDensity(), **F64).nats
        ).mean()
        / D
        for N in (64, 128, 256)
    ]
    assert gaps[0] > gaps[1] > gaps[2] > 0
    order = -np.polyfit(np.log([64, 128, 256]), np.log(gaps), 1)[0]
    assert 0.85 < order < 1.2, (order, gaps)


@pytest.mark.parametrize("kind", ["continuous", "steps"])
def test_error_bars_are_honest(kind):
    from scipy.stats import t as student

    sde, end = VPSDE(), 0.01
    model = gaussian(torch.zeros(40), sde, std=0.7)
    point = model.draw(1, generator=torch.Generator().manual_seed(6), dtype=torch.float64)

    def divergence(t):
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        return kl_divergence(Normal(alpha * point, sigma), Normal(0.0, math.hypot(0.7 * alpha, sigma))).sum()

    x = point.expand(4000, 40)
    if kind == "continuous":
        bound = variational_bound(model, x, draws=32, end=end, **F64)
        found, degrees, truth = bound.diffusion, 14, divergence(1.0) - divergence(end)
    else:
        bound = discrete_bound(model, x, grids.uniform(sde, 20, end=1e-3), repeats=8, **F64)
        found, degrees, truth = bound.nats, 7, bound.nats.mean()
    covered = ((found - truth).abs() < student.ppf(0.975, degrees) * bound.standard_error).double().mean()
    assert 0.925 < covered < 0.975, covered
    assert (bound.standard_error**2).mean().sqrt().item() == pytest.approx(found.std().item(), rel=0.06)


def test_an_odd_number_of_draws_is_as_honest_and_one_draw_has_no_error_bar():
    model = mixture(VPSDE())
    x, _ = copies([0.9], 4000)
    bound = variational_bound(model, x, draws=7, **F64)
    assert (bound.standard_error**2).mean().sqrt().item() == pytest.approx(bound.nats.std().item(), rel=0.06)
    assert variational_bound(model, x[:3], draws=1, **F64).standard_error.isnan().all()
    assert discrete_bound(model, x[:3], grids.uniform(VPSDE(), 5), **F64).standard_error.isnan().all()


def test_the_proposal_changes_the_variance_alone():
    D = 500
    model = gaussian(torch.zeros(D), VPSDE(), std=0.6)
    x = model.draw(1, generator=torch.Generator().manual_seed(2), dtype=torch.float64).expand(300, D)
    spread, means = {}, {}
    for proposal in (Sigmoid(2.0, 0.5), Sigmoid(), Sigmoid(0.5, 2.0), UniformLambda(), UniformTime()):
        bound = variational_bound(model, x, draws=10, proposal=proposal, seed=len(means), **F64)
        spread[proposal], means[proposal] = bound.nats.std(), bound.nats.mean()
    best = Sigmoid(2.0, 0.5)  # the shape of the integrand itself
    for proposal, mean in means.items():
        error = math.hypot(spread[proposal], spread[best]) / math.sqrt(300)
        assert abs(mean - means[best]) < 4.5 * error + 1e-9
    late = [variational_bound(model, x, end=0.2, proposal=proposal, **F64).nats.mean() for proposal in means]
    assert max(late) - min(late) < 0.02 * max(abs(v) for v in late)  # away from t=0 the uniform times do as well
    assert spread[best] < 0.6 * spread[Sigmoid()]
    assert spread[best] < 0.6 * spread[UniformLambda()] < 0.3 * spread[UniformTime()]


def test_the_same_denoiser_has_the_same_bound_in_every_parameterisation_and_on_every_clock():
    exact = mixture(CosineVPSDE(end_half_log_snr=-9.0))
    exact.sigma_data = 1.0  # so that EDM's c_in is 1 on this path
    x, _ = copies(POINTS, 3)
    bounds = []
    for kind in KINDS:

        def network(x_t, time, kind=kind):
            return Prediction(x_t, exact.network(x_t, time), exact.readout(time)).view(kind)

        model = ScoreModel(network, exact.sde, kind, time_input=ScaledTime())
        bounds += [
            variational_bound(model, x, draws=8, **F64),
            discrete_bound(model, x, grids.uniform(exact.sde, 9), **F64),
        ]
    for bound in bounds:
        assert torch.allclose(bound.nats, bounds[bound.grid is not None].nats, rtol=1e-7)
    # λ is all that counts: the same range of it on another path, through a proposal in λ
    other = reschedule(exact, VESDE(0.01, math.exp(9.0)))
    end = other.sde.inverse_half_log_snr(exact.sde.half_log_snr(0.01)).item()
    ours = variational_bound(exact, x, draws=8, end=0.01, **F64).diffusion
    assert torch.allclose(variational_bound(other, x, draws=8, end=end, **F64).diffusion, ours, rtol=1e-6)


@pytest.mark.parametrize("options", [{}, {"decoder": GaussianDensity(denoise=True)}, {"draws": 5}], ids=str)
def test_a_sample_does_not_see_its_batch(options):
    model = mixture(VPSDE())
    x = model.draw(7, generator=torch.Generator().manual_seed(4))
    for bound_of in (variational_bound, lambda *a, **o: discrete_bound(*a, grids.uniform(VPSDE(), 6), **o)):
        whole = bound_of(model, x, seed=3, **options)
        assert torch.equal(bound_of(model, x, seed=3, batch_size=2, **options).nats, whole.nats)
        assert torch.equal(bound_of(model, x[4:], seed=3, first_index=4, **options).nats, whole.nats[4:])
        assert not torch.equal(bound_of(model, x, seed=4, **options).nats, whole.nats)
    condition = torch.arange(7.0)
    seen = []
    asked = ScoreModel(lambda x, time, condition: (seen.append((x, condition)), 0 * x)[1], VPSDE(), "x0")
    variational_bound(asked, x, draws=2, condition=condition, batch_size=3)
    assert [c.tolist() for _, c in seen] == [[0, 1, 2]] * 2 + [[3, 4, 5]] * 2 + [[6]] * 2


def test_samples_are_not_judged_under_the_noise_that_made_them():
    sde = VPSDE()
    seen = []
    model = ScoreModel(lambda x, time: (seen.append(x), torch.zeros_like(x))[1], sde, "x0")
    sde_toolkit.sample(model, sde_toolkit.ddim(), grids.uniform(sde, 1), shape=(1, 6), seed=1)
    start = seen[0]
    seen.clear()
    variational_bound(model, torch.zeros(1, 6), draws=4, seed=1)
    discrete_bound(model, torch.zeros(1, 6), grids.uniform(sde, 4), seed=1)
    directions = torch.nn.functional.normalize(torch.cat([start, *seen]))
    cosines = (directions[:1] @ directions[1:].T).abs()
    assert cosines.max() < 0.999
