"""The numbers of a comparison as plain data: what ``results.json`` and ``paired.csv`` hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sde_toolkit.evaluation.error_parts import error_parts_records
from sde_toolkit.evaluation.findings import comparison_findings
from sde_toolkit.evaluation.rows import Comparison
from sde_toolkit.metrics.metric import Axis

__all__ = ["paired_records", "results_as_data"]


def results_as_data(comparison: Comparison, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """All of a comparison but its samples, as plain data: what ``results.json`` holds."""
    endpoint, request = comparison.endpoint, comparison.request
    n_real = 0 if comparison.judge is None else len(comparison.judge.real)
    return {
        "findings": comparison_findings(comparison),
        "rows": comparison.records(),
        "metrics": {
            metric.name: {
                "heading": metric.heading,
                "meaning": metric.meaning,
                "lower_is_better": metric.lower_is_better,
                "against": metric.against.name,
                "share": metric.axis is Axis.SHARE,
                **metric.conditions(comparison.n, n_real),
            }
            for metric in comparison.metrics
        },
        "real_data": _real_data(comparison),
        "exact_flow": None
        if endpoint is None
        else {
            "method": endpoint.method,
            "samples": endpoint.n,
            "nfe": endpoint.nfe,
            "own_error": endpoint.error.value,
            "checked": endpoint.checked,
            "seconds": endpoint.seconds,
        },
        "paired": paired_records(comparison),
        "error_parts": error_parts_records(comparison.error_parts or {}),
        "timing": [None if row.timing is None else vars(row.timing) for row in comparison.rows],
        "hashes": comparison.hashes(),
        "samples_per_row": request.n,
        "seed": request.seed,
        "batch_size": request.batch_size,
        "device": str(request.device),
        "processes": comparison.processes,
        "seconds": comparison.seconds,
        "times": {f"{row.solver}, {row.grid}, {row.nfe}": list(row.times) for row in comparison.rows},
        "provenance": dict(provenance),
    }


def _real_data(comparison: Comparison) -> dict[str, Any]:
    judge = comparison.judge
    if judge is None:
        return {"skipped": comparison.request.without_judge}
    found: dict[str, Any] = {
        "source": judge.source,
        "count": len(judge.real),
        "compared": judge.n,
        "features": judge.features.name,
        "splits": judge.parts.splits,
    }
    for metric in comparison.metrics:
        floor = comparison.floor(metric)
        if floor is not None:
            found |= {metric.name: floor.value, f"{metric.name}_error": floor.error}
    return found


def paired_records(comparison: Comparison) -> list[dict[str, Any]]:
    """A record for each pair of rows, metric and budget, with the solver and the grid of both."""
    paired = comparison.paired
    if paired is None:
        return []
    rows = comparison.rows
    found = []
    for pair in paired.records():
        one, other = rows[pair["row"]], rows[pair["minus"]]
        names = {"row": one.solver, "row_grid": one.grid, "minus": other.solver, "minus_grid": other.grid}
        numbers = {name: value for name, value in pair.items() if name not in ("metric", "budget", *names)}
        found.append({"metric": pair["metric"], "budget": pair["budget"], **names, **numbers})
    return found
