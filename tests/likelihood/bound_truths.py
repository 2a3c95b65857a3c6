"""What the laws of the bounds share: paths, exact mixtures, copies of points, quadrature over ε."""

import math
from dataclasses import dataclass

import numpy as np
import torch

import sde_toolkit
from sde_toolkit import SDE, FlowMatching, GaussianMixture

F64 = {"dtype": torch.float64}
SDES = [getattr(sde_toolkit.sde, name)() for name in sde_toolkit.sde.__all__ if name != "SDE" and name.endswith("SDE")]
SDES.append(FlowMatching())
POINTS = [-1.4, -0.5, 0.1, 0.9, 2.0]
NODES, WEIGHTS = (torch.from_numpy(v) for v in np.polynomial.hermite_e.hermegauss(120))
WEIGHTS = WEIGHTS / WEIGHTS.sum()


@dataclass(frozen=True)
class Halfway(SDE):
    """Most of the signal is left at t=1, and x_0 is noisy at t=0."""

    sigma_0 = 0.3

    def f(self, t):
        return -(0.5 + t)

    def g(self, t):
        return torch.sqrt(1 + 2 * t**2)


def doubles(*values):
    return torch.tensor(values, dtype=torch.float64)


def mixture(sde):
    return GaussianMixture([[-0.8], [1.1]], sde, std=torch.tensor([[0.4], [0.6]]), weights=[0.4, 0.6])


def copies(values, n):
    """Each value n times: samples (len(values) n, 1), and the way back to (len(values), n)."""
    x = doubles(*values).repeat_interleave(n).unsqueeze(1)
    return x, lambda per_sample: per_sample.reshape(len(values), n)


def pooled(bound, back, part="nats"):
    """Mean over the copies of each value, and its standard error from those of the samples."""
    errors = back(bound.standard_error)
    return back(getattr(bound, part)).mean(1), errors.square().sum(1).sqrt() / errors.shape[1]


def agree(found, expected, error, within):
    """Equal within 4.5 standard errors, which are small enough to mean something."""
    assert bool((error < within).all()), error
    assert bool(((found - expected).abs() < 4.5 * error).all()), ((found - expected) / error).tolist()


def divergence_at(model, x, t):
    """KL(q(x_t | x) ‖ p_t) on the line, by Gauss-Hermite quadrature."""
    alpha, sigma = model.sde.alpha(t), model.sde.sigma(t)
    x_t = alpha * x.unsqueeze(1) + sigma * NODES
    log_q = -0.5 * NODES**2 - torch.log(sigma) - 0.5 * math.log(2 * math.pi)
    log_p = model.log_prob(x_t.reshape(-1, 1), t).reshape(x_t.shape)
    return ((log_q - log_p) * WEIGHTS).sum(1)
