"""Ten modes far apart in 64 dimensions, the cosine schedule."""

import torch

from sde_toolkit.models.mixture import GaussianMixture
from sde_toolkit.sde import CosineVPSDE
from sde_toolkit.suite.truth import Truth


def truth() -> Truth:
    means = torch.randn(10, 64, generator=torch.Generator().manual_seed(12), dtype=torch.float64)
    return Truth(
        name="far_modes",
        model=GaussianMixture(means, CosineVPSDE(), std=0.2),
        description="ten Gaussians of standard deviation 0.2 with means ~ N(0, I) in 64 dimensions, cosine VP",
        reason="the flow decides between modes within a short time, so that a few noises end in another mode and "
        "make up most of the RMSE; compare the median",
    )
