"""A wide Gaussian with a narrow one inside it, sub-VP."""

import torch

from sde_toolkit.models.mixture import GaussianMixture
from sde_toolkit.sde import SubVPSDE
from sde_toolkit.suite.truth import Truth


def truth() -> Truth:
    means = torch.zeros(2, 8, dtype=torch.float64)
    means[1, 0] = 1.0
    return Truth(
        name="nested",
        model=GaussianMixture(means, SubVPSDE(), std=[1.0, 0.02], weights=[0.7, 0.3]),
        description="N(0, I) with weight 0.7 and a Gaussian of standard deviation 0.02 with weight 0.3 inside it, in 8 "
        "dimensions, sub-VP",
        reason="two scales at a ratio of 50: no single noise level is the one where the data take shape",
    )
