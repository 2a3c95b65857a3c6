"""Encoding is the flow run upwards: accurate to the declared order, undone by sampling, for every SDE and solver."""

import pytest
import torch
from catalogue import (
    ADAPTIVE,
    FIXED_STEP,
    SDES,
    SMOOTH_SDES,
    RandomNetwork,
    convergence_order,
    covering,
    doubles,
    flow_solution,
    gaussian_data,
    model_of,
    name,
    start_at,
)

from sde_toolkit import VPSDE, Solver, ddim, ddpm, encode, grids, sample
from sde_toolkit.errors import ArgumentError, GridError, NonFiniteError
from sde_toolkit.integrators import ChurnedHeun, Euler, Exponential, Heun, Multistep

BEGIN, END = 0.8, 0.4
DETERMINISTIC = [integrator for integrator in FIXED_STEP if integrator.order]
KINKED = VPSDE.from_betas(torch.linspace(0.01, 0.5, 20, dtype=torch.float64))
TOLERANCE = 0.2  # of a slope over one halving


def flow(integrator):
    return Solver("flow", 0.0, integrator)


def smooth(n):
    """From 0 to 1 with small steps at both ends: a multistep method begins well, whichever way it goes."""
    u = torch.linspace(0, 1, n + 1, dtype=torch.float64)
    return u**2 * (3 - 2 * u)


def in_time(n):
    return BEGIN + (END - BEGIN) * smooth(n)


def up(model, integrator, grid, x):
    return encode(model, flow(integrator), grid, x, dtype=torch.float64).x


def down(model, integrator, grid, z):
    return sample(model, flow(integrator), grid, x_start=z, dtype=torch.float64).x


def measured(sde, integrator, grid_of, counts=(64, 128)):
    """Orders of: encoding against the closed form, sampling after encoding, encoding after sampling."""
    model, x, z = gaussian_data(sde), start_at(sde, END), start_at(sde, BEGIN)
    code, errors = flow_solution(sde, x, END, BEGIN), []
    for n in counts:
        grid = grid_of(n)
        found = up(model, integrator, grid, x)
        back = down(model, integrator, grid, found)
        forth = up(model, integrator, grid, down(model, integrator, grid, z))
        errors.append([(a - b).norm().item() for a, b in ((found, code), (back, x), (forth, z))])
    assert errors[-1][0] < 0.1 * code.norm().item()
    return [convergence_order(counts, column) for column in zip(*errors, strict=True)]


@pytest.mark.on_device
@pytest.mark.parametrize(("integrator", "sde"), covering(DETERMINISTIC, SMOOTH_SDES, 3), ids=name)
def test_codes_and_round_trips_have_the_declared_order(sde, integrator):
    of_code, *of_round_trips = measured(sde, integrator, in_time)
    assert of_code == pytest.approx(integrator.order, abs=TOLERANCE)
    # For methods of even order the leading errors of the two ways cancel: a round trip may be better.
    assert min(of_round_trips) > integrator.order - TOLERANCE


@pytest.mark.on_device
@pytest.mark.parametrize("integrator", [i for i in DETERMINISTIC if i.sees_alpha_sigma_only], ids=name)
def test_and_so_in_lambda_through_the_kinks_of_discrete_schedules(integrator):
    ends = KINKED.half_log_snr(doubles(BEGIN, END))

    def grid(n):
        times = KINKED.inverse_half_log_snr(ends[0] + (ends[1] - ends[0]) * smooth(n))
        times[0], times[-1] = BEGIN, END
        return times

    of_code, *of_round_trips = measured(KINKED, integrator, grid)
    assert of_code == pytest.approx(integrator.order, abs=TOLERANCE)
    assert min(of_round_trips) > integrator.order - TOLERANCE


@pytest.mark.on_device
@pytest.mark.parametrize(("integrator", "sde"), covering(ADAPTIVE, SDES), ids=name)
def test_adaptive_solvers_encode_to_their_tolerance(sde, integrator):
    model, x, ends = gaussian_data(sde), start_at(sde, END), doubles(BEGIN, END)
    found = up(model, integrator, ends, x)
    torch.testing.assert_close(found, flow_solution(sde, x, END, BEGIN), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(down(model, integrator, ends, found), x, rtol=1e-3, atol=1e-3)


FROM_DATA = [Exponential(), ddim().integrator, Multistep()]


@pytest.mark.on_device
@pytest.mark.parametrize("integrator", FROM_DATA, ids=name)
@pytest.mark.parametrize("sde", [s for s in SDES if s.sigma(0.0).item() == 0], ids=name)
def test_exponential_integrators_encode_the_data_itself(sde, integrator):
    """From t=0, where α = 1 and σ = 0, on a network of ε."""
    model, x = gaussian_data(sde), start_at(sde, 0.0)
    code = flow_solution(sde, x, 0.0, BEGIN)
    errors = []
    for n in (50, 400):
        grid = grids.quadratic(sde, n, start=BEGIN, end=0.0)
        found = up(model, integrator, grid, x)
        assert (down(model, integrator, grid, found) - x).norm() < 0.3 * 50 / n * x.norm()
        errors.append((found - code).norm().item())
    assert errors[1] < 0.05 * code.norm().item()
    assert errors[1] < errors[0] / 5  # eight times the steps


def counting(sde, kind="epsilon"):
    asked = []

    def network(x, time):
        asked.append(time[0].item())
        return 0.1 * x

    return model_of(network, sde, kind), asked


@pytest.mark.on_device
@pytest.mark.parametrize("integrator", FROM_DATA, ids=name)
def test_a_network_of_x_0_has_no_epsilon_at_the_data_and_is_told_where_to_start(integrator):
    (model, asked), grid = counting(VPSDE(), "x0"), doubles(0.9, 0.5, 0.0)
    with pytest.raises(GridError, match="sampling_end"):
        encode(model, flow(integrator), grid, torch.ones(3, 2))
    assert asked == []
    end = VPSDE().sampling_end
    assert encode(model, flow(integrator), doubles(0.9, 0.5, end), torch.ones(3, 2)).x.isfinite().all()


@pytest.mark.parametrize("solver", [ddpm(), ddim(0.5), Solver("mine", 1e-3, Euler())], ids=name)
def test_stochastic_solvers_are_refused_by_name(solver):
    model, asked = counting(VPSDE())
    with pytest.raises(ArgumentError, match=f"{solver.name.split('[')[0]}.*encoding.*eta=0"):
        encode(model, solver, grids.uniform(VPSDE(), 5), torch.ones(3, 2))
    assert asked == []


def test_so_is_noise_that_a_solver_adds_of_its_own():
    model, asked = counting(VPSDE())
    with pytest.raises(ArgumentError, match="draws noise"):
        encode(model, flow(ChurnedHeun(S_churn=10.0)), grids.uniform(VPSDE(), 5), torch.ones(3, 2))
    assert asked == []


@pytest.mark.on_device
@pytest.mark.parametrize(
    ("x", "grid", "options", "said"),
    [
        (torch.tensor([[torch.nan, 0.0]]), doubles(0.9, 0.1), {}, "NaN"),
        ([[1.0, 2.0]], doubles(0.9, 0.1), {}, "not a tensor"),
        (torch.ones(3, 2), doubles(0.1, 0.9), {}, "not decreasing"),
        (torch.ones(3, 2), doubles(0.9, 0.1), {"batch_size": 0}, "batch_size"),
        (torch.ones(3, 2), doubles(0.9, 0.1), {"dtype": torch.float16}, "float32"),
        (torch.ones(3, 2), doubles(0.9, 0.1), {"condition": torch.ones(2)}, "2 rows"),
        (torch.ones(3, 2), doubles(0.9, 0.1), {"compile": "nothing"}, "backend"),
    ],
)
def test_bad_input_is_refused_before_any_evaluation(x, grid, options, said):
    model, asked = counting(VPSDE())
    with pytest.raises(ArgumentError, match=said):
        encode(model, ddim(), grid, x, **options)
    assert asked == []


@pytest.mark.on_device
def test_events_of_another_shape_are_refused():
    model = model_of(RandomNetwork(), VPSDE())
    model.event_shape = (2,)
    with pytest.raises(ArgumentError, match=r"events of shape \(2,\)"):
        encode(model, ddim(), doubles(0.9, 0.1), torch.ones(3, 4))


def test_the_climb_asks_the_network_at_rising_times_and_counts():
    model, asked = counting(VPSDE())
    grid = grids.uniform(VPSDE(), 4, end=0.2)
    told = []
    done = encode(model, ddim(), grid, torch.ones(5, 2), trajectory=True, batch_size=2, callback=told.append)
    torch.testing.assert_close(doubles(*asked), grid.flip(0)[:-1].repeat(3), atol=1e-6, rtol=0)
    assert done.nfe == 4
    assert torch.equal(done.grid, grid)
    assert torch.equal(done.trajectory[0], torch.ones(5, 2))
    assert torch.equal(done.trajectory[-1], done.x)
    assert [(step.index, step.first) for step in told[:4]] == [(0, 0), (1, 0), (2, 0), (3, 0)]
    assert (told[0].t, told[3].s) == (grid[-1].item(), grid[0].item())


@pytest.mark.on_device
def test_a_state_that_stops_being_finite_is_named_with_its_time():
    def network(x, time):
        return torch.where(time[:, None] > 0.55, torch.nan, 0.1) * x

    with pytest.raises(NonFiniteError) as caught:
        encode(model_of(network, VPSDE()), ddim(), grids.uniform(VPSDE(), 9, end=0.1), torch.ones(3, 2))
    assert caught.value.step == 5
    assert caught.value.t == pytest.approx(0.6)


@pytest.mark.on_device
@pytest.mark.parametrize("integrator", [Exponential(), Heun(), Multistep()], ids=name)
def test_conditions_and_batches(integrator):
    """Each sample meets its own condition, whatever the batch."""

    def network(x, time, condition):
        return torch.tanh(x) * condition[:, None]

    model, x = model_of(network, VPSDE()), torch.linspace(-2, 2, 14, dtype=torch.float64).reshape(7, 2)
    condition, grid = torch.linspace(0, 1, 7, dtype=torch.float64), grids.uniform(VPSDE(), 4, end=0.1)
    run = {"condition": condition, "dtype": torch.float64}
    whole = encode(model, flow(integrator), grid, x, **run).x
    assert torch.equal(encode(model, flow(integrator), grid, x, batch_size=3, **run).x, whole)
    alone = encode(model, flow(integrator), grid, x[4:5], condition=condition[4:5], dtype=torch.float64).x
    assert torch.equal(alone, whole[4:5])
