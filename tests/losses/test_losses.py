"""Denoising score matching: what its minimum is, and how its targets and weightings are one loss."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sde_toolkit import MLP, VESDE, VPSDE, DenoisingScoreMatching, ScoreModel, SubVPSDE, gaussian
from sde_toolkit.errors import ArgumentError
from sde_toolkit.losses import g_squared, sigma_squared, stratified_times

SDES = [VPSDE(), SubVPSDE(), VESDE(sigma_max=10.0)]


def draw(sde, n=20_000, std=0.7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x_0 = std * torch.randn(n, 1, generator=generator, dtype=torch.float64)
    noise = torch.randn(n, 1, generator=generator, dtype=torch.float64)
    return x_0, stratified_times(n, 0.01, generator=generator), noise


@pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)
def test_exact_score_leaves_only_the_posterior_variance(sde):
    """For Gaussian data E|ε̂ − ε|² is Var(ε | x_t), which conditioning of Gaussians gives in closed form."""
    std = 0.7
    x_0, t, noise = draw(sde)
    losses = DenoisingScoreMatching("epsilon")(gaussian([0.0], sde, std=std), x_0, t, noise)
    joint = torch.stack([sde.alpha(t) * std, sde.sigma(t)], dim=-1)  # x_t = joint · (x_0/std, ε)
    variance = 1 - joint[:, 1] ** 2 / joint.square().sum(-1)
    error = (losses - variance).std() / len(losses) ** 0.5
    assert abs((losses - variance).mean()) < 4 * error


@pytest.mark.on_device
@pytest.mark.parametrize("target", ["epsilon", "x0", "v", "score", "velocity", "edm"])
@pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)
def test_exact_score_is_the_minimum(sde, target):
    """Any shift of the exact prediction raises the loss, by its square (paired noise, so no error bar)."""
    x_0, t, noise = draw(sde, n=4000)
    exact = gaussian([0.0], sde, std=0.7)

    class Shifted(ScoreModel):
        def __init__(self, by):
            super().__init__(lambda x, time: exact.network(x, time) + by, sde, "v")

    loss = DenoisingScoreMatching(target)
    middle = slice(len(t) // 10, -len(t) // 10)
    at = [loss(Shifted(by), x_0[middle], t[middle], noise[middle]).mean() for by in (-0.5, 0.0, 0.5)]
    assert at[0] > at[1] < at[2]


@pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize("kind", ["epsilon", "v", "edm"])
def test_weighted_score_losses_are_weighted_epsilon_losses(sde, kind):
    """|score error|² = |ε error|²/σ²: Song et al.'s λ = σ² is L_simple, likelihood weighting is g²/σ² times it."""
    torch.manual_seed(0)
    model = ScoreModel(MLP(event_shape=(1,)).double(), sde, kind)
    x_0, t, noise = draw(sde, n=200)
    simple = DenoisingScoreMatching("epsilon")(model, x_0, t, noise)
    by_sigma = DenoisingScoreMatching("score", sigma_squared)(model, x_0, t, noise)
    by_g = DenoisingScoreMatching("score", g_squared)(model, x_0, t, noise)
    torch.testing.assert_close(by_sigma, simple)
    torch.testing.assert_close(by_g * (sde.sigma(t) / sde.diffusion(t)) ** 2, simple)


@given(n=st.integers(1, 300), t_min=st.floats(0, 0.9), seed=st.integers(0, 1000))
def test_stratified_times_have_one_draw_in_each_stratum(n, t_min, seed):
    t = stratified_times(n, t_min, generator=torch.Generator().manual_seed(seed))
    u = (t - t_min) / (1 - t_min)
    assert bool(((u >= -1e-12) & (u <= 1 + 1e-12)).all())
    gaps = u.sort().values.diff()
    torch.testing.assert_close(gaps, torch.full_like(gaps, 1 / n), rtol=0, atol=1e-12)


def test_stratified_times_are_each_uniform():
    """The first of the draws alone, over many seeds, passes a Kolmogorov-Smirnov test."""
    from scipy.stats import kstest

    first = [stratified_times(8, 0.0, generator=torch.Generator().manual_seed(s))[3].item() for s in range(2000)]
    assert kstest(first, "uniform").pvalue > 1e-4


@pytest.mark.parametrize("t_min", [-0.1, 1.0, float("nan")])
def test_bad_t_min_is_named(t_min):
    with pytest.raises(ArgumentError, match="t_min"):
        stratified_times(4, t_min)


def test_unknown_target_is_named():
    with pytest.raises(ArgumentError, match="target='noise'"):
        DenoisingScoreMatching("noise")
