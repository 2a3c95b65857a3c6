"""A Gaussian field of 16 × 16 pixels with the power spectrum of natural images, EDM's path."""

import torch

from sde_toolkit.models.mixture import gaussian
from sde_toolkit.sde import EDMSDE
from sde_toolkit.suite.truth import Truth

_SIDE = 16


def truth() -> Truth:
    return Truth(
        name="power_spectrum",
        model=gaussian(torch.zeros(1, _SIDE, _SIDE), EDMSDE(), covariance=_covariance()),
        description="one Gaussian on 16 × 16 pixels whose power falls like 1/frequency², as that of natural images; "
        "EDM's path",
        reason="256 dimensions, standard deviations at a ratio of 11 without a gap; its flow is smooth and linear",
    )


def _covariance() -> torch.Tensor:
    """(256, 256), periodic, of mean variance 0.25."""
    frequency = torch.fft.fftfreq(_SIDE, dtype=torch.float64) * _SIDE
    power = 1 / (frequency.unsqueeze(1) ** 2 + frequency**2).clamp(min=1)
    basis = torch.fft.fft2(torch.eye(_SIDE**2, dtype=torch.float64).reshape(-1, _SIDE, _SIDE), norm="ortho")
    flat = basis.reshape(_SIDE**2, -1)
    covariance = ((flat * power.reshape(-1)) @ flat.conj().mT).real
    return 0.25 * covariance / covariance.diagonal().mean()
