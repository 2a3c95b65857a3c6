"""Laws 3 and 4: measured order = declared order, and stochastic solvers have their scheme's own exact moments.

On Gaussian data everything has a closed form: the flow, the SDE's solution on a given Brownian path, and the
moments of a scheme, which is then an affine map. Mixtures would blur all of it by switching modes.
"""

import functools
import math
from dataclasses import dataclass

import pytest
import torch
from catalogue import (
    FIXED_STEP,
    MEAN,
    ROTATION,
    SDES,
    SMOOTH_SDES,
    SOLVERS,
    STOCHASTIC_SOLVERS,
    VARIANCES,
    convergence_order,
    covering,
    draws_of,
    flow_solution,
    gaussian_data,
    marginal,
    name,
    own_moments,
    run_on,
    spread,
)

from sde_toolkit import VPSDE, GaussianMixture, Solver, grids, sample
from sde_toolkit.integrators import Exponential, RungeKutta4
from sde_toolkit.integrators.runge_kutta import RungeKutta

pytestmark = pytest.mark.on_device

BEGIN, END = 0.8, 0.4  # VE: below t = 0.3 the two leading errors of Euler-Maruyama nearly cancel and hide its order
every_smooth_sde = pytest.mark.parametrize("sde", SMOOTH_SDES, ids=name)
every_smooth_sde_with_one_eta = pytest.mark.parametrize(("sde", "eta"), covering(SMOOTH_SDES, [0.5, 1.0]), ids=name)


def draws_each_step(integrator):
    return draws_of(Solver("", 1.0, integrator), gaussian_data(VPSDE()), torch.tensor([0.8, 0.6], dtype=torch.float64))


WITH_ORDER = [i for i in FIXED_STEP if i.order]
in_deterministic_order = pytest.mark.parametrize("integrator", WITH_ORDER, ids=name)
in_strong_order = pytest.mark.parametrize(
    "integrator", [i for i in FIXED_STEP if i.strong_order and draws_each_step(i) == 1], ids=name
)
in_weak_order = pytest.mark.parametrize("integrator", [i for i in FIXED_STEP if i.weak_order], ids=name)
TOLERANCE = 0.15  # of a slope over three halvings, in the asymptotic range


def uniform(n):
    return torch.linspace(BEGIN, END, n + 1, dtype=torch.float64)


def graded(n):
    """Small steps first: what a multistep method loses in its first, low-order steps is then of high order."""
    return BEGIN + (END - BEGIN) * torch.linspace(0, 1, n + 1, dtype=torch.float64) ** 2


def points(sde, t, n=8):
    """Points typical of p_t."""
    z = torch.randn(n, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return sde.alpha(t) * MEAN + (z * spread(sde, t).sqrt()) @ ROTATION.T


def measured_flow_order(sde, integrator, grid_of, counts):
    """The order on Gaussian data. Where a method is better there than it declares, the order on a mixture counts.

    Some methods are: the midpoint rule in σ/α has order 3 on Gaussian data, and order 2 on any other.
    """
    x = points(sde, BEGIN)
    order = flow_order_from(x, gaussian_data(sde), flow_solution(sde, x, BEGIN, END), integrator, grid_of, counts)
    if not integrator.order or order <= integrator.order + TOLERANCE:
        return order
    mixture = GaussianMixture(MEAN + torch.tensor([[1.5, 0.5], [-1.0, 1.5], [0.5, -2.0]]).double(), sde, std=0.4)
    expected = ending(mixture, RungeKutta4(), grid_of(4 * counts[-1]), x)
    return min(order, flow_order_from(x, mixture, expected, integrator, grid_of, counts))


def flow_order_from(x, model, expected, integrator, grid_of, counts):
    errors = [(ending(model, integrator, grid_of(n), x) - expected).norm().item() for n in counts]
    assert errors[-1] < 0.1 * x.norm().item()
    return convergence_order(counts, errors)


def ending(model, integrator, grid, x):
    return sample(model, Solver("", 0.0, integrator), grid, x_start=x, dtype=torch.float64).x


@dataclass(frozen=True)
class MidpointInTau(RungeKutta):
    """The explicit midpoint rule: its error of order 2 vanishes on Gaussian data in σ/α."""

    order = 2
    evals_per_step = 2

    def advance(self, trace, x, begin, target):
        sde, h = trace.equation.sde, self._interval(trace, begin, target)
        middle = self.coordinate.point(sde, self.coordinate.position_of(sde, begin) + 0.5 * h)
        k_1 = self._slope(trace, x, begin)
        return self.coordinate.scale(target) * (x + h * self._slope(trace, x + 0.5 * h * k_1, middle))


def test_a_method_that_is_better_on_gaussians_is_measured_on_a_mixture():
    x = points(VPSDE(), BEGIN)
    truth = flow_solution(VPSDE(), x, BEGIN, END)
    on_gaussians = flow_order_from(x, gaussian_data(VPSDE()), truth, MidpointInTau(), uniform, (64, 128))
    assert on_gaussians == pytest.approx(3, abs=TOLERANCE)
    assert measured_flow_order(VPSDE(), MidpointInTau(), uniform, (64, 128)) == pytest.approx(2, abs=TOLERANCE)


@pytest.mark.parametrize(("sde", "integrator"), covering(SMOOTH_SDES, WITH_ORDER, 2), ids=name)
def test_order_on_the_probability_flow(sde, integrator):
    order = measured_flow_order(sde, integrator, graded, (128, 384))
    assert order == pytest.approx(integrator.order, abs=TOLERANCE)


@in_deterministic_order
def test_order_on_uneven_grids(integrator):
    """The declared order holds for any smooth spacing, not for equal steps alone."""
    sde = VPSDE()
    order = measured_flow_order(
        sde, integrator, lambda n: grids.karras(sde, n, start=BEGIN, end=END), (64, 128, 256, 512)
    )
    assert order == pytest.approx(integrator.order, abs=TOLERANCE)


in_lambda = [
    (i, eta) for i in FIXED_STEP if i.sees_alpha_sigma_only for eta in (0.0, 1.0) if (i.weak_order if eta else i.order)
]


@pytest.mark.parametrize(("integrator", "eta"), in_lambda, ids=name)
def test_order_through_the_kinks_of_discrete_schedules_in_lambda(integrator, eta):
    """log α is only piecewise linear in t; an integrator that sees α and σ alone keeps its order in λ."""
    sde = VPSDE.from_betas(torch.linspace(0.01, 0.5, 20, dtype=torch.float64))

    def grid(n):
        return grids.uniform_lambda(sde, n, start=BEGIN, end=END)

    if eta == 0:
        assert measured_flow_order(sde, integrator, grid, (64, 128, 256, 512)) == pytest.approx(
            integrator.order, abs=TOLERANCE
        )
    else:
        assert measured_weak_order(sde, integrator, eta, grid) == pytest.approx(integrator.weak_order, abs=TOLERANCE)


def solution_on_path(sde, eta, x, increments):
    """The reverse equation's solution on Gaussian data, along a Brownian path of fine increments.

    Along each axis z = x − α m has dz = [f + ½(1+η²) g²/S] z dt + η g dw̄, S the variance. Because S′ = 2 f S + g²,
    its propagator is Φ(s,t) = (α_t/α_s)^(η²) (S_s/S_t)^((1+η²)/2); the noise is ∫ Φ(s,u) η g(u) dw̄ by midpoints.
    """

    def propagator(s, t):
        decay = (sde.alpha(t) / sde.alpha(s))[..., None] ** eta**2
        return decay * (spread(sde, s) / spread(sde, t)) ** ((1 + eta**2) / 2)

    grid = uniform(len(increments))
    middles, begin, end = (grid[:-1] + grid[1:]) / 2, grid[:1], grid[-1:]
    weights = propagator(end, middles) * eta * sde.g(middles)[:, None]
    noise = torch.einsum("nd,nbd->bd", weights, increments @ ROTATION)
    z = propagator(end, begin) * ((x - sde.alpha(begin) * MEAN) @ ROTATION) + noise
    return sde.alpha(end) * MEAN + z @ ROTATION.T


PATHS, FINEST = 200, 4096


@functools.cache
def brownian_increments():
    generator = torch.Generator().manual_seed(2)
    return math.sqrt((BEGIN - END) / FINEST) * torch.randn(FINEST, PATHS, 2, generator=generator, dtype=torch.float64)


@functools.cache
def draws_on_the_path(n):
    summed = brownian_increments().reshape(n, FINEST // n, PATHS, 2).sum(1)
    return summed / math.sqrt((BEGIN - END) / n)


@functools.cache
def starts_and_ends_on_the_path(sde, eta):
    x = points(sde, BEGIN, PATHS)
    return x, solution_on_path(sde, eta, x, brownian_increments())


@in_strong_order
@every_smooth_sde_with_one_eta
def test_strong_order_on_a_brownian_path(sde, integrator, eta):
    counts, model, errors = (32, 64, 128, 256), gaussian_data(sde), []
    x, expected = starts_and_ends_on_the_path(sde, eta)
    for n in counts:
        end = run_on(Solver("", eta, integrator), model, uniform(n), x, draws_on_the_path(n))
        errors.append((end - expected).square().mean().sqrt().item())
    # 200 paths leave 5 % on each error; the path is shared, so that little of it reaches the slope.
    # A leading error with a small factor lets the slope come out too steep on grids this coarse, never too flat.
    assert -TOLERANCE < convergence_order(counts, errors) - integrator.strong_order < 0.3


def measured_weak_order(sde, integrator, eta, grid_of, counts=(16, 32, 64, 128)):
    """The order of the error in mean and full covariance, both exact: no sampling."""
    model = gaussian_data(sde)
    mean, covariance = marginal(sde, END)
    errors = []
    for n in counts:
        own_mean, own_covariance = own_moments(Solver("", eta, integrator), model, grid_of(n), *marginal(sde, BEGIN))
        errors.append(math.hypot((own_mean - mean).norm().item(), (own_covariance - covariance).norm().item()))
    return convergence_order(counts, errors)


@in_weak_order
@every_smooth_sde_with_one_eta
def test_weak_order_of_mean_and_covariance(sde, integrator, eta):
    order = measured_weak_order(sde, integrator, eta, uniform, (32, 64, 128))
    assert order > integrator.weak_order - TOLERANCE  # mean and covariance are linear: nonlinear moments may lag behind


CONVERGENT = [s for s in STOCHASTIC_SOLVERS if s.integrator.evals_per_step and s.integrator.weak_order]


@pytest.mark.parametrize(("sde", "solver"), covering(SDES, CONVERGENT, 3), ids=name)
def test_every_stochastic_preset_tends_to_the_closed_form(sde, solver):
    mean, covariance = marginal(sde, END)
    errors = []
    for n in (20, 80):
        moments = own_moments(
            solver, gaussian_data(sde), grids.uniform_lambda(sde, n, start=BEGIN, end=END), *marginal(sde, BEGIN)
        )
        errors.append(math.hypot((moments[0] - mean).norm().item(), (moments[1] - covariance).norm().item()))
    assert errors[1] < errors[0] / 2.5  # four times the steps, order 1 at least
    assert errors[1] < 0.1 * covariance.norm().item()


OF_FIXED_STEPS = [s for s in SOLVERS if s.integrator.evals_per_step]


@pytest.mark.parametrize(("sde", "solver"), covering(SDES, OF_FIXED_STEPS, 3), ids=name)
def test_sampled_moments_are_the_schemes_own(sde, solver):
    """Few, coarse steps: far from p_0, exactly where the scheme itself goes. From sample()'s own starting noise."""
    model, n = gaussian_data(sde), 20_000
    grid = grids.uniform_lambda(sde, 6, start=BEGIN, end=END)
    start = torch.zeros(2, dtype=torch.float64), sde.sigma(BEGIN) ** 2 * torch.eye(2, dtype=torch.float64)
    mean, covariance = own_moments(solver, model, grid, *start)
    generator = torch.Generator().manual_seed(3)
    x = sample(model, solver, grid, shape=(n, 2), generator=generator, dtype=torch.float64).x
    bars = covariance.diagonal().sqrt() / math.sqrt(n)
    assert ((x.mean(0) - mean).abs() < 5 * bars).all()
    # For normal x the standard error of a covariance is √((C_ii C_jj + C_ij²)/n).
    variances = covariance.diagonal()
    bars = ((variances[:, None] * variances + covariance**2) / n).sqrt()
    assert ((x.T.cov() - covariance).abs() < 5 * bars).all()


def test_own_moments_are_those_of_a_known_linear_map():
    """The yardstick itself: one exponential step at η = 1 from t to s, whose moments Gaussian conditioning gives.

    x_s = α_s x̂_0 + ... is linear in x_t with x̂_0 = E[x_0 | x_t], so that x_s and x_t keep the right covariance
    with each other, and x_s loses exactly the posterior variance of x_0 that freezing leaves out.
    """
    sde = VPSDE()
    t, s = 0.5, 0.4
    grid = torch.tensor([t, s], dtype=torch.float64)
    mean, covariance = own_moments(Solver("", 1.0, Exponential()), gaussian_data(sde), grid, *marginal(sde, t))
    true_mean, true_covariance = marginal(sde, s)
    alpha_t, alpha_s, var_t, var_s = sde.alpha(t), sde.alpha(s), sde.sigma(t) ** 2, sde.sigma(s) ** 2
    posterior = torch.diag(VARIANCES * var_t / (alpha_t**2 * VARIANCES + var_t))  # of x_0 given x_t
    weight = alpha_s * (1 - (alpha_t / alpha_s) ** 2 * var_s / var_t)  # of x_0 in E[x_s | x_t, x_0]
    lost = weight**2 * ROTATION @ posterior @ ROTATION.T
    torch.testing.assert_close(mean, true_mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(covariance, true_covariance - lost, rtol=1e-12, atol=1e-12)
