"""Oscillating signals of 128 times with smooth deviations, DDPM's discrete schedule."""

import math

import torch

from sde_toolkit.models.mixture import GaussianMixture
from sde_toolkit.sde import VPSDE
from sde_toolkit.sde.beta_schedules import linear_betas
from sde_toolkit.suite.truth import Truth

_LENGTH, _PHASES = 128, 4


def truth() -> Truth:
    s = torch.linspace(0, 1, _LENGTH, dtype=torch.float64)
    frequencies, phases = torch.tensor([2.0, 5.0, 11.0]), torch.arange(_PHASES) / _PHASES
    turns = torch.cartesian_prod(frequencies.double(), phases.double())
    means = math.sqrt(2) * torch.sin(2 * math.pi * (turns[:, :1] * s + turns[:, 1:]))
    apart = (s.unsqueeze(1) - s).square()
    smooth = 0.09 * torch.exp(-apart / (2 * 0.1**2)) + 0.02**2 * torch.eye(_LENGTH, dtype=torch.float64)
    return Truth(
        name="oscillations",
        model=GaussianMixture(
            means.unsqueeze(1), VPSDE.from_betas(linear_betas(1000)), covariances=smooth.expand(len(means), -1, -1)
        ),
        description="signals of 128 times: three frequencies in four phases, with smooth deviations of size 0.3 and "
        "noise of size 0.02; DDPM's 1000 steps",
        reason="correlated elements at very different standard deviations, on the path of most published checkpoints, "
        "whose schedule has kinks",
        n=128,
    )
