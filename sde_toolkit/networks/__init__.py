"""Network trunks: U-Nets for signals, images and volumes, an MLP for flat data, and their embeddings of time.

A trunk maps ``(x, time, condition)`` to a tensor shaped like ``x``. It knows nothing of SDEs: how ``time`` is
made from the SDE's t, and what the output means, is decided by the score model that owns the trunk.
"""

from __future__ import annotations

from sde_toolkit.networks.adm import ADMUNet
from sde_toolkit.networks.edm2 import EDM2UNet
from sde_toolkit.networks.embeddings import Condition, FourierEmbedding, SinusoidalEmbedding
from sde_toolkit.networks.linear_attention_unet import LinearAttentionUNet
from sde_toolkit.networks.mlp import MLP
from sde_toolkit.networks.published import ddpm_cifar10, ddpmpp_cifar10, ncsnpp_cifar10
from sde_toolkit.networks.published_unet import PublishedUNet
from sde_toolkit.networks.unet import UNet

__all__ = [
    "MLP",
    "ADMUNet",
    "Condition",
    "EDM2UNet",
    "FourierEmbedding",
    "LinearAttentionUNet",
    "PublishedUNet",
    "SinusoidalEmbedding",
    "UNet",
    "ddpm_cifar10",
    "ddpmpp_cifar10",
    "ncsnpp_cifar10",
]
