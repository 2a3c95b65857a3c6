"""A residual multilayer perceptron, for data without spatial structure: points, tables, small vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import silu

from sde_toolkit.errors import ArgumentError
from sde_toolkit.networks.blocks import zeroed
from sde_toolkit.networks.embeddings import Conditioning, ConditionLike

__all__ = ["MLP"]


class MLP(nn.Module):
    """A residual SiLU trunk over flattened samples, ``(B, *event_shape) -> (B, *event_shape)``.

    Each of the ``depth`` layers adds ``Linear(SiLU(Linear(SiLU(h)) + Linear(vector)))`` to h; the vector comes from
    time and class as in :class:`~sde_toolkit.networks.UNet`. The output layer starts at zero, so that a
    new network returns exactly zero.

    Args:
        event_shape: shape of one sample; ``()`` for scalars.
        width: width of the trunk and of the conditioning vector, even.
        depth: number of residual layers.
        embedding: "sinusoidal" (Ho et al. 2020) or "fourier" (Song et al. 2021).
        embedding_scale: factor on the time input, or the standard deviation of the Fourier frequencies. 1000
            brings a time input of about 1 (t itself, ¼ log(σ/α)) to the range that sinusoids resolve well.
        num_classes: number of classes; label ``num_classes`` means "no class". None: no labels.
        out_channels: length of the first axis of the output (1 for a scalar); None for that of ``event_shape``. Twice
            as many for a learned variance.
        augmentation_width: length of the vector that says how a sample was augmented; None: there is no such vector.

    Raises:
        ArgumentError: if an argument is out of its range; in use, if data, time or condition have a wrong shape.
    """

    def __init__(
        self,
        event_shape: Sequence[int] = (2,),
        width: int = 128,
        depth: int = 4,
        embedding: str = "sinusoidal",
        embedding_scale: float = 1.0,
        num_classes: int | None = None,
        out_channels: int | None = None,
        augmentation_width: int | None = None,
    ) -> None:
        super().__init__()
        self.hyperparameters: dict[str, Any] = {
            "event_shape": list(event_shape),
            "width": width,
            "depth": depth,
            "embedding": embedding,
            "embedding_scale": embedding_scale,
            "num_classes": num_classes,
            "out_channels": out_channels,
            "augmentation_width": augmentation_width,
        }
        if any(length < 1 for length in event_shape):
            raise ArgumentError(
                "event_shape", event_shape, "an axis is empty", "Pass one sample's shape, () for scalars."
            )
        if width < 2 or width % 2:
            raise ArgumentError("width", width, "it must be even", "Pass an even width of at least 2.")
        if depth < 1:
            raise ArgumentError("depth", depth, "there is no layer", "Pass a depth of at least 1.")
        if out_channels is not None and out_channels < 1:
            remedy = "Pass at least 1, or None for the first axis of event_shape."
            raise ArgumentError("out_channels", out_channels, "there is no output", remedy)
        self.event_shape = tuple(event_shape)
        self.out_shape = self.event_shape if out_channels is None else (out_channels, *self.event_shape[1:])
        features = math.prod(self.event_shape)
        self.conditioning = Conditioning(
            width, embedding, embedding_scale, num_classes, augmentation_width=augmentation_width
        )
        self.enter = nn.Linear(features, width)
        self.layers = nn.ModuleList(ResidualLayer(width) for _ in range(depth))
        self.leave = zeroed(nn.Linear(width, math.prod(self.out_shape)))

    def forward(self, x: Tensor, time: Tensor, condition: ConditionLike = None) -> Tensor:
        """Return a tensor of the shape of ``x``, or with ``out_channels`` on its second axis.

        Args:
            x: data, (B, *event_shape).
            time: the prepared time input, (B,).
            condition: class labels, (B,) long, a :class:`~sde_toolkit.networks.Condition`, or None.
        """
        if x.ndim == 0 or x.shape[1:] != self.event_shape:
            raise ArgumentError(
                "x",
                tuple(x.shape),
                f"this network takes (B, *event_shape) with event_shape={self.event_shape}",
                "Reshape the data, or build the network with its event_shape.",
            )
        vector = self.conditioning(x, time, condition)
        h = self.enter(x.reshape(x.shape[0], -1))
        for layer in self.layers:
            h = layer(h, vector)
        out: Tensor = self.leave(silu(h))
        return out.reshape(x.shape[0], *self.out_shape)


class ResidualLayer(nn.Module):
    """``h + Linear(SiLU(Linear(SiLU(h)) + Linear(vector)))``, (B, width) to (B, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter = nn.Linear(width, width)
        self.listen = nn.Linear(width, width)
        self.leave = nn.Linear(width, width)

    def forward(self, h: Tensor, vector: Tensor) -> Tensor:
        """Map ``h`` (B, width) and ``vector`` (B, width) to (B, width)."""
        out: Tensor = h + self.leave(silu(self.enter(silu(h)) + self.listen(vector)))
        return out
