"""Exact score models are exact: against torch.distributions, autograd, quadrature, and fifty digits."""

import math
from itertools import pairwise

import mpmath
import numpy as np
import pytest
import torch
from catalogue import PUBLIC_SDES, SDES, doubles, mixture_1d, name
from scipy.integrate import quad
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal

from sde_toolkit import VESDE, VPSDE, GaussianMixture, gaussian

every_sde = pytest.mark.parametrize("sde", SDES, ids=name)
every_public_sde = pytest.mark.parametrize("sde", PUBLIC_SDES, ids=name)
EVENTS = [(), (2,), (3, 4)]
WEIGHTS = doubles(0.2, 0.5, 0.3)


def ingredients(event, seed=0):
    """Three means, standard deviations and full covariances for events of this shape."""
    generator = torch.Generator().manual_seed(seed)
    D = math.prod(event)
    means = 1.5 * torch.randn(3, *event, generator=generator, dtype=torch.float64)
    std = 0.3 + torch.rand(3, *event, generator=generator, dtype=torch.float64)
    roots = torch.randn(3, D, D, generator=generator, dtype=torch.float64) / math.sqrt(D)
    return means, std, roots @ roots.mT + 0.05 * torch.eye(D, dtype=torch.float64)


def build(sde, event, form):
    """The model, and the covariances (3, D, D) that it should have."""
    means, std, covariances = ingredients(event)
    if form == "covariances":
        return GaussianMixture(means, sde, covariances=covariances, weights=WEIGHTS), means, covariances
    if form == "std per component":
        std = doubles(0.4, 1.0, 0.7)
        per_element = std.reshape(-1, *(1,) * len(event)).expand(3, *event)
    else:
        per_element = std
    covariances = torch.diag_embed(per_element.reshape(3, -1) ** 2)
    return GaussianMixture(means, sde, std=std, weights=WEIGHTS), means, covariances


def density(means, covariances):
    components = MultivariateNormal(means.reshape(3, -1), covariances)
    return MixtureSameFamily(Categorical(WEIGHTS), components)


forms = pytest.mark.parametrize("form", ["covariances", "std per component", "std per element"])
events = pytest.mark.parametrize("event", EVENTS, ids=name)


@pytest.mark.on_device
@every_sde
@events
@forms
def test_density_at_every_time_is_that_of_the_noised_mixture(sde, event, form):
    model, means, covariances = build(sde, event, form)
    x = 2 * torch.randn(7, *event, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    D = math.prod(event)
    for t in (0.0, 0.05, 0.5, 1.0):
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        noised = density(alpha * means, alpha**2 * covariances + sigma**2 * torch.eye(D, dtype=torch.float64))
        torch.testing.assert_close(model.log_prob(x, t), noised.log_prob(x.reshape(7, D)), rtol=1e-10, atol=1e-10)


@pytest.mark.on_device
@every_sde
@events
@forms
def test_score_is_the_gradient_of_the_log_density(sde, event, form):
    model, _, _ = build(sde, event, form)
    x = 2 * torch.randn(7, *event, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    times = doubles(0.01, 0.1, 0.3, 0.5, 0.8, 0.99, 1.0)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(model.log_prob(x, times).sum(), x)
    # At t = 0.01 under sub-VP σ is 0.002: the score, of order 1, is read from v with a factor 1/σ.
    torch.testing.assert_close(model.score(x.detach(), times), gradient, rtol=1e-9, atol=1e-9)


@pytest.mark.on_device
@events
def test_density_of_the_data_is_the_mixture_itself(event):
    model, means, covariances = build(VPSDE(), event, "std per element")
    x = torch.randn(5, *event, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    expected = density(means, covariances).log_prob(x.reshape(5, -1))
    torch.testing.assert_close(model.log_prob(x), expected, rtol=1e-10, atol=1e-10)
    std = covariances.diagonal(dim1=1, dim2=2).sqrt()
    apart = MixtureSameFamily(Categorical(WEIGHTS), Independent(Normal(means.reshape(3, -1), std), 1))
    torch.testing.assert_close(model.log_prob(x), apart.log_prob(x.reshape(5, -1)), rtol=1e-10, atol=1e-10)


def mixture(sde):
    weights, means, std = mixture_1d()
    return GaussianMixture(doubles(*means), sde, std=doubles(*std), weights=doubles(*weights))


@pytest.mark.on_device
@every_sde
@pytest.mark.parametrize("t", [0.1, 0.4, 0.9])
def test_denoised_estimate_is_the_posterior_mean(sde, t):
    """E[x_0 | x_t] by quadrature over x_0, from Bayes' rule alone."""
    alpha, sigma = sde.alpha(t).item(), sde.sigma(t).item()
    components = [(w, Normal(doubles(m), doubles(s))) for w, m, s in zip(*mixture_1d(), strict=True)]

    def moment(k, x_t):
        """∫ x_0^k p(x_0) p(x_t | x_0) dx_0, cut where the integrand may be narrow."""

        def integrand(u):
            prior = sum(w * math.exp(c.log_prob(doubles(u)).item()) for w, c in components)
            return u**k * prior * math.exp(-0.5 * ((x_t - alpha * u) / sigma) ** 2)

        peak, width = x_t / alpha, 6 * sigma / alpha
        edges = sorted({min(max(edge, -6.0), 8.0) for edge in (-6.0, peak - width, peak, peak + width, 8.0)})
        return sum(quad(integrand, a, b, epsabs=0, epsrel=1e-9)[0] for a, b in pairwise(edges))

    for x_t in (alpha * -1.0 + sigma, alpha * 0.7 - 0.3 * sigma, alpha * 2.5):
        estimate = mixture(sde)(doubles(x_t), t).x_0
        assert estimate.item() == pytest.approx(moment(1, x_t) / moment(0, x_t), rel=1e-7, abs=1e-7)


def with_fifty_digits(x, alpha, sigma):
    """(ε̂, x̂_0) from the log density alone: ε̂ = −σ d log p/dx, and Tweedie's formula for x̂_0."""
    x, alpha, sigma = mpmath.mpf(x), mpmath.mpf(alpha), mpmath.mpf(sigma)

    def log_density(y):
        terms = []
        for w, m, s in zip(*mixture_1d(), strict=True):
            variance = (alpha * mpmath.mpf(s)) ** 2 + sigma**2
            terms.append(mpmath.mpf(w) * mpmath.exp(-((y - alpha * m) ** 2) / (2 * variance)) / mpmath.sqrt(variance))
        return mpmath.log(mpmath.fsum(terms))

    score = mpmath.diff(log_density, x)
    if alpha == 0:  # nothing of x_0 is in x: the estimate is the mean of the data
        return float(-sigma * score), sum(w * m for w, m, _ in zip(*mixture_1d(), strict=True))
    return float(-sigma * score), float((x + sigma**2 * score) / alpha)


@pytest.mark.on_device
@every_sde
@pytest.mark.parametrize("t", [1e-6, 1e-3, 0.5, 0.999, 1.0])
def test_both_ends_of_time_are_accurate(sde, t):
    model = mixture(sde)
    alpha, sigma = sde.alpha(t).item(), sde.sigma(t).item()
    spread = math.sqrt(alpha**2 + sigma**2)
    for position in (-1.7, 0.2, 1.1):
        x = position * spread
        prediction = model(doubles(x), t)
        with mpmath.workdps(50):
            epsilon, x_0 = with_fifty_digits(x, alpha, sigma)
        # The model speaks v: α and σ as float64 rounds them leave 1e-15 |x| in each view, times 1/σ at most in none.
        assert prediction.epsilon.item() == pytest.approx(epsilon, rel=1e-9, abs=1e-13)
        assert prediction.x_0.item() == pytest.approx(x_0, rel=1e-9, abs=1e-13)


@pytest.mark.on_device
@every_sde
def test_float32_states_keep_their_accuracy_at_both_ends(sde):
    model = mixture(sde)
    for t in (1e-5, 0.999):
        x = torch.linspace(-1.5, 2.5, 9) * (sde.alpha(t) ** 2 + sde.sigma(t) ** 2).sqrt().float()
        narrow, wide = model(x, t), model(x.double(), t)
        for kind in ("epsilon", "x0", "v"):
            expected = wide.view(kind)
            # float32 resolves 6e-8 of the terms that are added; they are at most a few times x and x_0.
            torch.testing.assert_close(narrow.view(kind).double(), expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("form", ["covariances", "std per element"])
@events
def test_draws_have_the_mean_and_covariance_of_the_mixture(event, form):
    model, means, covariances = build(VESDE(), event, form)
    n, D = 40_000, math.prod(event)
    x = model.draw(n, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    assert x.shape == (n, *event)
    flat, means = x.reshape(n, D), means.reshape(3, D)
    mean = WEIGHTS @ means
    second = torch.einsum("k,kij->ij", WEIGHTS, covariances + means[:, :, None] * means[:, None, :])
    products = (flat[:, :, None] * flat[:, None, :]).reshape(n, -1)
    for values, expected in ((flat, mean), (products, second.reshape(-1))):
        z = (values.mean(0) - expected) / (values.std(0) / math.sqrt(n))
        assert z.abs().max() < 5.5  # of 12 + 144 numbers


@pytest.mark.on_device
def test_draws_are_float32_by_default_and_reproducible():
    model = mixture(VESDE())
    first, again = (model.draw(50, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert first.dtype == torch.float32
    assert torch.equal(first, again)


@pytest.mark.on_device
@every_public_sde
def test_one_gaussian_is_a_mixture_of_one_and_of_equal_ones(sde):
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    mean, std = doubles(0.5, -1.0), doubles(0.3, 1.2)
    one = gaussian(mean, sde, std=std)
    same = (
        gaussian(mean, sde, covariance=torch.diag(std**2)),
        GaussianMixture(mean.expand(3, 2), sde, std=std.expand(3, 2), weights=[1.0, 5.0, 0.1]),
    )
    for other in same:
        torch.testing.assert_close(other.log_prob(x, 0.4), one.log_prob(x, 0.4), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(other(x, 0.4).v, one(x, 0.4).v, rtol=1e-12, atol=1e-12)


@every_public_sde
def test_point_masses_are_allowed_and_every_estimate_points_at_one(sde):
    model = GaussianMixture(doubles(-1.0, 1.0), sde, std=0.0)
    x = torch.linspace(-3, 3, 31, dtype=torch.float64)
    for t in (0.05, 0.5, 1.0):
        alpha, sigma = sde.alpha(t).item(), sde.sigma(t).item()
        expected = torch.tensor(np.tanh(alpha * x.numpy() / sigma**2))  # Bayes' rule for ±1
        torch.testing.assert_close(model(x, t).x_0, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.on_device
@pytest.mark.parametrize("t", [0.02, 0.5])
@pytest.mark.parametrize("derivative", [torch.func.jacrev, torch.func.jacfwd], ids=["reverse", "forward"])
def test_derivatives_by_x_and_by_t_are_those_of_the_values(derivative, t):
    """Values and derivatives by x are computed on different ways; differences of the values judge both derivatives."""
    g = torch.Generator().manual_seed(0)
    means, std = (torch.randn(4, 3, generator=g, dtype=torch.float64) for _ in range(2))
    model = GaussianMixture(means, VPSDE(), std=0.2 + std.abs(), weights=[1.0, 2.0, 0.5, 1.5])
    x = torch.randn(5, 3, generator=g, dtype=torch.float64)
    time, h = torch.tensor(t, dtype=torch.float64), 1e-6
    for argument, function in (
        (x, lambda x: model.network(x, time.expand(5)).sin().sum(0)),
        (time, lambda time: model.network(x, time.expand(5)).sin().sum(0)),
    ):
        found = derivative(function)(argument)
        steps = torch.eye(argument.numel(), dtype=torch.float64).reshape(-1, *argument.shape) * h
        measured = torch.stack([(function(argument + s) - function(argument - s)) / (2 * h) for s in steps], -1)
        torch.testing.assert_close(found.reshape(measured.shape), measured, rtol=1e-6, atol=1e-7)


@pytest.mark.on_device
def test_second_derivatives_by_x_are_those_of_first_ones():
    g = torch.Generator().manual_seed(1)
    model = GaussianMixture(torch.randn(3, 2, generator=g), VPSDE(), std=0.5)
    x, time, h = torch.randn(4, 2, generator=g, dtype=torch.float64), torch.tensor(0.2).double(), 1e-6
    slope = torch.func.grad(lambda x: model.network(x, time.expand(4)).sin().sum())
    second = torch.func.jacrev(slope)(x)
    for i in range(4):
        for j in range(2):
            s = torch.zeros_like(x)
            s[i, j] = h
            torch.testing.assert_close(second[..., i, j], (slope(x + s) - slope(x - s)) / (2 * h), rtol=1e-5, atol=1e-7)
