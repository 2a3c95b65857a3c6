"""Sampling on a device gives what it gives on the CPU: both draw the same integers."""

import inspect

import pytest
import torch
from both_places import CPU, F64, NOISE, SDE, assert_the_same, mixture, network_model, points, public

import sde_toolkit
from sde_toolkit import (
    VPSDE,
    ScoreModel,
    auto,
    clip_x0,
    ddim,
    ddpm,
    dpmpp_2m,
    dynamic_threshold,
    encode,
    grids,
    reschedule,
    sample,
    slerp,
    solvers,
)
from sde_toolkit.noise import BrownianPath

SOLVERS = [
    made
    for name in solvers.__all__
    if inspect.isfunction(preset := getattr(solvers, name))
    and isinstance(made := preset(), solvers.Solver)
    and name != "ddpm_learned"  # needs a network with variances
]


def named(solver):
    return solver.name


@pytest.mark.parametrize("solver", SOLVERS, ids=named)
def test_every_solver(solver, both):
    adaptive = solver.integrator.evals_per_step is None

    def run(place):
        how = {"grid": grids.uniform(SDE, 3, end=0.3)} if adaptive else {"steps": 6, "trajectory": True}
        found = sample(mixture(place), solver, shape=(3, 2), seed=3, **how, **F64)
        return found.x if adaptive else found.trajectory

    tolerance = 1e-3 if adaptive else NOISE
    assert_the_same(run, both, tolerance)


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 2},
        {"tweedie": True},
        {"callback": lambda step: 0.5 * step.x if step.index == 2 else None},
        {"first_index": 7, "check_finite": False},
        {"condition": torch.tensor([0, 1, 2, 3, 1])},
    ],
    ids=lambda options: next(iter(options)),
)
def test_every_option_of_sample(options, both):
    def run(place):
        told = {key: value.to(place) if isinstance(value, torch.Tensor) else value for key, value in options.items()}
        return sample(network_model(place), ddpm(), steps=5, shape=(5, 2), **told, **F64).x

    assert_the_same(run, both)


SDES = [sde() for sde in public(sde_toolkit.sde, sde_toolkit.SDE)]


@pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)
def test_every_sde(sde, both):
    def run(place):
        t = torch.linspace(0.05, 0.9, 5, dtype=torch.float64, device=CPU).to(place)
        x = points(place)
        schedules = [schedule(t) for schedule in (sde.alpha, sde.sigma, sde.f, sde.g, sde.half_log_snr)]
        back = sde.inverse_half_log_snr(schedules[-1])
        made = sample(mixture(place, sde), ddim(), grids.uniform(sde, 4, start=0.9, end=0.1), x_start=x, **F64).x
        return [*schedules, back, sde.perturb(x, t, x), sde.drift(x, t), made]

    assert_the_same(run, both)


def test_a_start_on_the_device_decides(both):
    assert_the_same(lambda place: sample(mixture(place), ddim(), steps=4, x_start=points(place), **F64).x, both)
    assert_the_same(
        lambda place: encode(mixture(place), ddim(), grids.uniform(SDE, 4, end=0.1), points(place), **F64).x, both
    )


def test_a_grid_on_the_device(both):
    def run(place):
        grid = grids.uniform(SDE, 4, end=0.1).to(place)
        return sample(mixture(place), ddim(), grid, shape=(3, 2), **F64).x

    assert_the_same(run, both)


def test_a_generator_of_the_device(both):
    """It gives the samples of its own device."""
    _, place = both

    def run():
        generator = torch.Generator(place).manual_seed(3)
        return sample(mixture(place), ddpm(), steps=4, shape=(3, 2), generator=generator).x

    assert run().device.type == place.type
    assert torch.equal(run(), run())


def test_a_brownian_path(both):
    def run(place):
        return sample(mixture(place), solvers.euler_maruyama(), steps=4, shape=(3, 2), path=BrownianPath(), **F64).x

    assert_the_same(run, both)


def test_auto(both):
    assert_the_same(lambda place: sample(mixture(place), "auto", nfe=6, shape=(3, 2), **F64).x, both)
    assert_the_same(lambda place: sample(network_model(place), "auto", nfe=10, shape=(3, 2), **F64).x, both)
    assert torch.equal(auto(mixture(CPU), 8).grid, auto(mixture(both[1]), 8).grid)  # grids are of the CPU


def test_slerp(both):
    assert_the_same(lambda place: slerp(points(place), points(place).flip(0), 0.3), both)


WRAPPERS = {
    "clip": clip_x0,
    "threshold": dynamic_threshold,
    "reschedule": lambda model: reschedule(model, VPSDE(0.2, 15.0)),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_every_wrapper(wrap, both):
    assert_the_same(lambda place: sample(wrap(network_model(place)), dpmpp_2m(), steps=5, shape=(3, 2), **F64).x, both)


def test_a_not_finite_state_is_named(both):
    def broken(x, time):
        return torch.where(time[:, None] < 0.5, torch.nan, 0.1 * x)

    def step(place):
        with pytest.raises(sde_toolkit.errors.NonFiniteError) as caught:
            sample(ScoreModel(broken, SDE), ddim(), steps=40, shape=(3, 2), device=place)
        return caught.value.step

    assert step(CPU) == step(both[1])


def test_steps_do_not_wait_for_the_device(both):
    """The host reads the flag of finiteness every 16 steps; nothing else grows with the steps."""
    if both[1].type != "mock":
        pytest.skip("the mock device counts how often the host waits")
    from mock_device import counts

    for solver in (ddim(), dpmpp_2m(), ddpm(), solvers.unipc(), solvers.heun()):
        waits = []
        for steps in (32, 320):
            before = counts.reads
            sample(network_model(both[1]), solver, grids.uniform(SDE, steps, end=0.01), shape=(3, 2))
            waits.append(counts.reads - before)
        assert waits[1] - waits[0] == (320 - 32) / 16, solver.name


FIXED = [solver for solver in SOLVERS if solver.integrator.evals_per_step is not None]


@pytest.mark.on_card("CUDA graphs are of a card")
@pytest.mark.parametrize("solver", FIXED, ids=named)
def test_recorded_steps(solver, both):
    """The same kernels: a recorded step gives the bits of the step as it is, in every batch."""

    def run(how):
        options = {"shape": (7, 2), "batch_size": 3, "steps": 20, "trajectory": True}
        return sample(network_model(both[1]), solver, compile=how, **options).trajectory

    torch.testing.assert_close(run("cuda_graph"), run(False), rtol=1e-6, atol=1e-6)


@pytest.mark.on_card("the mock device compiles nothing")
@pytest.mark.parametrize("solver", [ddim(), ddpm(), dpmpp_2m()], ids=named)
def test_compiled_steps(solver, both):
    def run(how):
        return sample(network_model(both[1]), solver, compile=how, shape=(7, 2), steps=20, **F64).x

    torch.testing.assert_close(run(True), run(False), rtol=1e-6, atol=1e-6)


@pytest.mark.on_card("CUDA graphs are of a card")
def test_recorded_steps_and_what_looks_at_them(both):
    """Callbacks that replace the state, and the step that is not finite, as without a recording."""

    def broken(x, time):
        return torch.where(time[:, None] < 0.5, torch.nan, 0.1 * x)

    def edited(how):
        options = {"shape": (4, 2), "steps": 9, "callback": lambda step: 0.5 * step.x if step.index == 3 else None}
        return sample(network_model(both[1]), ddim(), compile=how, **options).x

    def step(how):
        with pytest.raises(sde_toolkit.errors.NonFiniteError) as caught:
            sample(ScoreModel(broken, SDE), ddim(), steps=40, shape=(3, 2), device=both[1], compile=how)
        return caught.value.step

    torch.testing.assert_close(edited("cuda_graph"), edited(False), rtol=1e-6, atol=1e-6)
    assert step("cuda_graph") == step(False)
