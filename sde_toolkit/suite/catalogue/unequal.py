"""Twenty modes of very unequal weights and widths, away from the origin, VP."""

import torch

from sde_toolkit.models.mixture import GaussianMixture
from sde_toolkit.sde import VPSDE
from sde_toolkit.suite.truth import Truth


def truth() -> Truth:
    generator = torch.Generator().manual_seed(16)
    means = 3.0 + torch.randn(20, 16, generator=generator, dtype=torch.float64)
    widths = torch.logspace(-1.7, -0.3, 20, dtype=torch.float64)[torch.randperm(20, generator=generator)]
    weights = 0.8 ** torch.arange(20, dtype=torch.float64)
    return Truth(
        name="unequal",
        model=GaussianMixture(means, VPSDE(), std=widths, weights=weights),
        description="twenty Gaussians of standard deviations from 0.02 to 0.5 and weights from 0.2 to 0.003 around "
        "(3, ..., 3) in 16 dimensions, VP",
        reason="rare modes, modes of all widths, and data whose mean is not zero",
    )
