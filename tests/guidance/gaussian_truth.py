"""Gaussians whose guided moments are known: p(x | c) = N(m, 1) and p(x) = N(0, 2) on each axis, under any SDE.

In VE coordinates x̄ = x/α, τ = σ/α a guidance that makes x̂_0 = a x̄ + b has the moments

    dm/dlog τ = (1 + η²) (m − a m − b),        dv/dlog τ = 2 (1 + η²) (1 − a) v − 2 η² τ²
"""

import numpy as np
import torch
from scipy.integrate import solve_ivp

from sde_toolkit import Wrapper, gaussian
from sde_toolkit.models import ClassMixture

MEANS = np.array([0.0, 0.7])


def class_model(sde):
    """The class 0, and "no class"."""
    given = gaussian(torch.tensor(MEANS), sde, std=1.0)
    return ClassMixture.of([given], no_class=gaussian(torch.zeros(2, dtype=torch.float64), sde, std=2**0.5))


class OfClass0(Wrapper):
    """A conditional model under the class 0: what tools of laws ask without a condition."""

    def denoise(self, x_t, inside, condition):
        return inside(x_t, torch.zeros(len(x_t), dtype=torch.long))


def denoiser(mean, variance):
    """a and b of x̂_0 for data N(mean, variance), at the noise level τ."""
    return lambda tau: (variance / (variance + tau**2), mean * tau**2 / (variance + tau**2))


GIVEN, FREE = denoiser(MEANS, 1.0), denoiser(0 * MEANS, 2.0)


def line(scale, one=GIVEN, other=FREE):
    """a and b of x̂_other + scale (x̂_one − x̂_other)."""
    return lambda tau: tuple(o + scale * (g - o) for g, o in zip(one(tau), other(tau), strict=True))


def guided_moments(of_tau, eta, tau_start, tau_end, mean, variance):
    """Mean (2,) and variance of x̄ at τ_end, from those at τ_start."""

    def rate(log_tau, moments):
        tau, m, v = np.exp(log_tau), moments[:2], moments[2]
        a, b = of_tau(tau)
        return [*((1 + eta**2) * (m - a * m - b)), 2 * (1 + eta**2) * (1 - a) * v - 2 * eta**2 * tau**2]

    ends, start = np.log([tau_start, tau_end]), [*mean, variance]
    moments = solve_ivp(rate, ends, start, method="DOP853", rtol=1e-12, atol=1e-14).y[:, -1]
    return moments[:2], moments[2]
