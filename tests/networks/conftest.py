"""A new trunk returns zero whatever it is given, so most laws are tested on one with stirred weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pytest
import torch
from torch import nn

Net = TypeVar("Net", bound=nn.Module)


def _stir(net: Net, seed: int = 0) -> Net:
    """Add noise to every parameter, so that no branch is silent; evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    return net.eval()


@pytest.fixture(scope="session")
def stir() -> Callable[[Net], Net]:
    return _stir
