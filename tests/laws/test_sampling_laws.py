"""Law 6 and sample()'s promises: noise per sample, evidence measured, faults named, the whole matrix."""

import math
import random
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pytest
import torch
from catalogue import (
    PUBLIC_SDES,
    SDES,
    SOLVERS,
    STOCHASTIC_SOLVERS,
    RandomNetwork,
    covering,
    doubles,
    first_time,
    model_of,
    name,
)

from sde_toolkit import (
    VPSDE,
    GaussianMixture,
    Solver,
    ddim,
    ddpm,
    euler_maruyama,
    gaussian,
    grids,
    probability_flow,
    sample,
    unipc,
)
from sde_toolkit.errors import NonFiniteError
from sde_toolkit.integrators import Exponential
from sde_toolkit.noise.streams import per_sample_noise

every_solver = pytest.mark.parametrize("solver", SOLVERS, ids=name)
every_public_sde = pytest.mark.parametrize("sde", PUBLIC_SDES, ids=name)
FIXED_STEP_SOLVERS = [solver for solver in SOLVERS if solver.integrator.evals_per_step]


def elementwise(sde, event=(3,)):
    """An exact score that treats every number alone, so that nothing but sample() could couple samples."""
    return gaussian(torch.full(event, 0.5), sde, std=0.7)


def short(sde, steps=5):
    return grids.uniform(sde, steps, start=first_time(sde), end=0.1)


@pytest.mark.on_device
@pytest.mark.parametrize(("solver", "sde"), covering(SOLVERS, PUBLIC_SDES), ids=name)
def test_samples_are_the_same_bits_whatever_the_batch_or_the_split(sde, solver):
    model, grid = elementwise(sde), short(sde)
    n = 17 if solver.integrator.evals_per_step else 9  # one by one, adaptive steps take their time
    whole = sample(model, solver, grid, shape=(n, 3), seed=3, trajectory=True)
    for batch_size in (1, 4, n - 1):
        batched = sample(model, solver, grid, shape=(n, 3), seed=3, batch_size=batch_size, trajectory=True)
        assert torch.equal(batched.x, whole.x)
        assert torch.equal(batched.trajectory, whole.trajectory)  # start and every step
    edges = (0, 2, 7, n)
    parts = [sample(model, solver, grid, shape=(b - a, 3), seed=3, first_index=a).x for a, b in pairwise(edges)]
    assert torch.equal(torch.cat(parts), whole.x)


@pytest.mark.on_device
@pytest.mark.parametrize("solver", [s for s in STOCHASTIC_SOLVERS if s in FIXED_STEP_SOLVERS], ids=name)
def test_through_a_network_batches_agree_to_its_round_off(solver):
    model = model_of(RandomNetwork(), VPSDE())
    whole, single = (
        sample(model, solver, short(VPSDE()), shape=(9, 2), batch_size=size, dtype=torch.float64).x
        for size in (None, 1)
    )
    torch.testing.assert_close(single, whole, rtol=1e-12, atol=1e-12)


@pytest.mark.on_device
def test_seeds_and_indices_name_unrelated_streams():
    model, grid, n = elementwise(VPSDE(), (500,)), short(VPSDE(), 3), 4

    def draws(**options):
        return sample(model, ddpm(), grid, shape=(n, 500), **options).x

    rows = torch.cat([draws(seed=0), draws(seed=1), draws(seed=0, first_index=n), draws(seed=10**9)])
    correlation = torch.corrcoef(rows.double()) - torch.eye(4 * n, dtype=torch.float64)
    assert correlation.abs().max() < 5 / math.sqrt(500)  # 120 pairs
    assert torch.equal(draws(seed=0), draws(seed=0))


def test_precision_of_the_state_does_not_change_its_noise():
    narrow, wide = (per_sample_noise(7, 2, (3, 5), dtype=dtype) for dtype in (torch.float32, torch.float64))
    for _ in range(3):
        assert torch.equal(narrow().double(), wide())


@pytest.mark.on_device
def test_the_start_and_each_step_get_fresh_noise():
    """With steps that keep nothing of x, successive states are successive draws: uncorrelated."""
    model = gaussian(torch.zeros(500), VPSDE(), std=1.0)
    path = sample(model, ddpm(), doubles(1.0, 0.999, 0.5), shape=(3, 500), trajectory=True).trajectory
    alone = sample(model, ddpm(), doubles(1.0, 0.5), shape=(3, 500), trajectory=True).trajectory
    assert torch.equal(path[0], alone[0])
    rows = torch.cat([path[0], path[2]]).double()
    correlation = torch.corrcoef(rows) - torch.eye(6, dtype=torch.float64)
    assert correlation.abs().max() < 5 / math.sqrt(500)


@pytest.mark.on_device
@every_solver
def test_a_start_handed_in_continues_as_the_start_that_was_drawn(solver):
    """The noise of the steps is the same in both, so that it never repeats the noise of the start."""
    model, grid = elementwise(VPSDE()), short(VPSDE())
    drawn = sample(model, solver, grid, shape=(4, 3), trajectory=True)
    handed_in = sample(model, solver, grid, x_start=drawn.trajectory[0], batch_size=3)
    assert torch.equal(handed_in.x, drawn.x)


@pytest.mark.on_device
@every_solver
def test_global_random_state_is_left_alone(solver):
    def state():
        _, keys, *position = np.random.get_state()  # noqa: NPY002
        return torch.get_rng_state().tolist(), keys.tolist(), position, random.getstate()

    before = state()
    model = elementwise(VPSDE())
    sample(model, solver, short(VPSDE()), shape=(3, 3))
    sample(model, solver, short(VPSDE()), shape=(3, 3), generator=torch.Generator().manual_seed(1))
    assert state() == before


@pytest.mark.on_device
@every_solver
def test_a_generator_reproduces_its_run_and_moves_on(solver):
    def run(generator):
        return sample(elementwise(VPSDE()), solver, short(VPSDE()), shape=(4, 3), generator=generator)

    generator = torch.Generator().manual_seed(2)
    first, second = run(generator), run(generator)
    again = run(torch.Generator().manual_seed(2))
    assert torch.equal(first.x, again.x)
    assert not torch.equal(first.x, second.x)
    assert first.seed is None


class Counted(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.times = []

    def forward(self, x, time):
        self.times.append(time[0].item())
        return 0.1 * x


@pytest.mark.on_device
@pytest.mark.parametrize("solver", FIXED_STEP_SOLVERS, ids=name)
@pytest.mark.parametrize("tweedie", [False, True])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_evaluations_are_counted_and_are_what_the_solver_declares(solver, tweedie, batch_size):
    network, steps = Counted(), 6
    grid = short(VPSDE(), steps)
    result = sample(
        model_of(network, VPSDE()), solver, grid, shape=(5, 2), tweedie=tweedie, batch_size=batch_size, seed=8
    )
    batches = 1 if batch_size is None else 3
    assert result.nfe * batches == len(network.times)
    assert result.nfe == steps * solver.integrator.evals_per_step + tweedie
    assert torch.equal(result.grid, grid)
    assert (result.solver, result.seed, result.tweedie) == (solver, 8, tweedie)
    assert 0 <= result.network_seconds <= result.seconds


@pytest.mark.on_device
@every_public_sde
def test_initial_noise_has_the_scale_of_the_grids_first_time(sde):
    rows, n = 400, 40_000
    for start in (1.0, 0.3):
        grid = grids.uniform(sde, 1, start=start, end=0.1)
        path = sample(elementwise(sde, (100,)), ddim(), grid, shape=(rows, 100), trajectory=True).trajectory
        assert abs(path[0].std().item() / sde.sigma(start).item() - 1) < 5 / math.sqrt(2 * n)
        assert abs(path[0].mean().item()) < 5 * sde.sigma(start).item() / math.sqrt(n)


@pytest.mark.on_device
@pytest.mark.parametrize("sde", [s for s in SDES if s.sigma(0.0).item() == 0], ids=name)
def test_the_tweedie_step_is_the_exponential_step_to_the_data(sde):
    model, start = GaussianMixture(doubles(-1.0, 1.0), sde, std=0.3), torch.linspace(-2, 2, 7).double()
    for solver in (ddim(), ddpm()):
        ended = sample(model, solver, doubles(0.9, 0.5, 0.2), x_start=start, tweedie=True, dtype=torch.float64)
        stepped = sample(model, solver, doubles(0.9, 0.5, 0.2, 0.0), x_start=start, dtype=torch.float64)
        torch.testing.assert_close(ended.x, stepped.x, rtol=1e-12, atol=1e-13)
        assert ended.nfe == stepped.nfe


@pytest.mark.on_device
@every_solver
@pytest.mark.parametrize("batch_size", [None, 2])
def test_callback_once_per_step_and_trajectory_of_every_state(solver, batch_size):
    told, grid = [], short(VPSDE())
    result = sample(
        elementwise(VPSDE()),
        solver,
        grid,
        shape=(4, 3),
        trajectory=True,
        callback=told.append,
        batch_size=batch_size,
        tweedie=True,
    )
    firsts = [0] if batch_size is None else [0, 2]
    expected = [(f, i, grid[i].item(), grid[i + 1].item()) for f in firsts for i in range(len(grid) - 1)]
    assert [(step.first, step.index, step.t, step.s) for step in told] == expected
    assert result.trajectory.shape == (len(grid), 4, 3)
    for step in told:
        rows = slice(step.first, step.first + len(step.x))
        assert torch.equal(result.trajectory[step.index + 1, rows], step.x)
    # The Tweedie step is the denoised estimate at the last state, and no part of the path.
    torch.testing.assert_close(result.x, elementwise(VPSDE())(result.trajectory[-1], grid[-1]).x_0)
    plain = sample(elementwise(VPSDE()), solver, grid, shape=(4, 3), trajectory=True)
    assert torch.equal(plain.trajectory[-1], plain.x)
    assert sample(elementwise(VPSDE()), solver, grid, shape=(4, 3)).trajectory is None


@pytest.mark.on_device
@every_solver
def test_x_start_is_where_the_solve_begins_and_is_not_changed(solver):
    start = torch.randn(4, 3, generator=torch.Generator().manual_seed(4))
    kept = start.clone()
    result = sample(elementwise(VPSDE()), solver, short(VPSDE()), x_start=start, trajectory=True)
    assert torch.equal(result.trajectory[0], kept)
    assert torch.equal(start, kept)


@pytest.mark.on_device
def test_conditions_follow_their_samples_through_any_batch():
    def network(x, time, condition):
        return x - (condition["mean"] if isinstance(condition, dict) else condition)

    model = model_of(network, VPSDE(), "epsilon")
    rows = torch.linspace(-1, 1, 7)[:, None] * doubles(1.0, 2.0).float()
    for condition in (rows, {"mean": rows, "label": torch.tensor(3)}):
        whole = sample(model, ddpm(), short(VPSDE()), shape=(7, 2), condition=condition).x
        for batch_size in (1, 3):
            split = sample(model, ddpm(), short(VPSDE()), shape=(7, 2), condition=condition, batch_size=batch_size).x
            assert torch.equal(split, whole)
    other = sample(model, ddpm(), short(VPSDE()), shape=(7, 2), condition=rows.flip(0)).x
    assert not torch.allclose(other, whole)


@pytest.mark.on_device
@pytest.mark.parametrize("bad", [0, 1, 6, 15, 16, 17, 31, 32, 38, 39])
@pytest.mark.parametrize("poison", [math.nan, math.inf], ids=name)
@pytest.mark.parametrize("solver", [ddpm(), ddim(), unipc(), euler_maruyama()], ids=name)
def test_the_first_step_that_is_not_finite_is_named(bad, poison, solver):
    sde = VPSDE()
    grid = grids.uniform(sde, 40, end=0.05)

    def network(x, time):
        y = 0.1 * x
        if time[0] <= grid[bad].float() + 1e-6:
            y[1, 0] = poison  # one number of one sample, from step `bad` on
        return y

    with pytest.raises(NonFiniteError) as caught:
        sample(model_of(network, sde), solver, grid, shape=(3, 2))
    assert caught.value.step == bad
    assert caught.value.t == pytest.approx(grid[bad].item(), rel=1e-12)
    assert f"step {bad}, t={grid[bad].item():.6g}" in str(caught.value)


@dataclass(frozen=True)
class Unlucky(Exponential):
    """Fails for good after its twentieth step, as its state tells, or where a draw exceeds a bound."""

    bound: float = math.inf
    failed: list = field(default_factory=list)

    def step(self, equation, x, row, state, noise):
        drawn = []
        x, _ = super().step(equation, x, row, None, lambda: drawn.append(noise()) or drawn[-1])
        steps = 1 if state is None else state + 1
        if steps == 21 or (drawn and drawn[0][0, 0] > self.bound):
            self.failed.append(steps - 1)
            x = x * math.nan
        return x, steps


@pytest.mark.on_device
@pytest.mark.parametrize(("eta", "bound"), [(0.0, math.inf), (1.0, math.inf), (1.0, 1.5)])
def test_it_is_named_where_steps_look_back_and_where_they_draw(eta, bound):
    """Whatever is done to find it: the past of the steps is theirs, and no noise takes the place of what was drawn."""
    for seed in range(5):
        integrator, generator = Unlucky(bound=bound), torch.Generator().manual_seed(seed)
        grid = grids.uniform(VPSDE(), 40, end=0.05)
        with pytest.raises(NonFiniteError) as caught:
            sample(elementwise(VPSDE()), Solver("", eta, integrator), grid, shape=(3, 3), generator=generator)
        assert caught.value.step == integrator.failed[0]


@pytest.mark.on_device
def test_a_tweedie_step_that_is_not_finite_is_named():
    grid = doubles(1.0, 0.5, 0.1)

    def network(x, time):
        return x * (math.nan if time[0] < 0.2 else 0.1)

    model = model_of(network, VPSDE())
    with pytest.raises(NonFiniteError, match="Tweedie") as caught:
        sample(model, ddim(), grid, shape=(2, 2), tweedie=True)
    assert caught.value.t == 0.1
    assert sample(model, ddim(), grid, shape=(2, 2), tweedie=True, check_finite=False).x.isnan().all()


@pytest.mark.on_device
@every_solver
def test_grad_mode_neither_matters_nor_changes(solver):
    model = model_of(Scale(), VPSDE())
    with torch.enable_grad():
        grown = sample(model, solver, short(VPSDE()), shape=(2, 3)).x
        assert torch.is_grad_enabled()
    with torch.no_grad():
        plain = sample(model, solver, short(VPSDE()), shape=(2, 3)).x
        assert not torch.is_grad_enabled()
    assert not grown.requires_grad
    assert torch.equal(grown, plain)


class Scale(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, x, time):
        return self.factor * x


@pytest.mark.on_device
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_state_keeps_its_dtype_and_half_precision_networks_are_served(dtype):
    for network_dtype in (torch.float64, torch.bfloat16):
        model = model_of(lambda x, time, d=network_dtype: (0.1 * x).to(d), VPSDE())
        for solver in SOLVERS:
            assert sample(model, solver, short(VPSDE()), shape=(2, 3), dtype=dtype, tweedie=True).x.dtype == dtype


@pytest.mark.on_device
def test_fixed_step_flow_through_probability_flow_takes_any_integrator_of_an_order():
    for solver in FIXED_STEP_SOLVERS:
        if solver.integrator.order is None:  # predictor-corrector, which has no place on the flow
            continue
        chosen = probability_flow(solver.integrator)
        assert chosen.eta == 0
        assert sample(elementwise(VPSDE()), chosen, short(VPSDE()), shape=(2, 3)).x.isfinite().all()
