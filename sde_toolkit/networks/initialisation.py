"""The initialisation of the published networks: variance scaling, uniform, with the average of both fans.

A weight of fan-in n and fan-out m is uniform with variance 2 gain/(n + m) (Glorot & Bengio 2010 for gain = 1); biases
are zero. Ho et al. 2020 and Song et al. 2021 take gain = 1, and 1e-10 for layers that should add nothing at first.
"""

from __future__ import annotations

import math
from typing import Any

from torch import nn

__all__ = ["SILENT", "initialised"]

SILENT = 1e-10
"""The gain of the last layer of every block and of the network: their first output is close to 0."""


def initialised(layer: Any, gain: float = 1.0, parts: int = 1) -> Any:
    """Draw new weights for ``layer`` and return it. Where one weight holds ``parts`` maps, each has its own fan-out."""
    outputs, inputs, *kernel = layer.weight.shape
    fans = (inputs + outputs / parts) * math.prod(kernel)
    bound = math.sqrt(3 * gain * 2 / fans)
    nn.init.uniform_(layer.weight, -bound, bound)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
