"""The truth for classifier-free guidance: the tilted law, and what the guided field makes of Gaussians instead."""

import math

import pytest
import torch
from catalogue import doubles
from guided_gaussians import flow_variance, sde_variance, tilted_variance, two_gaussians

from sde_toolkit import VESDE, VPSDE, GaussianMixture, gaussian
from sde_toolkit.errors import ArgumentError
from sde_toolkit.models import ClassMixture

SDE = VPSDE()
SCALES = [-0.05, 0.0, 0.6, 1.0, 2.5]


def numbers(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def wide_and_narrow(D=3):
    """A class within a wider law that neither shares its mean nor its axes."""
    roots = numbers(2, D, D, seed=1) / math.sqrt(D)
    narrow = roots[0] @ roots[0].mT + 0.1 * torch.eye(D, dtype=torch.float64)
    wide = narrow + roots[1] @ roots[1].mT + 0.1 * torch.eye(D, dtype=torch.float64)
    means = numbers(2, D, seed=2)
    return ClassMixture.of(
        [gaussian(means[0], SDE, covariance=narrow)], no_class=gaussian(means[1], SDE, covariance=wide)
    )


@pytest.mark.parametrize("scale", SCALES)
def test_the_tilted_law_is_the_product_of_powers(scale):
    model, x = wide_and_narrow(), 2 * numbers(8, 3, seed=3)
    ratio = model.tilted(0, scale).log_prob(x) - model.log_tilted(x, torch.zeros(8, dtype=torch.long), scale)
    torch.testing.assert_close(ratio, ratio[:1].expand(8), rtol=1e-10, atol=1e-10)


def test_scales_of_one_and_zero_are_the_class_and_no_class():
    model, x = wide_and_narrow(), numbers(8, 3, seed=3)
    for scale, label in ((1, 0), (0, 1)):
        expected = model.of_class(label).log_prob(x, 0.1)
        torch.testing.assert_close(model.tilted(0, scale).log_prob(x, 0.1), expected, rtol=1e-10, atol=1e-10)


def test_a_tilted_mixture_weighs_points_by_their_class():
    # p(x | c)^γ p(x)^(1 − γ) ∝ p(x | c) p(c | x)^(γ − 1), with p(c | x) by Bayes' rule over all classes.
    means, label = numbers(4, 2, seed=4), torch.full((8,), 1)
    model = ClassMixture(means, SDE, std=0.6, weights=[1.0, 2.0, 3.0, 4.0], labels=[0, 1, 1, 0])
    x, shares = numbers(8, 2, seed=5), doubles(0.5, 0.5)
    joint = torch.stack([model.log_prob(x, 0.0, torch.full((8,), c)) for c in range(2)]) + shares.log()[:, None]
    of_class = torch.log_softmax(joint, dim=0)[1]
    ratio = model.log_tilted(x, label, 3.0) - model.log_prob(x, 0.0, label) - 2 * of_class
    torch.testing.assert_close(ratio, ratio[:1].expand(8), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("a", "b", "bound"), [(1.0, 2.0, -1.0), (2.0, 1.0, 2.0), (0.5, 4.0, -1 / 7)])
def test_scales_without_a_law_are_refused_and_the_bound_is_named(a, b, bound):
    model, into = two_gaussians(SDE, a, b), math.copysign(1e-3, b - a)
    law = model.tilted(0, bound + into)
    assert law.network.variances.item() == pytest.approx(tilted_variance(bound + into, a, b), rel=1e-9)
    with pytest.raises(ArgumentError, match=f"{bound:.4g}") as caught:
        model.tilted(0, bound - into)
    assert caught.value.argument == "scale"


def test_what_is_no_gaussian_is_refused():
    two = GaussianMixture(doubles(-1.0, 1.0).reshape(2, 1), SDE, std=1.0)
    point, one = gaussian([0.0], SDE, std=0.0), gaussian([0.0], SDE, std=1.0)
    for model in (
        ClassMixture.of([one, two]),
        ClassMixture.of([two], no_class=one),
        ClassMixture.of([point], no_class=one),
        ClassMixture.of([one], no_class=point),
    ):
        with pytest.raises(ArgumentError) as caught:
            model.tilted(0, 2.0)
        assert caught.value.argument == "label"
    for call in (two_gaussians(SDE).tilted, lambda label, scale: two_gaussians(SDE).log_tilted(label, label, scale)):
        with pytest.raises(ArgumentError) as caught:
            call(0, math.nan)
        assert caught.value.argument == "scale"


@pytest.mark.parametrize(("a", "b"), [(1.0, 2.0), (0.3, 1.7)])
@pytest.mark.parametrize("scale", [-0.5, 1.0, 2.0, 4.0])
def test_guided_variances_solve_the_moment_equation_of_the_field(scale, a, b):
    # dv/d log s = (1 + η²)(1 − slope) v − η² s with s = σ², the slope that of the guided x̂_0 of the exact model.
    # The classical Runge-Kutta method, from σ = 1e4 down to 1e-4; the slopes at all its nodes by one call.
    model, steps = two_gaussians(VESDE(sigma_min=1e-4, sigma_max=1e4), a, b), 2000
    t = torch.linspace(1, 0, 2 * steps + 1, dtype=torch.float64)
    label, one = torch.zeros(2 * steps + 1, dtype=torch.long), torch.ones(2 * steps + 1, 1, dtype=torch.float64)
    given, free = (model(one, t, c).x_0[:, 0] for c in (label, label + 1))
    slopes, s = (free + scale * (given - free)).tolist(), (1e-8 * 1e16**t).tolist()
    h = math.log(s[2] / s[0])

    def change(v, i, eta):
        return h * ((1 + eta**2) * (1 - slopes[i]) * v - eta**2 * s[i])

    for eta, expected in ((0, flow_variance(scale, a, b)), (1, sde_variance(scale, a, b))):
        v = s[0]
        for i in range(0, 2 * steps, 2):
            first = change(v, i, eta)
            second = change(v + first / 2, i + 1, eta)
            third = change(v + second / 2, i + 1, eta)
            v += (first + 2 * second + 2 * third + change(v + third, i + 2, eta)) / 6
        assert v == pytest.approx(expected, rel=1e-5)
    if scale == 1:
        assert flow_variance(scale, a, b) == pytest.approx(a) == sde_variance(scale, a, b)
