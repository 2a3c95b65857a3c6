"""The table of every report: the same cells for the terminal, for the page and for Markdown; and rows as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sde_toolkit.metrics.metric import Axis, Estimate, Metric

__all__ = ["Column", "Line", "Table", "as_csv", "percent", "plus_minus", "value_text"]


@dataclass(frozen=True)
class Column:
    """A heading and what it means; ``left``: names stand on the left, numbers on the right."""

    heading: str
    meaning: str = ""
    left: bool = False


@dataclass(frozen=True)
class Line:
    """The cells of a line; it begins a group of lines, or it is the floor that the others are read against.

    ``best``: places of the cells that are set in bold: the best of their group, and all that cannot be told from it.
    """

    cells: tuple[str, ...]
    kind: Literal["", "group", "floor"] = ""
    best: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Table:
    """Columns, and lines with a cell for each column; ``sortable``: by a click on a heading, on the page."""

    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    sortable: bool = False

    @property
    def parts(self) -> list[tuple[str, list[Line]]]:
        """The lines by HTML's name of their part of the table: the floor stays below when the others are sorted."""
        floor = [line for line in self.lines if line.kind == "floor"]
        body = ("tbody", [line for line in self.lines if line.kind != "floor"])
        return [body, ("tfoot", floor)] if floor else [body]

    def text(self) -> str:
        """For a terminal, with a blank line between groups."""
        heads = [column.heading for column in self.columns]
        widths = [max(map(len, cells)) for cells in zip(heads, *(line.cells for line in self.lines), strict=True)]

        def line_of(cells: Sequence[str]) -> str:
            fitted = zip(cells, widths, self.columns, strict=True)
            return "  ".join(cell.ljust(w) if column.left else cell.rjust(w) for cell, w, column in fitted)

        rule = "─" * (sum(widths) + 2 * (len(widths) - 1))
        out = [line_of(heads), rule]
        for line in self.lines:
            out += {"": [], "group": [""], "floor": [rule]}[line.kind]
            out.append(line_of(line.cells))
        return "\n".join(out)

    def markdown(self) -> str:
        """For Markdown, the best in bold."""
        heads, rules = zip(*((c.heading, "---" if c.left else "---:") for c in self.columns), strict=True)
        lines = [heads, rules]
        for line in self.lines:
            lines.append(tuple(f"**{cell}**" if k in line.best else cell for k, cell in enumerate(line.cells)))
        escaped = (" | ".join(cell.replace("|", r"\|") for cell in cells) for cells in lines)
        return "\n".join(f"| {cells} |" for cells in escaped)

    @property
    def key(self) -> list[Column]:
        """The columns whose meaning is said below the table."""
        return [column for column in self.columns if column.meaning and column.heading]


def as_csv(records: Sequence[Mapping[str, Any]]) -> str:
    """Records with the same keys as CSV with a header."""
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, fieldnames=list(records[0]))
    writer.writeheader()
    writer.writerows(records)
    return buffer.getvalue()


def value_text(metric: Metric, estimate: Estimate | None) -> str:
    """A metric's value with its error; a dash where there is none."""
    if estimate is None:
        return "–"
    return percent(estimate) if metric.axis is Axis.SHARE else plus_minus(estimate)


def plus_minus(estimate: Estimate) -> str:
    """Value and standard error to the error's first two digits: ``0.0123 ± 0.0045``."""
    value, error = estimate.value, estimate.error
    if not math.isfinite(error) or error <= 0:
        return f"{value:.3g}"
    if error >= 1e5 or error < 1e-6:
        return f"{value:.3g} ± {error:.1g}"
    decimals = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"


def percent(estimate: Estimate) -> str:
    """A proportion in percent, with its error: ``62.5 ± 9.9 %``."""
    value = f"{100 * estimate.value:.1f}"
    return f"{value} ± {100 * estimate.error:.1f} %" if math.isfinite(estimate.error) else f"{value} %"
