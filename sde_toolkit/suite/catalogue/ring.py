"""Eight narrow modes on a circle in the plane, VP."""

import math

import torch

from sde_toolkit.models.mixture import GaussianMixture
from sde_toolkit.sde import VPSDE
from sde_toolkit.suite.truth import Truth


def truth() -> Truth:
    angles = torch.arange(8, dtype=torch.float64) * (2 * math.pi / 8)
    means = 4 / math.sqrt(8) * torch.stack([angles.cos(), angles.sin()], dim=1)
    return Truth(
        name="ring",
        model=GaussianMixture(means, VPSDE(), std=0.1),
        description="eight Gaussians of standard deviation 0.1 on a circle in 2 dimensions, VP",
        reason="the example of most papers; every mode is narrow, and all noises between two modes are hard",
    )
