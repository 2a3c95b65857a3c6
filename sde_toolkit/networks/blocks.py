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
from torch.utils.checkpoint import checkpoint

from sde_toolkit.networks.attention import attend
from sde_toolkit.networks.convolutions import convolution
from sde_toolkit.networks.normalisation import activated, group_norm_for, largest_divisor, transforms_active
from sde_toolkit.networks.own_precision import doubled_size

__all__ = [
    "Attention",
    "Downsample",
    "ResidualBlock",
    "Upsample",
    "pass_through",
    "scaled_sum",
    "with_skip",
    "zeroed",
]


def zeroed(layer: nn.Module) -> Any:
    """Set the weights and the bias of ``layer`` to zero and return it. A new block that ends with it adds nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class ResidualBlock(nn.Module):
    """A residual block: the conditioning vector scales and shifts its second norm (FiLM, Nichol & Dhariwal 2021).

        h   = conv(SiLU(norm(x)))
        h   = norm(h) (1 + scale) + shift        (scale, shift) = linear(vector); this norm has no weights of its own
        out = conv(dropout(SiLU(h))) + skip(x)   the weights of this convolution start at zero

    ``skip`` is the identity, or a convolution of one tap where the number of channels changes.
    """

    def __init__(self, dims: int, inputs: int, outputs: int, time_width: int, groups: int, dropout: float) -> None:
        super().__init__()
        self.enter_norm = group_norm_for(inputs, groups)
        self.enter = convolution(dims, inputs, outputs)
        self.film_norm = group_norm_for(outputs, groups, affine=False)
        self.film = nn.Linear(time_width, 2 * outputs)
        self.dropout = nn.Dropout(dropout)
        self.leave = zeroed(convolution(dims, outputs, outputs))
        self.skip = nn.Identity() if inputs == outputs else convolution(dims, inputs, outputs, kernel=1)

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        """Map ``x`` (B, inputs, *size) and ``vector`` (B, time_width) to (B, outputs, *size)."""
        h = self.enter(activated(self.enter_norm, x))
        scale, shift = self.film(vector).chunk(2, dim=1)
        h = activated(self.film_norm, h, scale + 1, shift)
        return scaled_sum(self.leave(self.dropout(h)), self.skip(x))


class Attention(nn.Module):
    """Self-attention between all positions (Ho et al. 2020), ``(B, width, *size)`` to the same shape.

    Args:
        width: number of channels.
        head_width: channels of a head, at least; the number of heads divides ``width``.
        groups: groups of the norm before it, at most.
        eps: added to the variances in that norm.
        scale: factor on the sum of x and the output of the attention.
        linear: class of the two linear maps of the channels.
        group_width: channels of a group of the norm, at least.
    """

    def __init__(
        self,
        width: int,
        head_width: int,
        groups: int,
        eps: float = 1e-5,
        scale: float = 1.0,
        linear: type[nn.Linear] = nn.Linear,
        group_width: int = 2,
    ) -> None:
        super().__init__()
        self.heads = largest_divisor(width, width // head_width)
        self.scale = scale
        self.norm = group_norm_for(width, groups, eps=eps, group_width=group_width)
        self.enter = linear(width, 3 * width)
        self.leave = zeroed(linear(width, width))

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        """x plus the attention's output, times ``scale``. ``vector`` is not used: all blocks are called alike."""
        tokens = self.norm(x).flatten(2).mT  # (B, positions, width)
        parts = self.enter(tokens).unflatten(2, (3, self.heads, -1)).unbind(2)
        queries, keys, values = (part.transpose(1, 2) for part in parts)  # each (B, heads, positions, width / heads)
        attended = attend(queries, keys, values).transpose(1, 2).flatten(2)
        return scaled_sum(self.leave(attended), x.flatten(2).mT, self.scale).mT.reshape(x.shape)


class Downsample(nn.Module):
    """Halves every spatial axis with a convolution of stride 2, which also changes the number of channels."""

    def __init__(self, dims: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = convolution(dims, inputs, outputs, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, *size) to (B, outputs, *size/2)."""
        out: Tensor = self.conv(x)
        return out


class Upsample(nn.Module):
    """Doubles every spatial axis by repetition; then a convolution, which also changes the number of channels."""

    def __init__(self, dims: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = convolution(dims, inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, *size) to (B, outputs, *2 size)."""
        out: Tensor = self.conv(doubled_size(x))
        return out


def scaled_sum(h: Tensor, x: Tensor, scale: float = 1.0) -> Tensor:
    """``scale`` (h + x). The result overwrites h: nothing else may hold h, and no derivative may need it.

    A view of another tensor is not overwritten where derivatives are wanted: autograd would copy it several times.
    """
    if torch.compiler.is_compiling() or transforms_active() or (torch.is_grad_enabled() and h._is_view()):
        return (h + x) * scale if scale != 1 else h + x
    h = h.add_(x)
    return h.mul_(scale) if scale != 1 else h


def pass_through(parts: Any, h: Tensor, vector: Tensor, *skips: Tensor, checkpointing: bool = False) -> Tensor:
    """Pass ``h`` through ``parts`` in turn, each called as part(h, vector).

    The first part takes ``h`` and ``skips`` concatenated along the channels. With ``checkpointing`` the inside of a
    part is not kept for the backward pass but computed a second time there (Chen et al. 2016, "Training Deep Nets with
    Sublinear Memory Cost"). The gradients are the same.
    """
    for part in parts:
        if checkpointing:
            h = checkpoint(_call_on_concatenated, part, vector, h, *skips, use_reentrant=False)
        else:
            h = _call_on_concatenated(part, vector, h, *skips)
        skips = ()
    return h


def with_skip(h: Tensor, skip: Tensor, checkpointing: bool) -> tuple[Tensor, ...]:
    """The arguments ``h, *skips`` of :func:`pass_through`.

    With ``checkpointing`` the two tensors themselves, which are concatenated inside the part; otherwise one
    concatenated tensor, so that neither of the two is kept in memory.
    """
    return (h, skip) if checkpointing else (torch.cat((h, skip), dim=1),)


def _call_on_concatenated(part: Any, vector: Tensor, *tensors: Tensor) -> Any:
    return part(torch.cat(tensors, dim=1) if len(tensors) > 1 else tensors[0], vector)
