"""The autoencoder of a latent model: latents to pictures, and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["PictureDecoder"]


@dataclass(frozen=True, eq=False)
class PictureDecoder:
    """Pictures (B, C, H, W) in 0..255 from latents (B, c, h, w) of a model: D(z/scaling_factor + shift_factor).

    With ``latents_mean`` and ``latents_std`` in the autoencoder's config: D(z std/scaling_factor + mean), channel by
    channel. Pictures are clamped to their range, as the pipelines of diffusers do.

    Attributes:
        load: the autoencoder of diffusers. It is called once, when the first picture is decoded.
    """

    load: Callable[[], nn.Module]

    @cached_property
    def autoencoder(self) -> nn.Module:
        """The autoencoder, in evaluation mode."""
        return self.load().eval()

    @torch.no_grad()
    def __call__(self, latents: Tensor) -> Tensor:
        """Pictures, on the device and in the dtype of the latents."""
        inside = self._placed(latents)
        shift, scale = self._affine(latents)
        z = (latents / scale + shift).to(_dtype_of(inside))
        return _to_grey_levels(inside.decode(z, return_dict=False)[0]).to(latents.dtype)

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        """Latents of pictures in 0..255: the mode of the encoder's distribution, in model space."""
        floating = pictures if pictures.is_floating_point() else pictures.float()
        inside = self._placed(floating)
        found = inside.encode((floating / 127.5 - 1).to(_dtype_of(inside)), return_dict=False)[0]
        z = (found.mode() if hasattr(found, "mode") else found).to(floating.dtype)
        shift, scale = self._affine(z)
        return (z - shift) * scale

    def _placed(self, like: Tensor) -> Any:
        return self.autoencoder.to(like.device)

    def _affine(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """(shift, scale) with latents of the model = (z of the encoder − shift) · scale."""
        config: Any = self.autoencoder.config
        scale = torch.as_tensor(config.get("scaling_factor") or 1.0)
        shift = torch.as_tensor(config.get("shift_factor") or 0.0)
        mean, std = config.get("latents_mean"), config.get("latents_std")
        if mean is not None and std is not None:
            channels = (-1, *(1,) * (like.ndim - 2))
            shift = torch.tensor(mean).reshape(channels)
            scale = scale / torch.tensor(std).reshape(channels)
        return shift.to(like), scale.to(like)


def _dtype_of(autoencoder: nn.Module) -> torch.dtype:
    return next(autoencoder.parameters()).dtype


def _to_grey_levels(y: Tensor) -> Tensor:
    return ((y.float() + 1) * 127.5).clamp(0, 255)
