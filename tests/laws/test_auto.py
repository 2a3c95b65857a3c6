"""``auto`` fits every SDE and every budget, costs what it says, and beats the solvers of the same cost."""

import pytest
import torch
from catalogue import SDES, doubles, name, relative_error

from sde_toolkit import GaussianMixture, TorchDiffEq, auto, ddim, dpmpp_2m, grids, probability_flow, sample, unipc
from sde_toolkit.errors import ArgumentError

every_sde = pytest.mark.parametrize("sde", SDES, ids=name)


def mixture(sde):
    means = doubles(-1.0, 0.5, 1.5, 1.0, 0.0, -2.0).reshape(3, 2)
    return GaussianMixture(means, sde, std=doubles(0.3, 0.6, 0.2), weights=doubles(1.0, 2.0, 1.0))


@every_sde
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("nfe", [2, 3, 7, 20, 64])
def test_every_sde_at_every_budget_for_the_promised_cost(sde, eta, nfe):
    plan = auto(mixture(sde), nfe, eta)
    done = sample(mixture(sde), plan.solver, plan.grid, shape=(16, 2), tweedie=plan.tweedie)
    assert done.nfe == plan.nfe == nfe
    assert bool(done.x.isfinite().all())


@every_sde
@pytest.mark.parametrize("nfe", [10, 20])
def test_it_is_closer_to_the_flow_than_the_usual_solvers(sde, nfe):
    model = mixture(sde)
    x = sde.sigma(1.0) * torch.randn(128, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    last = 0.0 if sde.sigma(0.0) > 0 else 1e-5
    exact = probability_flow(TorchDiffEq(rtol=1e-8, atol=1e-8, max_nfe=100_000))
    begin = 1.0 if sde.alpha(1.0) > 0 else 1 - 1e-6  # the flow barely moves x where there is no signal at all
    expected = sample(model, exact, doubles(begin, last), x_start=x, tweedie=True, dtype=torch.float64).x

    def error(solver, grid):
        return (sample(model, solver, grid, x_start=x, tweedie=True, dtype=torch.float64).x - expected).norm().item()

    plan = auto(model, nfe)
    others = [error(solver, grids.uniform(sde, nfe - 1)) for solver in (ddim(), dpmpp_2m(), unipc())]
    assert error(plan.solver, plan.grid) < min(others)


@pytest.mark.parametrize("sde", SDES[:3], ids=name)
def test_twice_the_budget_is_better(sde):
    """Between two rows of the table the method changes: an unlucky boundary would show here."""
    model = mixture(sde)
    x = sde.sigma(1.0) * torch.randn(128, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def end(nfe):
        plan = auto(model, nfe)
        return sample(model, plan.solver, plan.grid, x_start=x, tweedie=True, dtype=torch.float64).x

    expected = end(400)
    errors = {nfe: relative_error(end(nfe), expected) for nfe in range(4, 81)}
    assert all(errors[2 * nfe] < errors[nfe] for nfe in range(4, 41))


@pytest.mark.parametrize("nfe", [5, 20])
def test_by_name_it_is_the_plan(nfe):
    model, plan = mixture(SDES[0]), auto(mixture(SDES[0]), nfe)
    named = sample(model, "auto", nfe=nfe, shape=(8, 2), seed=3)
    assert torch.equal(named.x, sample(model, plan.solver, plan.grid, tweedie=True, shape=(8, 2), seed=3).x)
    assert named.nfe == nfe
    for wrong in ({}, {"nfe": nfe, "grid": plan.grid}, {"nfe": nfe, "tweedie": True}):
        with pytest.raises(ArgumentError):
            sample(model, "auto", shape=(8, 2), **wrong)
    for wrong in ({"solver": ddim()}, {"solver": ddim(), "grid": plan.grid, "nfe": nfe}, {"solver": "best", "nfe": 5}):
        with pytest.raises(ArgumentError):
            sample(model, shape=(8, 2), **wrong)


@pytest.mark.parametrize("nfe", [1, 0, -3, 2.5, True, "10"])
def test_impossible_budgets_are_refused(nfe):
    with pytest.raises(ArgumentError, match="nfe"):
        auto(mixture(SDES[0]), nfe)
