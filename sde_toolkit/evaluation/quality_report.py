"""The quality of samples as a table and as a page, with a line for each metric."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sde_toolkit.evaluation.page import Definitions, Page, Section, checked_provenance, facts_of, write_page
from sde_toolkit.evaluation.report_table import Column, Line, Table, value_text
from sde_toolkit.jobs.fingerprints import flat
from sde_toolkit.metrics.metric import Estimate, Metric
from sde_toolkit.metrics.records import Quality, compare_records

__all__ = ["quality_table", "write_quality_report"]


def quality_table(quality: Quality, metrics: Sequence[Metric], against: Quality | None = None) -> Table:
    """Values with their errors, the floor (as many real samples), and the difference to another record."""
    columns = [Column("metric", left=True), Column("value")]
    others = {} if against is None else compare_records(against, quality)
    if quality.floors:
        columns.append(Column("as many real samples", "the value of the same number of real samples"))
    if others:
        columns.append(Column("difference", "to the other record"))
    lines = []
    for metric in metrics:
        floor = _estimate(*quality.floors[metric.name]) if metric.name in quality.floors else None
        found = _estimate(quality.values.get(metric.name), quality.errors.get(metric.name))
        cells = [metric.heading, value_text(metric, found)]
        if quality.floors:
            mark = "≈ " if found is not None and floor is not None and metric.reaches(found, floor) else ""
            cells[1] = mark + cells[1]
            cells.append("" if floor is None else value_text(metric, floor))
        if others:
            cells.append(f"{others[metric.name]:+.4g}" if metric.name in others else "")
        lines.append(Line(tuple(cells)))
    return Table(tuple(columns), tuple(lines))


def _estimate(value: float | None, error: float | None) -> Estimate | None:
    return None if value is None else Estimate(value, math.nan if error is None else error)


def write_quality_report(
    quality: Quality,
    metrics: Sequence[Metric],
    directory: str | Path,
    provenance: Mapping[str, Any] | None = None,
    *,
    against: Quality | None = None,
    title: str = "Sample quality",
) -> Path:
    """Write ``report.html``; returns its path. The record itself is written by :meth:`Quality.save`.

    ``metrics``: what was measured; ``against``: a record that this one is compared with.
    """
    about = checked_provenance(provenance)
    conditions, real = quality.conditions, quality.conditions["reference"]
    count = conditions["samples"]["count"]
    found = {m.name: _estimate(quality.values[m.name], quality.errors.get(m.name)) for m in metrics}
    best = "; ".join(f"{metric.heading} {value_text(metric, found[metric.name])}" for metric in metrics)
    source = quality.about.get("source") or f"{count} samples"
    facts = facts_of(
        about,
        f"{count} samples",
        f"{real['count']} real ones: {real['name']} {real['split']}".rstrip(),
        f"features: {conditions['extractor']['name']}",
        f"seed {quality.about['seed']}",
        seconds=quality.about.get("seconds"),
    )
    key = "± is one standard error, where it is known."
    if quality.floors:
        key += " “≈” marks what is within two standard errors of real data."
    measured = tuple((metric.label(), metric.explanation or f"{metric.meaning}.") for metric in metrics)
    named = tuple((name, "nothing" if value is None else f"{value}") for name, value in flat(conditions))
    sections = [
        Section("Results", (quality_table(quality, metrics, against), key, *quality.about["notes"])),
        Section("How this was measured", (Definitions(measured),)),
        Section("Conditions: two records are compared only if these are equal", (Definitions(named),)),
    ]
    page = Page(title, [f"{source}: {best}."], facts, sections, about)
    return write_page(page, directory, {}, {}, results_name=None)
