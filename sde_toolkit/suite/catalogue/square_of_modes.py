"""Twenty-five modes on a square lattice, VE."""

import torch

from sde_toolkit.models.mixture import GaussianMixture
from sde_toolkit.sde import VESDE
from sde_toolkit.suite.truth import Truth


def truth() -> Truth:
    side = torch.arange(-2, 3, dtype=torch.float64)
    return Truth(
        name="square_of_modes",
        model=GaussianMixture(torch.cartesian_prod(side, side), VESDE(0.001, 50.0), std=0.05),
        description="25 Gaussians of standard deviation 0.05 on the lattice {-2, ..., 2}² in 2 dimensions, VE",
        reason="many modes at equal distances: they separate at one noise level, which a grid can miss",
    )
