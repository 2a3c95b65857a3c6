"""A Brownian path is one path: normal increments, additive, the same bits however asked, refined by finer grids."""

import functools
import math

import pytest
import torch
from catalogue import SDES, doubles, gaussian_data, model_of, name

from sde_toolkit import VPSDE, BrownianPath, Solver, ddim, ddpm, euler_maruyama, gaussian, grids, sample
from sde_toolkit.errors import ArgumentError, GridError
from sde_toolkit.integrators import AdaptiveSDE, Euler, Exponential, Integrator
from sde_toolkit.noise import ExponentialClock

SDE = VPSDE()
CLOCKS = [BrownianPath(), BrownianPath(ExponentialClock(1.0))]
every_clock = pytest.mark.parametrize("path", CLOCKS, ids=lambda p: name(p.clock)[:16])
TIMES = doubles(1.0, 0.97, 0.5, 0.499, 0.3, 0.25, 0.13, 0.01, 0.003)  # ends and insides of octaves, both sides


@every_clock
def test_increments_are_independent_normals_of_the_clocks_variance(path):
    n = 40_000
    w = path.values(SDE, TIMES, (4, n // 4))
    z = w.diff(dim=0).reshape(len(TIMES) - 1, n) / path.clock(SDE, TIMES).diff().abs().sqrt()[:, None]
    bar = 1 / math.sqrt(n)
    assert (z.mean(1).abs() < 5 * bar).all()
    assert ((z.square().mean(1) - 1).abs() < 5 * bar * math.sqrt(2)).all()
    assert ((z**4).mean(1) - 3).abs().max() < 5 * bar * math.sqrt(96)
    assert (torch.corrcoef(z) - torch.eye(len(z))).abs().max() < 5 * bar
    assert (torch.corrcoef(w[-1].reshape(4, -1)) - torch.eye(4)).abs().max() < 5 * bar * 2  # samples too


@every_clock
def test_steps_of_any_grid_add_up(path):
    """√|Δv| z over the parts is that over the whole: W(a, c) = W(a, b) + W(b, c)."""

    def increment(grid):
        noise_of = path.step_noise(SDE, grid, (3, 2), dtype=torch.float64)
        widths = path.clock(SDE, grid).diff().abs().sqrt()
        return sum(width * noise_of(i)() for i, width in enumerate(widths))

    whole = increment(TIMES[[0, -1]])
    for inner in (TIMES, torch.cat([doubles(1.0), torch.rand(40).double().sort().values.flip(0), TIMES[-1:]])):
        grid = inner[inner >= TIMES[-1]]
        torch.testing.assert_close(increment(grid), whole, rtol=1e-12, atol=1e-12)


@every_clock
def test_the_path_is_the_same_bits_in_any_order_and_split(path):
    whole = path.values(SDE, TIMES, (5, 3), seed=4)
    for order in (torch.randperm(len(TIMES), generator=torch.Generator().manual_seed(0)), torch.tensor([6])):
        assert torch.equal(path.values(SDE, TIMES[order], (5, 3), seed=4), whole[order])
    assert torch.equal(path.values(SDE, TIMES, (2, 3), seed=4, first_index=3), whole[:, 3:])
    assert not torch.equal(path.values(SDE, TIMES, (5, 3), seed=5)[1:], whole[1:])


@pytest.mark.on_device
@pytest.mark.parametrize("levels", [1, 4, 16, 40])
def test_single_times_have_the_right_variance_at_any_resolution(levels):
    w = BrownianPath(levels=levels).values(SDE, doubles(1.0, 0.7137), (2, 20_000))
    assert abs(w[1].var().item() / (1 - 0.7137) - 1) < 5 * math.sqrt(2 / 40_000)


@pytest.mark.on_device
@pytest.mark.parametrize("solver", [euler_maruyama(), ddpm()], ids=name)
def test_samples_are_the_same_bits_whatever_the_split_and_keep_their_start(solver):
    model, grid = gaussian(torch.zeros(3), SDE, std=0.7), grids.uniform(SDE, 5)
    options = {"shape": (9, 3), "seed": 3, "trajectory": True}
    whole = sample(model, solver, grid, path=BrownianPath(), **options)
    assert torch.equal(sample(model, solver, grid, path=BrownianPath(), batch_size=4, **options).x, whole.x)
    plain = sample(model, solver, grid, **options)
    assert torch.equal(plain.trajectory[0], whole.trajectory[0])
    assert not torch.equal(plain.x, whole.x)
    correlation = torch.corrcoef(torch.stack([plain.trajectory[0], whole.x - plain.x]).flatten(1))
    assert correlation[0, 1].abs() < 5 / math.sqrt(27)


@pytest.mark.on_device
@pytest.mark.parametrize("sde", SDES, ids=name)
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_with_x_0_frozen_every_refinement_ends_in_the_same_sample(sde, eta):
    model = model_of(lambda x, time: torch.full_like(x, 0.3), sde, "x0")
    solver, path = Solver("", eta, Exponential()), BrownianPath(ExponentialClock(eta))
    ends = [
        sample(model, solver, grid, shape=(3, 2), dtype=torch.float64, path=path).x
        for grid in (doubles(0.9, 0.1), doubles(0.9, 0.55, 0.3, 0.1), torch.linspace(0.9, 0.1, 38, dtype=torch.float64))
    ]
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=1e-9, atol=1e-10)


@functools.cache
def end_of_a_path(integrator, clock, steps):
    """100 samples from 0.8 to 0.4 on one path."""
    grid = torch.linspace(0.8, 0.4, steps + 1, dtype=torch.float64)
    solver, path = Solver("", 1.0, integrator), BrownianPath(clock)
    return sample(gaussian_data(SDE), solver, grid, shape=(100, 2), dtype=torch.float64, path=path).x


@pytest.mark.on_device
@pytest.mark.parametrize(
    ("integrator", "clock"), [(Euler(), BrownianPath().clock), (Exponential(), ExponentialClock(1.0))], ids=name
)
@pytest.mark.parametrize("shift", [0, 3], ids=["nested", "not nested"])
def test_strong_order_measured_through_sample_alone(integrator, clock, shift):
    """Nested grids and others, against 1024 steps on the same path."""
    counts = (16 + shift, 32 + shift, 64 + shift, 128 + shift)
    reference = end_of_a_path(integrator, clock, 1024)
    errors = [(end_of_a_path(integrator, clock, n) - reference).square().mean().sqrt().item() for n in counts]
    slope = -torch.tensor(errors).log().diff() / torch.tensor(counts).float().log().diff()
    assert slope.mean().item() == pytest.approx(integrator.strong_order, abs=0.15)


@pytest.mark.on_device
def test_a_path_reaches_the_data():
    """At t = 0 the clock t is finite, exp(2η²λ) is not where σ(0) = 0; the exponential step adds nothing there."""
    model, grid = gaussian(torch.zeros(3), SDE, std=0.7), doubles(1.0, 0.5, 0.1, 0.0)
    for path in CLOCKS:
        found = sample(model, ddpm(), grid, shape=(4, 3), path=path, trajectory=True)
        assert found.x.isfinite().all()
        z = path.step_noise(SDE, grid, (2, 20_000))(2)()
        assert abs(z.var().item() - 1) < 5 * math.sqrt(2 / 40_000)


class Twice(Integrator):
    """Draws twice in a step."""

    order, evals_per_step, weak_order = None, 1, 1.0

    def prepare(self, equation, grid):
        return self.table(equation, grid, end=grid[1:])

    def step(self, equation, x, row, state, noise):
        return noise() + noise(), None


@pytest.mark.on_device
def test_what_a_path_cannot_serve_is_refused():
    model, grid, path = gaussian(torch.zeros(3), SDE, std=0.7), grids.uniform(SDE, 3), BrownianPath()

    def refused(words, solver=None, error=ArgumentError, **options):
        with pytest.raises(error, match=words):
            sample(model, solver or ddpm(), grid, shape=(2, 3), **{"path": path, **options})

    refused("more than once", Solver("", 1.0, Twice()))
    refused("chooses its own steps", Solver("", 1.0, AdaptiveSDE()))
    refused("generator", generator=torch.Generator())
    refused("not a BrownianPath", path=3)
    refused("monotone", path=BrownianPath(lambda sde, t: (t - 0.5) ** 2))
    refused("monotone", path=BrownianPath(lambda sde, t: 1 / (1 - t)))
    for bad in ({"levels": 0}, {"levels": 41}, {"clock": 3}):
        with pytest.raises(ArgumentError, match=next(iter(bad))):
            BrownianPath(**bad)
    with pytest.raises(ArgumentError, match="eta=0"):
        ExponentialClock(0)
    with pytest.raises(GridError, match="2\\^-40"):
        path.values(SDE, doubles(1e-13), (2,))
    with pytest.raises(ArgumentError, match="infinite"):
        BrownianPath(ExponentialClock()).values(SDE, doubles(0.0), (2,))
    assert sample(model, ddim(), grid, shape=(2, 3), path=path).x.isfinite().all()  # no noise, no harm
