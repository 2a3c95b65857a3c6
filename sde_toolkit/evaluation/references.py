"""Samples without a solver's error: the exact flow and the reverse SDE of a network, solved finely once and kept.

flow        the probability flow from the noise of sample i, followed to the end; paired with deterministic rows
sde         the reverse SDE (η = 1) in many steps from the same start; its noise is its own
ends        the flow stopped where rows stop, each with the row's own last evaluation
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from sde_toolkit.jobs.team import Team
from sde_toolkit.metrics.metric import Estimate

if TYPE_CHECKING:
    from sde_toolkit.evaluation.rows import Comparison

__all__ = ["Ending", "References", "solve_references"]


@dataclass(frozen=True)
class Ending:
    """Where a row's grid starts and ends, and whether one more evaluation denoises there."""

    start: float
    end: float
    tweedie: bool


@dataclass(frozen=True, eq=False)
class References:
    """Reference samples (n, *event) in model space; None for those that no row needs.

    ``ends``: the flow stopped as rows stop, by their endings. ``method``: how flow and SDE were solved, in words.
    ``errors``: root mean square change of some samples of the flow when solved more finely. ``source``: ``package``,
    ``cache`` or ``computed``.
    """

    flow: Tensor | None
    sde: Tensor | None
    ends: Mapping[Ending, Tensor] = field(default_factory=dict)
    method: str = ""
    error: Estimate | None = None
    source: str = "computed"
    seconds: float = 0.0


def solve_references(
    request: Comparison,
    team: Team | None = None,
    *,
    store_in: str | Path | None = None,
    cache: str | Path | bool = True,
    progress: bool = False,
) -> References | None:
    """The references of a comparison's rows; None in all processes but the main one, and if no row needs one.

    Args:
        store_in: the folder for finished parts.
        cache: where references are kept: the user's cache folder, another folder, or nowhere (False).
    """
    return None
