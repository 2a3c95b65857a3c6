"""Operations that autocast would compute in float32, in the precision of what they are given."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn.functional import interpolate

__all__ = ["doubled_size", "without_autocast"]


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """A context that leaves dtypes as they are, where autocast is on for the device of ``x``.

    The autocast of CUDA devices converts what norms, sums of squares and interpolations are given to float32: a copy of
    twice the size, and what follows is of that size too.
    """
    kind = x.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()


def doubled_size(x: Tensor) -> Tensor:
    """Every spatial axis of (B, C, *size) doubled by repetition."""
    with without_autocast(x):
        return interpolate(x, scale_factor=2.0, mode="nearest")
