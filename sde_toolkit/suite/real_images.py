"""Real images of a data set as draws for a truth."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sde_toolkit.data.dataset import Dataset

__all__ = ["draws_of"]


def draws_of(data: Dataset) -> Callable[[int, torch.Generator], Tensor]:
    """Different images of the data set in random order, in model space: at most as many as there are."""

    def draw(n: int, generator: torch.Generator) -> Tensor:
        images = torch.cat([torch.as_tensor(part[:]) for part in (data.train, data.test) if len(part)])
        return data.transform.forward(images[torch.randperm(len(images), generator=generator)[:n]])

    return draw
