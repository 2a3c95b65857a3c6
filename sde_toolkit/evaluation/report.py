"""A comparison as files: one self-contained page, figures, tables to paste, CSV and JSON that say the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sde_toolkit.data.pictures import picture_kind
from sde_toolkit.errors import ArgumentError
from sde_toolkit.evaluation.comparison_results import paired_records, results_as_data
from sde_toolkit.evaluation.comparison_tables import PART_MEANINGS, comparison_table, parts_tables, time_meaning
from sde_toolkit.evaluation.figures import CURVES, comparison_figures
from sde_toolkit.evaluation.findings import comparison_findings
from sde_toolkit.evaluation.latex import latex_table
from sde_toolkit.evaluation.page import (
    VECTORS,
    Block,
    Definitions,
    Page,
    Section,
    checked_provenance,
    facts_of,
    require_report_packages,
    write_page,
)
from sde_toolkit.evaluation.planned_run import PlannedRun
from sde_toolkit.evaluation.rows import Comparison
from sde_toolkit.evaluation.sample_sheets import ARRAYS, draw_sheets, row_files, sample_arrays, sheet_names
from sde_toolkit.metrics.judge import Judge

__all__ = ["report_files", "write_report"]

TEX, MARKDOWN, PAIRS = "table.tex", "table.md", "paired.csv"


def write_report(
    comparison: Comparison,
    directory: str | Path,
    provenance: Mapping[str, Any] | None = None,
    *,
    title: str = "Solver comparison",
) -> Path:
    """Write a comparison as files; returns the page's path.

        report.html                    all of it, in one file that needs no other
        results.json, results.csv      the numbers, with the hashes of model, data and code; a line for each row
        table.tex, table.md            the table, for LaTeX with booktabs and for Markdown
        paired.csv                     the difference of each pair of rows, with its interval
        error.png, pareto.pdf, ...     each figure of curves as PNG, PDF and SVG
        samples/, samples.npz          the samples of each row as a picture; as arrays, if they are no more than 32 MiB

    Everything is composed before the first file is written, and the files appear together.

    Args:
        provenance: plain data from :func:`sde_toolkit.jobs.provenance.provenance_of`, and anything else to be recorded;
            None: the report does not describe the model and the machine.

    Raises:
        ArgumentError: for what is no comparison, or a provenance that JSON cannot hold.
        OSError: naming the file that cannot be written; none is replaced then.
    """
    require_report_packages()
    if not isinstance(comparison, Comparison):
        raise ArgumentError("comparison", comparison, "not a comparison", "Pass what compare_solvers returned.")
    about = checked_provenance(provenance)
    page = comparison_page(comparison, about, title)
    table = comparison_table(comparison)
    more = {
        TEX: latex_table(table, _in_words(comparison, title), "tab:solvers").encode(),
        MARKDOWN: f"{table.markdown()}\n".encode(),
    }
    arrays = sample_arrays(comparison)
    if arrays is not None:
        more[ARRAYS] = arrays
    tables = {"results.csv": comparison.records()}
    if comparison.paired is not None and len(comparison.paired):
        tables[PAIRS] = paired_records(comparison)
    results = results_as_data(comparison, about)
    return write_page(page, directory, results, tables, vectors=True, more=more)


def report_files(runs: Sequence[PlannedRun]) -> list[str]:
    """The names of all files that the report of these runs may have."""
    figures = [*CURVES, *dict.fromkeys(sheet_names([(run.grid_set, run.budget) for run in runs]))]
    rows = row_files([(run.name, run.grid_name, run.budget) for run in runs])
    drawn = [f"{name}.{kind}" for name in CURVES for kind in VECTORS] + [f"{name}.png" for name in figures]
    own = ["report.html", "results.json", "results.csv", TEX, MARKDOWN, PAIRS, ARRAYS]
    return [*own, *drawn, *(f"{name}.png" for name in rows)]


def _in_words(comparison: Comparison, title: str) -> str:
    """The caption of the table in LaTeX."""
    bold = "In bold: the best at each budget, and what its paired interval at 95 % does not tell from it."
    judged = "" if comparison.judge is None else " ≈: within two standard errors of as many real samples."
    return f"{title}. {comparison.n} samples per row; ± is one standard error. {bold}{judged}"


def comparison_page(comparison: Comparison, provenance: Mapping[str, Any], title: str) -> Page:
    """The page of a comparison."""
    request = comparison.request
    facts = facts_of(
        provenance,
        f"{request.n} samples per row",
        f"seed {request.seed}",
        device=str(request.device),
        seconds=comparison.seconds,
    )
    marks = " “≈” marks what is within two standard errors of real data: by that measure alone it cannot be told "
    key = "± is one standard error." + (f"{marks}apart from them." if comparison.judge is not None else "")
    key += " **Bold**: the best at its budget, and what is not told apart from it at 95 %."
    failed = [row for row in comparison.rows if row.failure]
    failures = [f"**{comparison.label(row)} at {row.nfe}** failed: {row.failure}" for row in failed]
    together = "Every solver starts from the same initial noise: look down a column."
    if picture_kind(request.event_shape) != "image":
        together = "Every solver starts from the same initial noise."
    elif comparison.judge is not None:
        together += " The real data in the last place have no noise to start from and belong to no column."
    parts: list[Block] = [
        block for metric, table in parts_tables(comparison) for block in (f"**{metric.label()}**", table)
    ]
    sections = [
        Section("Results", (comparison_table(comparison), key, *failures)),
        Section("Whose error is it?", (*parts, Definitions(tuple(PART_MEANINGS.items())), _PARTS_KEY)),
        Section("Curves", tuple(comparison_figures(comparison))),
        Section("Samples", (together, *draw_sheets(comparison))),
        Section("How this was measured", (Definitions(tuple(_explanations(comparison))),)),
    ]
    shown = [section for section in sections if section.heading != "Whose error is it?" or parts]
    return Page(title, comparison_findings(comparison), facts, shown, provenance)


_PARTS_KEY = (
    "The parts are distances of their own and need not add up. A part that is zero within its error was not found; “–” "
    "was not measured."
)


def _explanations(comparison: Comparison) -> list[tuple[str, str]]:
    """What was done, term by term."""
    request, endpoint, judge = comparison.request, comparison.endpoint, comparison.judge
    found = [
        (
            "Budget",
            "Evaluations of the network are counted as they happen (NFE). Each solver takes as many steps as its "
            "budget allows, counting the last evaluation, which replaces the state by the denoised estimate (Tweedie's "
            "formula). A grid that ends at the data itself has no such evaluation. Heun's method needs two evaluations "
            "per step, so it may stay below the budget. What auto evaluates once to measure the model is not counted.",
        ),
        (
            "Samples",
            f"{request.n} per row. The errors shrink with the root of this number, and the time grows with it: "
            f"`n={4 * request.n}` halves them.",
        ),
        (
            "Noise",
            f"Sample i of every row draws from the same stream (seed {request.seed}, i), the initial noise first.",
        ),
        (
            "Grid",
            _grids(comparison),
        ),
    ]
    if endpoint is not None:
        found.append(
            (
                "Exact flow",
                "The endpoint of the probability flow ODE from the same noise, for the first "
                f"{endpoint.n} samples: {endpoint.method}, {endpoint.nfe} evaluations, denoised at the end like all "
                f"others. Solving {endpoint.checked} of them more finely changed them by {endpoint.error.value:.2g} "
                "(RMSE), the reference's own error.",
            )
        )
    without = f"None, so no distances between distributions: {request.without_judge}."
    found.append(("Real data", without if judge is None else _of_judge(judge)))
    for metric in comparison.shown:
        title = metric.label()
        found.append((f"{title[0].upper()}{title[1:]}", metric.explanation or _full(metric.meaning)))
    found.append(
        (
            "Wall time",
            f"Seconds are the {time_meaning(comparison)}. “Overhead” is the share spent on noise, arithmetic and "
            "bookkeeping. Other work on the machine shows in it.",
        )
    )
    return found


def _grids(comparison: Comparison) -> str:
    """Which grids there are, and what they are for."""
    grids = list(dict.fromkeys(row.grid for row in comparison.rows))
    each = len({row.grid_set for row in comparison.rows}) == 1 and len(grids) > 1
    said = "Each solver runs on the grid that is usual for it: see the column" if each else ", ".join(grids)
    other = "`grid=uniform` puts all on one grid" if each else "compare others with `grid=[uniform,karras]`"
    return f"{said}. Which grid is best differs between solvers; {other}. All times are in `results.json`."


def _of_judge(judge: Judge) -> str:
    """How samples are compared with real data."""
    rest = len(judge.real) - judge.n
    return (
        f"{len(judge.real)} samples: {judge.source}. Compared in {judge.features.name}. They are split at random "
        f"{judge.parts.splits} times into {judge.n} and the remaining {rest}. A row's value is the mean over the "
        f"splits: its first {judge.n} samples against the larger part. The floor is the smaller part against the "
        "larger, so that all compared sets have the same sizes. The floor's error is the standard deviation over the "
        "splits. Errors describe the chance of the draw, not other seeds of the training."
    )


def _full(meaning: str) -> str:
    """A phrase as a sentence."""
    return f"{meaning[:1].upper()}{meaning[1:]}." if meaning else ""
