"""The standard error of a mean over independent repeats."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["standard_error"]


def standard_error(values: Tensor, dim: int = 0) -> Tensor:
    """Of the mean over ``dim``: NaN for a single value, of whose spread nothing is known."""
    count = values.shape[dim]
    if count == 1:
        return torch.full_like(values.select(dim, 0), math.nan)
    return values.std(dim) / math.sqrt(count)
