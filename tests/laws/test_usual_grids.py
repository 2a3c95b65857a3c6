"""``steps=`` and ``nfe=`` build the grid that is usual for a solver, end it as usual, and spend what they say."""

import pytest
import torch
from catalogue import ADAPTIVE, SDES, SOLVERS, RandomNetwork, name

from sde_toolkit import (
    VPSDE,
    Affine,
    FlowMatching,
    ScoreModel,
    Solver,
    ddim,
    ddpm,
    dpmpp_2m,
    gaussian,
    grids,
    heun,
    sample,
)
from sde_toolkit.errors import ArgumentError, GridError
from sde_toolkit.sampling import usual_plan

FIXED = [solver for solver in SOLVERS if solver.integrator.evals_per_step is not None]
every_solver = pytest.mark.parametrize("solver", FIXED, ids=name)
every_sde = pytest.mark.parametrize("sde", SDES, ids=name)


def model_under(sde):
    return ScoreModel(RandomNetwork(), sde, "x0", transform=Affine(2.0, 0.5))


@every_sde
@every_solver
def test_steps_are_steps_and_the_last_denoising_is_extra(solver, sde):
    model = model_under(sde)
    found = sample(model, solver, steps=3, shape=(2, 2), dtype=torch.float64)
    assert len(found.grid) == 4
    assert found.tweedie == (sde.sigma(found.grid[-1]).item() > 0)
    assert found.nfe == 3 * solver.integrator.evals_per_step + found.tweedie
    assert found.budget is None
    usual = solver.usual_grid(sde, 3, start=found.grid[0].item())
    assert torch.equal(found.grid, usual)
    assert found.grid[0] == 1 or sde.alpha(1.0) == 0
    assert found.grid[0] > 0.98
    assert found.data.isfinite().all()


@every_solver
@pytest.mark.parametrize("nfe", [5, 6, 7, 8])
def test_evaluations_are_never_more_than_asked_and_as_many_as_whole_steps_allow(solver, nfe):
    found = sample(model_under(VPSDE()), solver, nfe=nfe, shape=(2, 2), dtype=torch.float64)
    assert found.budget == nfe
    assert nfe - solver.integrator.evals_per_step < found.nfe <= nfe


@pytest.mark.parametrize("integrator", ADAPTIVE, ids=name)
def test_a_solver_that_chooses_its_steps_needs_neither(integrator):
    solver = Solver("adaptive", 0.0, integrator)
    found = sample(model_under(VPSDE()), solver, shape=(2, 2), dtype=torch.float64)
    assert len(found.grid) == 2
    assert found.tweedie
    with pytest.raises(ArgumentError, match="chooses its own steps"):
        sample(model_under(VPSDE()), solver, steps=5, shape=(2, 2), dtype=torch.float64)


@pytest.mark.parametrize("solver", [ddim(), dpmpp_2m(), heun(), ddpm()], ids=name)
@pytest.mark.parametrize("sde", [VPSDE(), FlowMatching()], ids=name)
def test_the_usual_grid_leads_to_the_data(solver, sde):
    """N(1, 0.5²): both numbers to a twentieth at 200 steps, in the space of the caller."""
    model = gaussian([1.0], sde, std=0.5)
    model.transform = Affine(-3.0, 0.2)
    found = sample(model, solver, steps=200, shape=(40_000, 1), generator=torch.Generator().manual_seed(0))
    assert found.x.mean().item() == pytest.approx(1.0, abs=0.03)
    assert found.x.std().item() == pytest.approx(0.5, rel=0.05)
    assert torch.equal(found.data, model.transform.inverse(found.x))
    assert found.data.mean().item() == pytest.approx(2.0, abs=0.2)


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({}, "one of them"),
        ({"steps": 3, "nfe": 4}, "one of them"),
        ({"steps": 0}, "steps=0"),
        ({"nfe": 1}, "nfe=1"),
        ({"nfe": 2.5}, "nfe=2.5"),
        ({"steps": 3, "grid": [1.0, 0.5]}, "steps=3"),
        ({"nfe": 3, "grid": [1.0, 0.5]}, "nfe=3"),
    ],
)
def test_what_does_not_say_how_long_is_refused(told, said):
    with pytest.raises(ArgumentError, match=said):
        sample(model_under(VPSDE()), ddim(), shape=(2, 2), dtype=torch.float64, **told)


def test_the_grid_is_the_solvers_own_and_not_part_of_what_it_is():
    other = Solver("ddim", 0.0, ddim().integrator, grids.quadratic)
    assert other == ddim()
    found = sample(model_under(VPSDE()), other, steps=4, shape=(2, 2), dtype=torch.float64)
    assert torch.equal(found.grid, grids.quadratic(VPSDE(), 4))
    with pytest.raises(ArgumentError, match="usual_grid"):
        Solver("ddim", 0.0, ddim().integrator, "karras")


def test_a_grid_of_the_users_own_starts_where_it_says():
    """Equal steps of λ begin at an infinite one here. A builder that takes a start is moved, another one is refused."""
    model, nfe = model_under(FlowMatching()), 9

    def own(sde, steps):
        return grids.uniform_lambda(sde, steps)

    moved = usual_plan(model, ddim(), nfe=nfe, build=grids.uniform_lambda)
    assert 0.98 < moved.grid[0] < 1
    assert moved.nfe == nfe
    with pytest.raises(GridError, match="infinite"):
        usual_plan(model, ddim(), nfe=nfe, build=own)
