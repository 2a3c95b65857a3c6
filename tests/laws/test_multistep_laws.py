"""Multistep methods: exact where theory says so, equal to the papers' recursions, on uneven grids and every SDE."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from catalogue import (
    SDES,
    SMOOTH_SDES,
    RandomNetwork,
    doubles,
    gaussian_data,
    model_of,
    name,
    relative_error,
    run_on,
    signal_at_the_end,
    start_at,
)
from test_orders import graded, measured_flow_order, measured_weak_order

from sde_toolkit import VESDE, VPSDE, ReverseEquation, Solver, SubVPSDE, gaussian, grids, sample
from sde_toolkit.errors import ArgumentError
from sde_toolkit.integrators import (
    Angle,
    Corrected,
    Exponential,
    FrozenEDM,
    FrozenNoise,
    FrozenX0,
    HalfLogSNR,
    Multistep,
    NoiseToSignal,
    Time,
    bh1,
    bh2,
)
from sde_toolkit.models import time_inputs

EXACT = 1e-10
every_sde = pytest.mark.parametrize("sde", SDES, ids=name)
every_smooth_sde = pytest.mark.parametrize("sde", SMOOTH_SDES, ids=name)
FROZEN = [(FrozenX0(), "x0", 1.0), (FrozenNoise(), "epsilon", 1.0), (FrozenEDM(0.7), "edm", 0.7)]
every_frozen = pytest.mark.parametrize(("frozen", "kind", "sigma_data"), FROZEN, ids=["x0", "noise", "edm"])
GRID = doubles(0.8, 0.74, 0.7, 0.61, 0.55, 0.43)


def flow(integrator, eta=0.0):
    return Solver("", eta, integrator)


def path_of(integrator, model, grid, x):
    return sample(model, flow(integrator), grid, x_start=x, trajectory=True, dtype=torch.float64).trajectory


def polynomial_model(sde, kind, sigma_data, coordinate, degree):
    """What the network says is a polynomial of the coordinate, whatever x is."""

    def network(x, time):
        c = coordinate.position(sde, sde.half_log_snr(time[0] if time.stride() == (0,) else time))
        return x * 0 + sum((0.7 - k) * (c / 2) ** k for k in range(degree + 1))

    options = {"sigma_data": sigma_data, "time_input": time_inputs.ScaledTime()} if kind == "edm" else {}
    return model_of(network, sde, kind, **options)


def linear_solution(p, q, start, t, s, nodes=40):
    """y(s) of y′ = p y + q from y(t), a number or several: collocation at Chebyshev's points, all times at once."""
    places = np.cos(np.pi * np.arange(nodes) / (nodes - 1))  # 1 is t, −1 is s
    times = torch.from_numpy(s + (t - s) * (places + 1) / 2).clamp(s, t)
    ends = np.where(np.isin(np.arange(nodes), (0, nodes - 1)), 2.0, 1.0) * (-1.0) ** np.arange(nodes)
    slopes = ends[:, None] / ends / (places[:, None] - places + np.eye(nodes))
    slopes = (slopes - np.diag(slopes.sum(1))) * 2 / (t - s)  # it differentiates polynomials at the points
    system = (slopes - np.diag(p(times).numpy()))[1:]
    found = np.linalg.solve(system[:, 1:], q(times).numpy()[1:, None] - system[:, :1] * np.atleast_1d(start))
    return torch.from_numpy(found[-1])


def solved(model, x, t, s):
    """The probability flow by its drift, where that is linear in x."""
    drift = ReverseEquation(model, 0.0).drift

    def of_zero(u):
        return drift(torch.zeros_like(u), u)

    return linear_solution(lambda u: drift(torch.ones_like(u), u) - of_zero(u), of_zero, x.numpy(), t, s)


@every_smooth_sde
@every_frozen
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_a_polynomial_of_degree_below_the_order_is_integrated_exactly(sde, frozen, kind, sigma_data, order):
    model = polynomial_model(sde, kind, sigma_data, HalfLogSNR(), order - 1)
    path = path_of(Multistep(order, frozen), model, GRID, doubles(1.3, -0.4))
    known = order - 1  # from here on it has as many values as it wants
    expected = solved(model, path[known], GRID[known].item(), GRID[-1].item())
    assert relative_error(path[-1], expected) < 1e-9
    if order > 1:  # and no more than that
        model = polynomial_model(sde, kind, sigma_data, HalfLogSNR(), order)
        path = path_of(Multistep(order, frozen), model, GRID, doubles(1.3, -0.4))
        assert relative_error(path[-1], solved(model, path[known], GRID[known].item(), GRID[-1].item())) > 1e-7


@pytest.mark.parametrize("coordinate", [HalfLogSNR(), NoiseToSignal(), Angle(), Angle(0.4), Time()], ids=str)
@every_frozen
def test_the_polynomial_is_one_in_the_chosen_coordinate(coordinate, frozen, kind, sigma_data):
    sde = VPSDE()
    model = polynomial_model(sde, kind, sigma_data, coordinate, 2)
    path = path_of(Multistep(3, frozen, coordinate), model, GRID, doubles(1.3, -0.4))
    assert relative_error(path[-1], solved(model, path[2], GRID[2].item(), GRID[-1].item())) < 1e-9


@pytest.mark.parametrize("coordinate", [NoiseToSignal(), Angle(), Time()], ids=str)
@pytest.mark.parametrize(("frozen", "kind"), [(FrozenX0(), "x0"), (FrozenNoise(), "epsilon")], ids=["x0", "noise"])
def test_coordinates_that_are_finite_at_the_data_keep_their_order_in_the_last_step(coordinate, frozen, kind):
    sde, grid = VPSDE(), doubles(0.4, 0.3, 0.2, 0.1, 0.0)
    model = polynomial_model(sde, kind, 1.0, coordinate, 2)
    path = path_of(Multistep(3, frozen, coordinate), model, grid, doubles(1.3, -0.4))
    nearly = path[2]
    for t, s in pairwise(np.geomspace(0.2, 1e-9, 25)):  # it behaves like √t
        nearly = solved(model, nearly, t, s)
    assert relative_error(path[-1], nearly) < 1e-3  # √t of noise is still missing there


@pytest.mark.parametrize("sde", [s for s in SDES if signal_at_the_end(s)], ids=name)  # ε itself can be said there
@every_frozen
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_first_order_solves_the_equation_with_the_frozen_quantity(sde, frozen, kind, sigma_data, eta):
    """Mean and variance of the reverse equation while the network's output stands still."""
    t, s = (0.6004, 0.6001) if hasattr(sde, "betas") else (0.6, 0.45)
    model = model_of(lambda x, time: torch.full_like(x, -0.4), sde, kind, sigma_data=sigma_data)
    equation = ReverseEquation(model, eta)

    p, q = (lambda u, i=i: equation.drift_coefficients(u)[i] for i in range(2))
    mean = linear_solution(p, lambda u: -0.4 * q(u), 1.3, t, s)
    variance = linear_solution(lambda u: 2 * p(u), lambda u: -(equation.diffusion(u) ** 2), 0.0, t, s)
    ends = run_on(flow(Multistep(1, frozen), eta), model, doubles(t, s), doubles(1.3, 1.3, 1.3), [doubles(0, 1, -1)])
    assert ends[0].item() == pytest.approx(mean.item(), rel=1e-8)
    assert ((ends[1] - ends[2]) / 2).item() ** 2 == pytest.approx(variance.item(), rel=1e-7, abs=1e-14)


@pytest.mark.on_device
@every_sde
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_order_one_in_data_prediction_is_ddim_and_ddpm(sde, eta):
    model, x = model_of(RandomNetwork(), sde), start_at(sde, GRID[0])
    draws = torch.randn(len(GRID) - 1, *x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ends = [run_on(flow(i, eta), model, GRID, x, draws) for i in (Multistep(1), Exponential())]
    assert relative_error(*ends) < EXACT


@pytest.mark.on_device
@every_sde
@pytest.mark.parametrize("order", [2, 3])
def test_the_two_ends_of_the_edm_family_are_data_and_noise_prediction(sde, order):
    model, x = gaussian_data(sde), start_at(sde, GRID[0])
    for sigma_data, end in ((1e-6, FrozenX0()), (1e6, FrozenNoise())):
        inside, limit = (path_of(Multistep(order, f), model, GRID, x) for f in (FrozenEDM(sigma_data), end))
        assert relative_error(inside, limit) < 1e-5


@pytest.mark.on_device
@every_sde
@pytest.mark.parametrize(
    "integrator", [Multistep(2, FrozenEDM(0.6)), Corrected(Multistep(3, FrozenEDM(0.6)))], ids=name
)
def test_one_step_is_exact_for_gaussian_data_of_the_declared_size(sde, integrator):
    model = gaussian(torch.zeros(2), sde, std=0.6)
    x, ends = start_at(sde, 0.8), doubles(0.8, 0.3)
    size = [math.hypot(0.6 * sde.alpha(t).item(), sde.sigma(t).item()) for t in ends]
    found = sample(model, flow(integrator), ends, x_start=x, dtype=torch.float64).x
    assert relative_error(found, x * size[1] / size[0]) < 1e-9


def lambdas(sde):
    return [sde.half_log_snr(t).item() for t in GRID]


def reference_dpmpp_2m(model, x, eta, draws):
    """Lu et al. 2022b, algorithm 2, with the noise of SDE-DPM-Solver++ (appendix A), in r, h and D of the paper."""
    sde, lam, previous = model.sde, lambdas(model.sde), None
    for i, (t, s) in enumerate(pairwise(GRID)):
        h, x_0 = lam[i + 1] - lam[i], model(x, t).x_0
        D = x_0
        if previous is not None:
            r = (lam[i] - lam[i - 1]) / h
            D = (1 + 1 / (2 * r)) * x_0 - 1 / (2 * r) * previous
        ratio = sde.sigma(s) / sde.sigma(t)
        x = ratio * math.exp(-(eta**2) * h) * x - sde.alpha(s) * math.expm1(-(1 + eta**2) * h) * D
        x = x + sde.sigma(s) * math.sqrt(-math.expm1(-2 * eta**2 * h)) * draws[i]
        previous = x_0
    return x


@pytest.mark.on_device
@every_sde
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_dpm_solver_pp_2m(sde, eta):
    draws = torch.randn(len(GRID) - 1, 6, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    for model in (model_of(RandomNetwork(), sde), gaussian_data(sde)):
        x = start_at(sde, GRID[0])
        expected = reference_dpmpp_2m(model, x, eta, draws)
        found = run_on(flow(Multistep(2, two_point=bh2), eta), model, GRID, x, draws)
        assert relative_error(found, expected) < EXACT


@pytest.mark.on_device
@every_sde
def test_deis_in_rho(sde):
    """Zhang & Chen 2023: plain Adams-Bashforth 2 for dx̄/dτ = ε with unequal steps."""
    model, x = model_of(RandomNetwork(), sde), start_at(sde, GRID[0])
    tau = [math.exp(-v) for v in lambdas(sde)]
    expected, previous = x, None
    for i, (t, s) in enumerate(pairwise(GRID)):
        epsilon, h = model(expected, t).epsilon, tau[i + 1] - tau[i]
        slope = 0 if previous is None else (epsilon - previous) / (tau[i] - tau[i - 1])
        expected = sde.alpha(s) * (expected / sde.alpha(t) + h * epsilon + h**2 / 2 * slope)
        previous = epsilon
    found = sample(model, flow(Multistep(2, FrozenNoise(), NoiseToSignal())), GRID, x_start=x, dtype=torch.float64).x
    assert relative_error(found, expected) < EXACT


def reference_unipc(model, x, p, variant):
    """Zhao et al. 2023, algorithms 1 and 2 in data prediction: R ρ = b with B(h), as the paper writes them."""
    sde, lam = model.sde, lambdas(model.sde)
    times, xs, values = list(GRID), [x], [model(x, GRID[0]).x_0]

    def coefficients(r, h, count):
        b, factor = [], 1.0
        B = math.expm1(-h) if variant is bh2 else -h
        term = math.expm1(-h) / (-h) - 1
        for k in range(1, count + 1):
            factor *= k
            b.append(term * factor / B)
            term = term / (-h) - 1 / (factor * (k + 1))
        if count == 1:
            return np.array([0.5]), B
        return np.linalg.solve(np.array([[v**k for v in r] for k in range(count)]), np.array(b)), B

    for i in range(1, len(times)):
        t, s, h = times[i - 1], times[i], lam[i] - lam[i - 1]
        order = min(p, i)
        older = [(lam[i - 1 - k] - lam[i - 1]) / h for k in range(1, order)]
        D = [(values[i - 1 - k] - values[i - 1]) / r for k, r in enumerate(older, 1)]
        base = sde.sigma(s) / sde.sigma(t) * xs[-1] - sde.alpha(s) * math.expm1(-h) * values[i - 1]
        predicted = base
        if order > 1:
            rho, B = coefficients(older, h, order - 1)
            predicted = base - sde.alpha(s) * B * sum(w * d for w, d in zip(rho, D, strict=True))
        if i == len(times) - 1:
            return predicted
        new = model(predicted, s).x_0
        rho, B = coefficients([*older, 1.0], h, order)
        D = [*D, new - values[i - 1]]
        xs.append(base - sde.alpha(s) * B * sum(w * d for w, d in zip(rho, D, strict=True)))
        values.append(new)
    return None


@pytest.mark.on_device
@every_sde
@pytest.mark.parametrize("variant", [bh1, bh2])
@pytest.mark.parametrize("p", [1, 2, 3])
def test_unipc(sde, p, variant):
    for model in (model_of(RandomNetwork(), sde), gaussian_data(sde)):
        x = start_at(sde, GRID[0])
        found = sample(model, flow(Corrected(Multistep(p, two_point=variant))), GRID, x_start=x, dtype=torch.float64).x
        assert relative_error(found, reference_unipc(model, x, p, variant)) < 1e-9


@pytest.mark.on_device
@every_sde
def test_a_corrector_keeps_the_noise_of_the_step(sde):
    """With a network that does not depend on x the corrected and the plain method receive the same noise."""
    model = model_of(lambda x, time: torch.full_like(x, 0.3), sde, "x0")
    x = start_at(sde, GRID[0])
    draws = torch.randn(len(GRID) - 1, *x.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    ends = [run_on(flow(i, 1.0), model, GRID, x, draws) for i in (Corrected(Multistep(3)), Exponential())]
    assert relative_error(*ends) < EXACT


@pytest.mark.on_device
@pytest.mark.parametrize("order", [1, 2, 3, 7])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_more_order_than_steps_is_no_harm(order, steps):
    model = gaussian_data(VPSDE())
    x, grid = start_at(VPSDE(), 1.0), grids.uniform(VPSDE(), steps)
    for integrator in (Multistep(order), Corrected(Multistep(order))):
        assert bool(sample(model, flow(integrator), grid, x_start=x).x.isfinite().all())


@pytest.mark.on_device
@every_frozen
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_from_the_very_end_of_time_to_the_data(frozen, kind, sigma_data, eta):
    """λ is infinite at both ends; the steps there fall to first order and stay finite."""
    grid = torch.linspace(1, 0, 6, dtype=torch.float64)
    for integrator in (Multistep(3, frozen), Corrected(Multistep(2, frozen)), Multistep(3, frozen, Angle())):
        model = gaussian_data(VPSDE())
        x = sample(model, flow(integrator, eta), grid, shape=(64, 2), dtype=torch.float64).x
        assert bool(x.isfinite().all())
        if eta == 0 or kind != "epsilon":  # frozen noise overshoots on the SDE, in steps as large as these
            assert x.std() < 3


def test_bad_arguments_are_named():
    with pytest.raises(ArgumentError, match="order"):
        Multistep(0)
    with pytest.raises(ArgumentError, match="coordinate"):
        Multistep(2, coordinate=lambda sde, half_log_snr: half_log_snr)
    with pytest.raises(ArgumentError, match="sigma_data"):
        Angle(-1.0)
    with pytest.raises(ArgumentError, match="sigma_data"):
        FrozenEDM(0.0)
    with pytest.raises(ArgumentError, match="predictor"):
        Corrected(Exponential())


@pytest.mark.on_device
def test_unipc_bh1_down_to_the_data_is_finite():
    """diffusers' is NaN there, because h is infinite."""
    x = sample(
        gaussian_data(VPSDE()), flow(Corrected(Multistep(2, two_point=bh1))), torch.linspace(1, 0, 5), shape=(9, 2)
    )
    assert bool(x.x.isfinite().all())


@pytest.mark.on_device
@pytest.mark.parametrize("sde", [VPSDE(), VESDE(), SubVPSDE()], ids=name)
@every_frozen
def test_orders_hold_whatever_is_frozen(sde, frozen, kind, sigma_data):
    counts = (64, 128, 256)
    for integrator in (Multistep(2, frozen), Multistep(3, frozen), Corrected(Multistep(2, frozen))):
        order = measured_flow_order(sde, integrator, graded, counts)
        assert order == pytest.approx(integrator.order, abs=0.2)
    for integrator in (Multistep(2, frozen), Corrected(Multistep(2, frozen))):
        assert measured_weak_order(sde, integrator, 0.5, graded, (32, 64, 128)) > 1.8
