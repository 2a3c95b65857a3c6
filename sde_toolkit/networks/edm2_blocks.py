"""The blocks of EDM2: every layer keeps the size of what goes through it (Karras et al. 2024, appendix B).

Reference:
    Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models"; equations by its numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d, conv2d, conv3d, linear, silu

from sde_toolkit.networks.attention import attend
from sde_toolkit.networks.own_precision import without_autocast
from sde_toolkit.networks.published_blocks import Resampling
from sde_toolkit.networks.resampling import Double, Halve

__all__ = ["EDM2Block", "EDM2Style", "UnitConvolution", "UnitFourier", "joined", "mixed", "unit_silu"]

_CONVOLVE: dict[int, Any] = {1: conv1d, 2: conv2d, 3: conv3d}
_EPS = 1e-4


def unit(x: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """x divided by its root mean square over ``dim`` (and 1e-4 more)."""
    with without_autocast(x):
        norm = torch.linalg.vector_norm(x, dim=dim, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
    return x / (_EPS + norm * math.sqrt(norm.numel() / x.numel())).to(x.dtype)


def unit_silu(x: Tensor) -> Tensor:
    """SiLU of a standard normal number has size 0.596 (eq. 81)."""
    return silu(x) / 0.596


def mixed(a: Tensor, b: Tensor, t: float) -> Tensor:
    """(1 − t) a + t b, divided by the size of this for independent a and b of size 1 (eq. 88)."""
    return a.lerp(b, t) / math.hypot(1 - t, t)


def joined(a: Tensor, b: Tensor, t: float) -> Tensor:
    """a and b along the channels, with the weights 1 − t and t whatever their widths are (eq. 103)."""
    wide_a, wide_b = a.shape[1], b.shape[1]
    whole = math.sqrt((wide_a + wide_b) / ((1 - t) ** 2 + t**2))
    return torch.cat([whole * (1 - t) / math.sqrt(wide_a) * a, whole * t / math.sqrt(wide_b) * b], dim=1)


class UnitFourier(nn.Module):
    """√2 cos(frequency · time + phase), both random (eq. 75), ``(B,) -> (B, width)``."""

    frequencies: Tensor
    phases: Tensor

    def __init__(self, width: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        for name, draw in (("frequencies", torch.randn), ("phases", torch.rand)):
            drawn = draw(width, generator=generator, dtype=torch.float32, device="cpu")
            self.register_buffer(name, drawn.mul_(2 * math.pi).to(torch.get_default_device()))

    def forward(self, time: Tensor) -> Tensor:
        """Embed ``time`` of shape (B,), in float32 or, for float64 times, float64."""
        dtype = torch.promote_types(time.dtype, torch.float32)
        angles = time.to(dtype).unsqueeze(1) * self.frequencies.to(dtype) + self.phases.to(dtype)
        return math.sqrt(2) * angles.cos()


class UnitConvolution(nn.Module):
    """A convolution, or a linear map, whose rows have norm ``gain`` when it is applied (eq. 47). It has no bias.

    In training the weight itself is set to rows of size 1 before it is used (eq. 66).
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 0, dims: int = 2) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, *[kernel] * (dims if kernel else 0)))

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        """(B, inputs, *size) to (B, outputs, *size), or (B, inputs) to (B, outputs)."""
        rest = tuple(range(1, self.weight.ndim))
        if self.training and (torch.compiler.is_compiling() or not torch.is_inference_mode_enabled()):
            with torch.no_grad():
                self.weight.copy_(unit(self.weight, rest))
        weight = unit(self.weight, rest) * (gain / math.sqrt(self.weight[0].numel()))
        weight = weight.to(x.dtype)
        if weight.ndim == 2:
            return linear(x, weight)
        return _CONVOLVE[weight.ndim - 2](x, weight, padding=weight.shape[-1] // 2)


@dataclass(frozen=True)
class EDM2Style:
    """What all blocks of one network have in common: the arguments of the same names of the network."""

    dims: int
    time_width: int
    attention_head_width: int
    dropout: float
    residual_share: float
    attention_share: float
    limit: float | None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> EDM2Style:
        """The style of the network with these arguments, all of which are given."""
        return cls(**{field.name: given[field.name] for field in fields(cls)})


class EDM2Block(nn.Module):
    """A residual block of the way down ("encoder") or up ("decoder"), with attention or without (figure 21).

    On the way down the input is mapped to the new width and its channels are set to size 1 before the branches part; on
    the way up the skip is mapped alone. ``resampling`` comes first.
    """

    def __init__(
        self,
        style: EDM2Style,
        inputs: int,
        outputs: int,
        *,
        decoder: bool,
        attention: bool = False,
        resampling: Resampling | None = None,
    ) -> None:
        super().__init__()
        self.style, self.decoder = style, decoder
        box = {None: nn.Identity, "halve": Halve, "double": Double}[resampling]
        self.resample = box(style.dims, (1.0, 1.0))
        dims = style.dims
        self.enter = UnitConvolution(inputs if decoder else outputs, outputs, 3, dims)
        self.modulation = UnitConvolution(style.time_width, outputs)
        self.modulation_gain = nn.Parameter(torch.zeros([]))
        self.dropout = nn.Dropout(style.dropout)
        self.leave = UnitConvolution(outputs, outputs, 3, dims)
        self.skip = UnitConvolution(inputs, outputs, 1, dims) if inputs != outputs else None
        self.heads = outputs // style.attention_head_width if attention else 0
        self.attention_enter = UnitConvolution(outputs, 3 * outputs, 1, dims) if self.heads else None
        self.attention_leave = UnitConvolution(outputs, outputs, 1, dims) if self.heads else None

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        """Map ``x`` (B, inputs, *size) and ``vector`` (B, time_width) to (B, outputs, *resampled size)."""
        x = self.resample(x)
        if not self.decoder:
            x = unit(x if self.skip is None else self.skip(x), 1)
        scale = self.modulation(vector, self.modulation_gain) + 1
        y = self.enter(unit_silu(x))
        y = unit_silu(y * scale.reshape(scale.shape + (1,) * (y.ndim - scale.ndim)).to(y.dtype))
        y = self.leave(self.dropout(y))
        if self.decoder and self.skip is not None:
            x = self.skip(x)
        x = mixed(x, y, self.style.residual_share)
        if self.attention_enter is not None and self.attention_leave is not None:
            x = mixed(
                x, self.attention_leave(self._attended(self.attention_enter(x), x.shape)), self.style.attention_share
            )
        return x if self.style.limit is None else x.clamp(-self.style.limit, self.style.limit)

    def _attended(self, rows: Tensor, shape: torch.Size) -> Tensor:
        """Attention between all positions; queries, keys and values have size 1 (its section 2.4)."""
        split = rows.reshape(len(rows), 3, self.heads, -1, shape[2:].numel())
        queries, keys, values = unit(split, 3).mT.unbind(1)  # each (B, heads, positions, width / heads)
        return attend(queries, keys, values).mT.reshape(shape)
