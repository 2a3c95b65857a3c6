"""Adaptive integrators: the closed-form flow within tolerance, for each sample by itself, and honest failures."""

import math
from dataclasses import replace

import pytest
import torch
from catalogue import ADAPTIVE, EVENT_SHAPES, SDES, covering, doubles, flow_solution, gaussian_data, model_of, name

from sde_toolkit import VPSDE, GaussianMixture, Solver, gaussian, grids, probability_flow, sample
from sde_toolkit.errors import ArgumentError, MaxEvaluationsError, NonFiniteError
from sde_toolkit.integrators import Scipy

every_adaptive = pytest.mark.parametrize("integrator", ADAPTIVE, ids=name)
every_method = pytest.mark.parametrize(
    "integrator",
    [replace(i, method=method) for i in ADAPTIVE for method in i.methods],
    ids=lambda i: f"{name(i)}-{i.method}",
)
every_sde = pytest.mark.parametrize("sde", SDES, ids=name)
BEGIN, END = 0.9, 0.1


def solve(integrator, model, x, grid=(BEGIN, END), **options):
    options = {"dtype": torch.float64, **options}
    return sample(model, probability_flow(integrator), doubles(*grid), x_start=x, **options)


def points(sde, n=9):
    spread = (sde.alpha(BEGIN) ** 2 + sde.sigma(BEGIN) ** 2).sqrt()
    return spread * torch.randn(n, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize(("sde", "integrator"), covering(SDES, ADAPTIVE, 2), ids=name)
def test_the_flow_of_gaussian_data_is_met_within_tolerance_through_kinks_too(sde, integrator):
    x = points(sde)
    expected = flow_solution(sde, x, BEGIN, END)
    for tolerance in (1e-4, 1e-6):
        result = solve(replace(integrator, rtol=tolerance, atol=tolerance), gaussian_data(sde), x)
        # A tolerance bounds each step's error; some twenty steps, and a flow that contracts towards the data.
        error = (result.x - expected).norm(dim=1) / (1 + expected.norm(dim=1))
        assert error.max() < 20 * tolerance


@every_method
def test_every_method_that_is_offered_works(integrator):
    sde = VPSDE()
    x = points(sde)
    result = solve(replace(integrator, rtol=1e-5, atol=1e-5), gaussian_data(sde), x)
    assert (result.x - flow_solution(sde, x, BEGIN, END)).abs().max() < 1e-3


@every_adaptive
def test_intermediate_times_only_say_where_the_solution_is_wanted(integrator):
    sde, grid = VPSDE(), (BEGIN, 0.6, 0.3, END)
    x = points(sde)
    path = solve(integrator, gaussian_data(sde), x, grid, trajectory=True).trajectory
    for t, state in zip(grid, path, strict=True):
        assert (state - flow_solution(sde, x, BEGIN, t)).abs().max() < 1e-3


@every_adaptive
def test_a_hard_sample_is_solved_among_easy_ones(integrator):
    """Near the watershed between two far modes the flow is steep; 2000 samples deep inside a mode must not hide it."""
    sde, tolerance = VPSDE(), 1e-5
    model = GaussianMixture(doubles(-4.0, 4.0), sde, std=0.1)
    hard = doubles(0.02)
    easy = 3 + 0.1 * torch.randn(2000, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    integrator = replace(integrator, rtol=tolerance, atol=tolerance)
    truth = solve(Scipy(method="DOP853", rtol=1e-11, atol=1e-11), model, hard).x
    alone = solve(integrator, model, hard).x
    for place in (0, 1000):
        crowd = solve(integrator, model, torch.cat([easy[:place], hard, easy[place:]])).x[place]
        assert (crowd - truth).abs() < 10 * tolerance * (1 + truth.abs())
        assert (crowd - alone).abs() < 10 * tolerance * (1 + truth.abs())


@every_adaptive
@pytest.mark.parametrize("event", EVENT_SHAPES, ids=name)
def test_any_event_shape(integrator, event):
    sde = VPSDE()
    model = gaussian(torch.full(event, 0.5), sde, std=0.4)
    x = torch.randn(3, *event, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    spread = [(sde.alpha(t) ** 2 * 0.4**2 + sde.sigma(t) ** 2).sqrt() for t in (BEGIN, END)]
    expected = sde.alpha(END) * 0.5 + (x - sde.alpha(BEGIN) * 0.5) * spread[1] / spread[0]
    result = solve(integrator, model, x)
    torch.testing.assert_close(result.x, expected, rtol=2e-4, atol=2e-4)
    assert result.nfe > 10


@every_adaptive
def test_float32_states_are_solved_as_well(integrator):
    sde = VPSDE()
    x = points(sde)
    found = solve(integrator, gaussian_data(sde), x.float(), dtype=torch.float32).x
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), flow_solution(sde, x, BEGIN, END), rtol=1e-3, atol=1e-3)


@every_adaptive
def test_evaluations_are_counted_and_limited(integrator):
    calls = []
    sde = VPSDE()
    exact = gaussian_data(sde)

    def network(x, time):
        calls.append(time)
        return exact(x, time).epsilon

    model = model_of(network, sde)
    result = solve(integrator, model, points(sde))
    assert result.nfe == len(calls)
    for limit in (1, 5, result.nfe - 1):
        calls.clear()
        with pytest.raises(MaxEvaluationsError, match=f"max_nfe={limit}") as caught:
            solve(replace(integrator, max_nfe=limit), model, points(sde))
        assert len(calls) == limit
        assert caught.value.max_nfe == limit
        assert END <= caught.value.t <= BEGIN
    assert torch.equal(solve(replace(integrator, max_nfe=result.nfe), model, points(sde)).x, result.x)


@every_adaptive
def test_nan_is_blamed_on_the_network_and_not_on_the_step_size(integrator):
    exact = gaussian_data(VPSDE())

    def network(x, time):
        y = exact(x, time).epsilon
        if time[4] < 0.5:
            y[4] = math.nan
        return y

    with pytest.raises(NonFiniteError, match=r"1 of 9 samples \(first: 4\)") as caught:
        solve(integrator, model_of(network, VPSDE()), points(VPSDE()))
    assert END <= caught.value.t < 0.5


@every_adaptive
@pytest.mark.parametrize(
    ("argument", "value"),
    [("rtol", 0.0), ("atol", -1e-5), ("rtol", math.nan), ("atol", math.inf), ("max_nfe", 0), ("method", "rk99")],
)
def test_bad_settings_are_refused_where_they_are_made(integrator, argument, value):
    with pytest.raises(ArgumentError) as caught:
        replace(integrator, **{argument: value})
    assert f"{argument}={value!r}" in str(caught.value)


@every_adaptive
def test_noise_has_no_place_here(integrator):
    with pytest.raises(ArgumentError, match=r"eta=1\.0"):
        sample(gaussian_data(VPSDE()), Solver("", 1.0, integrator), grids.uniform(VPSDE(), 1), shape=(2, 2))
