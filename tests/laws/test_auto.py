"""``auto`` fits every SDE and every budget, costs what it says, and beats the solvers of the same cost."""

import functools
import math

import pytest
import torch
from catalogue import SDES, covering, doubles, name, relative_error
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sde_toolkit import (
    EDMSDE,
    VESDE,
    VPSDE,
    CosineVPSDE,
    FlowMatching,
    GaussianMixture,
    ScoreModel,
    Solver,
    auto,
    ddim,
    ddpm,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_3m_sde,
    gaussian,
    grids,
    probability_flow,
    sample,
    unipc,
)
from sde_toolkit.errors import ArgumentError
from sde_toolkit.integrators import (
    Corrected,
    Euler,
    FrozenNoise,
    FrozenX0,
    Landing,
    Multistep,
    NoiseToSignal,
    Time,
    TorchDiffEq,
)
from sde_toolkit.sampling import bending

every_sde = pytest.mark.parametrize("sde", SDES, ids=name)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@functools.cache
def mixture(sde, dimensions=2):
    means = doubles(-1.0, 0.5, 1.5, 1.0, 0.0, -2.0).reshape(3, 2)
    means = nn.functional.pad(means, (0, dimensions - 2))
    return GaussianMixture(means, sde, std=doubles(0.3, 0.6, 0.2), weights=doubles(1.0, 2.0, 1.0))


@every_sde
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("nfe", [2, 3, 7, 20, 64])
def test_every_sde_at_every_budget_for_the_promised_cost(sde, eta, nfe):
    plan = auto(mixture(sde), nfe, eta)
    assert (plan.measuring > 0) == (eta == 0)
    done = sample(mixture(sde), plan.solver, plan.grid, shape=(16, 2), tweedie=plan.tweedie)
    assert done.nfe == plan.nfe == nfe
    assert bool(done.x.isfinite().all())


@functools.cache
def starts_and_ends_of_the_flow(sde):
    """128 draws of the prior and where the flow takes them, for both budgets."""
    x = sde.sigma(1.0) * torch.randn(128, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    last = 0.0 if sde.sigma(0.0) > 0 else 1e-5
    exact = probability_flow(TorchDiffEq(rtol=1e-5, atol=1e-5, max_nfe=100_000))
    begin = 1.0 if sde.alpha(1.0) > 0 else 1 - 1e-6  # the flow barely moves x where there is no signal at all
    return x, sample(mixture(sde), exact, doubles(begin, last), x_start=x, tweedie=True, dtype=torch.float64).x


@every_sde
@pytest.mark.parametrize("nfe", [10, 20])
def test_it_is_closer_to_the_flow_than_the_usual_solvers(sde, nfe):
    model, (x, expected) = mixture(sde), starts_and_ends_of_the_flow(sde)

    def error(solver, grid, tweedie):
        x_0 = sample(model, solver, grid, x_start=x, tweedie=tweedie, dtype=torch.float64).x
        return (x_0 - expected).norm().item()

    plan = auto(model, nfe)
    others = [error(solver, grids.uniform(sde, nfe - 1), True) for solver in (ddim(), dpmpp_2m(), unipc())]
    assert error(plan.solver, plan.grid, plan.tweedie) < min(others)


@pytest.mark.parametrize("sde", SDES[:3], ids=name)
def test_twice_the_budget_is_better(sde):
    """Between two rows of the table the method changes: an unlucky boundary would show here."""
    model = mixture(sde)
    x = sde.sigma(1.0) * torch.randn(128, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def end(nfe):
        plan = auto(model, nfe)
        return sample(model, plan.solver, plan.grid, x_start=x, tweedie=plan.tweedie, dtype=torch.float64).x

    expected = end(400)
    errors = {nfe: relative_error(end(nfe), expected) for nfe in {*range(4, 41), *range(8, 82, 2)}}
    assert all(errors[2 * nfe] < errors[nfe] for nfe in range(4, 41))


FEW = [VPSDE(), VESDE(), CosineVPSDE(), FlowMatching(), EDMSDE()]


@pytest.mark.parametrize("sde", FEW, ids=name)
def test_a_budget_is_never_exceeded_and_more_is_never_less(sde):
    spent = [auto(mixture(sde), nfe, 1.0).nfe for nfe in range(2, 60)]
    assert all(cost <= nfe for nfe, cost in enumerate(spent, start=2))
    assert spent == sorted(spent)


in_few_and_in_more_dimensions = pytest.mark.parametrize(("sde", "setting"), covering(FEW, [(25, 2), (50, 5)]), ids=name)


@in_few_and_in_more_dimensions
def test_gaussian_data_keep_their_spread_on_the_sde(sde, setting):
    """Of unit variance and of a tenth of it, though the table was chosen on mixtures: to a twentieth."""
    (nfe, dimensions), n = setting, 20_000
    means, stds = doubles(1.0, -0.5, 0.0, 2.0, 0.0)[:dimensions], doubles(1.0, 0.3, 0.5, 0.3, 1.0)[:dimensions]
    model = gaussian(means, sde, std=stds)
    plan = auto(model, nfe, 1.0)
    x = sample(model, plan.solver, plan.grid, tweedie=plan.tweedie, shape=(n, dimensions), generator=seeded(1)).x
    x, noise = x.double(), (2 / n) ** 0.5
    assert torch.allclose(x.std(0) / stds, torch.ones_like(stds), atol=0.05 + 3 * noise)
    assert torch.allclose(x.mean(0), means, atol=0.02 + 4 / n**0.5)


@in_few_and_in_more_dimensions
def test_its_samples_are_as_close_to_the_data_as_those_of_the_usual_stochastic_solvers(sde, setting):
    """By Wasserstein distances of projections: as close as the best of three solvers on two grids, or as exact samples,
    but for chance."""
    nfe, dimensions = setting
    n, model = 20_000, mixture(sde, dimensions)
    lines = nn.functional.normalize(torch.randn(dimensions, 8, generator=seeded(5), dtype=torch.float64), dim=0)
    exact = (model.draw(n, generator=seeded(2)).double() @ lines).sort(0).values

    def to_exact(x):
        gaps = (x.double() @ lines).sort(0).values - exact
        return gaps.square().mean().sqrt().item()

    def distance(solver, grid, tweedie):
        return to_exact(sample(model, solver, grid, tweedie=tweedie, shape=(n, dimensions), generator=seeded(3)).x)

    last = sde.inverse_half_log_snr(4.0).item()
    first = 1.0 if sde.alpha(1.0) > 0 else sde.inverse_half_log_snr(-5.0).item()
    usual = [
        grids.uniform(sde, nfe - 1, start=first, end=last),
        grids.uniform_lambda(sde, nfe - 1, start=first, end=last),
    ]
    others = [distance(solver, grid, True) for solver in (ddpm(), dpmpp_2m_sde(), dpmpp_3m_sde()) for grid in usual]
    plan = auto(model, nfe, 1.0)
    floor = to_exact(model.draw(n, generator=seeded(4)))
    assert distance(plan.solver, plan.grid, plan.tweedie) < max(1.2 * min(others), 2 * floor)


@pytest.mark.parametrize("nfe", [5, 20])
def test_by_name_it_is_the_plan(nfe):
    model, plan = mixture(SDES[0]), auto(mixture(SDES[0]), nfe)
    named = sample(model, "auto", nfe=nfe, shape=(8, 2), seed=3)
    assert torch.equal(named.x, sample(model, plan.solver, plan.grid, tweedie=plan.tweedie, shape=(8, 2), seed=3).x)
    assert named.nfe == nfe
    for wrong in ({}, {"nfe": nfe, "grid": plan.grid}, {"nfe": nfe, "tweedie": True}):
        with pytest.raises(ArgumentError):
            sample(model, "auto", shape=(8, 2), **wrong)
    for wrong in ({"solver": ddim()}, {"solver": ddim(), "grid": plan.grid, "nfe": nfe}, {"solver": "best", "nfe": 5}):
        with pytest.raises(ArgumentError):
            sample(model, shape=(8, 2), **wrong)


def squashing(unit, sigma_data, sde=EDMSDE):
    """A smooth network whose data have the size of ``unit``."""
    path = sde(0.002 * unit, 80.0 * unit)
    return ScoreModel(lambda x, t: unit * torch.tanh(x / unit), path, "x0", sigma_data=sigma_data, event_shape=(2,))


@settings(max_examples=10, deadline=None)
@given(st.floats(-3, 3), st.sampled_from([EDMSDE, VESDE]), st.sampled_from([0.5, 1.0, 7.0]), st.integers(1, 60))
def test_data_and_noise_in_another_unit_get_the_same_plan(power, sde, told, nfe):
    """Also where ``sigma_data`` is not the size of the data, as long as it has their unit."""
    unit = 10.0**power
    small, large = (auto(squashing(u, told * u, sde), nfe) for u in (1.0, unit))
    assert torch.allclose(small.grid, large.grid, rtol=1e-3, atol=1e-9)
    assert (small.tweedie, small.measuring) == (large.tweedie, large.measuring)
    assert small.nfe == nfe
    assert (small.measuring > 0) == (nfe > 1)


def test_a_wrong_size_of_the_data_is_found_out():
    """Told that the data have size 1 when they have 0.06 or 16, it errs little more than told the truth."""
    for unit in (0.0625, 16.0):
        x = 80.0 * unit * torch.randn(64, 2, generator=seeded(1), dtype=torch.float64)
        fine = sample(squashing(unit, unit), "auto", nfe=300, x_start=x).x
        told, not_told = (
            (sample(squashing(unit, size), "auto", nfe=12, x_start=x).x - fine).norm() for size in (unit, 1.0)
        )
        assert not_told < 1.5 * told


class Scaled(nn.Module):
    """tanh(a x), or tanh(a c x) for a condition c of one number per sample."""

    def __init__(self):
        super().__init__()
        self.calls, self.rows, self.a = 0, 0, nn.Parameter(torch.ones(()))

    def forward(self, x, t, condition=None):
        self.calls, self.rows = self.calls + 1, self.rows + len(x)
        return torch.tanh(self.a * (x if condition is None else condition[:, None] * x))


def test_a_model_is_measured_once_and_again_when_its_weights_change():
    network = Scaled()
    model = ScoreModel(network, EDMSDE(), "x0", event_shape=(2,))
    state = torch.get_rng_state()
    first = auto(model, 10)
    spent = network.calls
    assert first.measuring == network.rows > 0
    assert torch.equal(auto(model, 10).grid, first.grid)
    sample(model, "auto", nfe=7, shape=(3, 2), seed=9)
    assert network.calls == spent + 7
    network.a.data.copy_(torch.tensor(3.0))  # as averages of weights are swapped in: torch counts no change
    assert not torch.equal(auto(model, 10).grid, first.grid)
    assert network.calls > spent + 7
    assert torch.equal(torch.get_rng_state(), state)


def test_it_is_measured_once_for_each_condition_and_runs_are_measured_without():
    network = Scaled()
    model = ScoreModel(network, EDMSDE(), "x0", event_shape=(2,))
    weak, strong = (auto(model, 10, condition=torch.full((3,), c)) for c in (0.5, 4.0))
    assert not torch.equal(weak.grid, strong.grid)
    spent = network.calls
    assert torch.equal(auto(model, 10, condition=torch.full((7,), 0.5)).grid, weak.grid)
    assert network.calls == spent
    same = [sample(model, "auto", nfe=7, shape=(4, 2), condition=doubles(1, c, c, c).float()).x[0] for c in (0.1, 5.0)]
    assert torch.equal(*same)


@pytest.mark.parametrize("size", [3.0, 1 / 3])
def test_errors_grow_as_the_flow_stretches(size):
    """Linear flow: N(0, (σ² + s²) I) becomes N(0, s² I), in units of √(σ² + 1). Where it shrinks, they count once."""
    sde = EDMSDE()
    model = ScoreModel(
        lambda x, sigma: x * size**2 / (size**2 + sigma[:, None] ** 2),
        sde,
        "x0",
        time_input=lambda sde, t: sde.sigma(t),
        event_shape=(2,),
    )
    pilot = bending._solve_pilot(model, (2,), None, torch.float64, 1.0)
    squares = sde.sigma(pilot.times) ** 2
    stretched = ((squares + size**2) / (squares + 1)).sqrt()
    expected = (stretched[-1] / stretched).clamp(min=1.0)
    assert torch.allclose(pilot._growth(torch.stack(pilot.states)), expected, rtol=0.05)
    assert (expected.max() > 2) == (size > 1)


def test_a_model_that_needs_a_condition_or_a_shape_is_not_measured_without():
    def network(x, t, condition):
        return condition[:, None] * torch.tanh(x)

    needy = ScoreModel(network, EDMSDE(), "x0", event_shape=(2,))
    done = sample(needy, "auto", nfe=6, shape=(4, 2), condition=torch.ones(4))
    assert done.nfe == 6
    assert auto(needy, 6, measure=False).measuring == 0 < auto(needy, 6, condition=torch.ones(1)).measuring
    shapeless = ScoreModel(lambda x, t: torch.tanh(x), EDMSDE(), "x0")
    assert auto(shapeless, 6).measuring == 0 < auto(shapeless, 6, event_shape=(2,)).measuring
    assert auto(mixture(FEW[0]), 6, measure=False).measuring == 0


def test_what_a_network_raises_is_seen():
    def network(x, t, condition=None):
        raise LookupError("the user's own")

    model = ScoreModel(network, EDMSDE(), "x0", event_shape=(2,))
    for ask in (
        lambda: auto(model, 6),
        lambda: sample(model, "auto", nfe=6, shape=(4, 2)),
        lambda: sample(model, "auto", nfe=6, shape=(4, 2), condition=torch.ones(4)),
    ):
        with pytest.raises(LookupError, match="the user's own"):
            ask()


@pytest.mark.parametrize("sde", FEW, ids=name)
def test_the_plan_stays_where_the_model_is_known(sde):
    for model, last in ((mixture(sde), sde.likelihood_end), (ScoreModel(torch.tanh, sde, "x0"), sde.sampling_end)):
        for nfe in (2, 9, 100):
            plan = auto(model, nfe, measure=False)
            evaluated = plan.grid if plan.tweedie else plan.grid[:-1]
            assert len(evaluated) == nfe
            assert plan.grid[0] == 1
            assert evaluated[-1] >= last


KEPT_OUT = {  # modes ~ N(0, spread² I): dimension, modes, standard deviation, seed, spread
    "EDM": (2, 10, 0.05, 2, 1.5, EDMSDE()),
    "FM": (8, 10, 0.2, 3, 1.0, FlowMatching()),
    "VE": (32, 8, 0.15, 23, 1.0, VESDE(0.005, 100.0)),
}


@pytest.mark.parametrize("which", KEPT_OUT)
def test_on_mixtures_that_were_kept_out_it_is_no_worse_than_plain_choices(which):
    """Over three budgets together, at 1.3 times the error of the best of eight plain configurations."""
    dimension, modes, std, seed, spread, sde = KEPT_OUT[which]
    model = GaussianMixture(spread * torch.randn(modes, dimension, generator=seeded(seed)), sde, std=std)
    x = sde.sigma(1.0) * torch.randn(64, dimension, generator=seeded(7), dtype=torch.float64)
    start = 1.0 if sde.alpha(1.0) > 0 else sde.inverse_half_log_snr(-5.0).item()
    end = max(sde.inverse_half_log_snr(4.0).item(), 1e-5)

    def run(solver, grid, tweedie):
        return sample(model, solver, grid, x_start=x, tweedie=tweedie, dtype=torch.float64).x

    def planned(nfe):
        plan = auto(model, nfe)
        return run(plan.solver, plan.grid, plan.tweedie)

    fine, budgets = planned(200), (7, 13, 25)
    ours = math.prod((planned(nfe) - fine).norm().item() for nfe in budgets)
    adams = Solver("eab", 0.0, Multistep(2, FrozenNoise(), NoiseToSignal()))
    for solver in (ddim(), dpmpp_2m(), unipc(), adams):
        for build in (grids.karras, grids.uniform_lambda):
            ends = [run(solver, build(sde, nfe - 1, start=start, end=end), True) for nfe in budgets]
            assert ours < 1.3**3 * math.prod((x_0 - fine).norm().item() for x_0 in ends)


def test_landing_ends_as_on_a_path_without_noise_at_the_data():
    """A grid of the same σ/α that ends at σ = 0: the steps depend on nothing else."""
    levels = [20.0, 5.0, 2.0, 1.0, 0.6, 0.4]
    noisy, clean = VESDE(0.3, 20.0), FlowMatching()
    x = 20.0 * doubles(1.0, -0.4, 0.2, 0.7).view(2, 2)
    steep = torch.cat([grids.from_sigmas(noisy, levels), doubles(0.0)])
    plain = grids.from_sigmas(clean, [*levels, 0.0])
    for method in (Multistep(2, FrozenNoise(), NoiseToSignal()), Corrected(Multistep(3, FrozenX0()))):
        landed = sample(mixture(noisy), Solver("", 0.0, Landing(method)), steep, x_start=x).x
        expected = sample(mixture(clean), Solver("", 0.0, method), plain, x_start=clean.alpha(plain[0]) * x).x
        assert torch.allclose(landed, expected, atol=1e-9)
    for wrong in (Euler(), Multistep(2, FrozenNoise(), Time())):
        with pytest.raises(ArgumentError, match="integrator"):
            Landing(wrong)


@pytest.mark.parametrize("nfe", [0, -3, 2.5, True, "10"])
def test_impossible_budgets_are_refused(nfe):
    for eta in (0.0, 1.0):
        with pytest.raises(ArgumentError, match="nfe"):
            auto(mixture(SDES[0]), nfe, eta)


def test_one_evaluation_takes_noise_to_gaussian_data():
    """The flow of N(0, s² I) is x_0 = s x/√(σ² + α² s²)."""
    for sde in FEW:
        model, x = gaussian(doubles(0.0, 0.0), sde, std=2.0), sde.sigma(1.0) * doubles(1.0, -2.0, 0.3, 0.0).view(2, 2)
        done = sample(model, "auto", nfe=1, x_start=x)
        assert done.nfe == 1
        assert torch.allclose(done.x, 2 * x * (sde.sigma(1.0) ** 2 + 4 * sde.alpha(1.0) ** 2) ** -0.5)
    with pytest.raises(ArgumentError, match="nfe"):
        auto(mixture(SDES[0]), 1, 1.0)
