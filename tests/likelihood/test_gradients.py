"""Derivatives of the log-likelihood, by the data and by a network's parameters, where they are asked for."""

import pytest
import torch
from densities import F64, Flow, mixture, name, points
from torch import nn

from sde_toolkit import VESDE, VPSDE, Affine, ScoreModel, log_likelihood, probability_flow
from sde_toolkit.integrators import PerSample, TorchDiffEq
from sde_toolkit.likelihood import ExactTrace, Hutchinson, Quadrature

SOLVERS = [{"nfe": 60}, {"solver": probability_flow(PerSample(rtol=1e-6, atol=1e-6))}]


class Small(nn.Module):
    """Two layers, smooth, with parameters."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(3, 8).double(), nn.Linear(8, 2).double()

    def forward(self, x, time):
        return self.last(torch.tanh(self.first(torch.cat([x, time[:, None]], 1))))


def slope(function, tensor, direction, h=1e-5):
    """The derivative of the function of no arguments as the tensor moves in the direction, by central differences."""
    with torch.no_grad():
        values = []
        for step in (h, -2 * h):
            tensor.add_(direction, alpha=step)
            values.append(function())
        tensor.add_(direction, alpha=h)
    return (values[0] - values[1]) / (2 * h)


@pytest.mark.parametrize("how", SOLVERS, ids=["default", "per sample"])
@pytest.mark.parametrize("sde", [VPSDE(), VESDE(), Flow()], ids=name)
def test_the_gradient_by_the_data_is_the_score(sde, how):
    if "solver" in how and sde.alpha(1.0) == 0:
        how = {**how, "grid": [0.9999, 1e-5]}
    model = mixture(sde)
    x = points(model, 5).requires_grad_()
    found = log_likelihood(model, x, prior=model.log_prob, differentiable=True, quadrature=Quadrature(40), **how, **F64)
    (gradient,) = torch.autograd.grad(found.nats.sum(), x)
    expected = model.score(x.detach(), sde.likelihood_end)
    torch.testing.assert_close(gradient, expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("divergence", [ExactTrace(), Hutchinson(2)], ids=name)
@pytest.mark.parametrize("how", SOLVERS[:1], ids=["default"])
def test_the_gradient_by_the_data_is_the_slope_of_what_was_computed(how, divergence):
    """However coarse the solve and whatever the probes; the transform is part of it."""
    model = ScoreModel(Small(), VPSDE(), "v", transform=Affine(1.0, 0.5))
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    how = {"nfe": 8, "quadrature": Quadrature(5), "divergence": divergence, **F64}
    leaf = x.clone().requires_grad_()
    found = log_likelihood(model, leaf, differentiable=True, **how).nats
    (gradient,) = torch.autograd.grad(found.sum(), leaf)
    for axis in torch.eye(2, dtype=torch.float64):
        by_differences = slope(lambda: log_likelihood(model, x, **how).nats, x, axis.expand(3, 2))
        torch.testing.assert_close((gradient * axis).sum(1), by_differences, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("divergence", "how"),
    [
        (ExactTrace(), {"nfe": 8}),
        (Hutchinson(2), {"nfe": 8}),
        (Hutchinson(2), {"nfe": 8, "batch_size": 2}),
        (ExactTrace(), {"solver": probability_flow(TorchDiffEq(rtol=1e-7, atol=1e-7)), "end": 0.05}),
        (ExactTrace(), {"solver": probability_flow(PerSample(rtol=1e-7, atol=1e-7)), "end": 0.05}),
    ],
    ids=["exact", "probes", "batches", "torchdiffeq", "per sample"],
)
def test_the_gradient_by_parameters_agrees_with_differences(divergence, how):
    model = ScoreModel(Small(), VPSDE(), "v")
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    how = {"quadrature": Quadrature(6), "divergence": divergence, **how, **F64}
    found = log_likelihood(model, x, differentiable=True, **how)
    assert found.mode == "reverse"
    assert found.replicates.requires_grad
    gradients = torch.autograd.grad(found.nats.mean(), list(model.parameters()))
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        by_differences = slope(lambda: log_likelihood(model, x, **how).nats.mean(), parameter, direction, 1e-4)
        torch.testing.assert_close((gradient * direction).sum(), by_differences, rtol=2e-5, atol=1e-7)


def test_one_step_of_maximum_likelihood_raises_the_likelihood():
    model = ScoreModel(Small(), VPSDE(), "v")
    x = 0.3 * torch.randn(16, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    seen = []
    for _ in range(4):
        optimiser.zero_grad()
        nats = log_likelihood(model, x, nfe=12, quadrature=Quadrature(6), differentiable=True, **F64).nats.mean()
        (-nats).backward()
        optimiser.step()
        seen.append(nats.item())
    assert seen == sorted(seen)


def test_no_graph_is_kept_unless_asked_for():
    model = ScoreModel(Small(), VPSDE(), "v")
    x = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    for divergence in (ExactTrace(), Hutchinson(2)):
        found = log_likelihood(model, x, nfe=8, divergence=divergence, **F64)
        for field in (
            "nats",
            "prior",
            "integral",
            "latent",
            "replicates",
            "truncation",
            "quadrature_error",
            "prior_cost",
        ):
            assert not getattr(found, field).requires_grad, field
    assert all(parameter.grad is None for parameter in model.parameters())
    assert x.grad is None
    with torch.no_grad():  # asked for: the caller's surroundings do not matter
        assert log_likelihood(model, x, nfe=8, differentiable=True, **F64).nats.requires_grad
    assert torch.is_grad_enabled()
