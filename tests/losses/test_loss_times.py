"""Training times: each distribution has its stated density under every SDE; importance weights restore the mean."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_tools import SDES, UserCoefficients, batch, gradient, integrate, model_with, name, signal_at_the_end
from scipy.stats import kstest, norm

from sde_toolkit import EDMSDE, VPSDE, CosineVPSDE, DenoisingScoreMatching, FlowMatching, gaussian
from sde_toolkit.losses import (
    Cosine,
    Discrete,
    LikelihoodTimes,
    LogitNormal,
    LogNormal,
    Uniform,
    g_squared,
    low_discrepancy,
)

every_sde = pytest.mark.parametrize("sde", SDES, ids=name)
CONTINUOUS = [
    Uniform(),
    LikelihoodTimes(),
    LikelihoodTimes(0.5),
    LogNormal(),
    LogNormal(0.5, 3.0),
    LogitNormal(),
    Cosine(),
]
T_MIN = 1e-3


def affordable(sde, n):
    """λ of an SDE given by f and g is inverted by bisection, and is itself a quadrature."""
    return n // 8 if isinstance(sde, UserCoefficients) else n


def uniforms(n, seed=0):
    return torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def snr(sde, t):
    return (sde.alpha(t) / sde.sigma(t)) ** 2


def density(times, sde, t):
    """The stated densities on t, up to a factor, from α, σ and g alone."""
    tau, rate = sde.sigma(t) / sde.alpha(t), (sde.g(t) / sde.sigma(t)) ** 2
    if isinstance(times, Uniform):
        return torch.ones_like(t)
    if isinstance(times, LikelihoodTimes):
        return rate * (snr(sde, t) / math.exp(2 * times.floor)).clamp(max=1.0)
    if isinstance(times, LogNormal):
        return rate * torch.exp(-0.5 * ((torch.log(tau) - times.P_mean) / times.P_std) ** 2)
    if isinstance(times, LogitNormal):
        return torch.exp(-0.5 * ((torch.logit(t) - times.mean) / times.std) ** 2) / (t * (1 - t))
    return rate * tau / (1 + tau**2)


@pytest.mark.parametrize("times", CONTINUOUS, ids=str)
@every_sde
def test_times_have_their_stated_distribution(sde, times):
    """Kolmogorov-Smirnov against the density, integrated numerically on a part of time without singular ends."""
    first, last = 0.02, 0.95
    t, _ = times(sde, uniforms(affordable(sde, 8000)), T_MIN)
    inside = t[(t >= first) & (t <= last)]
    assert bool((t >= T_MIN).all())
    assert bool((t <= 1).all())
    assert len(inside) > 200
    assert ((t == T_MIN) | (t == 1)).float().mean() < 0.01  # what is cut off is spread, not heaped up at the ends
    edges = torch.linspace(first, last, 401, dtype=torch.float64)
    nodes, weights = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(8))
    fine = edges[:-1, None] + edges.diff()[:, None] / 2 * (nodes + 1)
    mass = (density(times, sde, fine) * weights).sum(1) * edges.diff() / 2
    cdf = torch.cat([torch.zeros(1), mass.cumsum(0)]) / mass.sum()
    assert kstest(inside.numpy(), lambda v: np.interp(v, edges.numpy(), cdf.numpy())).pvalue > 1e-4


@pytest.mark.on_device
@every_sde
@pytest.mark.parametrize("floor", [-10.0, 0.5])
def test_importance_weights_restore_the_average_over_uniform_times(sde, floor):
    """By the midpoint rule in u, so that there is no noise: E[importance h(t)] = ∫ h dt/(1 − t_min)."""
    n = affordable(sde, 16_000)
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    t, importance = LikelihoodTimes(floor)(sde, u, T_MIN)
    if floor > 0:  # far out the weights are large: averages of what vanishes with the signal
        wanted = integrate(sde, lambda t: snr(sde, t) / (1 + snr(sde, t)), T_MIN, 1.0) / (1 - T_MIN)
        found = (importance * snr(sde, t) / (1 + snr(sde, t))).mean()
        assert found.item() == pytest.approx(wanted.item(), rel=5e-3)
        return
    for h in (sde.sigma, lambda t: sde.alpha(t) ** 2, lambda t: torch.cos(7 * t) * (1 - t)):
        wanted = integrate(sde, h, T_MIN, 1.0) / (1 - T_MIN)
        assert (importance * h(t)).mean().item() == pytest.approx(wanted.item(), rel=2e-3, abs=1e-4)


@pytest.mark.on_device
@every_sde
@pytest.mark.parametrize("t_min", [0.0, 1e-5, 0.3, 0.9])
def test_importance_is_one_where_the_distribution_is_part_of_the_loss(sde, t_min):
    for times in (Uniform(), Discrete(50), LogNormal(), LogitNormal(), Cosine()):
        if isinstance(times, LogNormal) and t_min > 0.5:
            continue  # may have no mass there
        t, importance = times(sde, uniforms(50), t_min)
        assert bool((importance == 1).all())
        assert t.dtype == importance.dtype == torch.float64
        assert bool(((t >= t_min) & (t <= 1)).all())


@pytest.mark.on_device
@every_sde
def test_the_likelihood_density_is_g_squared_over_sigma_squared_wherever_a_signal_is_left(sde):
    """Song, Durkan et al. 2021: importance g²/σ² is one number, its mean over uniform times."""
    t, importance = LikelihoodTimes()(sde, uniforms(1000), T_MIN)
    products = importance * (sde.g(t) / sde.sigma(t)) ** 2
    if signal_at_the_end(sde):
        mean = integrate(sde, lambda t: (sde.g(t) / sde.sigma(t)) ** 2, T_MIN, 1.0) / (1 - T_MIN)
        torch.testing.assert_close(products, mean.expand_as(products), rtol=1e-5, atol=0)
    else:
        early = sde.half_log_snr(t) > -9
        assert (products[early].max() / products[early].min()).item() == pytest.approx(1, abs=1e-6)


@pytest.mark.on_device
@pytest.mark.parametrize("sde", [FlowMatching(), CosineVPSDE()], ids=name)
def test_the_weighted_likelihood_loss_stays_bounded_where_the_signal_vanishes(sde):
    """u up to the last number before 1: the exact score's error falls with the SNR, the importance grows no faster."""
    x_0, _, noise = batch(n=200)

    def losses_at(u):
        t, importance = LikelihoodTimes()(sde, u, T_MIN)
        matching = DenoisingScoreMatching("score", g_squared)
        return importance * matching(gaussian([0.0, 0.0], sde, std=0.7), x_0, t, noise)

    at_the_end = losses_at(1 - torch.logspace(-15.9, -1, 200, dtype=torch.float64))
    assert bool(at_the_end.isfinite().all())
    assert at_the_end.max() < losses_at(uniforms(200)).max()


def test_edms_times_are_its_lognormal_sigmas_and_esser_is_edm_under_flow_matching():
    u = uniforms(20_000)
    t, _ = LogNormal()(EDMSDE(), u, 0.0)
    assert kstest(EDMSDE().sigma(t).log().numpy(), norm(-1.2, 1.2).cdf).pvalue > 1e-4
    flow = FlowMatching()
    torch.testing.assert_close(LogNormal(0.3, 0.8)(flow, u, 0.0)[0], LogitNormal(0.3, 0.8)(flow, u, 0.0)[0])
    t, _ = LogitNormal(0.0, 1.0)(flow, u, 0.0)  # Esser et al. 2024, eq. 19
    assert kstest(torch.logit(t).numpy(), "norm").pvalue > 1e-4
    t, _ = Cosine()(flow, u, 0.0)
    torch.testing.assert_close(t, 1 - 1 / (torch.tan(torch.pi / 2 * u) + 1))  # eq. 21


@pytest.mark.on_device
@given(N=st.integers(1, 60), t_min=st.floats(0, 0.99), seed=st.integers(0, 100))
def test_discrete_times_are_the_steps_after_t_min_each_as_often(N, t_min, seed):
    n = 40 * N
    t, _ = Discrete(N)(VPSDE(), low_discrepancy(n, uniforms(1, seed)), t_min)
    steps = torch.round(t * N)
    torch.testing.assert_close(t, steps / N, rtol=0, atol=0)
    expected = [i for i in range(1, N + 1) if i / N >= t_min - 1e-9 / N]
    counts = torch.bincount(steps.long(), minlength=N + 1)
    assert counts[0] == 0
    assert bool((t >= t_min - 1e-9).all())
    share = n / len(expected)
    assert all(abs(counts[i].item() - share) <= 1 for i in expected)


@pytest.mark.on_device
@pytest.mark.parametrize("times", [*CONTINUOUS, Discrete(7)], ids=str)
@every_sde
def test_times_are_quantiles_of_u(sde, times):
    """Increasing in u: stratified u are stratified times, n in each n-th of the distribution."""
    u = torch.linspace(0, 1 - 1e-9, 400, dtype=torch.float64)
    assert bool((times(sde, u, T_MIN)[0].diff() >= 0).all())


@given(n=st.integers(1, 300), offset=st.floats(0, 1, exclude_max=True))
def test_low_discrepancy_has_one_number_in_each_stratum(n, offset):
    u = low_discrepancy(n, offset)
    assert u.shape == (n,)
    assert u.dtype == torch.float64
    assert bool(((u >= 0) & (u < 1)).all())
    torch.testing.assert_close(low_discrepancy(n, torch.tensor(offset, dtype=torch.float64)), u, rtol=0, atol=0)
    around = torch.sort(u).values
    gaps = torch.cat([around, around[:1] + 1]).diff()
    torch.testing.assert_close(gaps, torch.full_like(gaps, 1 / n), rtol=0, atol=1e-12)


def mean_gradients(model, times, groups, seed):
    """The gradients of independent groups of 250 samples, (groups, weights)."""
    found = []
    for k in range(groups):
        x_0, _, noise = batch(n=250, seed=seed + k)
        t, importance = times(model.sde, uniforms(250, seed + k + 10_000), T_MIN)
        losses = importance * DenoisingScoreMatching("score", g_squared)(model, x_0, t, noise)
        found.append(gradient(losses.mean(), model))
    return torch.stack(found)


@pytest.mark.on_device
@pytest.mark.parametrize("sde", [s for s in SDES if not hasattr(s, "sigma_0") or s.sigma_0 == 0], ids=name)
def test_importance_sampling_has_the_same_gradient_in_expectation(sde):
    """Every weight's two means agree within five of their standard errors."""
    groups = 60
    model = model_with(sde, "v")
    one, other = (
        mean_gradients(model, times, groups, seed) for times, seed in ((Uniform(), 1), (LikelihoodTimes(), 7))
    )
    error = ((one.var(0) + other.var(0)) / groups).sqrt()
    assert bool(((one.mean(0) - other.mean(0)).abs() < 5 * error).all())


@pytest.mark.on_device
def test_importance_sampling_lowers_the_variance_of_loss_and_gradient():
    """VP and an exact score: the likelihood loss at uniform times is dominated by the few nearest to t_min."""
    sde, n = VPSDE(), 20_000
    x_0, _, noise = batch(n=n)
    variances = []
    for times in (Uniform(), LikelihoodTimes()):
        t, importance = times(sde, uniforms(n), 1e-5)
        model = gaussian([0.0, 0.0], sde, std=1.0)
        variances.append((importance * DenoisingScoreMatching("score", g_squared)(model, x_0, t, noise)).var())
    assert variances[0] > 20 * variances[1]
