"""Local errors: of the right order, nothing for an exact method, and together the error at the endpoint."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parent.parent / "laws"))
from catalogue import (
    FIXED_STEP,
    SDES,
    RandomNetwork,
    UserPath,
    covering,
    flow_solution,
    gaussian_data,
    model_of,
    name,
    start_at,
)

from sde_toolkit import VPSDE, Solver, ddim, ddpm, gaussian, grids, probability_flow, sample
from sde_toolkit.errors import ArgumentError
from sde_toolkit.evaluation import local_errors
from sde_toolkit.integrators import AdamsBashforth, Corrected, Euler, Exponential, FrozenEDM, Heun, Landing, Multistep

BEGIN, END = 0.8, 0.4
every_sde = pytest.mark.parametrize("sde", SDES, ids=name)


def measured(solver, sde, steps, **options):
    grid = grids.uniform_lambda(sde, steps, start=BEGIN, end=END)
    run = {"x_start": start_at(sde, BEGIN), "dtype": torch.float64, **options}
    return grid, local_errors(gaussian_data(sde), solver, grid, **run)


def flow_jacobian_carries(sde, errors, grid):
    """What becomes of displacements of the flow of Gaussian data, exactly: the flow is affine."""
    zero = torch.zeros(1, 2, dtype=torch.float64)
    return [flow_solution(sde, d, t, END) - flow_solution(sde, zero, t, END) for d, t in zip(errors, grid, strict=True)]


@pytest.mark.parametrize(("sde", "integrator"), covering(SDES, [Exponential(), Multistep(2), Corrected()]), ids=name)
def test_contributions_add_up_to_the_error_that_the_closed_form_gives(sde, integrator):
    solver = probability_flow(integrator)
    grid, found = measured(solver, sde, 10)
    x = start_at(sde, BEGIN)
    end = sample(gaussian_data(sde), solver, grid, x_start=x, dtype=torch.float64).x
    error = end - flow_solution(sde, x, BEGIN, END)
    slack = 20 * found.reference.value + 1e-12
    torch.testing.assert_close(found.errors.sum(0), error, rtol=0, atol=slack)
    assert slack < 0.1 * error.abs().max()
    assert found.endpoint.value == pytest.approx(error.square().mean().sqrt().item(), abs=slack)
    assert sum(found.shares) == pytest.approx(1)


@every_sde
def test_each_local_error_and_what_is_left_of_it_are_the_closed_forms(sde):
    grid, found = measured(ddim(), sde, 10)
    path = sample(gaussian_data(sde), ddim(), grid, x_start=start_at(sde, BEGIN), trajectory=True, dtype=torch.float64)
    X = path.trajectory
    errors = [X[k + 1] - flow_solution(sde, X[k], grid[k], grid[k + 1]) for k in range(10)]
    for k, (error, left) in enumerate(zip(errors, flow_jacobian_carries(sde, errors, grid[1:]), strict=True)):
        assert found.local[k].value == pytest.approx(error.square().mean().sqrt().item(), rel=0.02)
        torch.testing.assert_close(found.errors[k], left, rtol=0.02, atol=0.02 * left.abs().max().item())
        assert found.contributions[k].value == pytest.approx(left.square().mean().sqrt().item(), rel=0.02)


WITH_A_MEMORY = (Multistep, Corrected, AdamsBashforth, Landing)
ONE_STEP = [i for i in FIXED_STEP if i.order and not isinstance(i, WITH_A_MEMORY)]


@pytest.mark.parametrize(("integrator", "sde"), covering(ONE_STEP, [VPSDE(), UserPath()]), ids=name)
def test_the_local_order_is_one_more_than_the_global_one(sde, integrator):
    """For methods without a memory: theirs is of lower order in its first steps."""
    counts = (16, 32)
    worst = [
        max(e.value for e in measured(probability_flow(integrator), sde, n, propagate=False, refine=8)[1].local)
        for n in counts
    ]
    slope = -np.polyfit(np.log(counts), np.log(worst), 1)[0]
    assert slope > integrator.order + 1 - 0.35
    if integrator.order < 3:
        assert slope < integrator.order + 1 + 0.35


def test_an_exact_method_makes_no_error_anywhere():
    """On N(0, σ_d² I) what FrozenEDM(σ_d) freezes vanishes."""
    sde, model = VPSDE(), gaussian(torch.zeros(3), VPSDE(), std=0.7)
    grid = grids.uniform_lambda(sde, 5)
    found = local_errors(
        model, probability_flow(Multistep(1, FrozenEDM(0.7))), grid, n=8, refine=64, dtype=torch.float64
    )
    assert max(e.value for e in (*found.local, *found.contributions)) < 1e-6
    other = local_errors(model, ddim(), grid, n=8, refine=8, dtype=torch.float64)
    assert min(e.value for e in other.local[:-1]) > 1e-4


def test_without_carrying_on_the_local_errors_are_the_same_and_cheaper():
    asked = [0]
    network = RandomNetwork()

    def counted(x, time):
        asked[0] += len(x)
        return network(x, time)

    model, grid, x = model_of(counted, VPSDE()), grids.uniform(VPSDE(), 12, end=0.1), torch.ones(2, 2).double()
    found, costs = [], []
    for propagate in (True, False):
        asked[0] = 0
        found.append(local_errors(model, ddim(), grid, x_start=x, propagate=propagate, dtype=torch.float64))
        costs.append(asked[0])
    assert [e.value for e in found[0].local] == pytest.approx([e.value for e in found[1].local])
    assert found[1].contributions is None
    assert found[1].shares is None
    assert found[1].endpoint.value == pytest.approx(found[0].endpoint.value)
    assert costs[1] < 0.6 * costs[0]


def test_samples_start_where_sample_starts_them_and_conditions_stay_with_them():
    def network(x, time, condition=None):
        return torch.tanh(x) * (1.0 if condition is None else condition[:, None])

    model, grid = model_of(network, VPSDE(), event_shape=(2,)), grids.uniform(VPSDE(), 4, end=0.1)
    run = {"dtype": torch.float64, "batch_size": 4}
    start = sample(model, ddim(), grid, shape=(3, 2), seed=5, trajectory=True, dtype=torch.float64).trajectory[0]
    drawn = local_errors(model, ddim(), grid, n=3, seed=5, **run)
    assert torch.equal(drawn.errors, local_errors(model, ddim(), grid, x_start=start, **run).errors)
    condition = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    whole = local_errors(model, ddim(), grid, x_start=start, condition=condition, **run).errors
    alone = local_errors(model, ddim(), grid, x_start=start[1:2], condition=condition[1:2], dtype=torch.float64).errors
    torch.testing.assert_close(whole[:, 1:2], alone)
    assert whole[:, 1].abs().max() > 1e-4


def test_grids_may_end_at_the_data():
    grid = grids.quadratic(VPSDE(), 8, start=BEGIN, end=0.0)
    model, x = gaussian_data(VPSDE()), start_at(VPSDE(), BEGIN)
    found = local_errors(model, ddim(), grid, x_start=x, dtype=torch.float64, refine=16)
    error = sample(model, ddim(), grid, x_start=x, dtype=torch.float64).x - flow_solution(VPSDE(), x, BEGIN, 0.0)
    assert found.endpoint.value == pytest.approx(error.square().mean().sqrt().item(), rel=0.05)


def test_the_table_and_the_figure(tmp_path):
    _, found = measured(probability_flow(Heun()), VPSDE(), 6)
    lines = found.text_table().splitlines()
    assert len(lines) == 8
    assert "local error" in lines[0]
    assert "share" in lines[0]
    assert f"{found.local[2].value:.4g}" in lines[3]
    assert str(found.endpoint) in lines[-1]
    found.figure(tmp_path / "errors.png")
    assert (tmp_path / "errors.png").stat().st_size > 5000
    axes = found.figure().axes[0]
    drawn = [container.lines[0].get_ydata().tolist() for container in axes.containers]
    assert drawn == [[e.value for e in found.local], [e.value for e in found.contributions]]
    plain = measured(ddim(), VPSDE(), 3, propagate=False)[1]
    assert "share" not in plain.text_table()
    assert len(plain.figure().axes[0].containers) == 1


@pytest.mark.parametrize(
    ("solver", "options", "said"),
    [
        (ddpm(), {"n": 4}, "ddpm adds noise"),
        (ddim(), {"n": 4, "refine": 0}, "refine"),
        (ddim(), {"n": 0}, "at least 1"),
        (ddim(), {}, "exactly one"),
        (ddim(), {"n": 4}, "no event_shape"),
        (Solver("mine", 0.0, Euler()), {"x_start": torch.full((2, 2), math.nan)}, "NaN"),
    ],
)
def test_bad_input_is_refused(solver, options, said):
    model = model_of(RandomNetwork(), VPSDE())
    with pytest.raises(ArgumentError, match=said):
        local_errors(model, solver, grids.uniform(VPSDE(), 3), **options)
