"""What the laws are stated for: every public SDE, integrator and solver, found by looking, and two SDEs of a user's.

A new public class or preset joins the laws without an edit here. Numerical tools that several laws share
(differences, quadrature, closed forms of Gaussian data) are here too; none repeats a formula of the package.
"""

import functools
import inspect
import itertools
from dataclasses import dataclass, replace
from typing import get_origin

import numpy as np
import torch
from devices import at_device
from torch import nn

import sde_toolkit
from sde_toolkit import SDE, Integrator, ReverseEquation, ScoreModel, Solver, integrators, solvers
from sde_toolkit.batching import expand_to
from sde_toolkit.models.prediction import KINDS

EVENT_SHAPES = [(), (2,), (16, 64), (3, 8, 8)]


@dataclass(frozen=True)
class UserPath(SDE):
    """Given by α and σ alone: the cosine schedule, stopped short of α = 0."""

    def alpha(self, t):
        return torch.cos(1.54 * t)

    def sigma(self, t):
        return torch.sin(1.54 * t)


@dataclass(frozen=True)
class UserCoefficients(SDE):
    """Given by f and g alone, with σ(0) ≠ 0."""

    sigma_0 = 0.3

    def f(self, t):
        return -(0.5 + t)

    def g(self, t):
        return torch.sqrt(1 + 2 * t**2)


@dataclass(frozen=True)
class Flow(SDE):
    """Flow matching's straight path, with α(1) = 0: for laws about that end of time only."""

    def alpha(self, t):
        return 1 - t

    def sigma(self, t):
        return t


def classes_in(module, base):
    found = (getattr(module, name) for name in module.__all__)
    found = [c for c in found if get_origin(c) is None]  # Python 3.10 takes Callable[...] for a class
    return [c for c in found if inspect.isclass(c) and issubclass(c, base) and not inspect.isabstract(c) and c != base]


def presets_in(module):
    functions = (getattr(module, name) for name in module.__all__)
    return [quick(made) for f in functions if inspect.isfunction(f) and isinstance(made := f(), Solver)]


def quick(solver):
    """An adaptive solver at tolerances that laws about something else can afford."""
    if solver.integrator.evals_per_step is not None:
        return solver
    return replace(solver, integrator=replace(solver.integrator, rtol=0.1, atol=0.1))


PUBLIC_SDES = [cls() for cls in classes_in(sde_toolkit.sde, SDE)]
SDES = [*PUBLIC_SDES, UserPath(), UserCoefficients()]
SMOOTH_SDES = [sde for sde in SDES if not hasattr(sde, "betas")]
INTEGRATORS = [
    *(cls() for cls in classes_in(integrators, Integrator)),
    integrators.Exponential(noise=integrators.ddim_noise),
]
COORDINATES = [cls() for cls in classes_in(integrators, integrators.Coordinate)]
FIXED_STEP = [integrator for integrator in INTEGRATORS if integrator.evals_per_step is not None]
FIXED_STEP_WITH_ETA = [
    (integrator, eta)
    for integrator in FIXED_STEP
    for eta in (0.0, 1.0)
    if (integrator.order if eta == 0 else integrator.weak_order) is not None
]
ADAPTIVE = [i for i in INTEGRATORS if i.evals_per_step is None and i.weak_order is None]  # on the flow
SOLVERS = [
    *presets_in(solvers),
    solvers.ddim(0.5),
    solvers.ddpm(integrators.forward_variance),
    solvers.Solver("half", 0.5, integrators.Exponential()),
]
STOCHASTIC_SOLVERS = [solver for solver in SOLVERS if solver.eta > 0]


def covering(first, second, each=1):
    """Pairs for laws to which both values contribute apart: each of the longer list meets ``each`` of the other.

    All values of both occur, also those of objects that become public later.
    """
    longer, shorter = (first, second) if len(first) >= len(second) else (second, first)
    pairs = [(a, shorter[(i + k) % len(shorter)]) for k in range(each) for i, a in enumerate(longer)]
    return pairs if longer is first else [(a, b) for b, a in pairs]


def name(value):
    """The id of a parameter in pytest's output."""
    if isinstance(value, SDE | Integrator | integrators.Coordinate):
        return type(value).__name__
    return value.name if isinstance(value, Solver) else getattr(value, "__name__", str(value))


def doubles(*values):
    return torch.tensor(values, dtype=torch.float64)


def off_kinks(sde, t):
    """The times moved to the middle of an interval between knots, where there are knots."""
    return (torch.floor(t * sde.N).clamp(max=sde.N - 1) + 0.5) / sde.N if hasattr(sde, "betas") else t


def slope_of(function, t, h):
    """d function/dt by central differences of order 6: error h⁶ f⁽⁷⁾/140 plus rounding eps |f|/h."""
    weights = ((1, 45 / 60), (2, -9 / 60), (3, 1 / 60))
    return sum(w * (function(t + k * h) - function(t - k * h)) for k, w in weights) / h


def difference_step(sde, t):
    """Small against the scale on which α and σ change (σ ~ √t or t near 0), and inside one interval between knots."""
    h = (0.01 * torch.as_tensor(t)).clamp(max=1e-3)
    return h.clamp(max=0.1 / sde.N) if hasattr(sde, "betas") else h


def integrate(sde, integrand, low, high):
    """∫ of a smooth function of t, piecewise between knots: composite Gauss-Legendre."""
    knots = sde.N if hasattr(sde, "betas") else 16
    inner = [k / knots for k in range(knots + 1) if low < k / knots < high]
    edges = torch.tensor([low, *inner, high], dtype=torch.float64)
    nodes, weights = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(24))
    width = edges.diff()[:, None] / 2
    t = edges[:-1, None] + width * (nodes + 1)
    return (integrand(t) * weights * width).sum()


class RandomNetwork(nn.Module):
    """A smooth network with fixed random weights, bounded outputs, in float64."""

    def __init__(self, dimension=2, time_scale=1.0):
        super().__init__()
        generator = torch.Generator().manual_seed(11)

        def normal(*shape):
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        self.time_scale = time_scale
        self.enter, self.time, self.leave = normal(dimension, 16), normal(16), normal(16, dimension) / 4

    def forward(self, x, time):
        return torch.tanh(0.5 * x @ self.enter + time[:, None] * self.time_scale * self.time) @ self.leave


MEAN = doubles(1.0, -0.5)
ROTATION = doubles(0.8, 0.6, -0.6, 0.8).reshape(2, 2)
VARIANCES = doubles(1.5, 0.2)
COVARIANCE = ROTATION @ torch.diag(VARIANCES) @ ROTATION.T


def gaussian_data(sde):
    """An elongated, tilted Gaussian away from the origin, with its exact ε = σ S⁻¹ (x − α m).

    Written out here, so that these laws do not lean on the package's own oracle.
    """

    affine = exact_epsilon(sde)

    def network(x, time):
        if time.stride() != (0,) and len(time) > 1:  # a time per sample
            t = time.double()
            scores = (x - sde.alpha(t)[:, None] * MEAN) @ ROTATION / spread(sde, t)
            return sde.sigma(t)[:, None] * scores @ ROTATION.T
        linear, constant = affine(time[0].item())
        return constant + x.double() @ linear

    return model_of(network, sde)


@functools.cache
def exact_epsilon(sde):
    """Maps a time to (A, b) of ε = b + x A on :func:`gaussian_data`; each time is worked out once per session."""

    @functools.cache
    def affine(t):
        mean, covariance = marginal(sde, torch.tensor(t, dtype=torch.float64))
        linear = sde.sigma(t) * torch.linalg.inv(covariance)
        return linear, -mean @ linear

    return affine


def marginal(sde, t):
    """Mean (2,) and covariance (2, 2) of p_t for :func:`gaussian_data`."""
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    return alpha * MEAN, alpha**2 * COVARIANCE + sigma**2 * torch.eye(2, dtype=torch.float64)


def spread(sde, t):
    """Variances of p_t along the axes of :func:`gaussian_data`, with one more axis than ``t``."""
    t = torch.as_tensor(t, dtype=torch.float64)
    return sde.alpha(t)[..., None] ** 2 * VARIANCES + sde.sigma(t)[..., None] ** 2


def flow_solution(sde, x, t, s):
    """Where the probability flow of :func:`gaussian_data` takes x from t to s: it keeps every standard score."""
    scores = (x - sde.alpha(t) * MEAN) @ ROTATION / spread(sde, t).sqrt()
    return sde.alpha(s) * MEAN + (scores * spread(sde, s).sqrt()) @ ROTATION.T


def run_on(solver, model, grid, x, noises=()):
    """The solver on the given draws, taken in turn: sample()'s loop without its noise."""
    equation, draws = ReverseEquation(model, solver.eta), iter(() if noises is None else noises)
    state = None
    table = solver.integrator.prepare(equation, grid.cpu())
    for row in table.to(x.device, torch.float64):
        x, state = solver.integrator.step(equation, x, row, state, lambda: next(draws))
    return x


def draws_of(solver, model, grid):
    """How many standard normal draws the solver makes on its way down the grid: a matter of the number of steps."""
    known = _DRAWS.get((solver, len(grid)))
    if known is None:
        known = _DRAWS[solver, len(grid)] = _count_draws(solver, model, grid)
    return known


_DRAWS = {}


def _count_draws(solver, model, grid):
    counted = itertools.count()

    def noises():
        while next(counted) >= 0:
            yield torch.zeros(1, 2, dtype=torch.float64)

    run_on(solver, model, grid, torch.zeros(1, 2, dtype=torch.float64), noises())
    return next(counted)


def own_moments(solver, model, grid, mean, covariance):
    """Mean and covariance of what the scheme makes of N(mean, covariance) on 2-D Gaussian data, without sampling.

    On Gaussian data a scheme is affine in (start, z_1, ..., z_n): one run from zero gives its constant part, one
    run per basis vector its linear part, whatever the scheme remembers between its steps.
    """
    drawn = draws_of(solver, model, grid)
    basis = torch.cat([torch.zeros(1, 2 + 2 * drawn, dtype=torch.float64), torch.eye(2 + 2 * drawn).double()])
    noises = basis[:, 2:].reshape(-1, drawn, 2).movedim(1, 0) if drawn else None
    ends = run_on(solver, model, grid, basis[:, :2].clone(), noises)
    linear = ends[1:] - ends[0]  # rows: the image of each basis vector
    of_start, of_noise = linear[:2], linear[2:]
    return ends[0] + mean @ of_start, of_start.T @ covariance @ of_start + of_noise.T @ of_noise


def start_at(sde, t, n=6):
    """Points of the size of x_t."""
    size = (sde.alpha(t) ** 2 + sde.sigma(t) ** 2).sqrt()
    return size * torch.randn(n, 2, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def convergence_order(steps, errors):
    """The slope of log error against log step size, by least squares."""
    return -np.polyfit(np.log(steps), np.log(errors), 1)[0]


def relative_error(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


def mixture_1d():
    """Weights, means and standard deviations of a mixture on the line."""
    return (0.3, 0.7), (-1.0, 2.0), (0.5, 0.8)


def model_of(network, sde, kind="epsilon", **options):
    """A score model of the network. Where α(1) = 0, ε networks are refused: there the same ε is told as v.

    v = (ε (α² + σ²) − σ x)/α, from x = α x_0 + σ ε; good at every time before 1.
    """
    if kind != "epsilon" or signal_at_the_end(sde) or "time_input" in options:
        return at_device(ScoreModel(network, sde, kind, **options))

    def v(x, time, **condition):
        shared = time.stride() == (0,)
        told = alpha_sigma(sde)(time[0].item()) if shared else (sde.alpha(time), sde.sigma(time))
        alpha, sigma = (part.to(x) if shared else expand_to(part.to(x), x) for part in told)
        return (network(x, time, **condition) * (alpha**2 + sigma**2) - sigma * x) / alpha

    return at_device(ScoreModel(v, sde, "v", **options))


@functools.cache
def alpha_sigma(sde):
    """Maps a time to (α, σ); each time of an SDE is worked out once per session."""
    return functools.cache(lambda t: (sde.alpha(t), sde.sigma(t)))


def signal_at_the_end(sde):
    """Whether α(1) > 0, so that f and g are finite at t=1, and ε and score networks mean something there."""
    return sde.alpha(1.0).item() > 0


def kinds_of(sde):
    """The parameterisations that a network may have under this SDE."""
    return KINDS if signal_at_the_end(sde) else tuple(kind for kind in KINDS if kind not in ("epsilon", "score"))


def first_time(sde):
    """Where the reverse SDE may begin: at t=1 if f and g are finite there."""
    return 1.0 if signal_at_the_end(sde) else 0.98
