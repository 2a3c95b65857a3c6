"""The parts of the U-Net, each written once for any number of spatial axes.

References:
    Ho et al. 2020, "Denoising Diffusion Probabilistic Models" (residual blocks, attention, resampling).
    Nichol & Dhariwal 2021, "Improved Denoising Diffusion Probabilistic Models" (scale and shift from time).
    Song et al. 2021, "Score-Based Generative Modeling through SDEs" (the same trunk for continuous time).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.utils.checkpoint import checkpoint

from sde_toolkit.networks.attention import attend
from sde_toolkit.networks.convolutions import convolution
from sde_toolkit.networks.normalisation import activated, largest_divisor, normalisation, transforms_active

__all__ = ["Attention", "Downsample", "ResidualBlock", "Upsample", "beside", "merged", "run", "zeroed"]


def zeroed(layer: nn.Module) -> Any:
    """The same layer with its weights and bias set to zero, so that it starts by adding nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class ResidualBlock(nn.Module):
    """Norm, SiLU, conv; scale and shift from the conditioning vector; SiLU, dropout, zeroed conv; plus skip.

    The second normalisation has no weights of its own: its scale and shift are a linear map of the vector
    (FiLM, Nichol & Dhariwal 2021).
    """

    def __init__(self, dims: int, inputs: int, outputs: int, time_width: int, groups: int, dropout: float) -> None:
        super().__init__()
        self.enter_norm = normalisation(inputs, groups)
        self.enter = convolution(dims, inputs, outputs)
        self.film_norm = normalisation(outputs, groups, affine=False)
        self.film = nn.Linear(time_width, 2 * outputs)
        self.dropout = nn.Dropout(dropout)
        self.leave = zeroed(convolution(dims, outputs, outputs))
        self.skip = nn.Identity() if inputs == outputs else convolution(dims, inputs, outputs, kernel=1)

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        """Map ``x`` (B, inputs, *size) and ``vector`` (B, time_width) to (B, outputs, *size)."""
        h = self.enter(activated(self.enter_norm, x))
        scale, shift = self.film(vector).chunk(2, dim=1)
        h = activated(self.film_norm, h, scale + 1, shift)
        return merged(self.leave(self.dropout(h)), self.skip(x))


class Attention(nn.Module):
    """Self-attention between all positions (Ho et al. 2020), ``(B, width, *size)`` to the same shape.

    ``scale`` multiplies the sum of x and what is attended to; ``linear`` makes the maps of the channels.
    """

    def __init__(
        self,
        width: int,
        head_width: int,
        groups: int,
        eps: float = 1e-5,
        scale: float = 1.0,
        linear: type[nn.Linear] = nn.Linear,
    ) -> None:
        super().__init__()
        self.heads = largest_divisor(width, width // head_width)
        self.scale = scale
        self.norm = normalisation(width, groups, eps=eps)
        self.enter = linear(width, 3 * width)
        self.leave = zeroed(linear(width, width))

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        """Attend; ``vector`` is ignored, so that attention and residual blocks are called alike."""
        tokens = self.norm(x).flatten(2).mT  # (B, positions, width)
        heads = self.enter(tokens).unflatten(2, (3, self.heads, -1)).transpose(1, 3)
        queries, keys, values = heads.unbind(2)  # each (B, heads, positions, width / heads)
        attended = attend(queries, keys, values).transpose(1, 2).flatten(2)
        return merged(self.leave(attended).mT.reshape(x.shape), x, self.scale)


class Downsample(nn.Module):
    """Halves every spatial axis with a strided convolution, and changes the width."""

    def __init__(self, dims: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = convolution(dims, inputs, outputs, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, *size) to (B, outputs, *size/2)."""
        out: Tensor = self.conv(x)
        return out


class Upsample(nn.Module):
    """Doubles every spatial axis by repetition, then convolves, and changes the width."""

    def __init__(self, dims: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = convolution(dims, inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, *size) to (B, outputs, *2 size)."""
        out: Tensor = self.conv(interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


def merged(h: Tensor, x: Tensor, scale: float = 1.0) -> Tensor:
    """``scale`` (h + x), written over h, which no one else holds and no derivative asks for."""
    if torch.compiler.is_compiling() or transforms_active():
        return (h + x) * scale if scale != 1 else h + x
    h = h.add_(x)
    return h.mul_(scale) if scale != 1 else h


def run(parts: Any, h: Tensor, vector: Tensor, *skips: Tensor, checkpointing: bool = False) -> Tensor:
    """Pass ``h``, joined with ``skips``, through ``parts``, each of which hears the conditioning vector.

    With ``checkpointing`` nothing inside a part is kept for the backward pass: it is computed a second time there
    (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost"), to the same gradients.
    """
    for part in parts:
        if checkpointing:
            h = checkpoint(joined, part, vector, h, *skips, use_reentrant=False)
        else:
            h = joined(part, vector, h, *skips)
        skips = ()
    return h


def beside(h: Tensor, skip: Tensor, apart: bool) -> tuple[Tensor, ...]:
    """``h`` and ``skip`` along the channels in one tensor, and neither half is kept; or both, for :func:`joined`."""
    return (h, skip) if apart else (torch.cat((h, skip), dim=1),)


def joined(part: Any, vector: Tensor, *tensors: Tensor) -> Any:
    """``part`` of the tensors side by side along the channels."""
    return part(torch.cat(tensors, dim=1) if len(tensors) > 1 else tensors[0], vector)
