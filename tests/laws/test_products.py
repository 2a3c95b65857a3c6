"""``inside.vjp``: products with the Jacobian of x̂_0, the same wherever a model is evaluated, and counted."""

import pytest
import torch
from catalogue import SDES, RandomNetwork, doubles, name
from torch import nn

from sde_toolkit import VPSDE, ScoreModel, UNet, ddim, dpmpp_2m, gaussian, grids, heun, probability_flow, sample
from sde_toolkit.errors import ArgumentError
from sde_toolkit.integrators import PerSample
from sde_toolkit.likelihood import ExactTrace, jacobian, log_likelihood
from sde_toolkit.models import Wrapper
from sde_toolkit.models.prediction import KINDS


class Products(Wrapper):
    """x̂_0 + c J²ᵀ x_t, by two products."""

    def denoise(self, x_t, inside, condition):
        x_0, products = inside.vjp(x_t, condition)
        return x_0 + 0.05 * products(products(x_t))


class StackedProducts(Wrapper):
    """The same, with all samples twice in one evaluation."""

    def denoise(self, x_t, inside, condition):
        twice = None if condition is None else torch.cat([condition, condition])
        x_0, products = inside.vjp(torch.cat([x_t, x_t]), twice)
        moved = products(products(torch.cat([x_t, 0 * x_t])))
        return x_0[: len(x_t)] + 0.05 * moved[: len(x_t)]


class _Backward(torch.autograd.Function):
    """The identity; the rows that come back through it are noted."""

    @staticmethod
    def forward(ctx, y, seen):
        ctx.seen = seen
        return y.clone()

    @staticmethod
    def backward(ctx, g):
        ctx.seen.append(len(g))
        return g, None


class Counting(nn.Module):
    """A network that notes the rows of every evaluation and of every way back."""

    def __init__(self):
        super().__init__()
        self.inside, self.rows, self.back = RandomNetwork(), [], []

    def forward(self, x, t, condition=None):
        self.rows.append(len(x))
        return _Backward.apply(self.inside(x, t), self.back)


@pytest.mark.on_device
@pytest.mark.parametrize("sde", SDES, ids=name)
def test_the_posterior_covariance_of_a_gaussian(sde):
    """(σ²/α) ∂x̂_0/∂x_t = Cov[x_0 | x_t] = (C⁻¹ + α²/σ² I)⁻¹."""
    C = doubles(1.0, 0.4, 0.4, 0.5).reshape(2, 2)
    model, t = gaussian(torch.zeros(2), sde, covariance=C), torch.tensor(0.5, dtype=torch.float64)
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    found = []

    class Reading(Wrapper):
        def denoise(self, x_t, inside, condition):
            x_0, products = inside.vjp(x_t, condition)
            found.append(sigma**2 / alpha * torch.stack([products(u.expand_as(x_t)) for u in torch.eye(2).double()]))
            return x_0

    Reading(model)(torch.ones(3, 2, dtype=torch.float64), t)
    truth = torch.linalg.inv(torch.linalg.inv(C) + alpha**2 / sigma**2 * torch.eye(2, dtype=torch.float64))
    for row in range(3):
        torch.testing.assert_close(found[0][:, row], truth, rtol=1e-10, atol=1e-12)


@pytest.mark.on_device
@pytest.mark.parametrize("prediction", KINDS)
def test_products_are_those_of_the_jacobian(prediction):
    model = ScoreModel(RandomNetwork(), VPSDE(), prediction)
    x_t, t = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64), 0.4
    u = torch.ones_like(x_t)
    found = []

    class Reading(Wrapper):
        def denoise(self, x_t, inside, condition):
            x_0, products = inside.vjp(x_t, condition)
            found.append(products(u))
            return x_0

    said = Reading(model)(x_t, t).x_0
    truth, pull = torch.func.vjp(lambda x: model(x, t).x_0, x_t)
    torch.testing.assert_close(said, truth)
    torch.testing.assert_close(found[0], pull(u)[0])


@pytest.mark.parametrize("around", [Products, StackedProducts])
@pytest.mark.parametrize(
    "solver", [ddim(), heun(), dpmpp_2m(), probability_flow(PerSample(rtol=1e-2))], ids=lambda s: s.name
)
def test_products_are_counted_as_the_network_saw_them(solver, around):
    network, n = Counting(), 3
    model = around(ScoreModel(network, VPSDE(), "v"))
    grid = grids.uniform(model.sde, 3, start=0.9, end=0.05)
    found = sample(model, solver, grid, shape=(n, 2), dtype=torch.float64, tweedie=True)
    if found.statistics is None:
        assert found.nfe * n == sum(network.rows)
        assert found.products * n == sum(network.back)
    else:  # samples that have arrived leave the batch: the number is that of a sample that is in it to the end
        assert found.products == len(network.back) * (1 if around is Products else 2)
    assert found.products == 2 * found.nfe
    assert sample(model, solver, grid, shape=(n, 2), dtype=torch.float64, batch_size=1).products <= found.products


def test_a_wrapper_around_a_wrapper_goes_back_through_both_of_its_evaluations():
    class Twice(Wrapper):
        def denoise(self, x_t, inside, condition):
            return 0.5 * (inside(x_t, condition) + inside(1.01 * x_t, condition))

    network = Counting()
    model = Products(Twice(ScoreModel(network, VPSDE(), "v")))
    found = sample(model, ddim(), steps=3, shape=(3, 2), dtype=torch.float64)
    assert found.products * 3 == sum(network.back) == 2 * sum(network.rows)


def unet():
    torch.manual_seed(0)
    network = UNet(widths=(8, 16), blocks_per_level=1, attention_levels=(1,), num_classes=3)
    for p in network.parameters():  # the last layer of a new network is zero
        nn.init.normal_(p, std=0.1)
    return ScoreModel(network, VPSDE(), "v", event_shape=(1, 8, 8)).eval()


def test_the_same_samples_in_every_mode_of_torch():
    model, told = Products(unet()), torch.tensor([0, 2])
    how = {"steps": 3, "shape": (2, 1, 8, 8), "condition": told}
    plain = sample(model, ddim(), **how)
    with torch.inference_mode():
        inferred = sample(model, ddim(), **how | {"condition": told.clone()})
    with torch.enable_grad():
        recorded = sample(model, ddim(), **how, differentiable=True)
    compiled = sample(model, ddim(), **how, compile="aot_eager")
    stacked = sample(StackedProducts(unet()), ddim(), **how)
    assert not plain.x.requires_grad
    assert recorded.x.requires_grad
    for other in (inferred, recorded, compiled, stacked):
        torch.testing.assert_close(other.x, plain.x, rtol=1e-5, atol=1e-5)
    assert plain.products == inferred.products == recorded.products == compiled.products == 2 * plain.nfe


@pytest.mark.on_device
def test_samples_are_differentiated_through_products():
    model = Products(ScoreModel(RandomNetwork(), VPSDE(), "v"))
    start = doubles(0.3, -0.8).reshape(1, 2)

    def end(x):
        return sample(model, ddim(), steps=3, x_start=x, differentiable=True).x

    assert torch.autograd.gradcheck(end, start.requires_grad_())


@pytest.mark.on_device
def test_likelihood_takes_the_trace_of_what_products_made():
    model = Products(gaussian(torch.zeros(2), VPSDE(), covariance=doubles(1.0, 0.4, 0.4, 0.5).reshape(2, 2)))
    x = doubles(0.3, -0.8, 1.0, 0.2).reshape(2, 2)
    modes = (jacobian.reverse, jacobian.forward, jacobian.finite_differences)
    one, *others = (log_likelihood(model, x, divergence=ExactTrace(mode=mode)).nats for mode in modes)
    for other in others:
        torch.testing.assert_close(other, one, rtol=1e-7, atol=1e-7)


class Detached(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how, self.layer = how, nn.Linear(2, 2)

    def forward(self, x, t):
        if self.how == "no_grad":
            with torch.no_grad():
                return self.layer(x)
        return self.layer(x.detach())


@pytest.mark.parametrize("how", ["no_grad", "detach"])
def test_a_network_without_derivatives_is_refused_by_name(how):
    """Not answered with the derivative of what stands around the network."""
    model = Products(ScoreModel(Detached(how), VPSDE(), "epsilon"))
    with pytest.raises(ArgumentError, match="network='Detached'"):
        sample(model, ddim(), steps=3, shape=(2, 2))
