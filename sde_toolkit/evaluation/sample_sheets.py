"""Pictures of the samples of a comparison: one sheet for each budget, and for each row all of its samples, enlarged."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.data.pictures import Backdrop, contact_sheet, picture_kind, sample_rows
from sde_toolkit.data.sample_panels import MOST_POINTS
from sde_toolkit.evaluation.naming import file_names, literal
from sde_toolkit.evaluation.page import Enlargement, Figure, as_png
from sde_toolkit.evaluation.rows import Comparison, Row
from sde_toolkit.noise.streams import Once, generator_for

__all__ = ["ARRAYS", "draw_sheets", "row_files", "sample_arrays", "sheet_names"]

ARRAYS, FOLDER = "samples.npz", "samples"
_LARGEST = 32 * 2**20  # bytes of all samples together, for the arrays to be written
_IMAGES = 100  # in an enlarged picture


def draw_sheets(comparison: Comparison) -> list[Figure]:
    """One picture for each budget (and set of grids): the same initial noise in each column. Rows can be enlarged."""
    real, backdrop = _real(comparison), _backdrop(comparison)
    names, sheets = _own_files(comparison), sheet_names([(row.grid_set, row.budget) for row in comparison.rows])
    figures = []
    for name in dict.fromkeys(sheets):
        places = [k for k, sheet in enumerate(sheets) if sheet == name]
        rows = [
            (f"{literal(comparison.label(comparison.rows[k]))} ({comparison.rows[k].nfe})", comparison.pictured(k))
            for k in places
        ]
        if comparison.endpoint_data is not None:
            rows.append(("exact flow", comparison.endpoint_data))
        sheet = sample_rows(rows, real, backdrop=backdrop)
        if sheet is None:
            continue
        larger = [
            Enlargement(sheet.boxes[i], names[k], _title(comparison, k), png)
            for i, k in enumerate(places)
            for png in [_enlarged(comparison.pictured(k), backdrop)]
            if png is not None
        ]
        caption = _caption(comparison, comparison.rows[places[0]], backdrop)
        figures.append(Figure(name, caption, sheet.figure, enlargements=tuple(larger)))
    return figures


def _real(comparison: Comparison) -> Tensor | None:
    """Real samples in a random order that the seed fixes: as many as a row has, and 1000 if there are so many."""
    if comparison.judge is None:
        return None
    real, order = comparison.judge.real, generator_for(comparison.request.seed, Once.PICTURES)
    return real[torch.randperm(len(real), generator=order)[: max(comparison.n, MOST_POINTS)]]


def _backdrop(comparison: Comparison) -> Backdrop:
    """The exact density where the model has one, else real data, else the ends of the exact flow."""
    model, real = comparison.request.model, _real(comparison)
    real = comparison.endpoint_data if real is None else real
    exact = model.has_exact_score and comparison.request.condition is None
    return Backdrop(real, getattr(model, "log_prob", None) if exact else None)


def _caption(comparison: Comparison, row: Row, backdrop: Backdrop) -> str:
    """What the sheet of a row shows."""
    of = "adaptive solvers" if row.budget is None else f"{row.budget} network evaluations"
    several = len({other.grid_set for other in comparison.rows}) > 1
    on = f", grid {row.grid_set}" if several and row.budget is not None else ""
    behind = {"points": "Behind the points", "histogram": "The line"}.get(picture_kind(comparison.request.event_shape))
    samples = "the real data" if comparison.judge is not None else "the end of the exact flow"
    what = "the exact density" if backdrop.log_density else samples if backdrop.real is not None else ""
    drawn = f" {behind} is {what}." if behind and what else ""
    if behind:
        drawn = f" {_panel_sizes(comparison)}{drawn}"
    return f"Samples: {of}{on}. Evaluations used in brackets.{drawn}"


def _panel_sizes(comparison: Comparison) -> str:
    """How many samples the panels of points or numbers show, and which of them show fewer."""
    most = max(min(len(comparison.pictured(k)), MOST_POINTS) for k in range(len(comparison.rows)))
    flow, real = comparison.endpoint_data, _real(comparison)
    fewer = [
        f"{len(x)} of {name}"
        for name, x in (("the exact flow", flow), ("the real data", real))
        if x is not None and len(x) < most
    ]
    return f"{most} samples in each panel{''.join(f', {words}' for words in fewer)}."


def _title(comparison: Comparison, k: int) -> str:
    row, n = comparison.rows[k], len(comparison.pictured(k))
    return f"{comparison.label(row)}, grid {row.grid}, {row.nfe} evaluations: {n} samples"


def _enlarged(x: Tensor, backdrop: Backdrop) -> bytes | None:
    """All samples of a row as PNG, at most 100 images; None if there is no picture of them."""
    figure = contact_sheet(x, backdrop, most=_IMAGES)
    return None if figure is None else as_png(figure)


def sheet_names(sheets: Sequence[tuple[str, int | None]]) -> list[str]:
    """The name of the sheet of each (set of grids, budget): the set is named where there are several."""
    safe = file_names(grid_set for grid_set, _ in sheets)
    of_grid = {grid_set: f"_{name}" if len(safe) > 1 else "" for grid_set, name in safe.items()}
    return ["samples_adaptive" if budget is None else f"samples{of_grid[name]}_{budget}" for name, budget in sheets]


def row_files(rows: Sequence[tuple[str, str, int | None]]) -> list[str]:
    """The name of the picture of each row (solver, grid, budget), without suffix: ``samples/ddim_uniform_10``."""
    wished = [f"{solver} {grid} {'adaptive' if budget is None else budget}" for solver, grid, budget in rows]
    safe = file_names(wished)
    return [f"{FOLDER}/{safe[name]}" for name in wished]


def _own_files(comparison: Comparison) -> list[str]:
    return row_files([(row.solver, row.grid, row.budget) for row in comparison.rows])


def sample_arrays(comparison: Comparison) -> bytes | None:
    """``samples.npz`` with the samples of each row by the names of :func:`row_files`, in data space; None if large."""
    if sum(x.numel() * x.element_size() for x in comparison.samples) > _LARGEST:
        return None
    names = (name.removeprefix(f"{FOLDER}/") for name in _own_files(comparison))
    buffer = io.BytesIO()
    arrays = {name: x.numpy() for name, x in zip(names, comparison.samples, strict=True)}
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()
