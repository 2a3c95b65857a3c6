"""Bespoke solvers: every linear method of one evaluation per step is one of them, and all weights can be learned."""

import math

import pytest
import torch
from quickly import calibrate
from test_variants import SDES, problem_of

from sde_toolkit import VPSDE, FlowMatching, GaussianMixture, Solver, auto, grids, load_calibration, sample
from sde_toolkit.calibration import calibrating
from sde_toolkit.calibration.gradient import Descending, bespoke, optimise
from sde_toolkit.calibration.plan_errors import combined, surely_worse, worse
from sde_toolkit.calibration.published_plans import published_plans
from sde_toolkit.calibration.starts import Contender, auto_plan
from sde_toolkit.calibration.trials import Trials
from sde_toolkit.calibration.variants import gaussian_starts
from sde_toolkit.errors import ArgumentError, GridError
from sde_toolkit.integrators import Heun, Multistep
from sde_toolkit.integrators.bespoke import Bespoke
from sde_toolkit.sde import CosineVPSDE

FLOAT = torch.float64


@pytest.mark.parametrize("sde", [*SDES, CosineVPSDE()], ids=lambda s: type(s).__name__)
def test_every_published_plan_is_a_bespoke_solver(sde):
    """And so are those of auto and of late beginnings: the same samples from the same evaluations."""
    problem = problem_of(sde)
    chosen = problem.noise_set(8)
    standard = auto_plan(problem.model, 5, (2,))
    late = list(gaussian_starts(problem, standard, chosen.target))
    for plan in (standard, *list(published_plans(problem.model, 5))[:12:2], *late[:2]):
        free = bespoke(problem, plan)
        assert free.nfe == plan.nfe == 5
        x = problem.starts(chosen.noise, at=plan.grid[0])
        ends = [sample(problem.model, p.solver, p.grid, x_start=x, tweedie=p.tweedie) for p in (plan, free)]
        torch.testing.assert_close(ends[0].x, ends[1].x, rtol=1e-9, atol=1e-9)
        assert ends[1].nfe == 5


def test_its_steps_have_one_shape():
    """So that they are compiled or recorded once."""
    problem = problem_of(VPSDE())
    plan, equation = bespoke(problem, auto_plan(problem.model, 5, (2,))), problem.descent.equation
    x, state, shapes = problem.starts(problem.noise_set(3).noise), None, set()
    for row in plan.solver.integrator.prepare(equation, plan.grid):
        x, state = plan.solver.integrator.step(equation, x, row, state, None)
        shapes.add((x.shape, *(part.shape for part in state)))
    assert len(shapes) == 1


def test_its_weights_have_no_unit():
    """Data, noise and samples sixteen times as large: the same numbers."""
    found = []
    for unit in (1.0, 16.0):
        means = unit * torch.randn(5, 2, generator=torch.Generator().manual_seed(2), dtype=FLOAT)
        model = GaussianMixture(means, sde_of_unit(unit), std=0.2 * unit)
        found.append(
            bespoke(calibrating.Problem(model, 0.0, 0, (2,), FLOAT, torch.device("cpu")), auto_plan(model, 5, (2,)))
        )
    one, other = (torch.tensor(plan.solver.integrator.coefficients) for plan in found)
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def sde_of_unit(unit):
    from sde_toolkit import EDMSDE

    return EDMSDE(0.002 * unit, 80.0 * unit)


def test_all_weights_descend_further_than_factors_alone():
    problem = problem_of(VPSDE())
    fit, fresh = problem.noise_set(128), problem.noise_set(128)
    plan = auto_plan(problem.model, 4, (2,))
    how = Descending(iterations=40, batch=64, grid_rate=0.04, weight_rate=0.01)
    whole, grid_alone = (
        optimise(problem, fit, bespoke(problem, plan), how, weights=weights, deadline=math.inf)[-1]
        for weights in (True, False)
    )
    errors = [combined(problem.squares(p, fresh)) for p in (whole, grid_alone, plan)]
    assert errors[0] < 0.7 * errors[1] < 0.7 * errors[2]


def test_what_is_not_one_is_refused():
    model = problem_of(VPSDE()).model
    equation = calibrating.Problem(model, 0.0, 0, (2,), FLOAT, torch.device("cpu")).descent.equation
    grid = grids.uniform(VPSDE(), 2, end=0.1)
    with pytest.raises(ArgumentError, match="more than once in a step"):
        Bespoke.of(Heun(), equation, grid, tweedie=True)
    for rows in ((), ((1.0,),), ((1.0, 1.0, 1.0), (1.0, 1.0, 0.0)), ((1.0, math.nan, 0.0), (1.0, 1.0, 1.0))):
        with pytest.raises(ArgumentError, match="coefficients"):
            Bespoke(rows)
    found = Bespoke.of(Multistep(2), equation, grid, tweedie=True)
    for wrong in (grid, torch.tensor([1.0, 0.5, 0.2, 0.1, 0.0])):
        with pytest.raises(GridError, match="3 steps, the last of them to t=0"):
            sample(model, Solver("", 0.0, found), wrong, shape=(1, 2))
    with pytest.raises(ArgumentError, match="no learned numbers"):
        Multistep(2).relearned(((1.0,),))


@pytest.mark.parametrize("sde", [FlowMatching()], ids=["flow"])
def test_a_calibration_begins_with_all_that_is_published_and_is_read_again(sde, tmp_path, monkeypatch):
    """Whatever is published was tried; what comes back is no worse than auto on the noises that it was selected on."""
    kept = []

    class Noted(Trials):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            kept.append(self)

    monkeypatch.setattr(calibrating, "Trials", Noted)
    model = problem_of(sde).model
    found = calibrate(model, None, 4, n=48, strategy="gradient", time_limit=1e9, effort=0.02, reference_steps=40)
    tried = {plan.label for plan in kept[0].scores}
    published = [plan.label for plan in published_plans(model, 4)]
    assert len(published) > 25
    assert set(published) <= tried
    problem, mine = kept[0].stages.problem, Contender(found.solver, found.grid, "", found.tweedie)
    problem.used = 48
    select, plan = problem.noise_set(48), auto(model, 4)
    bar = problem.squares(Contender(plan.solver, plan.grid, "", plan.tweedie), select)
    assert not worse(problem.squares(mine, select), bar)
    fresh = problem.noise_set(48)
    assert not surely_worse(
        problem.squares(mine, fresh), problem.squares(Contender(plan.solver, plan.grid, "", plan.tweedie), fresh)
    )
    assert "Bespoke" in repr(found.solver.integrator)
    found.save(tmp_path / "c.json")
    ends = [c.sample(model, shape=(8, 2), seed=1).x for c in (found, load_calibration(tmp_path / "c.json"))]
    assert torch.equal(*ends)
