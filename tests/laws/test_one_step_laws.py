"""One-step methods of several evaluations: what each of them is, what it is exact for, and where it stays finite.

The orders of their defaults are measured in ``test_orders``; here those of the other choices. The truth is a
quadrature, a closed form, or a recursion in the coordinates of the paper that a method comes from.
"""

import functools
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from catalogue import (
    COORDINATES,
    FIXED_STEP,
    SDES,
    SMOOTH_SDES,
    Flow,
    RandomNetwork,
    convergence_order,
    covering,
    doubles,
    draws_of,
    gaussian_data,
    marginal,
    model_of,
    name,
    own_moments,
    relative_error,
    run_on,
    signal_at_the_end,
    start_at,
)
from test_orders import (
    BEGIN,
    END,
    every_smooth_sde_with_one_eta,
    measured_flow_order,
    measured_weak_order,
    points,
    solution_on_path,
    uniform,
)

from sde_toolkit import VESDE, VPSDE, ReverseEquation, Solver, ddim, gaussian, grids, reschedule, sample
from sde_toolkit.errors import ArgumentError, GridError
from sde_toolkit.integrators import (
    Ancestral,
    Angle,
    ChurnedHeun,
    DPMSolver1,
    DPMSolver2,
    DPMSolver2S,
    DPMSolver3,
    DPMSolver3S,
    Exponential,
    Heun,
    NoiseToSignal,
    ReverseDiffusion,
    RungeKutta4,
    Time,
)
from sde_toolkit.integrators.runge_kutta import RungeKutta

EXACT = 1e-10
every_sde = pytest.mark.parametrize("sde", SDES, ids=name)
every_smooth_sde = pytest.mark.parametrize("sde", SMOOTH_SDES, ids=name)
NOISE = [DPMSolver1(), DPMSolver2(), DPMSolver2(r=0.3), DPMSolver3()]
DATA = [DPMSolver2S(), DPMSolver2S(r=0.3), DPMSolver3S()]
IN_TAU = [RungeKutta4(), Heun()]
LINES = [DPMSolver2(interpolate=True), DPMSolver2(r=0.3, interpolate=True), DPMSolver2S(interpolate=True)]
PARABOLAS = [DPMSolver3(interpolate=True), DPMSolver3S(interpolate=True)]
IN_LAMBDA = [*NOISE, *DATA, *IN_TAU, *LINES, *PARABOLAS]
ANCESTRAL = [Ancestral(inner) for inner in (DPMSolver1(), DPMSolver2(), DPMSolver2S(), DPMSolver3())]


def solver_of(integrator, eta=0.0):
    return Solver("", eta, integrator)


def ragged_grid():
    return doubles(0.97, 0.9, 0.71, 0.64, 0.4, 0.33, 0.12, 0.07)


def run(integrator, model, grid, x, eta=0.0, noises=()):
    return run_on(solver_of(integrator, eta), model, grid, x, noises)


def draws(count, n=6, seed=8):
    return list(torch.randn(count, n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


def tau(sde, t):
    return sde.sigma(t) / sde.alpha(t)


def at_tau(sde, value):
    return sde.inverse_half_log_snr(-torch.log(value))


def noise_at(model, x_bar, t):
    """ε̂ in NoiseToSignal, (x/α, σ/α)."""
    return model(model.sde.alpha(t) * x_bar, t).epsilon


def denoised_at(model, x_bar, t):
    return model(model.sde.alpha(t) * x_bar, t).x_0


def straight(one_step, model, grid, x, noises=()):
    """A recursion written for x̄ = x/α against τ = σ/α, as EDM's and k-diffusion's are."""
    sde, drawn = model.sde, iter(noises)
    x_bar = x / sde.alpha(grid[0])
    for t, s in pairwise(grid):
        x_bar = one_step(model, x_bar, t, s, drawn)
    return sde.alpha(grid[-1]) * x_bar


# What the methods are.


@pytest.mark.on_device
@every_sde
def test_dpm_solver_1_is_ddim(sde):
    grid = ragged_grid()
    x, model = start_at(sde, grid[0]), model_of(RandomNetwork(), sde)
    assert relative_error(run(DPMSolver1(), model, grid, x), run_on(ddim(), model, grid, x)) < EXACT


def midpoint_step(model, x_bar, t, s, drawn):
    """k-diffusion's DPM2: the midpoint rule in τ, the middle in log τ."""
    tau_t, tau_s = tau(model.sde, t), tau(model.sde, s)
    tau_m = torch.sqrt(tau_t * tau_s)
    middle = x_bar + (tau_m - tau_t) * noise_at(model, x_bar, t)
    return x_bar + (tau_s - tau_t) * noise_at(model, middle, at_tau(model.sde, tau_m))


def heun_step(model, x_bar, t, s, drawn):
    """EDM, algorithm 1."""
    h = tau(model.sde, s) - tau(model.sde, t)
    d = noise_at(model, x_bar, t)
    return x_bar + h / 2 * (d + noise_at(model, x_bar + h * d, s))


def two_s_step(model, x_bar, t, s, drawn):
    """Lu et al. 2022b, algorithm 1, divided by α: with x̂_0 interpolated and τ in place of σ."""
    tau_t, tau_s = tau(model.sde, t), tau(model.sde, s)
    tau_m = torch.sqrt(tau_t * tau_s)
    middle = tau_m / tau_t * x_bar + (1 - tau_m / tau_t) * denoised_at(model, x_bar, t)
    D = denoised_at(model, middle, at_tau(model.sde, tau_m))
    return tau_s / tau_t * x_bar + (1 - tau_s / tau_t) * D


def third_step(model, x_bar, t, s, drawn):
    """Lu et al. 2022a, algorithm 2, divided by α: r_1 = 1/3, r_2 = 2/3."""
    tau_s = tau(model.sde, s)
    h = torch.log(tau(model.sde, t) / tau_s)
    first, second = tau_s * torch.exp(2 * h / 3), tau_s * torch.exp(h / 3)
    noise = noise_at(model, x_bar, t)
    u = x_bar - first * torch.expm1(h / 3) * noise
    D = noise_at(model, u, at_tau(model.sde, first)) - noise
    growth = torch.expm1(2 * h / 3)
    u = x_bar - second * growth * noise - 2 * second * (growth / (2 * h / 3) - 1) * D
    D = noise_at(model, u, at_tau(model.sde, second)) - noise
    return x_bar - tau_s * torch.expm1(h) * noise - 1.5 * tau_s * (torch.expm1(h) / h - 1) * D


def third_data_step(model, x_bar, t, s, drawn):
    """The third-order singlestep update of DPM-Solver++ in the code of Lu et al. 2022b, divided by α: 1/3 and 2/3."""
    tau_t, tau_s = tau(model.sde, t), tau(model.sde, s)
    h = torch.log(tau_t / tau_s)
    first, second = tau_s * torch.exp(2 * h / 3), tau_s * torch.exp(h / 3)
    data = denoised_at(model, x_bar, t)
    u = first / tau_t * x_bar - torch.expm1(-h / 3) * data
    D = denoised_at(model, u, at_tau(model.sde, first)) - data
    decay = torch.expm1(-2 * h / 3)
    u = second / tau_t * x_bar - decay * data + 2 * (decay / (2 * h / 3) + 1) * D
    D = denoised_at(model, u, at_tau(model.sde, second)) - data
    return tau_s / tau_t * x_bar - torch.expm1(-h) * data + 1.5 * (torch.expm1(-h) / h + 1) * D


def split(tau_t, tau_s, eta):
    """k-diffusion's ancestral step: (down, up)."""
    up = min(tau_s, eta * torch.sqrt(tau_s**2 * (tau_t**2 - tau_s**2) / tau_t**2))
    return torch.sqrt(tau_s**2 - up**2), up


def dpm_2_ancestral_step(eta):
    def step(model, x_bar, t, s, drawn):
        down, up = split(tau(model.sde, t), tau(model.sde, s), eta)
        tau_m = torch.sqrt(tau(model.sde, t) * down)
        middle = x_bar + (tau_m - tau(model.sde, t)) * noise_at(model, x_bar, t)
        d = noise_at(model, middle, at_tau(model.sde, tau_m))
        return x_bar + (down - tau(model.sde, t)) * d + up * next(drawn)

    return step


def dpmpp_sde_step(model, x_bar, t, s, drawn):
    """k-diffusion's DPM++ SDE at η = 1: ancestral steps to the middle, and over the whole with the middle's x̂_0.

    The noise of the whole step is that of its halves: in x̄ the posterior of η = 1 keeps (τ_s/τ_m)² of what was there.
    """
    tau_t, tau_s = tau(model.sde, t), tau(model.sde, s)
    tau_m = torch.sqrt(tau_t * tau_s)

    def towards(estimate, end):
        down, up = split(tau_t, end, 1.0)
        return down / tau_t * x_bar + (1 - down / tau_t) * estimate, up

    z = next(drawn), next(drawn)
    mean, up_m = towards(denoised_at(model, x_bar, t), tau_m)
    middle = mean + up_m * z[0]
    mean, up = towards(denoised_at(model, middle, at_tau(model.sde, tau_m)), tau_s)
    halves = (tau_s / tau_m) ** 2 * up_m, split(tau_m, tau_s, 1.0)[1]
    torch.testing.assert_close(halves[0] ** 2 + halves[1] ** 2, up**2)  # so it is the same noise
    return mean + halves[0] * z[0] + halves[1] * z[1]


@pytest.mark.on_device
@pytest.mark.parametrize(
    ("integrator", "eta", "one_step", "drawn"),
    [
        (DPMSolver2(), 0.0, midpoint_step, 0),
        (Heun(), 0.0, heun_step, 0),
        (DPMSolver2(r=1.0, interpolate=False), 0.0, None, 0),
        (DPMSolver2S(), 0.0, two_s_step, 0),
        (DPMSolver3(), 0.0, third_step, 0),
        (DPMSolver3S(), 0.0, third_data_step, 0),
        (DPMSolver2S(), 1.0, dpmpp_sde_step, 2),
        (Ancestral(DPMSolver2()), 1.0, dpm_2_ancestral_step(1.0), 1),
        (Ancestral(DPMSolver2()), 0.6, dpm_2_ancestral_step(0.6), 1),
    ],
    ids=name,
)
@every_sde
def test_papers_recursions_in_straight_coordinates(sde, integrator, eta, one_step, drawn):
    grid = ragged_grid()
    x, model = start_at(sde, grid[0]), model_of(RandomNetwork(), sde)
    z = draws(drawn * (len(grid) - 1))
    one_step = one_step or heun_step  # with r = 1 DPM-Solver-2 is the trapezoidal rule in τ
    assert relative_error(run(integrator, model, grid, x, eta, z), straight(one_step, model, grid, x, z)) < EXACT


@pytest.mark.on_device
@every_sde
def test_edms_last_euler_step_is_the_tweedie_step(sde):
    """EDM's algorithm 1 with its last step to σ = 0, which has no second evaluation."""
    grid = ragged_grid()
    x, model = start_at(sde, grid[0]), model_of(RandomNetwork(), sde)
    x_bar = straight(heun_step, model, grid, x) / sde.alpha(grid[-1])
    expected = x_bar + (0 - tau(sde, grid[-1])) * noise_at(model, x_bar, grid[-1])
    found = sample(model, solver_of(Heun()), grid, x_start=x, tweedie=True, dtype=torch.float64)
    assert relative_error(found.x, expected) < EXACT
    assert found.nfe == 2 * len(grid) - 1  # EDM counts 2N − 1


@pytest.mark.on_device
@every_sde
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ancestral_dpm_solver_1_is_ddim_at_the_papers_eta(sde, eta):
    grid = ragged_grid() if sde.sigma(0.0) > 0 else torch.cat([ragged_grid(), doubles(0.0)])
    x, model, z = start_at(sde, grid[0]), model_of(RandomNetwork(), sde), draws(len(grid))
    expected = run_on(ddim(eta), model, grid, x, z)
    assert relative_error(run(Ancestral(), model, grid, x, eta, z), expected) < EXACT


@pytest.mark.on_device
@pytest.mark.parametrize("inner", [DPMSolver2(), DPMSolver3S(), Heun()], ids=name)
def test_ancestral_without_noise_is_the_inner_method(inner):
    model, grid = model_of(RandomNetwork(), VPSDE()), ragged_grid()
    x = start_at(VPSDE(), grid[0])
    assert torch.equal(run(Ancestral(inner), model, grid, x), run(inner, model, grid, x))


@pytest.mark.on_device
def test_runge_kutta_in_time_is_the_classical_method_of_the_drift():
    """Against the same tableau on the drift itself, through the equation's own drift."""
    sde, grid = VPSDE(), ragged_grid()
    model = model_of(RandomNetwork(), sde)
    x = expected = start_at(sde, grid[0])
    drift = ReverseEquation(model, 0.0).drift
    for t, s in pairwise(grid):
        h, u = s - t, expected
        k = [drift(u, t)]
        for c, earlier in ((0.5, 0), (0.5, 1), (1.0, 2)):
            k.append(drift(u + c * h * k[earlier], t + c * h))
        expected = u + h * (k[0] + 2 * k[1] + 2 * k[2] + k[3]) / 6
    assert relative_error(run(RungeKutta4(Time()), model, grid, x), expected) < EXACT


BETAS = torch.linspace(1e-3, 0.2, 40, dtype=torch.float64)


@pytest.mark.on_device
def test_reverse_diffusion_is_the_papers_on_discrete_betas():
    """Song et al. 2021, eq. 46: x_i = (2 − √(1−β_{i+1})) x_{i+1} + β_{i+1} s(x_{i+1}, i+1) + √β_{i+1} z."""
    sde = VPSDE.from_betas(BETAS)
    model, grid = model_of(RandomNetwork(), sde), grids.discrete(40)
    x = expected = start_at(sde, 1.0)
    z = draws(40)
    for beta, t, noise in zip(BETAS.flip(0), grid, z, strict=False):
        expected = (2 - (1 - beta).sqrt()) * expected + beta * model.score(expected, t) + beta.sqrt() * noise
    assert relative_error(run(ReverseDiffusion(), model, grid, x, 1.0, z), expected) < EXACT


@pytest.mark.on_device
def test_reverse_diffusion_of_ve_adds_the_difference_of_variances():
    """Song et al. 2021, algorithm 2: x_i = x_{i+1} + (σ²_{i+1} − σ²_i) s + √(σ²_{i+1} − σ²_i) z."""
    sde, grid = VESDE(), ragged_grid()
    model, z = model_of(RandomNetwork(), sde), draws(len(grid))
    x = expected = start_at(sde, grid[0])
    for t, s, noise in zip(grid, grid[1:], z, strict=False):
        gap = sde.sigma(t) ** 2 - sde.sigma(s) ** 2
        expected = expected + gap * model.score(expected, t) + gap.sqrt() * noise
    assert relative_error(run(ReverseDiffusion(), model, grid, x, 1.0, z), expected) < EXACT


# What they are exact for.


def told(kind, function, sde):
    """A network that answers with a function of λ alone."""

    def network(x, time):
        return function(sde.half_log_snr(time)).reshape(-1, *[1] * (x.ndim - 1)).expand(x.shape)

    return model_of(network, sde, kind)


def exact_end(sde, kind, function, x, t, s):
    """The flow's end for ε̂ or x̂_0 = function(λ), by quadrature: ∫ ε̂ dτ, or the same with x/σ and ∫ x̂_0 d(1/τ)."""
    nodes, weights = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(80))
    ends = sde.half_log_snr(t), sde.half_log_snr(s)
    lambdas = (ends[0] + ends[1]) / 2 + (ends[1] - ends[0]) / 2 * nodes
    sign = -1 if kind == "epsilon" else 1
    total = sign * (function(lambdas) * torch.exp(sign * lambdas) * weights).sum() * (ends[1] - ends[0]) / 2
    unit = sde.alpha if kind == "epsilon" else sde.sigma
    return unit(s) * (x / unit(t) + total)


def polynomial(degree):
    return lambda u: sum(c * u**k for k, c in enumerate((0.7, -0.4, 0.3, 0.2)[: degree + 1]))


CONSTANT = [*((i, "epsilon", 0) for i in [*NOISE, *IN_TAU]), *((i, "x0", 0) for i in DATA)]
LINEAR = [
    *((i, "epsilon", 1) for i in [*LINES[:2], DPMSolver3()]),
    *((i, "x0", 1) for i in [LINES[2], DPMSolver3S()]),
]
SQUARE = [(PARABOLAS[0], "epsilon", 2), (PARABOLAS[1], "x0", 2)]


def misses(sde, integrator, kind, degree):
    """The relative error of one coarse step when the network is a polynomial in λ."""
    t, s, function = doubles(0.8)[0], doubles(0.5)[0], polynomial(degree)
    x = start_at(sde, t)
    found = run(integrator, told(kind, function, sde), torch.stack([t, s]), x)
    return relative_error(found, exact_end(sde, kind, function, x, t, s))


@pytest.mark.on_device
@every_sde
@pytest.mark.parametrize(("integrator", "kind", "degree"), [*CONSTANT, *LINEAR, *SQUARE], ids=name)
def test_a_prediction_that_is_a_polynomial_in_lambda_is_integrated_exactly(sde, integrator, kind, degree):
    assert misses(sde, integrator, kind, degree) < EXACT


@pytest.mark.on_device
@pytest.mark.parametrize(("integrator", "kind", "degree"), [*LINEAR, *SQUARE], ids=name)
def test_and_no_polynomial_of_one_degree_more_is(integrator, kind, degree):
    assert misses(VPSDE(), integrator, kind, degree + 1) > 1e-6


@pytest.mark.on_device
@pytest.mark.parametrize(("integrator", "degree"), [(Heun(), 1), (RungeKutta4(), 3)], ids=name)
def test_methods_in_tau_are_exact_for_polynomials_in_tau(integrator, degree):
    """The trapezoidal rule to degree 1, Simpson's to degree 3."""
    for extra, bound in ((0, lambda e: e < EXACT), (1, lambda e: e > 1e-6)):
        p = polynomial(degree + extra) if degree + extra < 4 else (lambda u: u**4)
        sde, x = VPSDE(), start_at(VPSDE(), 0.6)
        found = run(integrator, told("epsilon", lambda u, p=p: p(torch.exp(-u)), sde), doubles(0.6, 0.4), x)
        expected = exact_end(sde, "epsilon", lambda u, p=p: p(torch.exp(-u)), x, doubles(0.6)[0], doubles(0.4)[0])
        assert bound(relative_error(found, expected))


@pytest.mark.on_device
@every_sde
@pytest.mark.parametrize("eta", [0.5, 1.0, 1.7])
def test_2s_solves_the_sde_with_x_0_constant_exactly_on_any_grid(sde, eta):
    """Mean and variance after one step of two draws are those of Exponential()'s one step, which is exact."""
    model = model_of(lambda x, time: torch.full_like(x, 0.4), sde, "x0")
    grid, x = doubles(0.8, 0.3), start_at(sde, 0.8)
    unit, none = torch.ones_like(x), torch.zeros_like(x)
    mean = run(DPMSolver2S(), model, grid, x, eta, [none, none])
    parts = [run(DPMSolver2S(), model, grid, x, eta, z) - mean for z in ([unit, none], [none, unit])]
    expected = run(Exponential(), model, grid, x, eta, [none])
    amount = run(Exponential(), model, grid, x, eta, [unit]) - expected
    assert relative_error(mean, expected) < EXACT
    assert relative_error(parts[0] ** 2 + parts[1] ** 2, amount**2) < 1e-9


# Orders of what is not a default, and the path.

VARIANTS = [
    DPMSolver2(r=0.3),
    DPMSolver2S(r=0.8),
    *LINES,
    *PARABOLAS,
    Ancestral(DPMSolver3()),
]


@pytest.mark.on_device
@pytest.mark.parametrize(("sde", "integrator"), covering(SMOOTH_SDES, VARIANTS, 3), ids=name)
def test_orders_of_the_other_choices(sde, integrator):
    order = measured_flow_order(sde, integrator, uniform, (16, 32, 64, 128))
    assert order == pytest.approx(integrator.order, abs=0.2)


RUNGE_KUTTA = [kind for kind in RungeKutta.__subclasses__() if kind.__module__.startswith("sde_toolkit.")]


@pytest.mark.on_device
@pytest.mark.parametrize("method", RUNGE_KUTTA)
@pytest.mark.parametrize("coordinate", COORDINATES, ids=name)
@every_smooth_sde
def test_runge_kutta_methods_have_their_order_in_every_coordinate(sde, coordinate, method):
    order = measured_flow_order(sde, method(coordinate), uniform, (32, 64, 128))
    assert order == pytest.approx(method.order, abs=0.2)


@pytest.mark.on_device
@pytest.mark.parametrize("method", RUNGE_KUTTA)
@pytest.mark.parametrize("coordinate", [c for c in COORDINATES if c.sees_alpha_sigma_only], ids=name)
@every_sde
def test_sdes_are_one_curve_in_coordinates_of_alpha_and_sigma(sde, coordinate, method):
    """One network under two SDEs: at equal λ the states are the same but for their scale, on coarse grids too."""
    model = model_of(RandomNetwork(), VPSDE(), "x0")
    x, lambdas = start_at(VPSDE(), 0.3), doubles(-0.8, -0.5, 0.4, 1.1)  # which every SDE reaches
    ends = []
    for path in (model, reschedule(model, sde)):
        times = path.sde.inverse_half_log_snr(lambdas)
        end = run(method(coordinate), path, times, path.sde.alpha(times[0]) * x)
        ends.append(end / path.sde.alpha(times[-1]))
    assert relative_error(*ends) < 1e-8


@pytest.mark.on_device
@every_sde
def test_runge_kutta_in_the_angle_is_exact_for_gaussian_data_of_its_size(sde):
    """There the scaled state does not move: one step is the whole flow."""
    model, ends = gaussian(torch.zeros(2), sde, std=0.6), doubles(0.8, 0.3)
    x = start_at(sde, ends[0])
    size = [math.hypot(0.6 * sde.alpha(t).item(), sde.sigma(t).item()) for t in ends]
    for method in (Heun, RungeKutta4):
        assert relative_error(run(method(Angle(0.6)), model, ends, x), x * size[1] / size[0]) < 1e-9


@pytest.mark.on_device
@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize(
    "integrator",
    [
        DPMSolver2S(r=0.8),
        DPMSolver2S(interpolate=True),
        *(Ancestral(i) for i in (DPMSolver2(), DPMSolver2S(), DPMSolver3(), Heun(), RungeKutta4())),
    ],
    ids=name,
)
def test_ancestral_methods_lose_only_what_their_inner_method_loses(integrator, eta):
    """In the marginals the weak order is the inner method's, and that of 2S does not depend on where its middle is."""
    for sde in (VPSDE(), VESDE()):
        order = measured_weak_order(sde, integrator, eta, uniform, (16, 32, 64))
        assert order > integrator.weak_order - 0.15


@functools.cache
def brownian_path(finest, paths):
    generator = torch.Generator().manual_seed(2)
    increments = torch.randn(finest, paths, 2, generator=generator, dtype=torch.float64)
    increments *= math.sqrt((BEGIN - END) / finest)
    return increments, torch.cat([torch.zeros(1, paths, 2, dtype=torch.float64), increments.cumsum(0)])


@pytest.mark.on_device
@every_smooth_sde_with_one_eta
def test_strong_order_of_two_draws_a_step(sde, eta):
    """Both draws of a step are increments of the one path, up to the middle in λ and from there on."""
    counts, paths, finest = (32, 64, 128, 256), 100, 2**14
    width = (BEGIN - END) / finest
    increments, path = brownian_path(finest, paths)
    model, x = gaussian_data(sde), points(sde, BEGIN, paths)
    expected = solution_on_path(sde, eta, x, increments)
    errors = []
    for n in counts:
        grid = uniform(n)
        middles = sde.inverse_half_log_snr((sde.half_log_snr(grid[:-1]) + sde.half_log_snr(grid[1:])) / 2)
        times = torch.stack([grid[:-1], middles], 1).flatten()
        places = torch.cat([((BEGIN - times) / width).round().long(), torch.tensor([finest])])
        z = path[places].diff(dim=0) / (places.diff() * width).sqrt()[:, None, None]
        errors.append((run(DPMSolver2S(), model, grid, x, eta, z) - expected).square().mean().sqrt().item())
    assert -0.15 < convergence_order(counts, errors) - DPMSolver2S().strong_order < 0.3


# Churn.

CHURNED = ChurnedHeun(S_churn=8.0)


@pytest.mark.on_device
def test_churn_draws_once_a_step_and_not_without_churn():
    model, grid = gaussian_data(VPSDE()), uniform(5)
    assert draws_of(solver_of(CHURNED), model, grid) == 5
    assert draws_of(solver_of(ChurnedHeun()), model, grid) == 0


@pytest.mark.on_device
@every_sde
def test_without_churn_it_is_heun_in_the_noise_to_signal_ratio(sde):
    model, grid = model_of(RandomNetwork(), sde), ragged_grid()
    x = start_at(sde, grid[0])
    assert torch.equal(run(ChurnedHeun(S_churn=0.0), model, grid, x), run(Heun(NoiseToSignal()), model, grid, x))


@pytest.mark.on_device
@every_smooth_sde
def test_churn_keeps_the_marginals_to_second_order(sde):
    mean, covariance = marginal(sde, END)
    errors, counts = [], (32, 64, 128)
    for n in counts:
        moments = own_moments(solver_of(CHURNED), gaussian_data(sde), uniform(n), *marginal(sde, BEGIN))
        errors.append(math.hypot((moments[0] - mean).norm().item(), (moments[1] - covariance).norm().item()))
    assert convergence_order(counts, errors) == pytest.approx(2, abs=0.25)


def amount_of_churn(sde, integrator, grid):
    """What the draw of the first step adds to x̄, measured with a network that says ε = 0."""
    model = model_of(lambda x, time: torch.zeros_like(x), sde)
    x, unit = torch.zeros(1, 2, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64)
    noises = [unit, *(0 * unit for _ in grid[2:])]
    return (run(integrator, model, grid, x, 0.0, noises) / sde.alpha(grid[-1])).mean()


@every_sde
def test_churn_is_the_forward_process_from_tau_to_its_raise(sde):
    """One step of EDM's algorithm 2 with N = 1: S_noise √(τ̂² − τ²), γ at most √2 − 1; nothing outside the limits."""
    grid = doubles(0.6, 0.3)
    here = tau(sde, grid[0]).item()
    for S_churn, gamma in ((0.1, 0.1), (5.0, math.sqrt(2) - 1)):
        added = math.sqrt(min(here * (1 + gamma), tau(sde, doubles(1.0)).item()) ** 2 - here**2)
        for S_noise in (1.0, 1.007):
            found = amount_of_churn(sde, ChurnedHeun(S_churn=S_churn, S_noise=S_noise), grid)
            assert found.item() == pytest.approx(S_noise * added, rel=1e-9)
    for limits in ({"S_tmin": 1.01 * here}, {"S_tmax": 0.99 * here}):
        assert amount_of_churn(sde, ChurnedHeun(S_churn=5.0, **limits), grid) == 0
    assert amount_of_churn(sde, ChurnedHeun(S_churn=5.0, S_tmin=0.99 * here, S_tmax=1.01 * here), grid) > 0
    if signal_at_the_end(sde):  # from t = 1 there is nowhere to go up to
        assert amount_of_churn(sde, ChurnedHeun(S_churn=5.0), doubles(1.0, 0.3)) == pytest.approx(0, abs=1e-6 * here)


@pytest.mark.on_device
def test_churn_is_shared_by_all_steps_of_the_grid():
    """γ = S_churn/N, N the steps of the whole grid, the last one to σ = 0 too."""
    grid = doubles(0.6, 0.3, 0.1, 0.0)
    one, three = (tau(Flow(), grid[0]).item() * math.sqrt((1 + gamma) ** 2 - 1) for gamma in (0.3, 0.1))
    sharing, alone = (amount_of_churn(Flow(), ChurnedHeun(S_churn=0.3), g).item() for g in (grid, grid[:2]))
    assert (sharing, alone) == (pytest.approx(three), pytest.approx(one))


@pytest.mark.on_device
def test_churn_evaluates_the_network_at_the_raised_time():
    asked, sde = [], VPSDE()

    def network(x, time):
        asked.append(time[0].item())
        return 0 * x

    run(
        ChurnedHeun(S_churn=0.2),
        model_of(network, sde),
        doubles(0.6, 0.3),
        torch.zeros(1, 2).double(),
        0.0,
        draws(1, 1),
    )
    assert tau(sde, doubles(asked[0])).item() == pytest.approx(1.2 * tau(sde, doubles(0.6)).item())
    assert asked[1] == 0.3


# Where they stay finite.


@pytest.mark.on_device
@pytest.mark.parametrize("integrator", IN_LAMBDA, ids=name)
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_steps_infinitely_long_in_lambda_are_exponential_steps_on_a_finer_grid(integrator, eta):
    """From α = 0, and to σ = 0: as many as the method has evaluations, of equal length in t."""
    if eta > 0 and integrator.weak_order is None:
        eta = 0.0
    n = integrator.evals_per_step
    for t, s in ((1.0, 0.6), (0.3, 0.0), (1.0, 0.0)):
        model, x = model_of(RandomNetwork(), Flow(), "velocity"), start_at(Flow(), t)
        z = draws(n)
        expected = run(Exponential(), model, torch.linspace(t, s, n + 1, dtype=torch.float64), x, eta, z)
        assert relative_error(run(integrator, model, doubles(t, s), x, eta, z), expected) < EXACT


def test_regular_steps_of_such_a_grid_are_what_they_are_elsewhere():
    model, grid = model_of(RandomNetwork(), Flow(), "velocity"), doubles(1.0, 0.8, 0.5, 0.2, 0.0)
    rows, regular = (DPMSolver3().prepare(ReverseEquation(model, 0.0), times).values for times in (grid, grid[1:4]))
    torch.testing.assert_close(rows[1:3], regular)


@pytest.mark.on_device
@pytest.mark.parametrize(("sde", "steps"), covering(SDES, [1, 2, 3], 2), ids=name)
def test_few_steps_from_noise_are_finite(sde, steps):
    """Everything public, and the other choices, from t = 1; to the data where σ(0) = 0, for methods in λ."""
    kind = "epsilon" if signal_at_the_end(sde) else "v"
    model = model_of(RandomNetwork(), sde, kind)
    for integrator in [*(i for i in FIXED_STEP if i.sees_alpha_sigma_only), *IN_LAMBDA, *ANCESTRAL, CHURNED]:
        for eta in (0.0, 0.5 if steps == 2 else 1.0) if integrator.weak_order is not None else (0.0,):
            if integrator.order is None and eta == 0:
                continue
            grid = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
            x = sample(model, solver_of(integrator, eta), grid, shape=(3, 2), dtype=torch.float64).x
            assert x.isfinite().all(), (integrator, eta)


@pytest.mark.on_device
@pytest.mark.parametrize("inner", [Heun(), RungeKutta4()], ids=name)
def test_ancestral_methods_that_end_below_the_sdes_least_noise_say_so(inner):
    model = model_of(RandomNetwork(), VESDE())
    with pytest.raises(GridError, match="less than VESDE"):
        sample(model, solver_of(Ancestral(inner), 1.0), doubles(1.0, 0.1), shape=(2, 2))


@pytest.mark.on_device
def test_methods_in_t_refuse_to_end_at_the_data():
    model = model_of(RandomNetwork(), VPSDE())
    with pytest.raises(GridError, match="tweedie"):
        sample(model, solver_of(RungeKutta4(Time())), doubles(1.0, 0.5, 0.0), shape=(2, 2))


@pytest.mark.on_device
@every_sde
def test_float32_tables_lose_nothing_that_matters(sde):
    """The state in float32 follows the one in float64 to its own round-off, in units of the start."""
    kind = "epsilon" if signal_at_the_end(sde) else "v"

    class Rounded(RandomNetwork):
        def forward(self, x, time):
            return super().forward(x.double(), time.double()).to(x.dtype)

    model, grid = model_of(Rounded(), sde, kind), doubles(1.0, 0.8, 0.5, 0.3, 0.1, 0.05)
    for integrator in [*IN_LAMBDA, ReverseDiffusion()]:
        single, double = (
            sample(model, solver_of(integrator), grid, shape=(4, 2), dtype=dtype).x.double()
            for dtype in (torch.float32, torch.float64)
        )
        size = max(sde.sigma(grid[0]).item(), double.abs().max().item())
        assert (single - double).abs().max() < 1e-5 * size, integrator


@pytest.mark.parametrize("integrator", [DPMSolver2S(), CHURNED, Ancestral(DPMSolver3()), RungeKutta4()], ids=name)
def test_steps_compile_whole_and_once(integrator):
    """No graph break, the same bits, and one graph for all steps."""
    eta = 0.0 if integrator.weak_order is None else 1.0
    equation, z = ReverseEquation(model_of(RandomNetwork(), VPSDE()), eta), draws(1, 4)[0]
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    step = torch.compile(
        lambda x, row: integrator.step(equation, x, row, None, lambda: z)[0], backend=backend, fullgraph=True
    )
    x = y = torch.ones(4, 2, dtype=torch.float64)
    for row in integrator.prepare(equation, uniform(5)):
        x, _ = integrator.step(equation, x, row, None, lambda: z)
        y = step(y, row)
    assert torch.equal(x, y)
    assert len(graphs) == 1


# Refusals.


@pytest.mark.parametrize(
    "build",
    [
        lambda: DPMSolver2(r=0.0),
        lambda: DPMSolver2(r=1.5),
        lambda: DPMSolver2S(r=math.nan),
        lambda: RungeKutta4("t"),
        lambda: Heun(math.sqrt),
        lambda: ChurnedHeun(S_churn=-1.0),
        lambda: ChurnedHeun(S_noise=math.inf),
        lambda: ChurnedHeun(S_tmin="a"),
        lambda: Ancestral(Exponential()),
        lambda: Ancestral(CHURNED),
        lambda: Ancestral(RungeKutta4(Time())),
    ],
)
def test_parameters_that_mean_nothing_are_refused(build):
    with pytest.raises(ArgumentError):
        build()


@pytest.mark.on_device
@pytest.mark.parametrize("integrator", [DPMSolver2(), DPMSolver3(), DPMSolver3S(), RungeKutta4(), Heun(), CHURNED])
def test_methods_of_the_flow_refuse_noise(integrator):
    with pytest.raises(ArgumentError, match="eta"):
        sample(model_of(RandomNetwork(), VPSDE()), solver_of(integrator, 1.0), uniform(3), shape=(2, 2))
