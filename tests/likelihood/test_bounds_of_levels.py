"""Laws of the bounds on the probability of integers, and of their decoders."""

import math
from dataclasses import dataclass

import pytest
import torch
from bound_truths import F64, NODES, SDES, WEIGHTS, agree, copies, doubles, pooled
from torch.distributions import Normal, kl_divergence

from sde_toolkit import VESDE, VPSDE, Affine, FlowMatching, GaussianMixture, ScoreModel, gaussian, grids
from sde_toolkit.integrators import forward_variance
from sde_toolkit.likelihood.bounds import discrete_bound, variational_bound
from sde_toolkit.likelihood.decoders import IntegratedBins, LevelMap, NormalisedLevels
from sde_toolkit.likelihood.levels import Levels
from sde_toolkit.likelihood.proposals import Sigmoid


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


TRANSFORMS = [Affine(1.0, 0.5), Affine(0.5, -0.2), Affine(-1.0, 3.0)]


@pytest.mark.parametrize(
    ("sde", "transform"),
    [(sde, TRANSFORMS[i % 3]) for i, sde in enumerate([VPSDE(), *SDES[:1], FlowMatching(), VESDE(0.002, 50.0)])],
    ids=str,
)
def test_the_bound_on_integers_is_their_log_probability_whatever_the_transform(sde, transform):
    """For an exact score nothing is lost but what N(0, σ_1²) costs; no dequantisation, no constant for the range."""
    model = integers(sde, transform)
    x, back = copies(LEVELS.values.tolist(), 150)
    width = abs(transform.scale)
    end = sde.inverse_half_log_snr(doubles(math.log(8 / width))).item()  # 4 standard deviations to the bin's edge
    options = {"levels": LEVELS, "end": end, **F64}
    for decoder in (None, IntegratedBins(), IntegratedBins(denoise=False)):
        bound = variational_bound(model, x, draws=60, decoder=decoder, **options)
        value, error = pooled(bound, back)
        assert bool((error < 0.07).all()), error
        assert bool(((value - LOG_P).abs() < 4.5 * error + 6e-3).all()), (value - LOG_P, error)
    assert torch.allclose(bound.bits_per_dim, -bound.nats / math.log(2))
    stored = variational_bound(model, x[:160].to(torch.int64), draws=60, decoder=decoder, **options)  # of two levels
    assert torch.equal(stored.nats, bound.nats[:160])


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


def test_levels_of_columns_with_scales_of_their_own_are_independent_columns():
    """Two columns of integers with their own scales: log P is the sum of what each has."""
    scales, sde = [0.5, -0.2], VPSDE()
    x = torch.cartesian_prod(LEVELS.values, LEVELS.values)
    both = GaussianMixture(
        Affine([1.0, 1.0], scales).forward(x), sde, std=0.0, weights=(LOG_P.unsqueeze(1) + LOG_P).exp().flatten()
    )
    both.transform = Affine([1.0, 1.0], scales)
    options = {"levels": LEVELS, "end": sde.inverse_half_log_snr(doubles(math.log(8 / 0.2))).item(), **F64}
    rows, back = copies(list(range(25)), 12)
    together = variational_bound(both, x[rows[:, 0].long()], draws=300, **options)
    value, error = pooled(together, back)
    assert bool(((value - (LOG_P.unsqueeze(1) + LOG_P).flatten()).abs() < 4.5 * error + 2e-2).all())
    assert LevelMap(LEVELS, both.transform).spacing(x[:1]) == pytest.approx(0.2)  # the least of them


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


def test_bins_on_either_side_of_the_center_are_as_exact():
    """Level k seen from a center is level 255 − k seen from the mirrored center, hundreds of deviations away, too."""
    level_map = LevelMap(Levels(), Affine(127.5, 1 / 127.5))
    index = torch.arange(256)[:, None]
    for std in (0.3, 0.02, 0.004):
        for center in (-0.9, 0.0, 0.4, 1.0):
            one, two = (
                IntegratedBins().log_prob(places, torch.full((256, 1), c).double(), std, 2 / 255, level_map)
                for places, c in ((index, center), (255 - index, -center))
            )
            assert one.isfinite().all()
            torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12)


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
