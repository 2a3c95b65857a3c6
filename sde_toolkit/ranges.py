"""Whether data lie in the range that a transform names.

Values outside are refused. Where they probably have another range than the model's data, a warning says so.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from sde_toolkit.errors import DataError, warn_caller
from sde_toolkit.transforms import Identity, Transform

__all__ = ["check_range", "range_problems"]

_SMALL_PART = 0.1  # of the range: data that fill less are probably of another one
_COMPARED = 1000  # samples on which two transforms are compared


def check_range(
    transform: Transform,
    x: Tensor,
    recommended: Transform | None = None,
    *,
    name: str = "x",
    remedy: str = 'Pass data as the model was trained on, or space="model" for what is transformed already.',
    space: Literal["data", "model"] = "data",
    slack: float = 0.0,
) -> None:
    """Refuse values outside the range that a transform names; warn of values that are probably of another range.

    Half a level of 8 bits is left free below and a whole one above, for dequantised data. A warning says that all
    values fill less than a tenth of the range, that whole numbers go to the model as they are, or that the data's own
    ``recommended`` transform does something else than ``transform``.

    Args:
        transform: the model's.
        x: values, (B, *event).
        recommended: the transform that comes with the data; None and ``Identity`` recommend nothing.
        name: of the argument, in messages.
        remedy: what the caller can do, in messages.
        space: "model": x is in model space, and so is the range that it is compared with.
        slack: how far x may lie outside, in its own units: for values with noise on them.

    Raises:
        DataError: naming the values and the range.
    """
    outside, doubt = range_problems(transform, x, recommended, space=space, slack=slack)
    if outside:
        raise DataError(name, _extent(x), outside, remedy)
    if doubt:
        warn_caller(f"{name}: {doubt}. {remedy}")


def range_problems(
    transform: Transform,
    x: Tensor,
    recommended: Transform | None = None,
    *,
    space: Literal["data", "model"] = "data",
    slack: float = 0.0,
) -> tuple[str, str]:
    """What :func:`check_range` refuses and what it warns of, as clauses; empty where there is nothing to say."""
    if x.numel() == 0:
        return "", ""
    x = torch.atleast_1d(x)
    least, most = _extent(x)
    low, high = (getattr(transform, name, None) for name in ("low", "high"))
    if low is not None and high is not None:
        if space == "model":
            ends = torch.stack([torch.full_like(x[:1], v, dtype=torch.float64)[0] for v in (low, high)])
            ends = transform.forward(ends)
            low, high = ends.min().item(), ends.max().item()
        wide, where = high - low, "the model's data" if space == "data" else "the data in model space"
        if least < low - 0.002 * wide - slack or most > high + 0.004 * wide + slack:
            return f"{where} lie in the range [{low:g}, {high:g}]", ""
        if space == "data" and most - least < _SMALL_PART * wide:
            return "", (
                f"all values lie in [{least:g}, {most:g}], a small part of the range [{low:g}, {high:g}] of the "
                f"model's data; they may have been scaled already"
            )
    return "", _other_map(transform, x, recommended) if space == "data" else ""


def _other_map(transform: Transform, x: Tensor, recommended: Transform | None) -> str:
    """Whether the model sees these values as they were meant to be seen, in words."""
    some = x[:_COMPARED].double()
    y = transform.forward(some)
    size = y.square().mean().sqrt().item()
    if recommended is not None and not isinstance(recommended, Identity):
        meant = recommended.forward(some)
        if (y - meant).square().mean().sqrt().item() > 0.1 * meant.square().mean().sqrt().item():
            found, wanted = (f"[{v.min().item():.4g}, {v.max().item():.4g}]" for v in (y, meant))
            return (
                f"the model's transform maps them to the range {found}, the transform that comes with the data to "
                f"{wanted}; the model's is used, which is right if it was trained on data of this range"
            )
    if not x.is_floating_point() and size > 10 and torch.equal(y, some):
        return f"whole numbers in the range {_extent(x)} go to the network as they are: the model has no transform"
    return ""


def _extent(x: Tensor) -> list[float]:
    """Least and greatest value."""
    values = x.to(torch.int64) if not x.is_floating_point() else x  # not all integers have a min in torch
    return [values.min().item(), values.max().item()]
