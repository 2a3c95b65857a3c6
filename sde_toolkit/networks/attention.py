"""Scaled dot-product attention (Vaswani et al. 2017), softmax(Q Kᵀ/√d) V, with the best kernel for the device."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from sde_toolkit.networks.normalisation import is_dual, slow_in_half

__all__ = ["attend"]

FEW_POSITIONS = 1024
"""Up to this number of positions the whole Q Kᵀ may be held in memory."""


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """softmax(Q Kᵀ/√width) V; all tensors (B, heads, positions, width).

    Fused kernels have no forward-mode derivative, so inputs with a tangent do not use them. On a CPU in half precision,
    with heads as wide as those of Ho et al. 2020, the fused kernel takes three times as long as the two products.
    """
    if is_dual(queries):
        with sdpa_kernel(SDPBackend.MATH):
            return scaled_dot_product_attention(queries, keys, values)
    if slow_in_half(queries) and queries.shape[-2] <= FEW_POSITIONS:
        weights = torch.matmul(queries * (1 / math.sqrt(queries.shape[-1])), keys.transpose(-1, -2)).softmax(-1)
        return torch.matmul(weights, values)
    return scaled_dot_product_attention(queries, keys, values)
