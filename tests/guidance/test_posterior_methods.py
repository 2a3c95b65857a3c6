"""Posterior methods: what each says of x_0 is its formula; the exact ones are the closed form of Gaussian data."""

import pytest
import torch
from catalogue import SDES, name

from sde_toolkit import gaussian
from sde_toolkit.guidance import JFPS, MMPS, posterior


def numbers(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


D, M = 4, 3
ROOT = numbers(D, D, seed=1)
COVARIANCE = ROOT @ ROOT.mT / D + 0.05 * torch.eye(D, dtype=torch.float64)
MEAN = numbers(D, seed=2)
A = numbers(M, D, seed=3)
Y = numbers(M, seed=4)
TIGHT = MMPS(tolerance=0.0, max_iterations=12)


def noises(m):
    root = numbers(m, m, seed=5)
    return {
        "number": {"noise_std": 0.3},
        "diagonal": {"noise_std": 0.1 + numbers(m, seed=6).abs()},
        "full": {"noise_covariance": root @ root.mT + 0.1 * torch.eye(m)},
        "zero": {"noise_std": 0.0},
    }


def truth(model, A, y, noise):
    return model.posterior(A, y, next(iter(noise.values())))


@pytest.mark.parametrize("method", [TIGHT, JFPS(COVARIANCE)], ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("kind", ["number", "diagonal", "full", "zero"])
@pytest.mark.parametrize("sde", SDES, ids=name)
def test_exact_methods_are_the_posterior_of_a_gaussian(sde, kind, method):
    model, noise, t = gaussian(MEAN, sde, covariance=COVARIANCE), noises(M)[kind], 0.6
    x_t = 2 * numbers(5, D, seed=7)
    said = posterior(model, A, Y, **noise, method=method)(x_t, t).x_0
    exact = gaussian(MEAN, sde, covariance=COVARIANCE).posterior(A, Y, next(iter(noise.values())))
    torch.testing.assert_close(said, exact(x_t, t).x_0, rtol=1e-9, atol=1e-9)
