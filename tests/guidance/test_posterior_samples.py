"""Samples by MMPS are samples of the exact posterior: the 32-D blur, at the cost of 100 steps and less."""

import pytest
import torch
from catalogue import name

from sde_toolkit import VESDE, VPSDE, dpmpp_2m, dpmpp_2m_sde, gaussian, grids, posterior, sample
from sde_toolkit.guidance import MMPS, Blur, Mask, Measurement, PiGDM

D, N_MEASURED, STD = 32, 16, 0.05
RING = torch.arange(D)
DISTANCE = torch.minimum((RING[:, None] - RING).abs(), D - (RING[:, None] - RING).abs()).double()
COVARIANCE = torch.exp(-DISTANCE / 6)
A = Mask(RING % 2 == 0) @ Blur.gaussian(1.5, (D,))


def data(sde, n, seed):
    return gaussian(torch.zeros(D), sde, covariance=COVARIANCE).draw(
        n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def wasserstein(x, mean, root):
    """W2 between Gaussians: that of the samples' moments, and N(mean, root rootᵀ)."""
    found = torch.cov(x.mT)
    between = torch.linalg.eigvalsh(root.mT @ found @ root).clamp_min(0).sqrt().sum()
    square = (x.mean(0) - mean).square().sum() + found.trace() + root.square().sum() - 2 * between
    return square.item() ** 0.5


@pytest.mark.parametrize("solver", [dpmpp_2m(), dpmpp_2m_sde()], ids=name)
def test_the_distance_to_the_posterior_is_that_of_exact_samples(solver):
    sde, n = VESDE(2e-3, 50.0), 600
    prior = gaussian(torch.zeros(D), sde, covariance=COVARIANCE)
    measurement = Measurement(A, None, STD)
    y = measurement.simulate(data(sde, 1, 0), seed=1)[0]
    exact = prior.posterior(A.matrix(), y, STD)
    G = COVARIANCE @ A.matrix().mT @ torch.linalg.inv(A.matrix() @ COVARIANCE @ A.matrix().mT + STD**2 * torch.eye(16))
    mean, root = G @ y, torch.linalg.cholesky(COVARIANCE - G @ A.matrix() @ COVARIANCE)
    floors = [
        wasserstein(exact.draw(n, generator=torch.Generator().manual_seed(i), dtype=torch.float64), mean, root)
        for i in range(20)
    ]
    floor = sum(floors) / len(floors)

    def distance(method, steps):
        drawn = sample(posterior(prior, A, y, STD, method=method), solver, grids.uniform_lambda(sde, steps), **how)
        return wasserstein(drawn.x, mean, root)

    how = {"shape": (n, D), "dtype": torch.float64, "tweedie": True}
    assert distance(MMPS(), 100) < 1.1 * floor
    assert distance(PiGDM(), 20) > 1.15 * floor  # a method that is not exact is seen


def test_truth_is_anywhere_among_samples_of_its_posterior():
    """Over 200 measurements the rank of the truth among 19 samples is uniform, in smooth and rough directions."""
    n, k = 200, 19
    prior = gaussian(torch.zeros(D), VPSDE(), covariance=COVARIANCE)
    truth = data(prior.sde, n, 0)
    y = Measurement(A, None, STD).simulate(truth, seed=1)
    given = posterior(prior, A, noise_std=STD)
    drawn = sample(given, dpmpp_2m(), steps=25, shape=(n * k, D), condition=y.repeat_interleave(k, 0))
    samples = drawn.x.double().reshape(n, k, D)
    axes = torch.linalg.eigh(COVARIANCE).eigenvectors
    for direction in (axes[:, 0], axes[:, -1], torch.eye(D).double()[0], torch.eye(D).double()[1]):
        rank = ((samples @ direction) < (truth @ direction).unsqueeze(1)).sum(1)
        inside = ((rank > 0) & (rank < k)).double().mean()  # 90 % of the ranks
        assert abs(inside - 0.9) < 3.3 * (0.9 * 0.1 / n) ** 0.5
        counts = torch.bincount(rank, minlength=k + 1).double()
        assert ((counts - n / (k + 1)) ** 2 / (n / (k + 1))).sum() < 45.0  # chi-square with 19 degrees: p = 0.0007
