"""Laws of the variational bounds. Truth is log p_t of exact mixtures, quadrature over ε, and torch.distributions."""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

import sde_toolkit
from sde_toolkit import (
    SDE,
    VESDE,
    VPSDE,
    Affine,
    CosineVPSDE,
    FlowMatching,
    GaussianMixture,
    ScoreModel,
    forward_variance,
    gaussian,
    grids,
    reschedule,
)
from sde_toolkit.errors import ArgumentError, DataError, GridError, NonFiniteError
from sde_toolkit.likelihood.bounds import discrete_bound, variational_bound
from sde_toolkit.likelihood.decoders import GaussianDensity, IntegratedBins, LevelMap, NormalisedLevels
from sde_toolkit.likelihood.levels import Levels
from sde_toolkit.likelihood.proposals import Sigmoid, UniformLambda, UniformTime
from sde_toolkit.prediction import KINDS, Prediction
from sde_toolkit.time_inputs import ScaledTime

F64 = {"dtype": torch.float64}
SDES = [getattr(sde_toolkit.sde, name)() for name in sde_toolkit.sde.__all__ if name != "SDE" and name.endswith("SDE")]
SDES.append(FlowMatching())
POINTS = [-1.4, -0.5, 0.1, 0.9, 2.0]
NODES, WEIGHTS = (torch.from_numpy(v) for v in np.polynomial.hermite_e.hermegauss(120))
WEIGHTS = WEIGHTS / WEIGHTS.sum()


@dataclass(frozen=True)
class Halfway(SDE):
    """Most of the signal is left at t=1, and x_0 is noisy at t=0."""

    sigma_0 = 0.3

    def f(self, t):
        return -(0.5 + t)

    def g(self, t):
        return torch.sqrt(1 + 2 * t**2)


def doubles(*values):
    return torch.tensor(values, dtype=torch.float64)


def mixture(sde):
    return GaussianMixture([[-0.8], [1.1]], sde, std=torch.tensor([[0.4], [0.6]]), weights=[0.4, 0.6])


def copies(values, n):
    """Each value n times: samples (len(values) n, 1), and the way back to (len(values), n)."""
    x = doubles(*values).repeat_interleave(n).unsqueeze(1)
    return x, lambda per_sample: per_sample.reshape(len(values), n)


def pooled(bound, back, part="nats"):
    """Mean over the copies of each value, and its standard error from those of the samples."""
    errors = back(bound.standard_error)
    return back(getattr(bound, part)).mean(1), errors.square().sum(1).sqrt() / errors.shape[1]


def agree(found, expected, error, within):
    """Equal within 4.5 standard errors, which are small enough to mean something."""
    assert bool((error < within).all()), error
    assert bool(((found - expected).abs() < 4.5 * error).all()), ((found - expected) / error).tolist()


def divergence_at(model, x, t):
    """KL(q(x_t | x) ‖ p_t) on the line, by Gauss-Hermite quadrature."""
    alpha, sigma = model.sde.alpha(t), model.sde.sigma(t)
    x_t = alpha * x.unsqueeze(1) + sigma * NODES
    log_q = -0.5 * NODES**2 - torch.log(sigma) - 0.5 * math.log(2 * math.pi)
    log_p = model.log_prob(x_t.reshape(-1, 1), t).reshape(x_t.shape)
    return ((log_q - log_p) * WEIGHTS).sum(1)


@pytest.mark.parametrize("sde", SDES, ids=repr)
def test_the_integral_of_an_exact_score_is_a_difference_of_divergences(sde):
    """Point by point: what the path forgets of x between the end and the start."""
    model = mixture(sde)
    x, back = copies(POINTS, 16)
    end = 0.01
    found = variational_bound(model, x, draws=2000, end=end, **F64)
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
        variational_bound(model, x, draws=400, end=end, **F64),
        variational_bound(model, x, draws=400, end=end, decoder=GaussianDensity(denoise=True), **F64),
        discrete_bound(model, x, grids.sech(sde, 30, end=end), repeats=4, **F64),
        discrete_bound(model, x, grids.sech(sde, 30, end=end), draws=400, **F64),
    ):
        std = (model.network.variances + 2 * math.exp(-2 * 4.0)).sqrt()
        wider = GaussianMixture(model.network.means, VPSDE(), std=std, weights=[0.4, 0.6]).log_prob(points)
        value, error = pooled(bound, back)
        assert bool((error < 0.3).all()), error
        assert bool((value <= wider + 4.5 * error + 2e-3).all())
        assert bool((value >= wider - (0.1 if bound.grid is None else 3.0) - 4.5 * error).all())  # no empty promise


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
    assert spread[best] < 0.6 * spread[Sigmoid()]
    assert spread[best] < 0.6 * spread[UniformLambda()] < 0.3 * spread[UniformTime()]


def test_the_same_denoiser_has_the_same_bound_in_every_parameterisation_and_on_every_clock():
    exact = mixture(CosineVPSDE(end_half_log_snr=-9.0))
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


# Discrete data


@dataclass(frozen=True)
class Logit:
    """A monotone map that is not affine: levels 0..count−1 strictly inside (0, 1), then the logit."""

    count: int

    def forward(self, x):
        return torch.logit((x.double() + 1) / (self.count + 1))

    def inverse(self, y):
        return torch.sigmoid(y.double()) * (self.count + 1) - 1

    def log_abs_det(self, event_shape):
        return 0.0


LEVELS = Levels(5, -1.0, 3.0)
LOG_P = doubles(0.1, 0.3, 0.05, 0.25, 0.3).log()


def integers(sde, transform, levels=LEVELS):
    """Point masses on the levels, seen through the transform: P is known."""
    model = GaussianMixture(transform.forward(levels.values).unsqueeze(1), sde, std=0.0, weights=LOG_P.exp())
    model.transform = transform
    return model


@pytest.mark.parametrize("sde", [*SDES[:3], FlowMatching(), VESDE(0.002, 50.0)], ids=repr)
@pytest.mark.parametrize("transform", [Affine(1.0, 0.5), Affine(0.5, -0.2), Affine(-1.0, 3.0)], ids=str)
def test_the_bound_on_integers_is_their_log_probability_whatever_the_transform(sde, transform):
    """For an exact score nothing is lost but what N(0, σ_1²) costs; no dequantisation, no constant for the range."""
    model = integers(sde, transform)
    x, back = copies(LEVELS.values.tolist(), 30)
    width = abs(transform.scale)
    end = sde.inverse_half_log_snr(doubles(math.log(8 / width))).item()  # 4 standard deviations to the bin's edge
    options = {"levels": LEVELS, "end": end, **F64}
    for decoder in (None, IntegratedBins(), IntegratedBins(denoise=False)):
        bound = variational_bound(model, x, draws=300, decoder=decoder, **options)
        value, error = pooled(bound, back)
        assert bool((error < 0.07).all()), error
        assert bool(((value - LOG_P).abs() < 4.5 * error + 6e-3).all()), (value - LOG_P, error)
    assert torch.allclose(bound.bits_per_dim, -bound.nats / math.log(2))
    stored = variational_bound(model, x.to(torch.int64), draws=300, decoder=decoder, **options)
    assert torch.equal(stored.nats, bound.nats)


def test_scaling_model_and_path_together_changes_no_draw():
    x, _ = copies(LEVELS.values.tolist(), 3)
    grid = grids.uniform(VESDE(), 12)
    found = []
    for c in (1.0, 7.0):
        model = integers(VESDE(0.05 * c, 50.0 * c), Affine(1.0, 0.5 * c))
        center = -math.log(c)
        found.append(variational_bound(model, x, levels=LEVELS, proposal=Sigmoid(center=center), **F64).nats)
        found.append(discrete_bound(model, x, grid, levels=LEVELS, variance=forward_variance, **F64).nats)
    assert torch.allclose(found[0], found[2], rtol=1e-8)
    assert torch.allclose(found[1], found[3], rtol=1e-8)


def test_a_density_follows_the_change_of_variables():
    model = gaussian([0.0, 0.0], VPSDE(), std=0.5)
    plain = gaussian([0.0, 0.0], VPSDE(), std=0.5)
    model.transform = Affine(3.0, 0.25)
    x = 3 + 2 * torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = model.transform.forward(x)
    for bound_of in (variational_bound, lambda *a, **o: discrete_bound(*a, grids.uniform(VPSDE(), 6), **o)):
        in_data, in_model = bound_of(model, x, **F64), bound_of(model, y, space="model", **F64)
        assert torch.allclose(in_data.nats, in_model.nats + 2 * math.log(0.25))
        assert torch.equal(in_model.nats, bound_of(plain, y, **F64).nats)


@pytest.mark.parametrize("decoder", [NormalisedLevels(), IntegratedBins()], ids=lambda d: type(d).__name__)
@pytest.mark.parametrize("std", [0.003, 0.02, 0.3, 30.0])
@pytest.mark.parametrize("transform", [Affine(20.0, 0.05), Affine(20.0, -0.01), Logit(41)], ids=str)
def test_probabilities_of_the_levels_sum_to_one(decoder, std, transform):
    levels = Levels(41, 0.0, 40.0)
    level_map = LevelMap(levels, transform)
    center = transform.forward(torch.linspace(-0.9, 40.9, 23, dtype=torch.float64)).repeat_interleave(41).reshape(-1, 1)
    index = torch.arange(41).repeat(23).reshape(-1, 1)
    log_p = decoder.log_prob(index, center, std, level_map.spacing(levels.at(index[:1])), level_map)
    total = torch.logsumexp(log_p.reshape(23, 41), 1)
    assert torch.allclose(total, torch.zeros(23, dtype=torch.float64), atol=1e-11)
    nearest = (level_map.forward(index) - center).abs().reshape(23, 41)
    if isinstance(decoder, NormalisedLevels):  # ratios are those of the Gaussian, wherever the sum was cut
        expected = -(nearest**2) / (2 * std**2)
        found = log_p.reshape(23, 41) - log_p.reshape(23, 41).amax(1, keepdim=True)
        assert torch.allclose(found, expected - expected.amax(1, keepdim=True), atol=1e-8)


def test_the_bins_hold_the_mass_of_a_gaussian_between_their_edges():
    levels, level_map = Levels(4, 0.0, 3.0), LevelMap(Levels(4, 0.0, 3.0), Affine(1.0, 2.0))
    center, std = doubles(0.7).reshape(1, 1), 1.5
    cdf = Normal(center, std).cdf
    edges = level_map.transform.forward(levels.edges)
    mass = cdf(edges).diff().flatten()
    mass[0], mass[-1] = cdf(edges[1]), 1 - cdf(edges[-2])
    log_p = [IntegratedBins().log_prob(torch.tensor([[k]]), center, std, 1.0, level_map) for k in range(4)]
    assert torch.allclose(torch.cat(log_p).exp(), mass, rtol=1e-12)
    far = IntegratedBins().log_prob(torch.tensor([[0]]), doubles(300.0).reshape(1, 1), 1.0, 1.0, level_map)
    assert far.isfinite().all()
    assert far < -1e4


@pytest.mark.parametrize("sde", [VPSDE(), FlowMatching(), VESDE()], ids=repr)
def test_no_network_gives_all_integers_together_more_than_probability_one(sde):
    model = ScoreModel(lambda x, time: 0.9 * torch.tanh(2 * x), sde, "x0", transform=Affine(1.0, 0.5))
    x, back = copies(LEVELS.values.tolist(), 50)
    for bound in (
        variational_bound(model, x, levels=LEVELS, end=0.1, **F64),
        discrete_bound(model, x, grids.uniform(sde, 20, end=0.1), levels=LEVELS, repeats=20, **F64),
        discrete_bound(
            model,
            x,
            grids.uniform(sde, 1, end=0.0),
            levels=LEVELS,
            repeats=20,
            decoder=IntegratedBins(True, 0.4),
            **F64,
        ),
    ):
        assert back(bound.nats).mean(1).exp().sum() < 1.0


def test_ddpm_on_its_own_grid():
    """Ho et al.'s L_T, L_{t−1} and L_0 in β, ᾱ and ε, for the exact score of point masses: bits they would print."""
    betas = torch.linspace(1e-4, 0.1, 100, dtype=torch.float64)
    sde = VPSDE.from_betas(betas)
    model = integers(sde, Affine(1.0, 0.5))
    x, back = copies(LEVELS.values.tolist(), 100)
    bound = discrete_bound(
        model, x, grids.discrete(100), variance=forward_variance, levels=LEVELS, repeats=4,
        decoder=IntegratedBins(std=betas[0].sqrt().item()), **F64,
    )  # fmt: skip
    alpha_bar = (1 - betas).cumprod(0)
    y = model.transform.forward(LEVELS.values)
    total = kl_divergence(
        Normal(alpha_bar[-1].sqrt() * y, (1 - alpha_bar[-1]).sqrt()), Normal(0.0, (1 - alpha_bar[-1]).sqrt())
    )
    for i in range(1, 100):
        x_t = alpha_bar[i].sqrt() * y[:, None] + (1 - alpha_bar[i]).sqrt() * NODES
        epsilon = model(x_t.reshape(-1, 1), (i + 1) / 100).epsilon.reshape(x_t.shape)
        posterior = betas[i] * (1 - alpha_bar[i - 1]) / (1 - alpha_bar[i])
        weight = betas[i] ** 2 / (2 * betas[i] * (1 - betas[i]) * (1 - alpha_bar[i]))  # eq. 12 with σ_t² = β_t
        total += (weight * (NODES - epsilon) ** 2 * WEIGHTS).sum(1)
        total += 0.5 * (posterior / betas[i] - 1 - torch.log(posterior / betas[i]))  # its "C"
    value, error = pooled(bound, back)
    agree(value, -total, error, 0.08)
    assert bound.nfe == 4 * 100
    assert bound.end == 0.01


# Bad input


def untouched(sde=None):
    def network(x, time):
        raise AssertionError("evaluated")

    return ScoreModel(network, sde or VPSDE(), "x0")


GOOD = torch.zeros(2, 1)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"x": torch.full((2, 1), math.nan)}, ArgumentError),
        ({"x": torch.zeros(0, 1)}, ArgumentError),
        ({"x": [0.0]}, ArgumentError),
        ({"x": torch.zeros(2, 1, dtype=torch.uint8)}, ArgumentError),
        ({"x": torch.full((2, 1), 300.0), "levels": Levels()}, DataError),
        ({"x": torch.full((2, 1), 0.5), "levels": Levels()}, DataError),
        ({"levels": 256}, ArgumentError),
        ({"levels": Levels(), "space": "model"}, ArgumentError),
        ({"levels": Levels(), "decoder": GaussianDensity()}, ArgumentError),
        ({"decoder": IntegratedBins()}, ArgumentError),
        ({"space": "latent"}, ArgumentError),
        ({"draws": 0}, ArgumentError),
        ({"draws": 2.5}, ArgumentError),
        ({"draws": 3, "proposal": "uniform"}, ArgumentError),
        ({"batch_size": 0}, ArgumentError),
        ({"dtype": torch.float16}, ArgumentError),
        ({"seed": -1}, ArgumentError),
        ({"condition": torch.zeros(3)}, ArgumentError),
    ],
    ids=str,
)
def test_bad_arguments_are_refused_before_any_evaluation(change, error):
    options = {"x": GOOD, **change}
    x = options.pop("x")
    with pytest.raises(error):
        variational_bound(untouched(), x, **options)
    with pytest.raises(error):
        discrete_bound(untouched(), x, grids.uniform(VPSDE(), 4), **options)


def test_bad_times_and_grids_are_refused_before_any_evaluation():
    for times in ({"end": 0.0}, {"end": 1.0}, {"start": 0.5, "end": 0.6}, {"start": 2.0}, {"end": math.nan}):
        with pytest.raises(GridError):
            variational_bound(untouched(), GOOD, **times)
    with pytest.raises(ArgumentError, match="Sigmoid"):
        variational_bound(untouched(FlowMatching()), GOOD, proposal=UniformLambda())
    with pytest.raises(GridError):
        discrete_bound(untouched(), GOOD, doubles(0.1, 0.5, 1.0))
    for options in (
        {"variance": "forward"},
        {"variance": lambda sde, t, s: 0 * t},
        {"repeats": 0},
        {"repeats": 2, "draws": 3},
        {"proposal": Sigmoid()},
    ):
        with pytest.raises(ArgumentError):
            discrete_bound(untouched(), GOOD, grids.uniform(VPSDE(), 4), **options)
    for bad in (lambda: Sigmoid(2.5), lambda: Sigmoid(1.0, math.nan), lambda: GaussianDensity(std=0.0)):
        with pytest.raises(ArgumentError):
            bad()
    for bad in ((1, 0.0, 1.0), (256, 1.0, 1.0), (2.5, 0.0, 1.0), (4, 0.0, math.inf)):
        with pytest.raises(ArgumentError):
            Levels(*bad)
    with pytest.raises(GridError):
        discrete_bound(untouched(FlowMatching()), GOOD, doubles(1.0, 0.0))


def test_levels_through_a_transform_that_mixes_elements_are_refused():
    @dataclass(frozen=True)
    class Swap(Affine):
        def forward(self, x):
            return super().forward(x.flip(-1))

    model = untouched()
    model.transform = Swap(0.0, 0.1)
    with pytest.raises(ArgumentError, match="mixes"):
        variational_bound(model, torch.tensor([[1.0, 2.0, 5.0]]), levels=Levels(7, 0.0, 6.0))


def test_a_network_that_answers_nan_is_named():
    with pytest.raises(NonFiniteError, match="t="):
        variational_bound(ScoreModel(lambda x, time: x * math.nan, VPSDE(), "x0"), GOOD)


def test_levels_describe_themselves():
    levels = Levels(5, -1.0, 3.0)
    assert levels.width == 1.0
    assert levels.values.tolist() == [-1.0, 0.0, 1.0, 2.0, 3.0]
    assert levels.edges.tolist() == [-1.5, -0.5, 0.5, 1.5, 2.5, 3.5]
    scaled = Levels(256, 0.0, 1.0)
    pixels = torch.arange(256)
    scaled.check(pixels.float() / 255)
    assert torch.equal(scaled.index(pixels.float() / 255), pixels)
    with pytest.raises(DataError, match=r"0\.5"):
        levels.check(torch.tensor([0.0, 0.5]))
