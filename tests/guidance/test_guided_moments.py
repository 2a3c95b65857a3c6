"""The moment law: on Gaussians, guided or not, biased or not, mean and variance follow their ODE."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from catalogue import convergence_order, name, own_moments
from gaussian_truth import MEANS, OfClass0, class_model, denoiser, guided_moments, line

from sde_toolkit import (
    VESDE,
    VPSDE,
    FlowMatching,
    ddim,
    ddpm,
    dpmpp_2m,
    dpmpp_2m_sde,
    euler_maruyama,
    gaussian,
    grids,
    heun,
    rk4,
)
from sde_toolkit.guidance import autoguidance, classifier, classifier_free
from sde_toolkit.models import ClassMixture


def by_classifier(model, scale):
    """p(c | x_t) ∝ p(x_t | c)/p(x_t), around p(x_t)."""

    def log_prob(x, t, condition):
        return model.log_prob(x, t[0], condition) - model.log_prob(x, t[0])

    return classifier(model, log_prob, scale)


def against_wider(model, scale):
    return autoguidance(model, ClassMixture.of([gaussian([0.2, -0.1], model.sde, std=1.5)]), scale)


WIDER = denoiser(np.array([0.2, -0.1]), 1.5**2)
GUIDANCES = {
    "classifier-free": (classifier_free, line),
    "autoguidance": (against_wider, lambda scale: line(scale, other=WIDER)),
    "classifier": (by_classifier, line),
}
PATHS = [VPSDE(), VESDE(0.01, 50), FlowMatching()]
BEGIN, END = 8.0, 0.05  # noise levels


def moments(model, solver, n):
    """Mean and variance of x̄ at the end of n steps, of the scheme itself, and of the first axis with the second."""
    sde = model.sde
    grid = grids.uniform_lambda(sde, n, start=time_of(sde, BEGIN), end=time_of(sde, END))
    start = sde.alpha(grid[0]) * torch.tensor([1.0, -2.0]).double(), sde.sigma(grid[0]) ** 2 * torch.eye(2).double()
    with torch.no_grad():
        mean, covariance = own_moments(solver, OfClass0(model), grid, *start)
    alpha = sde.alpha(grid[-1])
    return np.array([*(mean / alpha), *(covariance.flatten() / alpha**2)])


def time_of(sde, level):
    return sde.inverse_half_log_snr(-math.log(level)).item()


def truth(of_tau, eta):
    mean, variance = guided_moments(of_tau, eta, BEGIN, END, np.array([1.0, -2.0]), BEGIN**2)
    return np.array([*mean, variance, 0.0, 0.0, variance])


def extrapolated(values, order, ratio=2):
    """Richardson's: each pass removes the next power of the step."""
    for power in range(order, order + len(values) - 1):
        values = [b + (b - a) / (ratio**power - 1) for a, b in pairwise(values)]
    return values[-1]


CASES = [
    (way, solver, PATHS[(i + k) % 3], (2.0, 3.0, 0.5)[i])
    for i, way in enumerate(GUIDANCES)
    for k, solver in enumerate((rk4(), heun(), dpmpp_2m(), dpmpp_2m_sde()))
]


@pytest.mark.parametrize(("way", "solver", "sde", "scale"), CASES, ids=name)
def test_guided_mean_and_variance_follow_their_ode(way, solver, sde, scale):
    guide, law = GUIDANCES[way]
    model, integrator = guide(class_model(sde), scale), solver.integrator
    counts = [n // integrator.evals_per_step for n in (32, 64, 128, 256)]
    found = extrapolated([moments(model, solver, n) for n in counts], integrator.order)
    np.testing.assert_allclose(found, truth(law(scale), solver.eta), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("solver", [ddim(), ddpm(), euler_maruyama()], ids=name)
@pytest.mark.parametrize("way", GUIDANCES)
def test_methods_of_first_order_tend_to_it_at_that_order(way, solver):
    guide, law = GUIDANCES[way]
    model, counts = guide(class_model(VPSDE()), 2.0), (80, 160)
    errors = [np.linalg.norm(moments(model, solver, n) - truth(law(2.0), solver.eta)) for n in counts]
    assert convergence_order(counts, errors) == pytest.approx(1, abs=0.15)
    assert errors[-1] < 0.1


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.0, 3.5])
def test_the_ends_of_the_flow_and_the_sde_are_known_and_neither_is_the_tilted_law(scale):
    """The truth itself: from far out to the data, the ODE of the moments has closed ends (with m = 0)."""
    flow, sde = (guided_moments(line(scale), eta, 1e5, 1e-6, 0 * MEANS, 1e10)[1] for eta in (0, 1))
    assert flow == pytest.approx(2 ** (1 - scale), rel=1e-6)
    assert sde == pytest.approx((2 - 2 ** (2 - 2 * scale)) / (2 * scale - 1), rel=1e-6)
    tilted = 2 / (scale + 1)
    if scale in (0.0, 1.0):
        assert (flow, sde) == pytest.approx((tilted, tilted), rel=1e-6)
    else:
        assert flow < 0.8 * tilted
        assert flow < sde < 0.99 * tilted
