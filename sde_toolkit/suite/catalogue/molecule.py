"""Conformations of a chain of eight atoms, in units in which the data have size 16; EDM's path in the same units."""

import torch

from sde_toolkit.models.mixture import GaussianMixture
from sde_toolkit.sde import EDMSDE
from sde_toolkit.suite.truth import Truth

_UNIT = 16.0


def truth() -> Truth:
    generator = torch.Generator().manual_seed(14)
    bonds = torch.randn(5, 8, 3, generator=generator, dtype=torch.float64)
    atoms = (bonds / bonds.norm(dim=-1, keepdim=True)).cumsum(1)
    atoms = atoms - atoms.mean(1, keepdim=True)
    means = _UNIT * atoms / atoms.square().mean().sqrt()
    springs = torch.diag(torch.full((8,), 2.0)) - torch.diag(torch.ones(7), 1) - torch.diag(torch.ones(7), -1)
    bending = torch.linalg.inv(springs.double() + 0.1 * torch.eye(8)) * (0.1 * _UNIT) ** 2
    vibrations = torch.kron(bending.contiguous(), torch.eye(3, dtype=torch.float64))
    return Truth(
        name="molecule",
        model=GaussianMixture(means, EDMSDE(0.002 * _UNIT, 80 * _UNIT), covariances=vibrations.repeat(5, 1, 1)),
        description="five conformations of a chain of eight atoms that bends like springs, (8, 3), in units in which "
        "the data have size 16; EDM's path, σ from 0.03 to 1280",
        reason="large units: a solver that knows absolute noise levels loses its grid here",
    )
