"""The exact mixture at σ = 0, far outside its modes, and with events that are not its own."""

import math

import mpmath
import pytest
import torch
from catalogue import PUBLIC_SDES, SDES, doubles, name

from sde_toolkit import VESDE, VPSDE, GaussianMixture, ScoreModel, gaussian
from sde_toolkit.errors import ArgumentError

EVENTS = [(), (2,), (3, 4)]
SILENT = [sde for sde in SDES if sde.sigma(0.0) == 0]


def made(sde, event, full):
    """Three components with spreads of their own, along the axes or across them."""
    generator, D = torch.Generator().manual_seed(0), math.prod(event)
    means = torch.randn(3, *event, generator=generator, dtype=torch.float64)
    if not full:
        std = 0.3 + torch.rand(3, *event, generator=generator, dtype=torch.float64)
        return GaussianMixture(means, sde, std=std, weights=[0.2, 0.5, 0.3])
    roots = torch.randn(3, D, D, generator=generator, dtype=torch.float64) / math.sqrt(D)
    covariances = roots @ roots.mT + 0.05 * torch.eye(D, dtype=torch.float64)
    return GaussianMixture(means, sde, covariances=covariances, weights=[0.2, 0.5, 0.3])


@pytest.mark.parametrize("full", [False, True], ids=["axes", "full"])
@pytest.mark.parametrize("event", EVENTS, ids=str)
@pytest.mark.parametrize("sde", SILENT, ids=name)
def test_the_score_where_there_is_no_noise_is_that_of_the_data(sde, event, full):
    """The gradient of the data's own log density: by the method, by the view, in one precision and in the other."""
    model = made(sde, event, full)
    x = torch.randn(6, *event, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(model.log_prob(x, 0.0).sum(), x)
    x = x.detach()
    for t in (0.0, torch.zeros(6)):
        torch.testing.assert_close(model.score(x, t), gradient)
        torch.testing.assert_close(model(x, t).score, gradient)
        torch.testing.assert_close(model(x, t).view("score"), gradient)
    single = model.score(x.float(), 0.0)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), gradient, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sde", SILENT, ids=name)
def test_every_view_is_continuous_where_the_noise_ends(sde):
    model, t = made(sde, (2,), full=True), 1e-7
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for kind in ("score", "velocity", "x0", "v"):
        at, near = (model(x, time).view(kind) for time in (0.0, t))
        assert bool(at.isfinite().all()), kind
        torch.testing.assert_close(at, near, rtol=2e-3, atol=2e-3, msg=lambda m, k=kind: f"{k}: {m}")


@pytest.mark.parametrize("sde", SILENT, ids=name)
def test_a_network_that_does_not_predict_the_score_has_none_without_noise(sde):
    exact = made(sde, (2,), full=False)
    model = ScoreModel(exact.network, sde, "v")
    with pytest.raises(ArgumentError, match="σ is 0"):
        model.score(torch.zeros(3, 2), 0.0)
    with pytest.raises(ArgumentError, match="σ is 0"):
        model.score(torch.zeros(3, 2), torch.tensor([0.5, 0.0, 0.5]))
    assert bool(model.score(torch.zeros(3, 2), 0.5).isfinite().all())


@pytest.mark.parametrize("event", EVENTS, ids=str)
@pytest.mark.parametrize("wrong", [(), (1,), (2,), (3,), (4,), (2, 1), (1, 2), (4, 3), (3, 4), (12,)], ids=str)
def test_events_of_another_shape_are_refused(event, wrong):
    model, x = made(VPSDE(), event, full=False), torch.zeros(5, *wrong)
    if wrong == event:
        assert model.log_prob(x, 0.3).shape == (5,)
        return
    with pytest.raises(ArgumentError, match="x="):
        model.log_prob(x, 0.3)
    if math.prod(wrong) != math.prod(event):
        with pytest.raises(ArgumentError, match="x="):
            model(x, 0.3)


def test_times_that_do_not_belong_to_the_samples_are_refused():
    model = made(VPSDE(), (2,), full=False)
    for t in (torch.zeros(3), torch.zeros(5, 1)):
        with pytest.raises(ArgumentError):
            model.log_prob(torch.zeros(5, 2), t)


def test_a_point_mass_has_no_density_without_noise():
    model = GaussianMixture(doubles(-1.0, 1.0), VPSDE(), std=0.0)
    with pytest.raises(ArgumentError, match="no density"):
        model.log_prob(torch.zeros(3))
    assert bool(model.log_prob(torch.zeros(3), 0.1).isfinite().all())
    assert bool(GaussianMixture(doubles(-1.0, 1.0), VESDE(), std=0.0).log_prob(torch.zeros(3)).isfinite().all())


def with_eighty_digits(model, x, t):
    """log density and score at one point, from the components' densities alone."""
    with mpmath.workdps(80):
        alpha, sigma = (mpmath.mpf(c(doubles(t)).item()) for c in (model.sde.alpha, model.sde.sigma))
        network = model.network
        terms, slopes = [], []
        rows = zip(network.log_weights.tolist(), network.means.tolist(), network.variances.tolist(), strict=True)
        for log_weight, mean, variance in rows:
            spreads = [alpha**2 * mpmath.mpf(c) + sigma**2 for c in variance]
            away = [mpmath.mpf(value) - alpha * mpmath.mpf(m) for value, m in zip(x, mean, strict=True)]
            of_axes = [d**2 / s + mpmath.log(2 * mpmath.pi * s) for d, s in zip(away, spreads, strict=True)]
            terms.append(mpmath.exp(mpmath.mpf(log_weight) - mpmath.fsum(of_axes) / 2))
            slopes.append([-d / s for d, s in zip(away, spreads, strict=True)])
        whole = mpmath.fsum(terms)
        score = [
            float(mpmath.fsum(w * s[i] for w, s in zip(terms, slopes, strict=True)) / whole) for i in range(len(x))
        ]
        return float(mpmath.log(whole)), score


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=name)
@pytest.mark.parametrize("distance", [3.0, 1e3, 1e6])
@pytest.mark.parametrize("sde", PUBLIC_SDES, ids=name)
def test_far_from_all_modes_the_components_keep_their_shares(sde, distance, dtype):
    """Log densities go to 10¹³ there, and the shares depend on differences of order one between them.

    The points lie far out on the line of equal distance to two modes, and a little beside it. What the shares may be
    off by is float64's rounding of such a number, also for states in float32.
    """
    model = GaussianMixture([[0.0, -1.0], [0.0, 1.0]], sde, std=0.2, weights=[0.3, 0.7])
    for t in (0.002, 0.5, 1.0):
        beside = 0.04 + model.sde.sigma(t).item() ** 2
        x = torch.tensor([[distance, u * beside] for u in (-0.7, 0.0, 0.6)]).to(dtype)
        found = model.log_prob(x, t), model.score(x, t), model(x, t).x_0
        for i, point in enumerate(x.tolist()):
            log_density, score = with_eighty_digits(model, point, t)
            digits = 4 * torch.finfo(dtype).eps
            off = 8 * torch.finfo(torch.float64).eps * abs(log_density) / beside  # a share's rounding, times the slope
            assert found[0][i].item() == pytest.approx(log_density, rel=digits, abs=1e-9)
            assert found[1][i].tolist() == pytest.approx(score, rel=1e-9 + digits, abs=1e-9 + off)
            assert abs(found[2][i, 1].item()) < 1.5  # x̂_0 between the modes on this axis, not beyond


@pytest.mark.parametrize("t", [0.0, 1e-9, 1.0])
@pytest.mark.parametrize("sde", PUBLIC_SDES, ids=name)
def test_nothing_breaks_in_the_tails_at_either_end_of_time(sde, t):
    for model in (made(sde, (2,), full=True), gaussian([1.0, -2.0], sde, std=1e-3)):
        for dtype in (torch.float32, torch.float64):
            x = torch.tensor([[0.0, 0.0], [1e8, -1e8], [1e15, 1.0]]).to(dtype)
            assert bool(model(x, t).output.isfinite().all())
            assert bool(model.score(x, t).isfinite().all())
            assert bool((model.log_prob(x, t) < 1e3).all())
