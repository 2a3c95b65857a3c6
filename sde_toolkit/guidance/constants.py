"""Fixed tensors that are used beside tensors of any device and dtype."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["Constant"]


class Constant:
    """A fixed tensor. It is copied once to each device and dtype that asks for it, so that no later call waits.

    Derivatives do not go through it.
    """

    def __init__(self, value: Tensor) -> None:
        self.value = value.detach().clone()
        self._copies: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def beside(self, x: Tensor) -> Tensor:
        """The tensor on the device of x: real numbers in the dtype of x, complex ones in as many bits each."""
        key = (x.device, x.dtype)
        found = self._copies.get(key)
        if found is None:
            with torch.inference_mode(False):  # a tensor made inside could not be used with autograd later
                found = self.value.to(x.device, _dtype_beside(self.value.dtype, x.dtype))
            self._copies[key] = found
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {"value": self.value, "_copies": {}}


def _dtype_beside(own: torch.dtype, other: torch.dtype) -> torch.dtype:
    if own.is_complex:
        return torch.complex128 if other == torch.float64 else torch.complex64
    return other if own.is_floating_point else own
