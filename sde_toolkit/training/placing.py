"""Where and how a network computes: its device, the layout of its weights, and the products of float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.training.options import TrainingOptions

__all__ = ["float32_products", "place"]


def place(model: ScoreModel, options: TrainingOptions, device: torch.device) -> None:
    """Move a model to the device, and its convolutions to the layout with channels last if that is wanted."""
    model.to(device)
    last = device.type == "cuda" if options.channels_last is None else options.channels_last
    network: Any = model.network
    if last and isinstance(network, torch.nn.Module):
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # leaves all but four axes alone


@contextmanager
def float32_products(tf32: bool, device: torch.device) -> Iterator[None]:
    """Inside the block, products and convolutions of float32 on a CUDA device are in TF32, or are not.

    What was chosen by ``torch.backends.….fp32_precision`` stays: torch refuses to read the flags used here then.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    try:
        before = matmul.allow_tf32, cudnn.allow_tf32
    except RuntimeError:
        before = None
    if device.type != "cuda" or before is None:
        yield
        return
    matmul.allow_tf32 = cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
