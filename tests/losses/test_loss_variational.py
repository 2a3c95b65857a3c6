"""The variational bound as a loss: terms against torch.distributions, the sum against discrete_bound, the hybrid."""

import math

import pytest
import torch
from loss_tools import SDES, batch, gradient, model_with, name
from torch.distributions import Normal, kl_divergence

from sde_toolkit import VPSDE, CosineVPSDE, FlowMatching, Levels, ScoreModel, gaussian
from sde_toolkit.batching import expand_to
from sde_toolkit.likelihood import GaussianDensity, IntegratedBins, discrete_bound
from sde_toolkit.losses import Discrete, Hybrid, VariationalBound
from sde_toolkit.transforms import Affine

every_sde = pytest.mark.parametrize("sde", SDES, ids=name)
N = 12


def steps(i):
    return torch.as_tensor(i, dtype=torch.float64) / N


def beta_of(sde, t, s):
    """Variance of x_t given x_s."""
    return sde.sigma(t) ** 2 - (sde.alpha(t) / sde.alpha(s)) ** 2 * sde.sigma(s) ** 2


def posterior(sde, x_0, x_t, t, s):
    """Mean and variance of x_s given x_t and x_0, by conditioning the Gaussian x_s ~ N(α_s x_0, σ_s²) on x_t."""
    ratio, beta = sde.alpha(t) / sde.alpha(s), beta_of(sde, t, s)
    precision = 1 / sde.sigma(s) ** 2 + ratio**2 / beta
    weights = (sde.alpha(s) / sde.sigma(s) ** 2, ratio / beta)
    first, second = (expand_to(w / precision, x_0) for w in weights)
    return first * x_0 + second * x_t, 1 / precision


def noised(sde, x_0, t, noise):
    return expand_to(sde.alpha(t), x_0) * x_0 + expand_to(sde.sigma(t), x_0) * noise


@every_sde
@pytest.mark.parametrize("learned", [True, False])
def test_later_steps_are_kl_divergences_of_gaussians(sde, learned):
    """KL(q(x_s|x_t,x_0) ‖ N(μ(x_t, x̂_0), Σ)) with log Σ = v log β + (1 − v) log β̃, eq. 15, element by element."""
    x_0, _, noise = batch(n=N - 1)
    t, s = steps(torch.arange(2, N + 1)), steps(torch.arange(1, N))
    model = model_with(sde, "v", learned_variance=learned)
    if not bool((sde.alpha(t) > 0).all()):
        t, s, x_0, noise = t[:-1], s[:-1], x_0[:-1], noise[:-1]  # conditioning as written here divides by α_t = 0
    x_t = noised(sde, x_0, t, noise)
    answer = model(x_t, t)
    mean, variance = posterior(sde, x_0, x_t, t, s)
    guess, _ = posterior(sde, answer.x_0, x_t, t, s)
    v = answer.variance_fraction if learned else torch.zeros_like(x_0)
    beta, variance = (expand_to(c, x_0) for c in (beta_of(sde, t, s), variance))
    big = torch.exp(v * beta.log() + (1 - v) * variance.log())
    nats = kl_divergence(Normal(mean, variance.sqrt().expand_as(mean)), Normal(guess, big.sqrt())).mean(1)
    found = VariationalBound(N)(model, x_0, t, noise)
    torch.testing.assert_close(found, N * nats / math.log(2), rtol=1e-6, atol=1e-9)


def test_the_step_of_ddpm_in_its_own_letters():
    """β̃_i = β_i (1 − ᾱ_{i−1})/(1 − ᾱ_i), and β̃_1 := β̃_2 (Ho et al. 2020, eq. 7; Nichol & Dhariwal's code)."""
    betas = torch.linspace(0.01, 0.4, N, dtype=torch.float64)
    bar = torch.cumprod(1 - betas, 0)
    before = torch.cat([torch.ones(1), bar[:-1]])
    posterior_variance = betas * (1 - before) / (1 - bar)
    posterior_variance[0] = posterior_variance[1]
    model = model_with(VPSDE.from_betas(betas), "epsilon", learned_variance=True)
    x_0, _, noise = batch(n=N)
    x_t = bar.sqrt()[:, None] * x_0 + (1 - bar).sqrt()[:, None] * noise
    answer = model(x_t, steps(torch.arange(1, N + 1)))

    def mean(x):
        of_x_0, of_x_t = before.sqrt() * betas / (1 - bar), (1 - betas).sqrt() * (1 - before) / (1 - bar)
        return of_x_0[:, None] * x + of_x_t[:, None] * x_t

    v = answer.variance_fraction
    std = torch.exp(0.5 * (v * betas.log()[:, None] + (1 - v) * posterior_variance.log()[:, None]))
    guess = Normal(mean(answer.x_0), std)
    kl = kl_divergence(Normal(mean(x_0), posterior_variance.sqrt()[:, None].expand_as(x_0)), guess)
    nats = torch.cat([-guess.log_prob(x_0)[:1], kl[1:]]).mean(1)
    found = VariationalBound(N)(model, x_0, steps(torch.arange(1, N + 1)), noise)
    torch.testing.assert_close(found, N * nats / math.log(2), rtol=1e-6, atol=1e-9)


@every_sde
def test_the_first_step_is_the_decoder(sde):
    """Around x̂_0: a density, or the mass of the level's bin with open ends, eq. 13, with the same variance."""
    n, t, s = 40, steps([2]), steps([1])
    levels, transform = Levels(5, 0.0, 4.0), Affine(2.0, 0.5)
    model = model_with(sde, "v", learned_variance=True, transform=transform)
    index = torch.randint(0, 5, (n, 2), generator=torch.Generator().manual_seed(0))
    x_0, (_, _, noise) = (index.double() - 2.0) * 0.5, batch(n=n)
    first = steps([1]).expand(n)
    answer = model(noised(sde, x_0, first, noise), first)
    _, small = posterior(sde, x_0, x_0, t, s)
    v = answer.variance_fraction
    std = torch.exp(0.5 * (v * (sde.sigma(s) ** 2).log() + (1 - v) * small.log()))
    around = Normal(answer.x_0, std)
    density = -around.log_prob(x_0).mean(1)
    torch.testing.assert_close(
        VariationalBound(N)(model, x_0, first, noise), N * density / math.log(2), rtol=1e-6, atol=0
    )
    upper = torch.where(index == 4, 1.0, around.cdf(x_0 + 0.25))
    lower = torch.where(index == 0, 0.0, around.cdf(x_0 - 0.25))
    likely = upper - lower > 1e-6  # the difference of two cdfs keeps digits there
    assert likely.all(1).sum() > 3
    found = VariationalBound(N, levels)(model, x_0, first, noise)
    wanted = -N * (upper - lower).log().mean(1) / math.log(2)
    torch.testing.assert_close(found[likely.all(1)], wanted[likely.all(1)], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("levels", [None, Levels(5, 0.0, 4.0)], ids=["density", "levels"])
@every_sde
def test_its_mean_over_steps_is_the_discrete_bound(sde, levels):
    """The same N steps, decoder and model; each with its own noise, so within five standard errors."""
    n, N = 400, 6
    grid = torch.linspace(1, 1 / N, N, dtype=torch.float64)
    model = gaussian([0.1, -0.2], sde, std=0.6)
    generator = torch.Generator().manual_seed(0)
    if levels is None:
        x = 0.6 * torch.randn(n, 2, generator=generator, dtype=torch.float64)
    else:
        model.transform = Affine(2.0, 0.5)
        x = torch.randint(0, 5, (n, 2), generator=generator).double()
    x_0 = model.transform.forward(x)
    std = sde.sigma(grid[-1]).item()
    decoder = {} if levels is None else {"levels": levels}
    kind = GaussianDensity if levels is None else IntegratedBins
    bound = discrete_bound(
        model, x, grid, repeats=4, decoder=kind(denoise=True, std=std), dtype=torch.float64, **decoder
    )
    wanted = -(bound.diffusion + bound.reconstruction) / (2 * math.log(2))
    loss = VariationalBound(N, levels)
    noises = torch.randn(N, n, 2, generator=generator, dtype=torch.float64)
    times = torch.arange(1, N + 1, dtype=torch.float64)[:, None].expand(N, n) / N
    losses = torch.stack([loss(model, x_0, t, noise) for t, noise in zip(times, noises, strict=True)]).mean(0)
    difference = losses - wanted
    assert difference.mean().abs() < 5 * difference.std() / n**0.5


@pytest.mark.parametrize("sde", [VPSDE(), CosineVPSDE(), FlowMatching()], ids=name)
def test_the_best_variance_is_that_of_the_reverse_step(sde):
    """Exact score of Gaussian data: the bound is least where Σ is Var(x_s|x_t), which conditioning gives."""
    c, n = 0.5, 4000
    i = torch.full((n,), 5)
    t, s = steps(i), steps(i - 1)
    at_t, at_s = (sde.alpha(u) ** 2 * c + sde.sigma(u) ** 2 for u in (t, s))
    covariance = (sde.alpha(t) / sde.alpha(s)) * at_s
    true = (at_s - covariance**2 / at_t)[0]
    beta = beta_of(sde, t, s)[0]
    _, small = posterior(sde, torch.zeros(n, 1), torch.zeros(n, 1), t, s)
    best = (true / small[0]).log() / (beta / small[0]).log()
    assert 0.05 < best < 0.95
    x_0, _, noise = batch(n=n, event=(1,))

    def loss(v):
        def network(x, time):
            u = time.double()
            spread = sde.alpha(u) ** 2 * c + sde.sigma(u) ** 2
            x_hat = (sde.alpha(u) * c / spread)[:, None] * x
            return torch.cat([x_hat, torch.full_like(x, v)], 1)

        model = ScoreModel(network, sde, "x0", learned_variance=True)
        return VariationalBound(N)(model, math.sqrt(c) * x_0, t, noise).mean().item()

    at = [loss(best.item() + shift) for shift in (-0.3, 0.0, 0.3)]
    assert at[0] > at[1] < at[2]


@every_sde
@pytest.mark.parametrize("levels", [None, Levels(5, 0.0, 4.0)], ids=["density", "levels"])
def test_the_hybrid_trains_the_mean_by_simple_and_the_variance_by_the_bound(sde, levels):
    """The two halves of the last layer, eq. 16: no gradient of the bound reaches the mean, nothing of simple v."""
    model = model_with(sde, "v", learned_variance=True, transform=Affine(2.0, 0.5))
    index = torch.randint(0, 5, (N, 2), generator=torch.Generator().manual_seed(1))
    x_0, t = (index.double() - 2) * 0.5, steps(torch.arange(1, N + 1))
    _, _, noise = batch(n=N)
    hybrid = Hybrid(bound=VariationalBound(N, levels), weight=0.25)
    leave = model.network.leave

    def halves(loss):
        return torch.autograd.grad(loss.sum(), leave)[0].split(2, dim=1)

    mean, v = halves(hybrid(model, x_0, t, noise))
    simple = halves(hybrid.simple(model, x_0, t, noise))
    bound = halves(hybrid.bound(model, x_0, t, noise))
    torch.testing.assert_close(mean, simple[0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(v, 0.25 * bound[1], rtol=1e-9, atol=1e-12)
    assert bool((simple[1] == 0).all())
    assert bool(bound[0].abs().sum() > 0)
    value = hybrid.simple(model, x_0, t, noise) + 0.25 * hybrid.bound(model, x_0, t, noise)
    torch.testing.assert_close(hybrid(model, x_0, t, noise), value)


@every_sde
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_gradients_are_finite_at_every_step_of_a_thousand(sde, dtype):
    """Open bins, the first step's β̃ = 0, α(1) = 0: nothing of it reaches the gradient."""
    N = 1000
    model = model_with(sde, "v", learned_variance=True, transform=Affine(127.5, 1 / 127.5)).to(dtype)
    generator = torch.Generator().manual_seed(0)
    x_0 = (torch.randint(0, 256, (N, 2), generator=generator).to(dtype) - 127.5) / 127.5
    x_0[:4] = torch.tensor([-1.0, 1.0])
    _, _, noise = batch(n=N, dtype=dtype)
    t = torch.arange(1, N + 1, dtype=torch.float64) / N
    for loss in (VariationalBound(N), VariationalBound(N, Levels())):
        losses = loss(model, x_0, t, noise)
        assert losses.dtype == dtype
        assert bool(losses.isfinite().all())
        assert bool(gradient(losses.sum(), model).isfinite().all())


def test_single_precision_agrees_with_double():
    sde, N = VPSDE(), 1000
    x_0, _, noise = batch(n=N)
    t = torch.arange(1, N + 1, dtype=torch.float64) / N
    model = model_with(sde, "v", learned_variance=True)
    exact = VariationalBound(N)(model, x_0, t, noise)
    single = VariationalBound(N)(model.float(), x_0.float(), t, noise.float())
    torch.testing.assert_close(single.double(), exact, rtol=2e-3, atol=2e-4)


def test_times_between_steps_belong_to_the_later_one():
    model = model_with(VPSDE(), learned_variance=True)
    x_0, _, noise = batch(n=N)
    u = (torch.arange(N, dtype=torch.float64) + 0.3) / N
    t, _ = Discrete(N)(VPSDE(), u, 0.0)
    for loss in (VariationalBound(N), Hybrid(bound=VariationalBound(N))):
        torch.testing.assert_close(loss(model, x_0, u, noise), loss(model, x_0, t, noise), rtol=0, atol=0)
