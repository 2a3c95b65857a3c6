"""What is reported covers what is wrong, in the share of samples that the documentation states."""

import math
import warnings
from dataclasses import replace

import pytest
import torch
from densities import ALL_SDES, F64, PUBLIC_SDES, mixture, name, points, signal_at_the_end, truth
from rough import Steps, rough_models, share
from torch.distributions import Normal

from sde_toolkit import (
    VESDE,
    VPSDE,
    CosineVPSDE,
    FlowMatching,
    GaussianMixture,
    Levels,
    ScoreModel,
    bits_per_dim,
    gaussian,
    grids,
    heun,
    log_likelihood,
    probability_flow,
    rk4,
    variational_bound,
)
from sde_toolkit.integrators import PerSample
from sde_toolkit.likelihood import ExactTrace, Hutchinson, Joint, Quadrature, Refined, discrete_bound

WIDE = [VESDE(sigma_max=sigma) for sigma in (3.0, 10.0)]
SMOOTH = [VPSDE(), VESDE(), FlowMatching()]


def own_prior(x, sde, t):
    """log N(x; 0, σ_t² I)."""
    return Normal(0.0, sde.sigma(torch.tensor(t, dtype=torch.float64))).log_prob(x.double()).flatten(1).sum(1)


def cost_of_the_prior(model, found):
    """|log p_T − log N(0, σ_T² I)| at the latents."""
    start = found.grid[0].item()
    return (model.log_prob(found.latent.double(), start) - own_prior(found.latent, model.sde, start)).abs()


@pytest.mark.parametrize("far", [1.0, 8.0])
@pytest.mark.parametrize("sde", [*ALL_SDES, *WIDE], ids=str)
def test_prior_cost_covers_what_the_prior_costs_each_sample(sde, far):
    """Of 95 in 100, draws of the data and points far from them; on average it is at most 2.5 times as large."""
    model = GaussianMixture([[-1.0, 3.0], [1.0, 0.5], [0.3, -1.0]], sde, std=0.5, weights=[0.4, 0.4, 0.2])
    x = far * points(model, 200)
    found = log_likelihood(model, x, nfe=40, **F64)
    true = cost_of_the_prior(model, found)
    assert share(true, found.prior_cost) >= 0.95
    assert found.prior_cost.mean() <= 2.5 * true.mean() + 1e-9
    if sde.alpha(1.0) == 0:
        assert (found.prior_cost == 0).all()
    else:
        assert true.mean() > 1e-3


@pytest.mark.parametrize(
    "how",
    [
        {"solver": probability_flow(PerSample(rtol=1e-5, atol=1e-5)), "quadrature": Joint()},
        {"solver": probability_flow(PerSample(rtol=1e-5, atol=1e-5)), "quadrature": Refined(1e-4)},
        {"solver": rk4(), "grid": grids.sech(VESDE(), 24, start=0.8, end=1e-3)},
    ],
    ids=["joint", "refined", "stopped early"],
)
def test_prior_cost_covers_by_every_way_to_solve(how):
    model = GaussianMixture([[-1.0, 3.0], [1.0, 0.5], [0.3, -1.0]], VESDE(), std=0.5, weights=[0.4, 0.4, 0.2])
    found = log_likelihood(model, points(model, 100), **how, **F64)
    true = cost_of_the_prior(model, found)
    assert share(true, found.prior_cost) >= 0.95
    assert found.prior_cost.mean() <= 2 * true.mean()


@pytest.mark.parametrize("sde", [VESDE(), VESDE(sigma_max=3.0), VPSDE()], ids=str)
def test_prior_cost_is_what_another_prior_would_gain(sde):
    """The answer with the exact prior and the answer with the SDE's own differ by it, on the very same path."""
    model = gaussian([2.0, -1.0], sde, std=0.4)
    x = points(model, 50)
    own, exact = (log_likelihood(model, x, nfe=40, prior=p, **F64) for p in (None, model.log_prob))
    assert share((own.nats - exact.nats).abs(), own.prior_cost) >= 0.95
    torch.testing.assert_close(own.prior_cost, exact.prior_cost)


WAYS = [(None, 50), (None, 100), (rk4(), 30), (heun(), 200)]
# Every path meets every way, and each of both meets near and far points.
FAR_IN_TURN = [(sde, *way, (1.0, 8.0)[(i + k) % 2]) for i, sde in enumerate(SMOOTH) for k, way in enumerate(WAYS)]


@pytest.mark.parametrize(("sde", "solver", "steps", "far"), FAR_IN_TURN, ids=name)
def test_the_numerical_error_covers_where_the_network_is_smooth(sde, solver, steps, far):
    """Of 95 in 100 samples, far outside the data too; the mean report is at most 3 · 2^p times the error."""
    model = mixture(sde)
    x = far * points(model, 100)
    how = {"quadrature": Quadrature(40), "prior": model.log_prob, "richardson": True, **F64}
    if solver is None:
        found = log_likelihood(model, x, nfe=steps, **how)
    else:
        grid = grids.sech(sde, steps, start=1.0 if signal_at_the_end(sde) else 0.999, end=1e-4)
        found = log_likelihood(model, x, solver=solver, grid=grid, **how)
    true = (found.nats - truth(model, x, found.end)).abs()
    assert share(true, found.numerical_error) >= 0.95
    assert found.solver_error.mean() <= 3 * 2**found.solver.integrator.order * true.mean()
    assert found.nfe <= 1.5 * steps * (1 if solver is None else solver.integrator.evals_per_step) + 2


@pytest.mark.parametrize("sde", [VPSDE(), VESDE(), FlowMatching()], ids=name)
def test_the_numerical_error_covers_on_rough_networks(sde):
    """Of 85 in 100 on average, and of one in three at the least: against a solve more than ten times as fine."""
    shares, x = {}, points(mixture(sde), 32)
    for kind, model in rough_models(sde).items():
        fine = log_likelihood(model, x, nfe=801, quadrature=Quadrature(300), **F64).nats
        for nfe, Q in ((50, 25), (100, 50)):
            found = log_likelihood(model, x, nfe=nfe, quadrature=Quadrature(Q), richardson=True, **F64)
            error = (found.nats - fine).abs()
            shares[kind, nfe] = share(error, found.numerical_error)
            assert error.mean() > 1e-5
    assert min(shares.values()) >= 0.33, shares
    assert sum(shares.values()) / len(shares) >= 0.85, shares


@pytest.mark.parametrize("sde", [VPSDE(), VESDE(), FlowMatching()], ids=name)
def test_far_from_the_data_the_reported_error_covers(sde):
    """Ten to a hundred standard deviations from sharp modes, where nats go by the thousand: to the data's own density.

    What is reported is the numerical error, and the truncation and the prior beside it.
    """
    model = GaussianMixture([[-1.0, 0.0], [1.0, 0.5]], sde, std=0.1, weights=[0.4, 0.6])
    direction = torch.randn(40, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = direction / direction.norm(dim=1, keepdim=True) * torch.linspace(2, 11, 40, dtype=torch.float64)[:, None]
    found = log_likelihood(model, x, richardson=True, **F64)
    off = (found.nats - truth_of(model, x)).abs()
    reported = found.numerical_error + found.truncation.abs() + found.prior_cost
    assert share(off, reported) >= 0.95
    assert off.max() > 1e-3


def truth_of(model, x):
    """log density of the data themselves, by torch.distributions."""
    weights, means = torch.tensor([0.4, 0.6]).double(), torch.tensor([[-1.0, 0.0], [1.0, 0.5]]).double()
    return truth(model, x, None, weights, means, 0.01 * torch.eye(2, dtype=torch.float64).expand(2, 2, 2))


@pytest.mark.parametrize("sde", PUBLIC_SDES, ids=name)
def test_no_warning_and_no_fine_structure_where_a_network_is_merely_rough(sde):
    """Told a rounded time, a network errs near the data as fine structure would; the advice would make it worse."""
    exact = mixture(sde)
    expected = log_likelihood(exact, points(exact, 32), **F64).finest
    for kind, model in rough_models(sde).items():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = log_likelihood(model, points(exact, 32), **F64)
        if "times" in kind:
            assert 0.5 * expected < found.finest < 2 * expected, (kind, found.finest, expected)


def test_the_advice_makes_it_better():
    """Where the warning comes, the answer is nearer with the detail that it names: told rounded times or not."""
    sde = VPSDE()
    for N in (None, 1000):
        exact = gaussian(torch.zeros(3), sde, std=0.02)
        network = exact.network if N is None else Steps(exact.network, N)
        model = ScoreModel(network, sde, "v", time_input=exact.time_input, sigma_data=1.0)
        x = points(exact, 20)
        with pytest.warns(UserWarning, match="detail="):
            plain = log_likelihood(model, x, **F64)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            better = log_likelihood(model, x, detail=plain.finest, **F64)
        fine = log_likelihood(model, x, nfe=1001, detail=0.02, quadrature=Quadrature(300), **F64).nats
        assert (better.nats - fine).abs().mean() < 0.5 * (plain.nats - fine).abs().mean(), N


@pytest.mark.parametrize("sde", [FlowMatching(), CosineVPSDE(), VPSDE()], ids=name)
def test_truncation_does_not_mistake_a_networks_error_for_the_density(sde):
    """A network that is off by a constant at the data end: what stopping adds vanishes with the end, and so does this.

    What is added is measured: the same flow, carried on to an end a hundred times nearer.
    """
    exact = mixture(sde)

    def network(x, time):
        return exact.network(x, time) + 0.05

    model = ScoreModel(network, sde, "v", time_input=exact.time_input, sigma_data=exact.sigma_data)
    x = points(exact, 32)
    sizes, how = [], {"nfe": 200, "quadrature": Quadrature(60), **F64}
    for end in (1e-3, 1e-5):
        found, nearer = (log_likelihood(model, x, end=e, **how) for e in (end, end / 100))
        added = (found.nats - nearer.nats).abs().mean()
        sizes.append(found.truncation.abs().mean())
        assert sizes[-1] < 20 * added + 1e-4
    assert sizes[1] < sizes[0] / 3


BOUNDS = [{"draws": 8}, {"draws": 33}, {"grid": 12, "draws": 16}, {"grid": 12, "repeats": 4}]


@pytest.mark.parametrize(("how", "sde"), [(how, SMOOTH[i % len(SMOOTH)]) for i, how in enumerate(BOUNDS)], ids=str)
def test_errors_of_a_bound_are_those_of_its_draws(sde, how):
    """Over draws, the squares have the mean of the variance, and two errors of a mean over samples cover 95 in 100.

    A set of samples is there 120 times: every copy has draws of its own.
    """
    model = GaussianMixture([[-1.0, 3.0], [1.0, 0.5], [0.3, -1.0]], sde, std=0.5, weights=[0.4, 0.4, 0.2])
    x = points(model, 40)
    options = dict(how)
    steps = options.pop("grid", None)
    if steps is None:
        found = variational_bound(model, x.repeat(120, 1), **options, **F64)
    else:
        grid = grids.uniform(sde, steps, end=sde.likelihood_end)
        found = discrete_bound(model, x.repeat(120, 1), grid, **options, **F64)
    nats, squares = found.nats.reshape(120, 40), found.standard_error.square().reshape(120, 40)
    assert (squares.mean() / nats.var(0).mean()).item() == pytest.approx(1.0, abs=0.15)
    off = (nats.mean(1) - nats.mean()).abs()
    assert share(off, 2 * squares.sum(1).sqrt() / len(x)) >= 0.9
    assert share(off, 1 * squares.sum(1).sqrt() / len(x)) <= 0.8


def test_errors_of_bits_are_those_of_their_draws_and_probes():
    """The spread over draws is the stated one: with an exact trace that of u alone, with probes that of both.

    A set of samples is there 40 times: every copy has draws of its own.
    """
    model = GaussianMixture([[-1.0, 3.0, 0.0], [1.0, 0.5, 0.2]], VPSDE(), std=0.3, weights=[0.4, 0.6])
    levels = Levels(33, -4.0, 4.0)
    x = levels.at(levels.index(model.draw(25, generator=torch.Generator().manual_seed(0))))
    without = math.nan
    for divergence in (ExactTrace(), Hutchinson(2)):
        whole = bits_per_dim(model, x.repeat(40, 1), levels, draws=4, nfe=20, divergence=divergence, **F64)
        parts = {name: getattr(whole, name).chunk(40) for name in ("bits", "dequantisation_error", "probe_error")}
        found = [replace(whole, **dict(zip(parts, part, strict=True))) for part in zip(*parts.values(), strict=True)]
        spread = torch.stack([b.bits for b in found]).var(0).mean().item()
        stated = torch.stack([b.dequantisation_error**2 for b in found]).mean().item()
        probes = torch.stack([b.probe_error**2 for b in found]).mean().item()
        assert stated == pytest.approx(spread, rel=0.2)
        assert probes == (0 if isinstance(divergence, ExactTrace) else pytest.approx(spread - without, rel=0.3))
        without = spread
        off = torch.tensor([b.mean for b in found])
        assert share((off - off.mean()).abs(), 2 * torch.tensor([b.error_from_dequantisation for b in found])) >= 0.85


def test_the_numerical_error_of_bits_covers_what_a_finer_solve_changes():
    model = GaussianMixture([[-1.0, 3.0], [1.0, 0.5]], VPSDE(), std=0.4, weights=[0.4, 0.6])
    levels = Levels(17, -4.0, 4.0)
    x = levels.at(levels.index(model.draw(60, generator=torch.Generator().manual_seed(0))))
    how = {"draws": 2, "divergence": ExactTrace(), **F64}
    coarse = bits_per_dim(model, x, levels, nfe=16, richardson=True, **how)
    fine = bits_per_dim(model, x, levels, nfe=400, quadrature=Quadrature(80), **how)
    assert share((coarse.bits - fine.bits).abs(), coarse.numerical_error) >= 0.9
    assert coarse.numerical_error.mean() < 100 * (coarse.bits - fine.bits).abs().mean()
    assert fine.numerical_error is None
