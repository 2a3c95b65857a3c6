"""The posterior of a mixture is Bayes' rule: against quadrature, products of densities, and itself in other words."""

import math

import pytest
import torch
from catalogue import SDES, doubles, name
from torch.distributions import MultivariateNormal

from sde_toolkit import VPSDE, FlowMatching, GaussianMixture, ddim, gaussian, sample
from sde_toolkit.errors import ArgumentError

WEIGHTS = doubles(0.2, 0.5, 0.3)
EVENTS = [(), (3,), (2, 2)]


def numbers(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def prior(event, sde=None, diagonal=False):
    D = math.prod(event)
    roots = numbers(3, D, D, seed=1) / math.sqrt(D)
    full = {"covariances": roots @ roots.mT + 0.05 * torch.eye(D, dtype=torch.float64)}
    spread = {"std": 0.3 + numbers(3, *event, seed=1).abs()} if diagonal else full
    return GaussianMixture(1.5 * numbers(3, *event, seed=2), sde or VPSDE(), weights=WEIGHTS, **spread)


def noises(m):
    root = numbers(m, m, seed=3)
    return {"number": 0.7, "diagonal": 0.2 + numbers(m, seed=4).abs(), "full": root @ root.mT + 0.1 * torch.eye(m)}


def noise_covariance(noise, m):
    noise = torch.as_tensor(noise, dtype=torch.float64)
    return noise if noise.ndim == 2 else torch.diag(noise.expand(m) ** 2)


@pytest.mark.on_device
@pytest.mark.parametrize("event", EVENTS, ids=name)
@pytest.mark.parametrize("m", [1, 2, 6])
@pytest.mark.parametrize("kind", ["number", "diagonal", "full"])
@pytest.mark.parametrize("diagonal", [True, False])
def test_density_is_prior_times_likelihood_over_evidence(event, m, kind, diagonal):
    # Also: the constant of proportionality is the evidence, the same for every x.
    D = math.prod(event)
    model, A, y, noise = prior(event, diagonal=diagonal), numbers(m, D, seed=5), numbers(m, seed=6), noises(m)[kind]
    x = 2 * numbers(9, *event, seed=7)
    likelihood = MultivariateNormal(x.reshape(9, D) @ A.mT, noise_covariance(noise, m)).log_prob(y)
    product = model.log_prob(x) + likelihood - model.log_evidence(A, y, noise)
    torch.testing.assert_close(model.posterior(A, y, noise).log_prob(x), product, rtol=1e-9, atol=1e-9)


@pytest.mark.on_device
@pytest.mark.parametrize("std", [0.3, 1e-6])
def test_evidence_and_posterior_are_integrals(std):
    # y = 2 x + noise in one dimension, by a fine sum over x near y/2.
    model, A, y = GaussianMixture(doubles(-1.0, 0.4), VPSDE(), std=doubles(0.5, 0.2), weights=[1.0, 2.0]), [[2.0]], 0.9
    x = torch.linspace(-10 * std, 10 * std, 20001, dtype=torch.float64) + y / 2
    joint = (model.log_prob(x) - 0.5 * ((y - 2 * x) / std) ** 2).exp() / (std * math.sqrt(2 * math.pi))
    evidence = joint.sum() * std / 1000  # x[1] − x[0] has lost digits
    assert model.log_evidence(A, [y], std) == pytest.approx(evidence.log().item(), abs=1e-8)
    found = model.posterior(A, [y], std).log_prob(x[::500]).exp()
    torch.testing.assert_close(found * std, joint[::500] / evidence * std, rtol=1e-7, atol=1e-9)


@pytest.mark.on_device
@pytest.mark.parametrize("sde", SDES, ids=name)
def test_score_at_every_time_adds_that_of_the_measurement_to_the_prior(sde):
    # p(y | x_t) by quadrature over x_0 of N(y; x_0, 0.5²) p(x_0) N(x_t; α x_0, σ²), differentiated in x_t.
    # p(x_0) is the law of the data: some SDEs have noise at t = 0 already, VPSDE has none.
    model, y, std, t = prior((), sde, diagonal=True), 0.8, 0.5, 0.4
    x_0 = torch.linspace(-12, 12, 48001, dtype=torch.float64)
    alpha, sigma = float(sde.alpha(t)), float(sde.sigma(t))
    weight = prior((), VPSDE(), diagonal=True).log_prob(x_0) - 0.5 * ((y - x_0) / std) ** 2
    x_t = doubles(-1.0, 0.3, 2.0)
    joint = torch.softmax(weight - 0.5 * ((x_t[:, None] - alpha * x_0) / sigma) ** 2, dim=1)
    score = (joint * (alpha * x_0 - x_t[:, None])).sum(1) / sigma**2
    posterior = model.posterior(lambda x: x, torch.tensor(y, dtype=torch.float64), std)
    assert posterior.sde is sde
    torch.testing.assert_close(posterior.score(x_t, t), score, rtol=1e-7, atol=1e-7)


@pytest.mark.on_device
@pytest.mark.parametrize(("first", "second"), [(0.0, 0.3), (0.3, 0.0), (0.4, 0.5)])
def test_conditioning_in_two_parts_is_conditioning_at_once(first, second):
    model, A, y = prior((4,)), numbers(3, 4, seed=8), numbers(3, seed=9)
    twice = model.posterior(A[:1], y[:1], first).posterior(A[1:], y[1:], second)
    std = doubles(first, second, second)
    at_once = model.posterior(A, y, std)
    x = 2 * numbers(5, 4, seed=10)
    torch.testing.assert_close(twice.log_prob(x, 0.2), at_once.log_prob(x, 0.2), rtol=1e-9, atol=1e-8)
    after = model.posterior(A[:1], y[:1], first).log_evidence(A[1:], y[1:], second)
    assert model.log_evidence(A[:1], y[:1], first) + after == pytest.approx(model.log_evidence(A, y, std), abs=1e-9)


def test_without_noise_the_posterior_is_the_limit_and_fixes_what_was_measured():
    model, A, y = prior((4,)), numbers(2, 4, seed=8), numbers(2, seed=9)
    exact, near = model.posterior(A, y, 0), model.posterior(A, y, 1e-7)
    x = 2 * numbers(5, 4, seed=10)
    torch.testing.assert_close(exact.log_prob(x, 0.3), near.log_prob(x, 0.3), rtol=1e-6, atol=1e-6)
    drawn = exact.draw(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(drawn @ A.mT, y.expand(50, 2), rtol=1e-12, atol=1e-12)
    assert (drawn.var(0) > 0.01).all()
    assert (exact.network.variances == 0).sum(1).tolist() == [2, 2, 2]  # not a rounding error of 0
    turn = torch.linalg.qr(numbers(2, 2, seed=11))[0]
    near = model.log_evidence(turn @ A, turn @ y, 1e-6)
    assert model.log_evidence(A, y, 0) == pytest.approx(near, abs=1e-6)


def test_an_operator_in_the_shape_of_events_is_its_matrix():
    model, mask = prior((2, 2)), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    y = torch.tensor([[0.4, 0.0], [0.0, -0.7]], dtype=torch.float64)
    rows, x = torch.eye(4, dtype=torch.float64)[[0, 3]], numbers(5, 2, 2, seed=3)
    for noise in (0, 0.2):  # rows of zeros say nothing, and need no noise
        as_map = model.posterior(lambda x: x * mask, y, noise)
        as_rows = model.posterior(rows, y.flatten()[[0, 3]], noise)
        torch.testing.assert_close(as_map.log_prob(x, 0.2), as_rows.log_prob(x, 0.2), rtol=1e-10, atol=1e-10)
    blur = torch.nn.Conv2d(1, 1, 3, padding=1, bias=False)  # takes float32 alone
    posterior = model.posterior(lambda x: blur(x[:, None])[:, 0], y, 0.1)
    dense = torch.stack([blur(e[None, None])[0, 0].flatten() for e in torch.eye(4).reshape(4, 2, 2)]).mT.detach()
    expected = model.posterior(dense, y.flatten(), 0.1).log_prob(x, 0.2)
    torch.testing.assert_close(posterior.log_prob(x, 0.2), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.on_device
@pytest.mark.parametrize("unit", [16.0, 1 / 300, 1e-6])
def test_units(unit):
    # x and y in another unit: a density of x loses D log u, that of y m log u. Then x alone: that of y stays.
    model, A, y, x = prior((4,)), numbers(2, 4, seed=8), numbers(2, seed=9), numbers(5, 4, seed=10)
    network, full = model.network, noises(2)["full"]
    covariances = network.axes * network.variances.unsqueeze(1) @ network.axes.mT
    scaled = GaussianMixture(unit * network.means, VPSDE(), covariances=unit**2 * covariances, weights=WEIGHTS)
    for noise, in_unit in ((0.3, 0.3 * unit), (full, full * unit**2)):
        evidence, expected = model.log_evidence(A, y, noise), model.posterior(A, y, noise).log_prob(x)
        assert scaled.log_evidence(A, unit * y, in_unit) == pytest.approx(evidence - 2 * math.log(unit), abs=1e-8)
        assert scaled.log_evidence(A / unit, y, noise) == pytest.approx(evidence, abs=1e-8)
        for posterior in (scaled.posterior(A, unit * y, in_unit), scaled.posterior(A / unit, y, noise)):
            found = posterior.log_prob(unit * x) + 4 * math.log(unit)
            torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)
    for A_in_unit, y_in_unit in ((A, unit * y), (A / unit, y)):
        exact, in_unit = model.posterior(A, y, 0), scaled.posterior(A_in_unit, y_in_unit, 0)
        torch.testing.assert_close(in_unit.network.means, unit * exact.network.means, rtol=1e-8, atol=1e-8 * unit)
        torch.testing.assert_close(in_unit.network.log_weights, exact.network.log_weights, rtol=1e-8, atol=1e-8)


@pytest.mark.on_device
def test_tiny_noises_keep_their_digits():
    # With noise of 1e-9 on x itself the posterior is N(y, 1e-18), to the last digits; of the Gram matrix none is left.
    model = gaussian(doubles(0.5, -1.0), VPSDE(), covariance=[[1.0, 0.99], [0.99, 1.0]])
    posterior = model.posterior(torch.eye(2), doubles(2.0, 3.0), 1e-9)
    torch.testing.assert_close(posterior.network.means, doubles(2.0, 3.0)[None], rtol=1e-15, atol=1e-15)
    torch.testing.assert_close(posterior.network.variances, doubles(1e-18, 1e-18)[None], rtol=1e-12, atol=0)


@pytest.mark.on_device
def test_weights_survive_a_measurement_far_away():
    model = GaussianMixture(doubles(-1.0, 1.0), VPSDE(), std=1.0)
    posterior = model.posterior(doubles(1.0).reshape(1, 1), doubles(3e3), 1e-3)
    far = model.posterior(doubles(1.0).reshape(1, 1), doubles(-3e3), 1e-3)
    assert posterior.log_prob(doubles(3e3), 0.1).isfinite()
    torch.testing.assert_close(posterior.network.log_weights.flip(0), far.network.log_weights)
    difference = posterior.network.log_weights.diff().item()  # ((y + 1)² − (y − 1)²)/(2 (1 + 1e-6))
    assert difference == pytest.approx(6e3 / (1 + 1e-6), rel=1e-10)


@pytest.mark.on_device
def test_samples_of_the_posterior_are_the_posterior():
    model = prior((2,), FlowMatching())
    posterior = model.posterior(doubles(1.0, 1.0).reshape(1, 2), doubles(0.5), 0.0)
    drawn = sample(posterior, ddim(), steps=40, shape=(400, 2), seed=0).x
    assert (drawn.sum(1) - 0.5).abs().max() < 0.02  # what is left of the noise at the end of the usual grid
    exact = posterior.draw(4000, generator=torch.Generator().manual_seed(0))
    assert abs(drawn[:, 0].mean() - exact[:, 0].mean()) < 4 * exact[:, 0].std() / math.sqrt(400)


EYE = torch.eye(4)
BAD = {
    "y of another shape": (EYE, torch.zeros(1, 4), 0.1, "y"),
    "y not finite": (EYE, torch.full((4,), math.nan), 0.1, "y"),
    "y of text": (EYE, "y", 0.1, "y"),
    "a matrix of another width": (torch.ones(2, 3), torch.zeros(2), 0.1, "A"),
    "a vector": (torch.ones(4), torch.zeros(1), 0.1, "A"),
    "a map with an offset": (lambda x: x + 1, torch.zeros(2, 2), 0.1, "A"),
    "a map that bends": (lambda x: x.abs(), torch.zeros(2, 2), 0.1, "A"),
    "a map that bends far away": (lambda x: x.clamp(-50, 50), torch.zeros(2, 2), 0.1, "A"),
    "a map that loses the batch": (lambda x: x.sum(0), torch.zeros(2, 2), 0.1, "A"),
    "a map that fails": (lambda x: x @ torch.ones(7, 7, dtype=x.dtype), torch.zeros(2, 2), 0.1, "A"),
    "a map to numpy": (lambda x: x.numpy(), torch.zeros(2, 2), 0.1, "A"),
    "a negative noise": (EYE, torch.zeros(4), -0.1, "noise"),
    "a noise for another y": (EYE, torch.zeros(4), torch.ones(3), "noise"),
    "a noise that is not finite": (EYE, torch.zeros(4), math.inf, "noise"),
    "a noise of text": (EYE, torch.zeros(4), "0.1", "noise"),
    "a covariance that is not symmetric": (EYE, torch.zeros(4), torch.eye(4) + torch.eye(4).roll(1, 0), "noise"),
    "a covariance that is not positive": (EYE, torch.zeros(4), -torch.eye(4), "noise"),
    "an exact y that no x gives": (torch.ones(2, 4), torch.tensor([0.0, 1.0]), 0, "y"),
}


@pytest.mark.on_device
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_by_name(case):
    A, y, noise, argument = BAD[case]
    for call in (prior((2, 2)).posterior, prior((2, 2)).log_evidence):
        with pytest.raises(ArgumentError) as caught:
            call(A, y, noise)
        assert caught.value.argument == argument
        assert caught.value.remedy


@pytest.mark.on_device
def test_a_point_mass_needs_noise():
    points = GaussianMixture(doubles(-1.0, 1.0), VPSDE(), std=0.0)
    with pytest.raises(ArgumentError, match="noise above 0"):
        points.posterior(lambda x: x, torch.tensor(1.0), 0)
    odds = points.posterior(lambda x: x, torch.tensor(0.3), 0.5).network.log_weights.diff().item()
    assert odds == pytest.approx(2 * 0.3 / 0.25, rel=1e-6)  # Bayes for two hypotheses; y = 0.3 is a float32


@pytest.mark.on_device
def test_a_condition_is_refused_without_classes():
    with pytest.raises(ArgumentError, match="ClassMixture"):
        sample(prior((2,)), ddim(), steps=2, shape=(3, 2), condition=torch.zeros(3, dtype=torch.long))
