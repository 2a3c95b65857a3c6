"""What the laws of the likelihood are stated for: densities that are known, and networks that count what is asked.

The truth comes from torch.distributions: at time t the data's component N(m, C) has become N(α m, α² C + σ² I).
"""

import sys
from pathlib import Path

import torch
from devices import DEVICE
from torch import nn
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

sys.path.append(str(Path(__file__).resolve().parent.parent / "laws"))
from catalogue import (  # noqa: F401  (tests take them from here: this file knows where the catalogue is)
    COVARIANCE,
    MEAN,
    PUBLIC_SDES,
    SDES,
    SOLVERS,
    Flow,
    RandomNetwork,
    UserCoefficients,
    doubles,
    model_of,
    name,
    signal_at_the_end,
)

from sde_toolkit import GaussianMixture, ScoreModel, gaussian

ALL_SDES = [*SDES, Flow()]
F64 = {"dtype": torch.float64}
WEIGHTS = doubles(0.2, 0.5, 0.3)
MEANS = doubles(1.0, -0.5, -1.0, 1.0, 0.0, 2.0).reshape(3, 2)
COVARIANCES = torch.stack(
    [COVARIANCE, doubles(0.3, -0.15, -0.15, 0.2).reshape(2, 2), doubles(0.5, 0.2, 0.2, 0.6).reshape(2, 2)]
)


def mixture(sde):
    """Three tilted components of unequal weight in two dimensions."""
    return GaussianMixture(MEANS, sde, covariances=COVARIANCES, weights=WEIGHTS)


def one_gaussian(sde):
    """One tilted Gaussian away from the origin."""
    return gaussian(MEAN, sde, covariance=COVARIANCE)


def truth(model, x, t, weights=WEIGHTS, means=MEANS, covariances=COVARIANCES):
    """log p_t(x) of :func:`mixture`, or of other data under the SDE of the model. t None: of the data themselves."""
    time = torch.tensor(t or 0.0, dtype=torch.float64)
    alpha, sigma = (1.0, 0.0) if t is None else (model.sde.alpha(time), model.sde.sigma(time))
    spread = alpha**2 * covariances + sigma**2 * torch.eye(means.shape[1], dtype=torch.float64)
    components = MultivariateNormal(alpha * means, spread)
    return MixtureSameFamily(Categorical(weights), components).log_prob(x.double())


def truth_of_one(model, x, t):
    """log p_t(x) of :func:`one_gaussian`."""
    return truth(model, x, t, doubles(1.0), MEAN[None], COVARIANCE[None])


def points(model, n=16, seed=0):
    """Draws of the data, float64."""
    return model.draw(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(DEVICE)


def full_covariance(D, seed=3):
    """A covariance without structure, eigenvalues between 0.2 and 3."""
    random = torch.randn(D, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    Q = torch.linalg.qr(random).Q
    return Q @ torch.diag(torch.linspace(0.2, 3.0, D, dtype=torch.float64)) @ Q.T


def last_time(sde):
    """The noise end for methods in λ, which is infinite where α = 0."""
    return 1.0 if signal_at_the_end(sde) else 0.9999


class Asked(nn.Module):
    """The network of an exact model, and what it was asked: (rows, times, whether autograd was to follow)."""

    def __init__(self, network):
        super().__init__()
        self.network, self.calls = network, []

    def forward(self, x, time, condition=None):
        self.calls.append((len(x), time.detach().double().unique(), x.requires_grad))
        return self.network(x, time)

    def rows(self, followed=None):
        """How many rows went through, all or those that autograd was (not) to follow."""
        return sum(rows for rows, _, by_autograd in self.calls if followed in (None, by_autograd))


def asked(model):
    """The model with a network that counts."""
    return ScoreModel(Asked(model.network), model.sde, model.prediction, time_input=model.time_input)
