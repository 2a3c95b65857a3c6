"""Other ends and beginnings: the same number of evaluations, from a later start or down to the data."""

import pytest
import torch
from quickly import calibrate

from sde_toolkit import EDMSDE, VESDE, VPSDE, FlowMatching, GaussianMixture, ScoreModel, Solver, grids, sample
from sde_toolkit.calibration.problem import Problem
from sde_toolkit.calibration.starts import Contender, default_solvers, usual_grids
from sde_toolkit.calibration.variants import gaussian_starts, with_landing
from sde_toolkit.errors import ArgumentError
from sde_toolkit.integrators import FrozenEDM, FrozenNoise, Multistep, NoiseToSignal
from sde_toolkit.models.time_inputs import NoiseLevel

FLOAT = torch.float64
SDES = [VPSDE(), FlowMatching(), VESDE(), EDMSDE()]  # the last ends at t = 0 with noise left


def problem_of(sde, dimension=2):
    means = torch.randn(5, dimension, generator=torch.Generator().manual_seed(2), dtype=FLOAT)
    model = GaussianMixture(means, sde, std=0.2)
    return Problem(model, 0.0, 0, (dimension,), FLOAT, torch.device("cpu"), fine_steps=100)


def plans(problem, integrator, steps=6):
    sde = problem.model.sde
    for label, grid in usual_grids(sde, steps, start=1.0, earliest=problem.earliest)[6:13:6]:
        yield Contender(Solver("any", 0.0, integrator), grid, label)


@pytest.mark.parametrize("sde", SDES, ids=lambda s: type(s).__name__)
def test_they_cost_what_the_plan_costs_and_run(sde):
    problem = problem_of(sde)
    chosen = problem.noise_set(16)
    for plan in plans(problem, Multistep(2, FrozenNoise(), NoiseToSignal())):
        landed = with_landing(problem, plan)
        found = list(gaussian_starts(problem, plan, chosen.target)) + ([landed] if landed else [])
        assert len(found) >= 4
        if landed:
            found += gaussian_starts(problem, landed, chosen.target)
        for other in found:
            drawn = sample(problem.model, other.solver, other.grid, shape=(4, 2), tweedie=other.tweedie)
            assert drawn.nfe == other.nfe == plan.nfe
            last = -1 if other.tweedie else -2
            torch.testing.assert_close(other.grid[[0, last]], plan.grid[[0, -1]], rtol=1e-9, atol=0)
            assert problem.squares(other, chosen).isfinite().all()


def test_a_later_beginning_makes_the_steps_after_it_finer():
    problem = problem_of(VPSDE())
    chosen = problem.noise_set(16)
    for plan in plans(problem, Multistep(2)):
        for other in gaussian_starts(problem, plan, chosen.target):
            assert other.grid[1] < other.first_evaluation < plan.grid[0]
            late = VPSDE().half_log_snr(torch.stack([other.grid[1:], plan.grid[1:]]))
            assert bool((late[0] >= late[1] - 1e-9).all())


def test_increments_leave_the_beginning_where_it_is():
    problem = problem_of(VPSDE())
    chosen = problem.noise_set(16)
    (plan, *_) = plans(problem, Multistep(2))
    for other in (plan, with_landing(problem, plan), *gaussian_starts(problem, plan, chosen.target)):
        a = other.increments(problem.earliest)
        torch.testing.assert_close(other.grid_at(a, problem.earliest), other.grid, rtol=1e-12, atol=1e-15)
        moved = other.grid_at(a + torch.linspace(-1, 1, len(a), dtype=FLOAT), problem.earliest)
        assert moved[0] == other.grid[0]
        assert bool((moved[1:] < other.first_evaluation).all())
        assert bool((moved.diff() < 0).all())
        late = other.grid_at(a - 9 * torch.arange(len(a)), 1e-3)[-1 if other.tweedie else -2]  # towards the end
        assert late >= min(1e-3, other.evaluated[-1].item())


def test_where_noise_is_large_a_gaussian_start_is_as_good_as_evaluations():
    """From twenty times the data's size on, the flow of the moments is that of the mixture to a percent."""
    problem = problem_of(VPSDE())
    problem.times = problem.fine_times(100)
    chosen = problem.noise_set(256)
    grid = grids.check_grid(problem.fine_times(60))
    plan = Contender(Solver("fine", 0.0, Multistep(2, FrozenEDM(1.0))), grid, "mixed to t=0")
    errors = [
        problem.squares(other, chosen).median().sqrt().item() for other in gaussian_starts(problem, plan, chosen.target)
    ]
    without, with_directions = errors[0::2], errors[1::2]
    assert with_directions[0] < 0.01
    assert with_directions[0] < without[0]
    assert with_directions[0] < with_directions[-1]


def test_the_usual_candidates_have_ipndm_and_methods_that_reach_the_data():
    names = [solver.name for solver in default_solvers(1.0, 10)]
    assert {"ipndm-4", "noise-2 in τ", "edm-2 in φ"} <= set(names)


def test_a_calibration_can_begin_late_and_be_read_again(tmp_path):
    """Data of one small Gaussian cloud: what the start knows is all there is, so that it is chosen."""
    from sde_toolkit import gaussian, load_calibration

    model = gaussian(torch.tensor([0.5, -1.0, 0.0]), VPSDE(), std=torch.tensor([1.0, 0.2, 0.5]))
    data = model.draw(4000, generator=torch.Generator().manual_seed(0)).float()
    found = calibrate(model, None, 3, n=32, data=data, strategy="search", weights=False, time_limit=1e9, effort=0.01)
    assert found.solver.integrator.first_evaluation is not None
    found.save(tmp_path / "c.json")
    read = load_calibration(tmp_path / "c.json")
    ends = [c.sample(model, shape=(8, 3), seed=1).x for c in (found, read)]
    assert torch.equal(*ends)


def test_a_network_that_knows_no_data_time_gets_weights_for_a_last_step_to_the_data():
    """Told log σ/α, the network has no answer at t = 0, where the plan ends."""
    model = ScoreModel(lambda x, time: -x / (1 + time[:, None].exp()), VPSDE(), "x0", time_input=NoiseLevel())
    with pytest.raises(ArgumentError, match="not finite"):
        model(torch.zeros(1, 2), 0.0)
    solver = Solver("landing", 0.0, Multistep(2, FrozenEDM(1.0), NoiseToSignal()))
    grid = torch.cat([grids.sech(model.sde, 4, end=0.05), torch.zeros(1, dtype=torch.float64)])
    found = calibrate(model, solver, 5, grid=grid, strategy="search", event_shape=(2,), n=16)
    assert found.grid[-1] == 0
    assert found.after.value <= found.before.value
