"""Schedules under torch.func: mapped over times, they give the numbers of the batch; differentiated, their slopes."""

import pytest
import torch
from catalogue import SDES, Flow, doubles, kinds_of, name
from torch.func import grad, jacrev, jvp, vmap

from sde_toolkit import VPSDE, GaussianMixture, LogSNRSDE, ReverseEquation, ScoreModel, gaussian, reschedule
from sde_toolkit.models import time_inputs

SCHEDULES = ("alpha", "log_alpha", "sigma", "f", "g", "d_alpha", "d_sigma", "half_log_snr", "diffusion")
T = doubles(0.05, 0.3, 0.5, 0.77, 0.9)
X = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
every_sde = pytest.mark.parametrize("sde", [*SDES, Flow()], ids=name)


def same(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@every_sde
def test_schedules_are_mapped_over_times(sde):
    for schedule in map(sde.__getattribute__, SCHEDULES):
        same(vmap(schedule)(T), schedule(T))
        same(vmap(vmap(schedule))(T.reshape(5, 1)), schedule(T).reshape(5, 1))
        same(vmap(schedule)(T.reshape(1, 5).repeat(2, 1)), schedule(T).repeat(2, 1))
    lambdas = sde.half_log_snr(T)
    same(vmap(sde.inverse_half_log_snr)(lambdas), T)


@every_sde
def test_slopes_of_schedules_by_every_transform(sde):
    for schedule, slope in ((sde.alpha, sde.d_alpha), (sde.sigma, sde.d_sigma), (sde.log_alpha, sde.f)):
        expected = slope(T)
        same(vmap(grad(schedule))(T), expected)
        same(torch.diagonal(jacrev(schedule)(T)), expected)
        same(jvp(schedule, (T,), (torch.ones_like(T),))[1], expected)
        same(torch.stack([grad(schedule)(t) for t in T]), expected)
    slope = vmap(grad(sde.half_log_snr))(T)
    found = vmap(grad(sde.inverse_half_log_snr))(sde.half_log_snr(T))
    torch.testing.assert_close(found, 1 / slope, rtol=1e-8, atol=0)
    lambdas = sde.half_log_snr(T).requires_grad_()
    found = torch.autograd.grad(sde.inverse_half_log_snr(lambdas).sum(), lambdas)[0]
    torch.testing.assert_close(found, 1 / slope, rtol=1e-8, atol=0)


@every_sde
def test_data_are_perturbed_one_by_one(sde):
    z = X.flip(0)

    def drift(x, t):
        return sde.drift(x[None], t)[0]

    def perturbed(x, t, noise):
        return sde.perturb(x[None], t, noise[None])[0]

    def log_p(x, t):
        return sde.prior_logp(x[None], t)[0]

    same(vmap(drift)(X, T), sde.drift(X, T))
    same(vmap(perturbed)(X, T, z), sde.perturb(X, T, z))
    same(vmap(log_p)(X, T), sde.prior_logp(X, T))


def network(x, time):
    return torch.tanh(x * torch.cos(time).unsqueeze(-1) + time.unsqueeze(-1) / 7)


def models(sde):
    """All parameterisations, all time inputs, wrapped and exact ones."""
    for kind in kinds_of(sde):
        yield ScoreModel(network, sde, kind)
    for told in (time_inputs.DiscreteIndex(10), time_inputs.NoiseLevel(), time_inputs.ScaledTime(9.0)):
        yield ScoreModel(network, sde, kinds_of(sde)[0], time_input=told)
    yield gaussian([0.3, -0.1], sde, std=0.5)
    yield gaussian([0.3, -0.1], sde, std=0.0)
    yield GaussianMixture([[0.3, -0.1], [1.0, 1.0]], sde, std=0.5)
    yield reschedule(gaussian([0.3, -0.1], Wide(), std=0.5), sde)


class Wide(LogSNRSDE):
    """A path that reaches every λ of the others at the times above."""

    def __init__(self):
        super().__init__(lambda t: 8 - 17 * t)


@every_sde
def test_scores_are_mapped_over_samples_and_times(sde):
    for model in models(sde):

        def score(x, t, model=model):
            return model.score(x[None], t)[0]

        def drift(x, t, model=model):
            return ReverseEquation(model, 0.0).drift(x[None], t)[0]

        same(vmap(score)(X, T), model.score(X, T))
        if isinstance(model, GaussianMixture):
            same(vmap(lambda x, t, model=model: model.log_prob(x[None], t)[0])(X, T), model.log_prob(X, T))
        same(vmap(drift)(X, T), ReverseEquation(model, 0.0).drift(X, T))


@every_sde
def test_the_slope_of_a_score_in_time(sde):
    """Of every sample its own, against central differences."""
    for model in (ScoreModel(network, sde, "x0"), gaussian([0.3, -0.1], sde, std=0.5)):

        def score(x, t, model=model):
            return model.score(x[None], t)[0]

        h = 1e-5
        if hasattr(sde, "betas"):
            continue  # it has kinks
        expected = (model.score(X, T + h) - model.score(X, T - h)) / (2 * h)
        found = vmap(jacrev(score, argnums=1))(X, T)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_times_outside_are_still_refused_where_they_can_be_seen():
    with pytest.raises(ValueError, match=r"t=1\.5"):
        grad(lambda t: VPSDE().alpha(t))(torch.tensor(1.5))
