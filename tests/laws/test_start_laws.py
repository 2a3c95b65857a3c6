"""A run may start anywhere, be cut in two, and start from a mixture of two noises."""

import math

import pytest
import torch
from catalogue import (
    COVARIANCE,
    FIXED_STEP,
    MEAN,
    SDES,
    doubles,
    draws_of,
    first_time,
    flow_solution,
    gaussian_data,
    marginal,
    name,
    start_at,
)
from devices import DEVICE
from hypothesis import given
from hypothesis import strategies as st

from sde_toolkit import VPSDE, BrownianPath, ReverseEquation, Solver, ddpm, grids, probability_flow, sample
from sde_toolkit import slerp as slerp_of
from sde_toolkit.errors import ArgumentError
from sde_toolkit.integrators import Multistep
from sde_toolkit.noise.streams import per_sample_noise

every_sde = pytest.mark.parametrize("sde", SDES, ids=name)


def forgets(integrator, eta):
    """Whether nothing but x goes from one step to the next."""
    equation = ReverseEquation(gaussian_data(VPSDE()), eta)
    row = integrator.prepare(equation, doubles(0.9, 0.8).cpu()).to(DEVICE, torch.float64)[0]
    return (
        integrator.step(equation, torch.zeros(1, 2).double(), row, None, lambda: torch.zeros(1, 2).double())[1] is None
    )


ONE_STEP = [i for i in FIXED_STEP if i.order and forgets(i, 0.0)]
ONE_DRAW = [
    i
    for i in FIXED_STEP
    if i.weak_order
    and forgets(i, 1.0)
    and draws_of(Solver("", 1.0, i), gaussian_data(VPSDE()), doubles(0.9, 0.8)) == 1  # a path has one for each step
]


def split(solver, model, grid, at, **options):
    """(in one go, in two)."""
    run = {"dtype": torch.float64, **options}
    whole = sample(model, solver, grid, shape=(5, 2), **run)
    first = sample(model, solver, grid[: at + 1], shape=(5, 2), **run)
    return whole.x, sample(model, solver, grid[at:], x_start=first.x, **run).x


@pytest.mark.on_device
@every_sde
@pytest.mark.parametrize("integrator", ONE_STEP, ids=name)
def test_a_run_cut_in_two_is_the_same_run(sde, integrator):
    """To the last bits of the coefficients: vectors of other lengths may round differently."""
    grid = grids.uniform(sde, 6, start=first_time(sde), end=0.2)
    for at in (1, 3, 5):
        whole, parts = split(Solver("", 0.0, integrator), gaussian_data(sde), grid, at)
        torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)


@pytest.mark.on_device
@pytest.mark.parametrize("integrator", ONE_DRAW, ids=name)
def test_and_so_with_noise_on_one_brownian_path(integrator):
    grid = grids.uniform(VPSDE(), 6, end=0.2)
    for at in (1, 3, 5):
        whole, parts = split(Solver("", 1.0, integrator), gaussian_data(VPSDE()), grid, at, path=BrownianPath())
        torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)


@pytest.mark.on_device
def test_a_method_with_a_memory_starts_again():
    whole, parts = split(probability_flow(Multistep()), gaussian_data(VPSDE()), grids.uniform(VPSDE(), 6, end=0.2), 3)
    assert 1e-6 < (whole - parts).abs().max() < 0.1


def test_the_first_draw_of_a_stream_is_the_start_and_is_not_heard_again():
    """So that it is free to perturb data with."""
    sde, grid = VPSDE(), grids.uniform(VPSDE(), 3)
    model, z = gaussian_data(sde), per_sample_noise(4, 0, (5, 2), dtype=torch.float64)()
    run = {"seed": 4, "dtype": torch.float64}
    drawn = sample(model, ddpm(), grid, shape=(5, 2), **run)
    handed_in = sample(model, ddpm(), grid, x_start=sde.sigma(grid[0]) * z, **run)
    assert torch.equal(drawn.x, handed_in.x)


@pytest.mark.on_device
@every_sde
def test_marginals_are_right_from_wherever_the_run_starts(sde):
    """Data noised to t by the stream's first draw, and sampled from there: p_s again; once more to a third time."""
    n, model = 20_000, gaussian_data(sde)
    generator = torch.Generator().manual_seed(0)
    root = torch.linalg.cholesky(COVARIANCE)
    x_0 = MEAN + torch.randn(n, 2, generator=generator, dtype=torch.float64) @ root.T
    for t, s, r in ((0.9, 0.5, 0.3), (0.35, 0.2, 0.1)):
        x_t = sde.perturb(x_0, t, torch.randn(n, 2, generator=generator, dtype=torch.float64))
        run = {"generator": generator, "dtype": torch.float64}
        x_s = sample(model, ddpm(), grids.uniform_lambda(sde, 100, start=t, end=s), x_start=x_t, **run).x
        x_r = sample(model, ddpm(), grids.uniform_lambda(sde, 100, start=s, end=r), x_start=x_s, **run).x
        for x, time in ((x_s, s), (x_r, r)):
            mean, covariance = marginal(sde, time)
            bars = covariance.diagonal().sqrt() / math.sqrt(n)
            assert ((x.mean(0) - mean).abs() < 6 * bars).all()
            torch.testing.assert_close(x.T.cov(), covariance, rtol=0, atol=0.08 * covariance.norm().item())


@pytest.mark.on_device
@every_sde
def test_the_flow_runs_between_any_two_times(sde):
    model = gaussian_data(sde)
    for t, s in ((0.9, 0.7), (0.5, 0.1)):
        x = start_at(sde, t)
        found = sample(model, probability_flow(Multistep()), grids.uniform_lambda(sde, 300, start=t, end=s), x_start=x,
                       dtype=torch.float64).x  # fmt: skip
        torch.testing.assert_close(found, flow_solution(sde, x, t, s), rtol=1e-3, atol=1e-3)


# Spherical interpolation.


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def angle(a, b):
    a, b = a.flatten(1), b.flatten(1)
    return torch.arccos(((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))).clamp(-1, 1))


@pytest.mark.on_device
@given(w=st.floats(0, 1), seed=st.integers(0, 1000))
def test_slerp_turns_by_its_fraction_and_keeps_the_norm(w, seed):
    z_0, z_1 = normal(4, 3, 5, seed=seed), normal(4, 3, 5, seed=seed + 1001)
    z_1 = z_1 * (z_0.flatten(1).norm(dim=1) / z_1.flatten(1).norm(dim=1)).reshape(4, 1, 1)
    z = slerp_of(z_0, z_1, w)
    torch.testing.assert_close(z.flatten(1).norm(dim=1), z_0.flatten(1).norm(dim=1))
    torch.testing.assert_close(angle(z_0, z), w * angle(z_0, z_1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(angle(z, z_1), (1 - w) * angle(z_0, z_1), rtol=1e-6, atol=1e-6)


@pytest.mark.on_device
def test_slerp_meets_its_ends_and_is_symmetric():
    z_0, z_1 = normal(4, 7), 3 * normal(4, 7, seed=1)
    torch.testing.assert_close(slerp_of(z_0, z_1, 0), z_0)
    torch.testing.assert_close(slerp_of(z_0, z_1, 1.0), z_1)
    torch.testing.assert_close(slerp_of(z_0, z_1, 0.3), slerp_of(z_1, z_0, 0.7))


def test_slerp_of_two_draws_is_again_normal():
    z = slerp_of(normal(2000, 50), normal(2000, 50, seed=1), 0.5)
    straight = (normal(2000, 50) + normal(2000, 50, seed=1)) / 2
    assert z.var() == pytest.approx(1, abs=0.03)
    assert straight.var() == pytest.approx(0.5, abs=0.03)


@pytest.mark.on_device
@pytest.mark.parametrize("tilt", [0.0, 1e-12, 1e-8])
def test_slerp_of_parallel_vectors_is_the_straight_line(tilt):
    z_0 = normal(3, 6)
    z_1 = 2 * z_0 + tilt * normal(3, 6, seed=1)
    torch.testing.assert_close(slerp_of(z_0, z_1, 0.25), 0.75 * z_0 + 0.25 * z_1, rtol=1e-7, atol=1e-7)


@pytest.mark.on_device
def test_slerp_from_the_origin_is_the_straight_line():
    z = normal(3, 6)
    torch.testing.assert_close(slerp_of(torch.zeros_like(z), z, 0.25), 0.25 * z)


@pytest.mark.on_device
def test_slerp_broadcasts_its_fractions():
    z_0, z_1, fractions = normal(3, 2, 4), normal(3, 2, 4, seed=1), torch.linspace(0, 1, 5)
    many = slerp_of(z_0, z_1, fractions[:, None])
    assert many.shape == (5, 3, 2, 4)
    torch.testing.assert_close(many[2], slerp_of(z_0, z_1, 0.5))
    own = slerp_of(z_0, z_1, fractions[:3])
    torch.testing.assert_close(own[1], slerp_of(z_0[1:2], z_1[1:2], fractions[1])[0])
    assert slerp_of(z_0.float(), z_1.float(), 0.5).dtype == torch.float32
    assert slerp_of(normal(6).abs(), normal(6, seed=1).abs(), 0.5).shape == (6,)  # events of shape (): 6 samples


@pytest.mark.parametrize(
    ("z_0", "z_1", "w", "said"),
    [
        (normal(2, 3), -normal(2, 3), 0.5, "opposite"),
        (normal(2, 3), normal(2, 4), 0.5, "one shape"),
        (normal(2, 3), [1.0], 0.5, "one shape"),
        (normal(2, 3), normal(2, 3, seed=1), torch.ones(3), "broadcast"),
    ],
)
def test_slerp_refuses_what_has_no_circle(z_0, z_1, w, said):
    with pytest.raises(ArgumentError, match=said):
        slerp_of(z_0, z_1, w)
