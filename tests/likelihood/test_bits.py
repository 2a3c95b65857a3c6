"""Bits per dimension against probabilities that are known: Gaussians integrated over the bins of their levels."""

import math

import pytest
import torch
from torch.distributions import Normal

from sde_toolkit import VPSDE, Affine, GaussianMixture, Levels, bits_per_dim
from sde_toolkit.errors import ArgumentError, DataError
from sde_toolkit.likelihood import ExactTrace, Hutchinson, Quadrature, dequantise

LEVELS = Levels(16, 0.0, 15.0)
FINE = {"nfe": 60, "dtype": torch.float64, "end": 1e-6}


def normal_on_levels(std, transform=None, dimension=3):
    """Data N(7.5, std²) in data space, as a model behind ``transform``."""
    transform = transform or Affine(7.5, 1 / 5)
    mean = transform.forward(torch.full((1, dimension), 7.5, dtype=torch.float64))
    spread = std * torch.tensor(transform.scale, dtype=torch.float64).abs().expand(dimension)
    model = GaussianMixture(mean, VPSDE(), covariances=torch.diag(spread**2).unsqueeze(0))
    model.transform = transform
    return model


def exact_bits(x, std):
    """−log₂ of the mass in the bins, per dimension."""
    normal = Normal(7.5, std)
    mass = normal.cdf(x.double() + 0.5) - normal.cdf(x.double() - 0.5)
    return -mass.log2().mean(1)


def integers(n=40, seed=0):
    return torch.randint(3, 13, (n, 3), generator=torch.Generator().manual_seed(seed))


def test_where_the_density_is_flat_over_a_bin_bits_are_minus_log2_of_density_times_width():
    x = integers()
    model = normal_on_levels(40.0)
    found = bits_per_dim(model, x, LEVELS, prior=model.log_prob, **FINE)
    torch.testing.assert_close(found.bits, exact_bits(x, 40.0), atol=3e-3, rtol=0)


def test_uniform_dequantisation_is_an_upper_bound_and_many_draws_close_it():
    x, std = integers(60), 0.8
    model = normal_on_levels(std)
    found = bits_per_dim(model, x, LEVELS, draws=64, prior=model.log_prob, **FINE)
    truth = exact_bits(x, std)
    assert (found.bits - truth > 0).all(), "Jensen's gap is positive for every sample"
    assert (found.importance_weighted <= found.bits).all()
    gap = (found.importance_weighted - truth).mean()
    assert gap.abs() < 0.1 * (found.bits - truth).mean()


@pytest.mark.parametrize("scale", [0.08, 0.3, -0.5, [0.1, -0.3, 0.2]])
def test_bits_do_not_depend_on_the_transform(scale):
    x, std = integers(), 2.0
    options = {"end": 0.0, "nfe": 160, "quadrature": Quadrature(60), "dtype": torch.float64, "draws": 2}
    bits = []
    for transform in (Affine(7.5, 1 / 5), Affine(3.0, scale)):
        model = normal_on_levels(std, transform)
        bits.append(bits_per_dim(model, x, LEVELS, prior=model.log_prob, **options).bits)
    torch.testing.assert_close(*bits, atol=1e-5, rtol=0)


def test_the_default_detail_is_that_of_the_column_with_the_finest_levels():
    """In model space a level is |scale| wide, and the noise of its bin has the standard deviation of a uniform one."""
    scales = [0.4, -0.02, 0.1]
    model = normal_on_levels(2.0, Affine(7.5, scales))
    by_itself, finest, widest = (
        bits_per_dim(model, integers(4), LEVELS, nfe=20, **options).bits
        for options in ({}, *({"detail": 0.02 * scale / math.sqrt(12)} for scale in (1, 20)))
    )
    assert torch.equal(by_itself, finest)
    assert not torch.equal(by_itself, widest)


def test_bits_do_not_depend_on_the_units_of_the_levels():
    x, std = integers(), 2.0
    whole = bits_per_dim(normal_on_levels(std), x, LEVELS, **FINE)
    model = normal_on_levels(std)
    model.transform = Affine(7.5 / 15, 15 / 5)  # the same model space, data in [0, 1]
    unit = bits_per_dim(model, x.double() / 15, Levels(16, 0.0, 1.0), **FINE)
    torch.testing.assert_close(unit.bits, whole.bits, atol=1e-9, rtol=0)


def test_the_three_errors_are_told_apart():
    model = normal_on_levels(2.0)
    exact = bits_per_dim(model, integers(), LEVELS, draws=4, divergence=ExactTrace())
    assert exact.error_from_probes == 0.0
    assert exact.error_from_dequantisation > 0 < exact.error_from_data
    once = bits_per_dim(model, integers(), LEVELS, divergence=Hutchinson(1))
    assert math.isnan(once.error_from_probes)
    assert math.isnan(once.error_from_dequantisation)


def test_the_dequantisation_error_covers_the_spread_of_the_mean():
    model, x = normal_on_levels(0.8), integers(20)
    runs = [bits_per_dim(model, x, LEVELS, draws=4, seed=s, nfe=30) for s in range(30)]
    means = torch.tensor([run.mean for run in runs])
    claimed = torch.tensor([run.error_from_dequantisation for run in runs]).mean()
    assert 0.6 < means.std() / claimed < 1.6


def test_the_probe_error_covers_the_spread_over_probes_also_with_several_draws():
    g = torch.Generator().manual_seed(0)
    mixing = torch.randn(24, 24, generator=g, dtype=torch.float64) / 5
    model = GaussianMixture(torch.zeros(1, 24), VPSDE(), covariances=(mixing @ mixing.T + torch.eye(24)).unsqueeze(0))
    levels = Levels(5, -4.0, 4.0)
    x = levels.at(torch.randint(0, 5, (10, 24), generator=g))
    kwargs = {"divergence": Hutchinson(4), "draws": 3, "nfe": 20}
    exact = bits_per_dim(
        model, x, levels, draws=3, nfe=20, generator=torch.Generator().manual_seed(5), divergence=ExactTrace()
    )
    runs = [
        bits_per_dim(model, x, levels, generator=torch.Generator().manual_seed(5), seed=s, **kwargs) for s in range(40)
    ]
    errors = torch.tensor([run.mean - exact.mean for run in runs])
    claimed = torch.tensor([run.error_from_probes for run in runs]).square().mean().sqrt()
    assert 0.7 < errors.square().mean().sqrt() / claimed < 1.4


def test_noise_is_uniform_over_the_bins_and_belongs_to_the_sample():
    x = integers(500)
    (noisy,) = dequantise(x, LEVELS)
    u = noisy - x
    assert u.abs().max() <= 0.5
    assert abs(u.mean()) < 0.03
    assert abs(u.var() - 1 / 12) < 0.01
    (later,) = dequantise(x[200:], LEVELS, first_index=200)
    assert torch.equal(later, noisy[200:])
    a, b = dequantise(x, LEVELS, 2)
    assert not torch.equal(a, b)


@pytest.mark.parametrize(
    ("x", "levels", "options", "named"),
    [
        (torch.tensor([[3, 300, 4]]), LEVELS, {}, "300"),
        (torch.tensor([[3.0, 3.5, 4.0]]), LEVELS, {}, "3.5"),
        (torch.tensor([[3.0, math.nan, 4.0]]), LEVELS, {}, "nan"),
        (torch.zeros(0, 3), LEVELS, {}, "n >= 1"),
        (torch.zeros(2, 4), LEVELS, {}, "event"),
        (torch.zeros(2, 3), 256, {}, "Levels"),
        (torch.zeros(2, 3), LEVELS, {"draws": 0}, "draws=0"),
        (torch.zeros(2, 3), LEVELS, {"space": "data"}, "space"),
        (torch.zeros(2, 3), LEVELS, {"seed": -1}, "seed"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_evaluation(x, levels, options, named):
    model = normal_on_levels(1.0)
    model.network.forward = None  # any evaluation would be a TypeError
    with pytest.raises((ArgumentError, DataError), match=named):
        bits_per_dim(model, x, levels, **options)
