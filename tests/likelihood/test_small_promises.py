"""Promises of the likelihood that small changes of the code would break without being seen elsewhere."""

import math

import pytest
import torch
from densities import F64, PUBLIC_SDES, asked, mixture, name, points
from noted_blocks import NotedBlocks
from scipy.stats import kstest

from sde_toolkit import (
    VPSDE,
    Affine,
    GaussianMixture,
    Levels,
    ReverseEquation,
    ScoreModel,
    bits_per_dim,
    gaussian,
    grids,
    log_likelihood,
    probability_flow,
    variational_bound,
)
from sde_toolkit.integrators import PerSample
from sde_toolkit.likelihood import (
    ExactTrace,
    GaussianDensity,
    Hutchinson,
    HutchPlusPlus,
    Joint,
    Quadrature,
    Refined,
    denoising,
    dequantise,
    discrete_bound,
    finite_differences,
    reverse,
)
from sde_toolkit.likelihood.bits import BitsPerDim
from sde_toolkit.likelihood.joint import JointEquation
from sde_toolkit.noise.streams import Purpose, per_sample_noise


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=name)
@pytest.mark.parametrize(("size", "length"), [(1.0, 1.0), (1e3, 1.0), (1.0, 1e-3)], ids=["plain", "large x", "short v"])
def test_finite_differences_err_by_no_more_than_the_best_step_allows(dtype, size, length):
    """Of all steps h of a central difference the one that is taken is nearly the best: within a factor of 5, root mean
    square over 500 rows, where x is of any size and changes on the scale of its size, and the direction of any length.
    """
    generator = torch.Generator().manual_seed(0)
    x, v = (torch.randn(500, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    x, v = (size * x).to(dtype), (length * v / v.square().mean(1, keepdim=True).sqrt()).to(dtype)
    scale = max(1.0, size) * x.square().mean(1, keepdim=True).sqrt().clamp(min=size) / size

    def field(rows):
        return torch.sin(rows / scale + 1)

    exact = torch.cos(x.double() / scale.double() + 1) / scale.double() * v.double()

    def error(found):
        return ((found.double() - exact) * scale.double() / length).square().mean().sqrt().item()

    steps = [10.0 ** (-k / 4) / length * scale for k in range(4, 44)]
    best = min(error((field(x + h * v) - field(x - h * v)) / (2 * h)) for h in steps)
    assert error(finite_differences(field, x)[1](v[None])[0]) < 5 * best


@pytest.mark.parametrize(("event", "replicates"), [((6,), 1), ((6,), 3), ((2, 3), 2), ((5,), 3), ((), 1), ((2,), 5)])
def test_both_halves_of_a_joint_solve_weigh_the_same(event, replicates):
    """As many numbers for the log-density as for x (for the probes to share out evenly, the next multiple of theirs),
    as many for every probe, each in nats per dimension.
    """
    D, B = math.prod(event), 2

    def traces(equation, x, inputs):
        return torch.zeros_like(x), torch.arange(1.0, replicates + 1).double()[:, None].expand(-1, B) * D

    model = ScoreModel(lambda x, time: x, VPSDE(), "v")
    both = JointEquation(model, 0.0, None, event=event, replicates=replicates, traces=traces)
    z = both.start(torch.randn(B, *event, dtype=torch.float64))
    own = z.shape[1] - D
    assert D <= own < D + replicates
    assert own % replicates == 0
    t = torch.tensor(0.5, dtype=torch.float64)
    p, q = ReverseEquation(model, 0.0).drift_coefficients(t)
    drift = both.output(z, both.inputs(t))[0, D:]
    for k in range(replicates):
        rate = p + q * (k + 1)  # of nats per dimension: the trace is k + 1 for every dimension
        assert torch.isclose(drift, rate, rtol=1e-12, atol=0).sum() == own // replicates
    _, growth = both.parts(z + torch.cat([torch.zeros(D), torch.full((own,), 0.1)]))
    torch.testing.assert_close(growth, torch.full((replicates, B), 0.1 * D, dtype=torch.float64))


@pytest.mark.parametrize("rule", [Quadrature(), Quadrature(9), Refined(), Joint()], ids=str)
@pytest.mark.parametrize("sde", PUBLIC_SDES, ids=name)
def test_nodes_are_the_same_in_any_number_of_dimensions(sde, rule):
    found = []
    for event in ((), (2,), (3, 8, 8)):
        model = GaussianMixture(torch.ones(1, *event), sde, std=0.5)
        model.sigma_data = 1.0
        found.append(rule.prepare(ReverseEquation(model, 0.0), 1e-4, 0.99, 0.2).finest)
    for other in found[1:]:
        assert torch.equal(other.times, found[0].times)
        assert torch.equal(other.weights, found[0].weights)


def test_nodes_are_the_same_in_any_number_of_dimensions_through_the_whole():
    seen = []
    for D in (2, 65):
        exact = gaussian(torch.zeros(D), VPSDE(), std=1.0)
        model = asked(exact)
        how = {"divergence": Hutchinson(2, mode=reverse), "detail": 0.2, "nfe": 12, **F64}
        log_likelihood(model, torch.zeros(2, D, dtype=torch.float64), **how)
        seen.append(torch.cat([times for _, times, followed in model.network.calls[1:] if followed]).unique())
    torch.testing.assert_close(seen[0], seen[1], rtol=0, atol=0)


@pytest.mark.parametrize("errors", [[3.0, 4.0], [1.0, 2.0, 2.0], [5.0]], ids=str)
def test_independent_errors_of_samples_add_in_squares(errors):
    """(3, 4) make 5, (1, 2, 2) make 3: so much is the sum off by, and its n-th part the mean."""
    e, n = torch.tensor(errors, dtype=torch.float64), len(errors)
    of_both = {"probe_error": e, "dequantisation_error": 2 * e}
    found = BitsPerDim(bits=e, importance_weighted=e, levels=Levels(), dimension=1, runs=(), **of_both)
    assert n * found.error_from_probes == pytest.approx({2: 5.0, 3: 3.0, 1: 5.0}[n])
    assert n * found.error_from_dequantisation == pytest.approx({2: 10.0, 3: 6.0, 1: 10.0}[n])


def test_probes_of_several_draws_are_independent_of_each_other():
    """The draws' own errors add in squares to that of their sum; the probes of no two draws are the same."""
    levels = Levels(16, -3.0, 3.0)
    model = gaussian([0.5, -0.2, 0.1], VPSDE(), covariance=[[1.0, 0.4, 0.1], [0.4, 0.8, 0.2], [0.1, 0.2, 0.5]])
    x = levels.at(levels.index(points(model, 6).clamp(-3, 3)))
    divergence_ = Hutchinson(3, "gaussian", mode=reverse)
    found = bits_per_dim(model, x, levels, draws=3, divergence=divergence_, nfe=8)
    unit = 3 * math.log(2)
    of_runs = torch.stack([run.standard_error for run in found.runs]) / unit
    torch.testing.assert_close((3 * found.probe_error) ** 2, (of_runs**2).sum(0))
    spreads = torch.stack([run.replicates - run.nats for run in found.runs])
    assert (spreads[1:] - spreads[:1]).abs().amax((1, 2)).min() > 1e-3
    assert (spreads[1] - spreads[2]).abs().max() > 1e-3


@pytest.mark.parametrize("grid", [None, grids.uniform_lambda(VPSDE(), 6, end=0.02)], ids=["continuous", "discrete"])
def test_errors_of_a_bounds_terms_add_in_squares(grid):
    """A bound whose decoder is exact has the diffusion's error alone; one without a step has the decoder's alone."""
    model = mixture(VPSDE())
    x, noisy = points(model, 8), GaussianDensity(denoise=True)

    def bound(decoder, on=None, repeats=8):
        if on is None:
            return variational_bound(model, x, draws=repeats, end=0.02, decoder=decoder)
        return discrete_bound(model, x, on, repeats=repeats, decoder=decoder)

    of_diffusion, both = (bound(decoder, grid).standard_error for decoder in (GaussianDensity(), noisy))
    end = torch.tensor([0.02, 0.0], dtype=torch.float64) if grid is None else torch.stack([grid[-1], 0 * grid[-1]])
    of_decoder = bound(noisy, end).standard_error
    assert of_diffusion.min() > 1e-3
    assert of_decoder.min() > 1e-3
    torch.testing.assert_close(both**2, of_diffusion**2 + of_decoder**2)


@pytest.mark.parametrize("transform", [None, Affine(1.5, -0.4), Affine(127.5, 1 / 127.5)], ids=str)
@pytest.mark.parametrize("levels", [Levels(16, -3.0, 3.0), Levels(5, 0.0, 4.0)], ids=str)
def test_the_default_detail_of_bits_is_the_spread_of_the_noise_over_a_bin(levels, transform):
    """In model space, measured on a level's bin: it decides the grid and the nodes."""
    exact = gaussian([0.0, 0.0], VPSDE(), std=1.0)
    model = ScoreModel(exact.network, VPSDE(), "v", time_input=exact.time_input, transform=transform)
    model = model.eval()
    x = levels.at(torch.tensor([[0, 1], [2, 2]]))
    found = bits_per_dim(model, x, levels, nfe=12).runs[0]
    u = levels.edges[1] + levels.width * (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    spread = model.transform.forward(u.unsqueeze(1).expand(-1, 2)).std(0, correction=0).mean().item()
    same, other = (
        log_likelihood(model, torch.zeros(1, 2), space="model", nfe=12, detail=detail).grid
        for detail in (spread, 1.01 * spread)
    )
    torch.testing.assert_close(found.grid, same, rtol=1e-6, atol=0)
    assert not torch.allclose(found.grid, other, rtol=1e-4, atol=0) or spread > 1.0


def test_probes_are_not_the_noise_of_samples():
    sampled = per_sample_noise(5, 3, (1, 4))()
    probes = Hutchinson(1, "gaussian").directions((1, 4), 5, 3)[0]
    assert not torch.isin(sampled, probes).any()


def test_every_draw_of_a_likelihood_and_of_a_bound_has_blocks_of_its_own(monkeypatch):
    """No block is drawn twice in one call, which would give the same numbers to two things."""
    model = mixture(VPSDE())
    x, noisy, noted = points(model, 5), GaussianDensity(denoise=True), NotedBlocks(monkeypatch)
    levels = Levels(16, -3.0, 3.0)
    whole = levels.at(levels.index(x.clamp(-3, 3)))
    grid = grids.uniform_lambda(VPSDE(), 6, end=0.02)
    uses = {
        frozenset({Purpose.TIMES, Purpose.PERTURBATION, Purpose.DECODER}): [
            lambda: variational_bound(model, x, draws=4, decoder=noisy, batch_size=2),
            lambda: discrete_bound(model, x, grid, draws=4, decoder=noisy),
        ],
        frozenset({Purpose.PERTURBATION, Purpose.DECODER}): [
            lambda: discrete_bound(model, x, grid, repeats=2, decoder=noisy)
        ],
        frozenset({Purpose.DEQUANTISATION}): [lambda: dequantise(whole, levels, 3)],
        frozenset({Purpose.PROBES}): [
            lambda: log_likelihood(model, x, divergence=Hutchinson(2), nfe=6, batch_size=3),
            lambda: log_likelihood(model, x, divergence=HutchPlusPlus(1, 2), nfe=6),
        ],
        frozenset({Purpose.PROBES, Purpose.DEQUANTISATION}): [
            lambda: bits_per_dim(model, whole, levels, draws=3, divergence=Hutchinson(2), nfe=6)
        ],
        frozenset(): [lambda: log_likelihood(model, x, divergence=ExactTrace(), nfe=6)],
    }
    for purposes, calls in uses.items():
        for call in calls:
            noted.walks.clear()
            call()
            assert noted.purposes == purposes
            assert noted.shared() == []


def test_an_adaptive_joint_solve_is_driven_by_every_probe_alike():
    """Swapping the probes changes no step: each has its share of the numbers in the error's norm."""
    model = mixture(VPSDE())
    x = points(model, 4)

    class Swapped(Hutchinson):
        def directions(self, events, seed, first_index, device="cpu"):
            return super().directions(events, seed, first_index, device).flip(0)

    solver = probability_flow(PerSample(rtol=1e-4, atol=1e-4))
    plain, swapped = (
        log_likelihood(model, x, solver=solver, quadrature=Joint(), divergence=d, **F64)
        for d in (Hutchinson(2, "gaussian", mode=reverse), Swapped(2, "gaussian", mode=reverse))
    )
    torch.testing.assert_close(plain.replicates, swapped.replicates.flip(0), rtol=1e-9, atol=1e-9)
    assert torch.equal(plain.statistics.evaluations, swapped.statistics.evaluations)


@pytest.mark.parametrize("draws", [1, 2, 5, 8])
def test_stratified_draws_are_uniform_in_strata_of_two(draws):
    """Two draws to a stratum (the last one has the odd one, too), strata as wide as they have draws, uniform inside."""
    u = denoising.stratified_uniforms(3, 0, 3000, draws)
    assert u.shape == (3000, draws)
    assert u.min() > 0
    assert u.max() < 1
    strata = [2] * (draws // 2) if draws > 1 else [1]
    strata[-1] += draws % 2 if draws > 1 else 0
    first = 0
    for size in strata:
        inside = (u[:, first : first + size] * draws - first) / size
        assert kstest(inside.flatten().numpy(), "uniform").pvalue > 1e-4
        first += size
    assert first == draws
