"""Law 2: one exponential step is DDPM, DDIM, exponential Euler and the papers' recursions, at float64 precision."""

import math
from itertools import pairwise, product

import pytest
import torch
from catalogue import (
    SDES,
    Flow,
    RandomNetwork,
    convergence_order,
    covering,
    doubles,
    gaussian_data,
    integrate,
    model_of,
    name,
    relative_error,
    run_on,
    start_at,
)
from scipy.integrate import solve_ivp

from sde_toolkit import VPSDE, GaussianMixture, Solver, ddim, ddpm, euler_maruyama, grids, probability_flow, sample
from sde_toolkit.integrators import Euler, Exponential, forward_variance
from sde_toolkit.models import time_inputs
from sde_toolkit.noise.streams import per_sample_noise

pytestmark = pytest.mark.on_device

EXACT = 1e-10
SEED = 5
every_sde = pytest.mark.parametrize("sde", SDES, ids=name)
ETA_FAMILY_0, ETA_FAMILY_1, ETA_FAMILY_HALF = (Solver("own", eta, Exponential()) for eta in (0.0, 1.0, 0.5))


def mixture(sde):
    means = doubles(-1.0, 0.5, 1.5, 1.0, 0.0, -2.0).reshape(3, 2)
    return GaussianMixture(means, sde, std=doubles(0.3, 0.6, 0.2), weights=doubles(1.0, 2.0, 1.0))


def models(sde):
    """A network, and an exact score, whose trajectories are to agree with the recursions."""
    return [model_of(RandomNetwork(), sde), mixture(sde)]


def ragged_grid():
    """Uneven on purpose: nothing may depend on equal steps."""
    steps = torch.rand(13, generator=torch.Generator().manual_seed(6), dtype=torch.float64) + 0.2
    return 0.97 - 0.9 * torch.cat([doubles(0.0), steps.cumsum(0) / steps.sum()])


def path_of(solver, model, grid, x):
    return sample(model, solver, grid, x_start=x, seed=SEED, trajectory=True, dtype=torch.float64).trajectory


def recursion(one_step, model, grid, x):
    """A paper's loop, on the draws that sample() documents for this seed."""
    noise = per_sample_noise(SEED, 0, tuple(x.shape), dtype=torch.float64, device=x.device)
    noise()  # the first draw of a stream is the start, also where x_start replaces it
    path = [x]
    for t, s in pairwise(grid):
        x = one_step(model, x, t, s, noise())
        path.append(x)
    return torch.stack(path)


def posterior_step(model, x, t, s, z):
    """q(x_s | x_t, x̂_0) as the product of two Gaussians: x_s given x̂_0, and x_t given x_s seen as a function of x_s."""
    sde, x_0 = model.sde, model(x, t).x_0
    shrink = sde.alpha(t) / sde.alpha(s)
    variance_s, variance_t_given_s = sde.sigma(s) ** 2, sde.sigma(t) ** 2 - shrink**2 * sde.sigma(s) ** 2
    precision = 1 / variance_s + shrink**2 / variance_t_given_s
    mean = (sde.alpha(s) * x_0 / variance_s + shrink * x / variance_t_given_s) / precision
    return mean + z / precision.sqrt()


def straight_step(model, x, t, s, z):
    """Plain Euler for dx̄/dτ = ε with x̄ = x/α and τ = σ/α."""
    sde = model.sde
    tau_t, tau_s = sde.sigma(t) / sde.alpha(t), sde.sigma(s) / sde.alpha(s)
    return sde.alpha(s) * (x / sde.alpha(t) + (tau_s - tau_t) * model(x, t).epsilon)


def quadrature_step(model, x, t, s, z):
    """Exponential Euler with ε frozen: dx/dt = f x + g²/(2σ) ε by variation of constants, integral by quadrature."""
    sde = model.sde

    def integrand(u):
        return sde.alpha(s) / sde.alpha(u) * sde.g(u) ** 2 / (2 * sde.sigma(u))

    weight = -integrate(sde, integrand, s.item(), t.item())
    return sde.alpha(s) / sde.alpha(t) * x + weight * model(x, t).epsilon


@every_sde
@pytest.mark.parametrize("solver", [ddpm(), ddim(1.0), ETA_FAMILY_1], ids=["ddpm", "ddim(1)", "eta-family(1)"])
def test_ancestral_step_is_the_closed_form_posterior(sde, solver):
    grid = ragged_grid()
    x = start_at(sde, grid[0])
    for model in models(sde):
        expected = recursion(posterior_step, model, grid, x)
        assert relative_error(path_of(solver, model, grid, x), expected) < EXACT


@every_sde
@pytest.mark.parametrize("solver", [ddim(0.0), ETA_FAMILY_0], ids=["ddim(0)", "eta-family(0)"])
@pytest.mark.parametrize("one_step", [straight_step, quadrature_step])
def test_ddim_is_exponential_euler_is_euler_in_good_coordinates(sde, solver, one_step):
    grid = ragged_grid()
    x = start_at(sde, grid[0])
    for model in models(sde):
        expected = recursion(one_step, model, grid, x)
        assert relative_error(path_of(solver, model, grid, x), expected) < EXACT


@every_sde
def test_the_two_etas_agree_at_zero_and_one_and_only_there(sde):
    grid = ragged_grid()
    x, model = start_at(sde, grid[0]), mixture(sde)
    for eta in (0.0, 1.0):
        ours = path_of(Solver("own", eta, Exponential()), model, grid, x)
        assert relative_error(ours, path_of(ddim(eta), model, grid, x)) < EXACT
    for eta in (0.3, 0.7):
        ours = path_of(Solver("own", eta, Exponential()), model, grid, x)
        assert relative_error(ours, path_of(ddim(eta), model, grid, x)) > 1e-3


@pytest.mark.parametrize(("sde", "eta"), covering(SDES, [0.5, 1.0, 1.7]), ids=name)
def test_eta_family_solves_the_equation_with_x_0_frozen(sde, eta):
    """Mean and variance of dx = [f x − ½(1+η²) g² score] dt + η g dw̄, x̂_0 frozen, by an ODE solver."""
    t, s, x_t, x_0 = (0.6004, 0.6001, 1.3, -0.4) if hasattr(sde, "betas") else (0.6, 0.45, 1.3, -0.4)

    def moments(u, y):
        alpha, sigma, f, g = (schedule(u).item() for schedule in (sde.alpha, sde.sigma, sde.f, sde.g))
        pull = 0.5 * (1 + eta**2) * g**2 / sigma**2
        return [f * y[0] + pull * (y[0] - alpha * x_0), 2 * (f + pull) * y[1] - (eta * g) ** 2]

    solution = solve_ivp(moments, (t, s), [x_t, 0.0], method="DOP853", rtol=1e-11, atol=1e-13)
    model = model_of(lambda x, time: torch.full_like(x, x_0), sde, "x0")
    z = doubles(0.0, 1.0, -1.0)
    ends = run_on(Solver("own", eta, Exponential()), model, doubles(t, s), doubles(x_t, x_t, x_t), [z])
    mean, std = ends[0].item(), (ends[1] - ends[2]).item() / 2
    assert mean == pytest.approx(solution.y[0, -1], rel=1e-8)
    assert std**2 == pytest.approx(solution.y[1, -1], rel=1e-8, abs=0)


@every_sde
def test_forward_variance_keeps_the_mean_and_replaces_the_noise(sde):
    grid = ragged_grid()
    x, model = start_at(sde, grid[0]), mixture(sde)
    z = torch.randn(6, 2, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    for t, s in pairwise(grid):
        pair = torch.stack([t, s])
        up, down = (run_on(ddpm(forward_variance), model, pair, x, [sign * z]) for sign in (1, -1))
        mean = run_on(ddpm(), model, pair, x, [0 * z])
        assert relative_error((up + down) / 2, mean) < EXACT
        # The variance of x_t given x_s is the noise that the forward process adds on the way, by quadrature.
        added = integrate(sde, lambda u, t=t: (sde.g(u) * sde.alpha(t) / sde.alpha(u)) ** 2, s.item(), t.item())
        assert relative_error((up - down) / 2, added.sqrt() * z) < EXACT


@pytest.mark.parametrize(
    "solver", [probability_flow(Euler()), ddim(), ETA_FAMILY_0], ids=["Euler", "ddim", "eta-family(0)"]
)
def test_flow_matching_is_plain_euler_on_the_networks_velocity(solver):
    """On the straight path α = 1 − t, σ = t, from pure noise (where α = 0) to the data: x ← x + (s − t) u(x, t)."""
    network, grid = RandomNetwork(), torch.cat([doubles(1.0), ragged_grid(), doubles(0.0)])
    x = start_at(Flow(), 1.0)
    expected = x
    for t, s in pairwise(grid):
        expected = expected + (s - t) * network(expected, t.expand(len(x)))
    found = sample(model_of(network, Flow(), "velocity"), solver, grid, x_start=x, dtype=torch.float64)
    assert relative_error(found.x, expected) < EXACT


def smooth_index_network():
    return RandomNetwork(time_scale=1e-3)


BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
ALPHA_BAR = torch.cat([doubles(1.0), (1 - BETAS).cumprod(0)])
DISCRETE = VPSDE.from_betas(BETAS)


def indexed(t):
    return round(t.item() * 1000)


def ho_step(model, x, t, s, z):
    """Ho et al. 2020, algorithm 2 with σ² = β̃, eq. 7; β := 1 − ᾱ_t/ᾱ_s on a sub-grid."""
    bar_t, bar_s = ALPHA_BAR[indexed(t)], ALPHA_BAR[indexed(s)]
    alpha = bar_t / bar_s
    beta = 1 - alpha
    mean = (x - beta / (1 - bar_t).sqrt() * model(x, t).epsilon) / alpha.sqrt()
    return mean + ((1 - bar_s) / (1 - bar_t) * beta).sqrt() * z


def song_step(eta):
    """Song et al. 2021 (DDIM), eq. 12 with σ from eq. 16."""

    def step(model, x, t, s, z):
        bar_t, bar_s = ALPHA_BAR[indexed(t)], ALPHA_BAR[indexed(s)]
        sigma = eta * ((1 - bar_s) / (1 - bar_t)).sqrt() * (1 - bar_t / bar_s).sqrt()
        epsilon = model(x, t).epsilon
        predicted = (x - (1 - bar_t).sqrt() * epsilon) / bar_t.sqrt()
        return bar_s.sqrt() * predicted + (1 - bar_s - sigma**2).sqrt() * epsilon + sigma * z

    return step


def discrete_models():
    return [
        model_of(smooth_index_network(), DISCRETE, time_input=time_inputs.DiscreteIndex(1000)),
        mixture(DISCRETE),
    ]


PAPERS = {"ho": (ddpm(), ho_step), **{f"song {eta}": (ddim(eta), song_step(eta)) for eta in (0.0, 0.3, 1.0)}}


@pytest.mark.parametrize(("name", "steps"), [*product(PAPERS, (1, 2, 7, 50)), ("ho", 1000)])
def test_papers_recursions(name, steps):
    solver, paper = PAPERS[name]
    grid = grids.discrete(1000, steps)
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    for model in discrete_models():
        assert relative_error(path_of(solver, model, grid, x), recursion(paper, model, grid, x)) < EXACT


def test_the_papers_recursion_asks_the_network_for_index_i_minus_one():
    asked = []

    def network(x, time):
        asked.append(time[0].item())
        return 0 * x

    model = model_of(network, DISCRETE, time_input=time_inputs.DiscreteIndex(1000))
    sample(model, ddpm(), grids.discrete(1000, 7), shape=(2, 2))
    assert asked == [indexed(t) - 1 for t in grids.discrete(1000, 7)[:-1]]
    assert asked[0] == 999


@pytest.mark.parametrize("sde", [s for s in SDES if s.sigma(0.0).item() == 0], ids=name)
@pytest.mark.parametrize(
    "solver", [ddpm(), ddpm(forward_variance), ddim(0.0), ddim(0.6), ddim(1.0), ETA_FAMILY_HALF], ids=name
)
def test_a_last_step_to_the_data_lands_on_the_denoised_estimate(sde, solver):
    grid = doubles(0.9, 0.5, 0.2, 0.01, 0.0)
    for model in models(sde):
        path = path_of(solver, model, grid, start_at(sde, grid[0]))
        assert relative_error(path[-1], model(path[-2], grid[-2]).x_0) < 1e-13


@every_sde
def test_euler_maruyama_and_ddpm_approach_each_other_on_one_brownian_path(sde):
    """Both have strong order 1 here (additive noise), so their distance falls at first order."""
    model = gaussian_data(sde)
    finest, counts, begin, end = 512, (32, 64, 128, 256, 512), 0.7, 0.3
    if hasattr(sde, "betas"):
        begin, end = 0.7001, 0.7009  # inside one interval between knots, as order in t demands
        begin, end = end, begin
    width = (begin - end) / finest
    increments = math.sqrt(width) * torch.randn(finest, 50, 2, generator=torch.Generator().manual_seed(1)).double()
    x = start_at(sde, begin, 50)
    distances = []
    for n in counts:
        grid = torch.linspace(begin, end, n + 1, dtype=torch.float64)
        z = increments.reshape(n, finest // n, 50, 2).sum(1) / math.sqrt((begin - end) / n)
        ends = (run_on(solver, model, grid, x, z) for solver in (euler_maruyama(), ddpm()))
        distances.append((next(ends) - next(ends)).square().mean().sqrt().item())
    assert distances[-1] < distances[0] / 8
    assert convergence_order(counts, distances) == pytest.approx(1, abs=0.15)
