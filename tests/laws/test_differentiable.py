"""Starts keep their precision, and gradients go through a run where they are asked for, or are missed aloud."""

import warnings

import pytest
import torch
from catalogue import FIXED_STEP, PUBLIC_SDES, RandomNetwork, model_of, name
from torch import nn

from sde_toolkit import (
    VESDE,
    VPSDE,
    Affine,
    ScoreModel,
    Solver,
    ddim,
    ddpm,
    encode,
    gaussian,
    grids,
    probability_flow,
    sample,
)
from sde_toolkit.errors import ArgumentError, DataError
from sde_toolkit.integrators import PerSample
from sde_toolkit.transforms import eight_bit

SDE = VPSDE()
GRID = grids.uniform(SDE, 4, start=0.98, end=0.1)
X = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(3, 2)


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(3, 2, dtype=torch.float64)

    def forward(self, x, time, condition=None):
        y = torch.tanh(self.body(torch.cat([x, time[:, None]], 1)))
        return y if condition is None else y * condition[:, None]


def solver_of(integrator):
    return Solver("", 0.0 if integrator.weak_order is None else 1.0, integrator)


def slope(f, x, v, h=1e-5):
    return (f(x + h * v) - f(x - h * v)) / (2 * h)


@pytest.mark.on_device
@pytest.mark.parametrize("integrator", [*FIXED_STEP, PerSample(rtol=1e-3, atol=1e-3)], ids=name)
def test_gradients_by_the_start_are_those_of_finite_differences(integrator):
    model, solver = model_of(Layers(), SDE, "v"), solver_of(integrator)
    v, weights = torch.cos(3 * X), torch.sin(5 * X)

    def value(x):
        return (sample(model, solver, GRID, x_start=x, differentiable=True, batch_size=2).x * weights).sum()

    x = X.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(x), x)
    found, wanted = (gradient * v).sum(), slope(lambda x: value(x).detach(), X, v)
    # the lengths of adaptive steps are held, which differences do not
    tolerance = 1e-7 if integrator.evals_per_step else 1e-2
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.on_device
@pytest.mark.on_card("the mock device compiles nothing")
def test_gradients_by_condition_and_parameters_upwards_and_downwards_compiled_or_not():
    network = Layers()
    model, rows = model_of(network, SDE, "v"), torch.linspace(0.5, 1, 3, dtype=torch.float64)
    for run in (
        lambda rows, **o: sample(model, ddim(), GRID, x_start=X, condition=rows, differentiable=True, **o).x,
        lambda rows, **o: encode(model, ddim(), GRID, X, condition=rows, differentiable=True, **o).x,
    ):
        asked = rows.clone().requires_grad_()
        by_rows, by_bias = torch.autograd.grad(run(asked).square().sum(), (asked, network.body.bias))
        wanted = slope(lambda rows, run=run: run(rows).detach().square().sum(), rows, torch.ones(3).double())
        torch.testing.assert_close(by_rows.sum(), wanted, rtol=1e-6, atol=1e-6)
        assert by_bias.abs().min() > 0
        again = torch.autograd.grad(run(asked, compile="aot_eager").square().sum(), asked)[0]
        torch.testing.assert_close(again, by_rows, rtol=1e-9, atol=1e-9)


@pytest.mark.on_device
def test_a_start_that_requires_a_gradient_is_refused_unless_it_is_asked_for_or_switched_off():
    model = model_of(RandomNetwork(), SDE)
    x = X.clone().requires_grad_()
    told = {"a": [torch.ones(3).double().requires_grad_()]}
    with pytest.raises(ArgumentError, match=r"x_start.*differentiable=True"):
        sample(model, ddim(), GRID, x_start=x)
    with pytest.raises(ArgumentError, match=r"x=.*differentiable=True"):
        encode(model, ddim(), GRID, x)
    for run in (
        lambda: sample(model, ddim(), GRID, x_start=X, condition=told),
        lambda: encode(model, ddim(), GRID, X, condition=told),
    ):
        with pytest.raises(ArgumentError, match=r"condition.*differentiable=True"):
            run()
    with torch.no_grad():
        assert not sample(model, ddim(), GRID, x_start=x).x.requires_grad
    with torch.inference_mode(), pytest.raises(ArgumentError, match="inference_mode"):
        sample(model, ddim(), GRID, x_start=X, differentiable=True)
    with pytest.raises(ArgumentError, match="differentiable"):
        sample(model, ddim(), GRID, x_start=X, differentiable="yes")


@pytest.mark.on_device
def test_without_being_asked_no_graph_is_kept():
    model = model_of(Layers(), SDE, "v")
    for found in (sample(model, ddim(), GRID, x_start=X), encode(model, ddim(), GRID, X)):
        assert found.x.grad_fn is None
    assert sample(model, ddim(), GRID, shape=(3, 2), dtype=torch.float64, differentiable=True).x.grad_fn is not None


@pytest.mark.on_device
@pytest.mark.parametrize("sde", PUBLIC_SDES, ids=name)
def test_a_start_in_float64_is_kept_and_any_other_becomes_float32(sde):
    model = gaussian([1.0, -1.0], sde, std=0.5)
    grid = grids.uniform(sde, 4, start=0.9, end=0.1)
    for run in (
        lambda x, **o: sample(model, ddim(), grid, x_start=x, **o).x,
        lambda x, **o: encode(model, ddim(), grid, x, **o).x,
    ):
        wide = run(X)
        assert wide.dtype == torch.float64
        assert torch.equal(wide, run(X, dtype=torch.float64))
        assert (wide - run(X.float()).double()).abs().max() > 0  # it was not rounded on its way
        for narrow in (torch.float32, torch.bfloat16, torch.float16):
            assert run(X.to(narrow)).dtype == torch.float32
        assert run(X, dtype=torch.float32).dtype == torch.float32
    assert sample(model, ddim(), grid, shape=(3, 2)).x.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128, torch.uint8, torch.int64, torch.bool])
def test_starts_of_other_kinds_are_refused(dtype):
    def untouchable(x, time):
        raise AssertionError

    x = torch.ones(3, 2).to(dtype)
    for run in (
        lambda: sample(ScoreModel(untouchable, SDE), ddim(), GRID, x_start=x),
        lambda: encode(ScoreModel(untouchable, SDE), ddim(), GRID, x, space="model"),
    ):
        with pytest.raises(ArgumentError, match=rf"x.*{dtype}"):
            run()


@pytest.mark.on_device
@pytest.mark.parametrize("sde", [VPSDE(), VESDE(sigma_max=5.0)], ids=name)
def test_grey_levels_where_model_space_is_meant_are_warned_of(sde):
    """Data space and model space of 8-bit images are 127 apart; states and data in model space are not."""
    model = ScoreModel(lambda x, time: 0.1 * x, sde, transform=eight_bit())
    grid = grids.uniform(sde, 4, end=0.01)
    images = torch.linspace(0, 255, 40).reshape(10, 4)
    with pytest.warns(UserWarning, match=r"model\.transform\.forward"):
        encode(model, ddim(), grid, images, space="model")
    with pytest.warns(UserWarning, match=r"x_start.*model\.transform\.forward"):
        sample(model, ddim(), grid, x_start=images)
    inside = eight_bit().forward(images)
    unnamed = ScoreModel(model.network, sde, transform=Affine(127.5, 1 / 127.5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        code = encode(model, ddim(), grid, inside, space="model").x
        assert torch.equal(encode(model, ddim(), grid, images).x, code)
        assert torch.equal(
            encode(model, ddim(), grid, images.round().to(torch.uint8)).x, encode(model, ddim(), grid, images.round()).x
        )
        sample(model, ddim(), grid, x_start=code)
        noise = torch.randn(10_000, 4, generator=torch.Generator().manual_seed(0))
        sample(model, ddim(), grid, x_start=sde.perturb(inside[0].expand(10_000, 4), grid[0], noise))
        encode(unnamed, ddim(), grid, images, space="model")  # of which nobody knows where the data lie
    with pytest.raises(DataError, match=r"\[0, 255\]"):
        encode(model, ddim(), grid, inside)
    with pytest.raises(ArgumentError, match="space='pixels'"):
        encode(model, ddim(), grid, inside, space="pixels")


def test_generators_are_one_generator():
    model = model_of(RandomNetwork(), SDE)
    for wrong in ([torch.Generator()], 3, torch.Generator):
        with pytest.raises(ArgumentError, match=r"generator.*torch\.Generator"):
            sample(model, ddpm(), GRID, shape=(1, 2), generator=wrong)


@pytest.mark.on_device
def test_adaptive_runs_keep_their_counts_with_a_graph():
    model = model_of(Layers(), SDE, "v")
    solver = probability_flow(PerSample(rtol=1e-3, atol=1e-3))
    plain, traced = (sample(model, solver, GRID, x_start=X, differentiable=how) for how in (False, True))
    assert torch.equal(plain.statistics.evaluations, traced.statistics.evaluations)
    assert torch.equal(plain.x, traced.x.detach())
