"""A start by the flow of a Gaussian: exact for Gaussian data, and free down to where the network takes over."""

import math

import pytest
import torch
from catalogue import (
    MEAN,
    ROTATION,
    SDES,
    VARIANCES,
    Flow,
    RandomNetwork,
    doubles,
    flow_solution,
    gaussian_data,
    model_of,
    name,
    relative_error,
    start_at,
)

from sde_toolkit import VESDE, VPSDE, ScoreModel, Solver, ddim, gaussian, grids, sample
from sde_toolkit.calibration.calibration_files import build_solver, describe_solver
from sde_toolkit.errors import ArgumentError, GridError
from sde_toolkit.integrators import Corrected, Exponential, FrozenEDM, Heun, Multistep, TorchDiffEq
from sde_toolkit.integrators.gaussian_start import GaussianStart
from sde_toolkit.integrators.tuned import Tuned
from sde_toolkit.interop.staged_solve import check_fixed_steps

GRID = doubles(0.95, 0.5, 0.4, 0.3)
BEGIN = 0.7
OURS = {
    "mean": tuple(MEAN.tolist()),
    "variance": VARIANCES[1].item(),
    "variances": (VARIANCES[0].item(),),
    "directions": (tuple(ROTATION[:, 0].tolist()),),
}


def run(integrator, model, grid, x, eta=0.0, **how):
    return sample(model, Solver("", eta, integrator), grid, x_start=x, dtype=torch.float64, **how)


@pytest.mark.parametrize("sde", [*SDES, Flow()], ids=name)
@pytest.mark.parametrize("inside", [Corrected(Multistep(2)), Heun(), Exponential()], ids=name)
def test_on_gaussian_data_it_starts_where_the_flow_is(sde, inside):
    """As the integrator inside from the exact state at ``begin``; the network is told no earlier time."""
    grid = torch.cat([doubles(1.0), GRID[1:]]) if isinstance(sde, Flow) else GRID
    model, x = gaussian_data(sde), start_at(sde, grid[0])
    late = torch.cat([doubles(BEGIN), grid[1:]])
    expected = run(inside, model, late, flow_solution(sde, x, grid[0], BEGIN))
    found = run(GaussianStart(inside, BEGIN, **OURS), model, grid, x)
    assert relative_error(found.x, expected.x) < 1e-9
    assert found.nfe == expected.nfe == len(grid[1:]) * inside.evals_per_step


@pytest.mark.parametrize("sde", [VPSDE(), VESDE(), Flow()], ids=name)
def test_for_isotropic_data_the_analytical_first_step_is_exact(sde):
    """And with a method that is exact for such data, so is the end, for any grid."""
    model = gaussian(torch.tensor([0.0, 0.0]), sde, std=0.4)
    x = start_at(sde, 1.0)
    method = GaussianStart(Multistep(2, FrozenEDM(0.4)), 0.8, variance=0.16)
    found = run(method, model, doubles(1.0, 0.6, 0.1), x).x
    size = [math.sqrt((sde.alpha(t) ** 2 * 0.16 + sde.sigma(t) ** 2).item()) for t in doubles(0.1, 1.0)]
    assert relative_error(found, x * size[0] / size[1]) < 1e-9


def test_a_grid_that_begins_late_is_left_to_the_integrator():
    model, x = gaussian_data(VPSDE()), start_at(VPSDE(), BEGIN)
    for begin in (BEGIN, 0.9):
        expected = run(Multistep(2), model, GRID[1:], x).x
        assert torch.equal(run(GaussianStart(Multistep(2), begin, **OURS), model, GRID[1:], x).x, expected)


def test_a_new_start_in_the_middle_does_not_jump():
    """A callback that returns the state starts the solver anew, from a time below ``begin``."""
    model, x = gaussian_data(VPSDE()), start_at(VPSDE(), GRID[0])
    method = GaussianStart(Exponential(), BEGIN, **OURS)
    expected = run(method, model, GRID, x).x
    assert torch.equal(run(method, model, GRID, x, callback=lambda step: step.x.clone()).x, expected)


def test_stochastic_steps_follow_it():
    """The reverse SDE from ``begin``, from the exact state there; its draws are the same."""
    model, x = gaussian_data(VPSDE()), start_at(VPSDE(), GRID[0])
    late = torch.cat([doubles(BEGIN), GRID[1:]])
    expected = run(Exponential(), model, late, flow_solution(VPSDE(), x, GRID[0], BEGIN), eta=1.0, seed=5).x
    found = run(GaussianStart(Exponential(), BEGIN, **OURS), model, GRID, x, eta=1.0, seed=5).x
    assert relative_error(found, expected) < 1e-9


def test_moments_of_samples():
    """Along the first directions the covariance is that of the samples, elsewhere its mean; so is the mean."""
    drawn = torch.randn(300, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = drawn * doubles(3.0, 2.0, 1.0, 1.0, 1.0, 1.0).reshape(2, 3) + 5.0
    made = GaussianStart.of_samples(Multistep(2), 0.5, drawn, rank=2)
    flat = drawn.flatten(1)
    covariance, u = torch.cov(flat.T), torch.tensor(made.directions, dtype=torch.float64)
    assert torch.allclose(torch.tensor(made.mean, dtype=torch.float64), flat.mean(0))
    assert torch.allclose(u @ covariance @ u.T, torch.diag(torch.tensor(made.variances, dtype=torch.float64)))
    assert sum(made.variances) + 4 * made.variance == pytest.approx(covariance.trace().item())
    assert made.variances[0] > made.variances[1] > made.variance
    whole = GaussianStart.of_samples(Multistep(2), 0.5, drawn, rank=16)
    assert len(whole.variances) == 6


def test_a_file_and_factors_keep_it():
    model, x = gaussian_data(VPSDE()), start_at(VPSDE(), GRID[0])
    inside = GaussianStart(Multistep(2), BEGIN, **OURS)
    tuned = Tuned(inside, ((1.0, 1.0, 1.0),) * 3)
    expected = run(inside, model, GRID, x).x
    assert torch.equal(run(tuned, model, GRID, x).x, expected)
    read = build_solver("here", describe_solver(Solver("a", 0.0, tuned)))
    assert read.integrator == tuned
    assert torch.equal(run(read.integrator, model, GRID, x).x, expected)
    assert tuned.first_evaluation == inside.first_evaluation == BEGIN
    assert ddim().integrator.first_evaluation is None


@pytest.mark.parametrize("compiled", ["eager", "aot_eager"])
def test_compiled_it_is_the_same(compiled):
    model = model_of(RandomNetwork(), VPSDE())
    x, method = start_at(VPSDE(), GRID[0]), GaussianStart(Exponential(), BEGIN, **OURS)
    expected = run(method, model, GRID, x).x
    assert relative_error(run(method, model, GRID, x, compile=compiled).x, expected) < 1e-12


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"integrator": TorchDiffEq()}, "integrator"),
        ({"begin": 0.0}, "begin=0.0"),
        ({"begin": 1.0}, "begin=1.0"),
        ({"variance": -1.0}, "variances"),
        ({"variances": (1.0,)}, "directions"),
        ({"variances": (1.0,), "directions": ((2.0, 0.0),)}, "orthonormal"),
        ({"variances": (1.0,), "directions": ((1.0, 0.0),), "mean": (1.0, 2.0, 3.0)}, "as long as the mean"),
        ({"mean": (math.nan,)}, "mean"),
    ],
)
def test_bad_arguments_are_named(arguments, said):
    with pytest.raises(ArgumentError, match=said):
        GaussianStart(**{"integrator": Multistep(2), "begin": 0.5, **arguments})


def test_a_first_step_that_ends_above_it_is_refused():
    model = ScoreModel(RandomNetwork(), VPSDE(), "v")
    with pytest.raises(GridError, match="takes over"):
        run(GaussianStart(Multistep(2), 0.4), model, grids.uniform(VPSDE(), 4, end=0.1), torch.zeros(2, 2))


@pytest.mark.parametrize("kind", ["v", "epsilon"])
def test_factors_mean_the_same_from_the_later_beginning(kind):
    """Those of a network of v multiply EDM's F, which depends on the time of the evaluation."""
    sde, factors = VPSDE(), ((1.1, 0.8, 1.2), (0.9, 1.05, 0.7), (1.0, 1.3, 0.9))
    model, x = ScoreModel(RandomNetwork(), sde, kind, sigma_data=0.5), start_at(sde, GRID[0])
    late = torch.cat([doubles(BEGIN), GRID[1:]])
    expected = run(Tuned(Multistep(2), factors), model, late, flow_solution(sde, x, GRID[0], BEGIN)).x
    found = run(Tuned(GaussianStart(Multistep(2), BEGIN, **OURS), factors), model, GRID, x).x
    assert relative_error(found, expected) < 1e-9


def test_other_events_and_pipelines_that_evaluate_first_are_refused():
    method = GaussianStart(Multistep(2), BEGIN, **OURS)
    model = ScoreModel(RandomNetwork(3), VPSDE(), "v")
    with pytest.raises(ArgumentError, match="2 elements"):
        run(method, model, GRID, torch.zeros(4, 3))
    with pytest.raises(ArgumentError, match="evaluates its network first"):
        check_fixed_steps(Solver("late", 0.0, Tuned(method, ((1.0, 1.0, 1.0),))))
