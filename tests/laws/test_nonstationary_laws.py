"""Steps with weights of their own: what they contain, where their noise comes from, and that they compile once."""

import itertools

import pytest
import torch
from catalogue import SDES, Flow, RandomNetwork, doubles, first_time, model_of, name, relative_error
from torch import nn
from torch._dynamo.utils import counters

from sde_toolkit import (
    VESDE,
    VPSDE,
    Corrected,
    Exponential,
    Multistep,
    ScoreModel,
    Solver,
    gaussian,
    grids,
    sample,
)
from sde_toolkit.errors import ArgumentError, GridError
from sde_toolkit.integrators.nonstationary import NonStationary

every_sde = pytest.mark.parametrize("sde", SDES, ids=name)
STEPS = 6


def newest(steps=STEPS):
    """The weights of methods that look at one evaluation only."""
    return tuple((0.0,) * i + (1.0,) for i in range(steps))


def some_weights(steps=STEPS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randn(i + 1, generator=generator, dtype=torch.float64) for i in range(steps)]
    return tuple(tuple((row - row.mean() + 1 / len(row)).tolist()) for row in rows)


def grid_of(sde, steps=STEPS):
    return grids.uniform(sde, steps, start=first_time(sde), end=0.05)


class Units(nn.Module):
    """Whatever it is asked: x̂_0 has ``one`` at the place of the evaluation."""

    def __init__(self, one):
        super().__init__()
        self.one, self.calls = one, 0

    def forward(self, x, time):
        answer = torch.zeros_like(x)
        answer[:, self.calls] = self.one
        self.calls += 1
        return answer


def weights_of(solver, sde, grid):
    """How a method weights its evaluations, read off its states: data move them by α Σ_j b_j unit_j."""

    def states(one):
        x = torch.zeros(1, len(grid) - 1, dtype=torch.float64)
        x[0, 0] = one * sde.alpha(grid[0])
        model = ScoreModel(Units(one), sde, "x0")
        return sample(model, solver, grid, x_start=x, seed=3, trajectory=True, dtype=x.dtype).trajectory[:, 0]

    b = (states(1.0) - states(0.0)) / sde.alpha(grid)[:, None]
    return tuple(tuple(b[i, :i].tolist()) for i in range(1, len(grid)))


@pytest.mark.parametrize("integrator", [Exponential(), Multistep(2), Multistep(3), Corrected(Multistep(2))], ids=str)
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0, 1.5])
@every_sde
def test_exponential_and_multistep_methods_in_data_prediction_are_of_this_form(sde, eta, integrator):
    model, grid = model_of(RandomNetwork(), sde), grid_of(sde)
    rows = weights_of(Solver("", eta, integrator), sde, grid)
    one, other = (
        sample(model, Solver("", eta, i), grid, shape=(4, 2), seed=6, dtype=torch.float64).x
        for i in (NonStationary(rows), integrator)
    )
    assert relative_error(one, other) < 1e-10


@every_sde
@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("noisy", [(True,) * STEPS, (True, False, False, True, True, False)], ids=["all", "some"])
def test_for_data_at_one_point_times_of_noise_have_the_joint_law_of_the_equation(sde, eta, noisy):
    """There e = (x − α x_0)/σ is Gaussian, and the equation correlates its values at t and s by (r_s/r_t)^η², r = σ/α.

    Of the times between, only that e is N(0, 1) is asked.
    """
    grid, n = grid_of(sde), 40_000
    model = gaussian(doubles(1.3), sde, std=0.0)
    solver = Solver("", eta, NonStationary(some_weights(), noisy))
    e = [torch.randn(n, generator=torch.Generator().manual_seed(8), dtype=torch.float64)]
    x = 1.3 * sde.alpha(grid[0]) + sde.sigma(grid[0]) * e[0][:, None]
    generator = torch.Generator().manual_seed(9)
    options = {"x_start": x, "trajectory": True, "dtype": torch.float64, "generator": generator}
    path = sample(model, solver, grid, **options).trajectory
    e += [(state[:, 0] - sde.alpha(t) * 1.3) / sde.sigma(t) for state, t in zip(path[1:], grid[1:], strict=True)]
    assert all(abs(v.mean()) < 5 / n**0.5 and abs(v.var() - 1) < 5 * (2 / n) ** 0.5 for v in e)
    ratio = sde.sigma(grid) / sde.alpha(grid)
    stops = [0] + [i + 1 for i in range(STEPS) if noisy[i]]
    for i, j in itertools.combinations(stops, 2):
        expected = (ratio[j] / ratio[i]) ** (eta**2)
        assert abs((e[i] * e[j]).mean() - expected) < 5 / n**0.5
    for i in range(STEPS):
        assert noisy[i] or torch.allclose(e[i], e[i + 1], atol=1e-9)


@every_sde
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_to_denoise_with_the_newest_estimate_alone_is_tweedies_step(sde, eta):
    """Also where σ(0) > 0: the noise of the data's own time is left out as well."""
    rows, grid = some_weights(), grid_of(sde)
    model = model_of(RandomNetwork(), sde)
    last = torch.cat([grid, torch.zeros_like(grid[:1])])
    longer = NonStationary((*rows, (0.0,) * STEPS + (1.0,)), (True,) * STEPS + (False,), denoise=True)
    options = {"shape": (4, 2), "seed": 6, "dtype": torch.float64}
    one = sample(model, Solver("", eta, longer), last, **options).x
    other = sample(model, Solver("", eta, NonStationary(rows)), grid, tweedie=True, **options).x
    assert relative_error(one, other) < 1e-12


def test_steps_to_the_data_and_from_no_data_at_all():
    """σ(0) = 0 takes all noise out; a path with α(1) = 0 begins with noise alone."""
    for sde in (VPSDE(), Flow(), VESDE()):
        grid, model = grids.uniform(sde, STEPS, end=0.0), ScoreModel(RandomNetwork(), sde, "v")
        x = sample(model, Solver("", 1.0, NonStationary(some_weights())), grid, shape=(3, 2), dtype=torch.float64).x
        assert bool(x.isfinite().all())


def test_it_compiles_once():
    """One graph for all steps, though each looks back on more evaluations than the one before."""
    torch._dynamo.reset()
    counters.clear()
    model, solver = model_of(RandomNetwork(), VPSDE()), Solver("", 1.0, NonStationary(some_weights(12)))
    run = {"shape": (4, 2), "seed": 2, "dtype": torch.float64}
    grid = grids.uniform(VPSDE(), 12)
    compiled = sample(model, solver, grid, compile="aot_eager", **run).x
    assert counters["stats"]["unique_graphs"] <= 2  # the first step has no state yet
    assert relative_error(compiled, sample(model, solver, grid, **run).x) < 1e-12


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weights": ()}, ["weights", "row i"]),
        ({"weights": ((1.0,), (1.0,))}, ["weights", "row i"]),
        ({"weights": ((1.0,), (0.5, float("nan")))}, ["weights", "finite"]),
        ({"weights": ((1.0,), (0.5, 0.4))}, ["row 1 sums to 0.9", "Divide"]),
        ({"weights": newest(2), "noisy": (True,)}, ["noisy", "2 steps"]),
        ({"weights": newest(2), "noisy": (True, 1)}, ["noisy", "True or False"]),
    ],
)
def test_what_is_no_scheme_is_refused(options, words):
    with pytest.raises(ArgumentError) as caught:
        NonStationary(**options)
    assert all(word in str(caught.value) for word in words)


def test_another_number_of_steps_is_refused():
    model = model_of(RandomNetwork(), VPSDE())
    with pytest.raises(GridError, match=r"5 steps.*for 6"):
        sample(model, Solver("", 1.0, NonStationary(newest())), grids.uniform(VPSDE(), 5), shape=(2, 2))
