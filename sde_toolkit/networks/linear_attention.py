"""Attention whose cost grows linearly with the number of positions, learned memory, and norms over channels.

References:
    Shen et al. 2021, "Efficient Attention: Attention with Linear Complexities".
    Zhang & Sennrich 2019, "Root Mean Square Layer Normalization".
    Ba et al. 2016, "Layer Normalization".
    Sukhbaatar et al. 2019, "Augmenting Self-attention with Persistent Memory" (keys and values that are parameters).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from sde_toolkit.networks.attention import attend
from sde_toolkit.networks.convolutions import Rows
from sde_toolkit.networks.normalisation import per_channel

__all__ = ["ChannelLayerNorm", "ChannelRMSNorm", "FullAttention", "LinearAttention"]


class ChannelRMSNorm(nn.Module):
    """x √C/‖x‖ w at every position, ‖x‖ being the norm over the C channels; (B, C, *size) to the same shape."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Any shape (B, width, *size)."""
        return normalize(x, dim=1) * per_channel(self.weight * len(self.weight) ** 0.5, x)


class ChannelLayerNorm(nn.Module):
    """(x − μ)/√(s² + eps) w at every position, μ and s² being mean and variance over the channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Any shape (B, width, *size)."""
        variance, mean = torch.var_mean(x, dim=1, correction=0, keepdim=True)
        return (x - mean) * torch.rsqrt(variance + _eps(x)) * per_channel(self.weight, x)


def _eps(x: Tensor) -> float:
    """What is added to a variance: more in half precision."""
    return 1e-3 if x.dtype in (torch.float16, torch.bfloat16) else 1e-5


class FullAttention(nn.Module):
    """x + linear(softmax(Q Kᵀ/√width) V) between all positions of (B, C, *size), with ``memory`` keys and values more.

    Args:
        width: number of channels C.
        heads: number of heads.
        head_width: channels of a head.
        memory: number of keys and values that are parameters: they stand before those of the positions.
        norm: class of the norm before it.
    """

    def __init__(self, width: int, heads: int, head_width: int, memory: int, norm: type[nn.Module]) -> None:
        super().__init__()
        self.heads = heads
        self.norm = norm(width)
        self.memory = nn.Parameter(torch.randn(2, heads, memory, head_width)) if memory else None
        self.enter = Rows(width, 3 * heads * head_width, bias=False)
        self.leave = Rows(heads * head_width, width)

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        """x plus the attention's output. ``vector`` is not used: all parts of a level are called alike."""
        tokens = self.norm(x).flatten(2).mT  # (B, positions, width)
        parts = self.enter(tokens).unflatten(2, (3, self.heads, -1)).unbind(2)
        queries, keys, values = (part.transpose(1, 2) for part in parts)  # each (B, heads, positions, head_width)
        if self.memory is not None:
            known = self.memory.unsqueeze(1).expand(-1, x.shape[0], -1, -1, -1)
            keys, values = (torch.cat(pair, dim=2) for pair in zip(known, (keys, values), strict=True))
        attended = self._attend(queries, keys, values).transpose(1, 2).flatten(2)
        return x + self._left(self.leave(attended).mT.reshape(x.shape))

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return attend(queries, keys, values)

    def _left(self, h: Tensor) -> Tensor:
        return h


class LinearAttention(FullAttention):
    """x + norm(linear(softmax(Q)/√width (softmax(K)ᵀ V))): Q's softmax over channels, K's over positions.

    ``average``: V is divided by the number of positions first.
    """

    def __init__(
        self, width: int, heads: int, head_width: int, memory: int, norm: type[nn.Module], average: bool = False
    ) -> None:
        super().__init__(width, heads, head_width, memory, norm)
        self.average = average
        self.leave_norm = norm(width)

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        if self.average:
            values = values / queries.shape[2]
        summary = keys.softmax(dim=2).mT @ values  # (B, heads, head_width, head_width)
        return queries.softmax(dim=3) * queries.shape[3] ** -0.5 @ summary

    def _left(self, h: Tensor) -> Tensor:
        out: Tensor = self.leave_norm(h)
        return out
