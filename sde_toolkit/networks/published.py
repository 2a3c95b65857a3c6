"""The networks of the papers, by name. Their defaults are the published ones, for 32×32 images of three channels.

    name                       paper                                                        parameters
    ddpm_cifar10               Ho et al. 2020 (and diffusers' google/ddpm-cifar10-32)       35 746 307
    ddpmpp_cifar10             Song et al. 2021, DDPM++ cont.                               61 804 419
    ddpmpp_cifar10(deep=True)  Song et al. 2021, DDPM++ cont. (deep)                       106 632 579
    ncsnpp_cifar10             Song et al. 2021, NCSN++ cont.                               62 758 787
    ncsnpp_cifar10(deep=True)  Song et al. 2021, NCSN++ cont. (deep)                       107 586 947

Arguments of :class:`~sde_toolkit.networks.PublishedUNet` replace published values, for other data for example.
"""

from __future__ import annotations

import math
from typing import Any

from sde_toolkit.networks.published_unet import PublishedUNet

__all__ = ["ddpm_cifar10", "ddpmpp_cifar10", "ncsnpp_cifar10"]


def ddpm_cifar10(**changes: Any) -> PublishedUNet:
    """DDPM (Ho et al. 2020, appendix B). Time input: i − 1 at step i (``DiscreteIndex(1000)``). It predicts ε."""
    return PublishedUNet(**changes)


def ddpmpp_cifar10(deep: bool = False, **changes: Any) -> PublishedUNet:
    """DDPM++ (Song et al. 2021, appendix H). Time input: 999 t (``ScaledTime(999)``). It predicts ε.

    ``deep``: 8 blocks per level instead of 4.
    """
    published: dict[str, Any] = {
        "blocks_per_level": 8 if deep else 4,
        "attention_up": "last",
        "attention_gain": 0.1,
        "resampling": "block",
        "skip_scale": math.sqrt(0.5),
    }
    return PublishedUNet(**{**published, **changes})


def ncsnpp_cifar10(deep: bool = False, **changes: Any) -> PublishedUNet:
    """NCSN++ (Song et al. 2021, appendix H). Time input: log σ (``NoiseLevel(1)`` under VE). It predicts ε = −σ ∇log p.

    It is DDPM++ with the filter (1, 3, 3, 1), the residual input pyramid and Fourier features of time. ``deep``: 8
    blocks per level instead of 4.
    """
    published: dict[str, Any] = {
        "taps": (1, 3, 3, 1),
        "input_pyramid": "residual",
        "embedding": "fourier",
        "embedding_scale": 16.0,
        "embedding_width": 256,
    }
    return ddpmpp_cifar10(deep, **{**published, **changes})
