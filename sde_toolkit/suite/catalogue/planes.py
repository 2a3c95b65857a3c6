"""Six planes of rank four in 64 dimensions, flow matching."""

import torch

from sde_toolkit.models.mixture import GaussianMixture
from sde_toolkit.sde import FlowMatching
from sde_toolkit.suite.truth import Truth

_DIMENSION, _PLANES, _RANK, _THICKNESS = 64, 6, 4, 0.01


def truth() -> Truth:
    generator = torch.Generator().manual_seed(11)
    directions = torch.randn(_PLANES, _DIMENSION, _RANK, generator=generator, dtype=torch.float64)
    axes = torch.linalg.qr(directions)[0]
    covariances = 8 * axes @ axes.mT + _THICKNESS**2 * torch.eye(_DIMENSION, dtype=torch.float64)
    means = 0.5 * torch.randn(_PLANES, _DIMENSION, generator=generator, dtype=torch.float64)
    return Truth(
        name="planes",
        model=GaussianMixture(means, FlowMatching(), covariances=covariances),
        description=f"{_PLANES} Gaussians of rank {_RANK} and thickness {_THICKNESS} in {_DIMENSION} dimensions, flow "
        "matching",
        reason="low rank: most directions have no variance, so that the noise there must vanish to the end",
    )
