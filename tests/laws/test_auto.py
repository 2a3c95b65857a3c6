"""``auto`` fits every SDE and every budget, costs what it says, and beats the solvers of the same cost."""

import functools

import pytest
import torch
from catalogue import SDES, covering, doubles, name, relative_error
from torch import nn

from sde_toolkit import (
    EDMSDE,
    VESDE,
    VPSDE,
    CosineVPSDE,
    FlowMatching,
    GaussianMixture,
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
from sde_toolkit.integrators import TorchDiffEq

every_sde = pytest.mark.parametrize("sde", SDES, ids=name)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def mixture(sde, dimensions=2):
    means = doubles(-1.0, 0.5, 1.5, 1.0, 0.0, -2.0).reshape(3, 2)
    means = nn.functional.pad(means, (0, dimensions - 2))
    return GaussianMixture(means, sde, std=doubles(0.3, 0.6, 0.2), weights=doubles(1.0, 2.0, 1.0))


@every_sde
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("nfe", [2, 3, 7, 20, 64])
def test_every_sde_at_every_budget_for_the_promised_cost(sde, eta, nfe):
    plan = auto(mixture(sde), nfe, eta)
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
