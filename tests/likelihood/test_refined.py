"""As many nodes as a sample needs: the error is what was asked for, of every sample, and easy ones cost less."""

import math

import pytest
import torch
from densities import F64, Asked, mixture, name, points, truth

from sde_toolkit import VESDE, VPSDE, FlowMatching, GaussianMixture, ScoreModel, log_likelihood
from sde_toolkit import probability_flow as flow_by
from sde_toolkit.equation import ReverseEquation
from sde_toolkit.integrators import PerSample
from sde_toolkit.likelihood import ExactTrace, Hutchinson, Quadrature, Refined, reverse


def ring(sde, std=0.1):
    angle = 2 * math.pi * torch.arange(8, dtype=torch.float64) / 8
    return GaussianMixture(math.sqrt(2) * torch.stack([angle.cos(), angle.sin()], 1), sde, std=std)


def at_the_end(model, x):
    return model.log_prob(x, model.sde.likelihood_end)


@pytest.mark.parametrize("sde", [VPSDE(), VESDE(), FlowMatching()], ids=name)
@pytest.mark.parametrize("tolerance", [1e-3, 1e-5, 1e-7])
def test_every_sample_is_as_right_as_was_asked(sde, tolerance):
    """On sharp modes, where between two of them the integrand has a kink of its own; the path is solved far better."""
    model = ring(sde)
    x = points(model, 64)
    found = log_likelihood(model, x, nfe=400, quadrature=Refined(tolerance), prior=model.log_prob, **F64)
    error = (found.nats - at_the_end(model, x)).abs() / 2
    assert error.max() < max(tolerance, 1e-5)  # the path's own
    assert (found.quadrature_error / 2).max() <= tolerance
    assert set(found.divergences.tolist()) <= {17, 33, 65, 129, 257}
    assert len(found.divergences.unique()) > 1
    assert found.divergence_nfe == found.divergences.max()


def test_more_is_asked_of_fewer_samples():
    """Only samples whose error is too large go on, and what was evaluated for them is not evaluated again."""
    exact = ring(VPSDE())
    model = ScoreModel(Asked(exact.network), VPSDE(), "v", sigma_data=exact.sigma_data)
    x = points(exact, 40)
    found = log_likelihood(model, x, nfe=60, quadrature=Refined(1e-4), divergence=ExactTrace(mode=reverse), **F64)
    assert model.network.rows(followed=True) - 8 == found.divergences.sum()
    assert found.divergences.sum() < 0.8 * 40 * found.divergence_nfe


def test_the_rule_is_exact_for_polynomials_and_its_nodes_are_nested():
    """∫ c ∇·F dφ where c ∇·F is cos(kθ), φ = middle − half cos θ: what Clenshaw and Curtis integrate exactly."""
    equation = ReverseEquation(mixture(VPSDE()), 0.0)
    nested = Refined(most=65).prepare(equation, 1e-5, 1.0, 0.3)
    assert [len(nodes.times) for nodes in nested.rules] == [17, 33, 65]
    for k, nodes in enumerate(nested.rules):
        assert torch.equal(nodes.times, nested.finest.times[nested.positions(k)])
        N = len(nodes.times) - 1
        theta = torch.pi * torch.arange(N + 1, dtype=torch.float64) / N
        length = nodes.weights.sum()
        for degree in (0, 1, 2, 5, N - 1):
            value = (nodes.weights * torch.cos(degree * theta)).sum() / length
            expected = (1 + (-1) ** degree) / 2 / (1 - degree**2) if degree != 1 else 0.0
            assert value == pytest.approx(expected, abs=1e-13)
            seen = nodes.coefficients @ torch.cos(degree * theta) / length
            assert seen.abs()[degree] == pytest.approx(1.0)
            assert seen.abs().sum() == pytest.approx(1.0)


def test_it_is_the_default_of_adaptive_solvers_with_an_exact_trace():
    model = mixture(VPSDE())
    x = points(model, 4)
    solver = flow_by(PerSample(rtol=1e-4, atol=1e-6))
    assert log_likelihood(model, x, solver=solver).quadrature == Refined(1e-4)
    assert log_likelihood(model, x, solver=solver, divergence=Hutchinson(2)).quadrature == Quadrature()
    assert log_likelihood(model, x, nfe=8).quadrature == Quadrature()


def test_it_stops_at_the_most_and_at_the_rounding():
    model = ring(VPSDE(), 0.02)
    x = points(model, 8)
    short = log_likelihood(model, x, nfe=60, quadrature=Refined(1e-12, most=33), **F64)
    assert short.divergence_nfe == 33
    assert short.quadrature_error.max() > 2e-12
    model = mixture(VPSDE())
    single = log_likelihood(model, points(model, 8).float(), nfe=60, quadrature=Refined(1e-15))
    assert single.divergence_nfe < 257  # in float32 there is nothing to be found below its rounding
    units = single.quadrature_error / 2 / torch.finfo(torch.float32).eps
    assert units.max() <= 32  # and nothing above it is left


def test_reverse_gradients_go_through_all_rules():
    model = mixture(VPSDE())
    x = points(model, 3).requires_grad_()
    how = {"nfe": 100, "prior": model.log_prob, "differentiable": True, **F64}
    found = log_likelihood(model, x, quadrature=Refined(1e-7), **how)
    assert found.divergence_nfe > 17
    (gradient,) = torch.autograd.grad(found.nats.sum(), x)
    torch.testing.assert_close(gradient, model.score(x.detach(), 1e-5), rtol=2e-3, atol=2e-3)
    assert (found.nats - truth(model, x.detach(), 1e-5)).abs().max() < 2e-5
