"""``run_suite``: measure solvers on the truths, join them with results of others, and write the page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sde_toolkit.suite.measuring import SUITE_BUDGETS, SuiteRequest, measure_suite
from sde_toolkit.suite.suite_report import write_suite
from sde_toolkit.suite.suite_results import Joined, join_results, read_results

__all__ = ["run_suite"]


def run_suite(
    solvers: Any = None,
    truths: Any = None,
    budgets: Sequence[int] = SUITE_BUDGETS,
    *,
    to: str | Path | None = None,
    join: Sequence[str | Path] = (),
    progress: bool = False,
) -> Joined:
    """Every solver at every budget on every truth, ranked.

    Args:
        solvers: names of presets, solvers, planners (model, nfe) -> Plan, plans, foreign solvers; a list, or a mapping
            from the names of the rows. By default eight, see :data:`sde_toolkit.suite.SUITE_SOLVERS`.
        truths: names of truths of the package, and truths of your own; by default all twelve of the package.
        budgets: evaluations of the network per sample.
        to: the folder for the page and the results. Results of other solvers that are there join the ranking.
        join: other folders whose results join it.
        progress: show a bar.

    Raises:
        ArgumentError: before any evaluation, for what cannot be measured or joined.
    """
    request = SuiteRequest(solvers, truths, budgets, progress)
    folders = [*join, *([to] if to is not None and (Path(to) / "solvers").is_dir() else [])]
    others = [results for folder in folders for results in read_results(folder)]
    results, _ = measure_suite(request) or ([], None)
    joined = join_results(results, others)
    if to is not None:
        write_suite(joined, to)
    return joined
