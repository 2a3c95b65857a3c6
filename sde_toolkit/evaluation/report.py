"""A comparison as files: one self-contained page, pictures, CSV and JSON that say the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sde_toolkit.errors import ArgumentError
from sde_toolkit.evaluation.figures import SHEET, comparison_figures
from sde_toolkit.evaluation.findings import comparison_findings, comparison_table
from sde_toolkit.evaluation.page import (
    Block,
    Definitions,
    Page,
    Section,
    checked_provenance,
    facts_of,
    require_packages,
    write_page,
)
from sde_toolkit.evaluation.rows import Comparison
from sde_toolkit.metrics.judge import Judge

__all__ = ["require_report_packages", "write_report"]


def require_report_packages() -> None:
    """Refuse before the work if a package is missing.

    Raises:
        MissingDependencyError: without matplotlib, jinja2 or POT.
    """
    require_packages("the comparison's report", ("ot", "POT"))


def write_report(
    comparison: Comparison,
    directory: str | Path,
    provenance: Mapping[str, Any] | None = None,
    *,
    title: str = "Solver comparison",
) -> Path:
    """Write ``report.html``, ``results.json``, ``results.csv`` and one PNG per figure; returns the page's path.

    Everything is composed before the first file is written, and the files appear together.

    Args:
        provenance: plain data from :func:`sde_toolkit.jobs.provenance.provenance_of`, and anything else to be recorded;
            None: the report does not describe the model and the machine.

    Raises:
        ArgumentError: for what is no comparison, or a provenance that JSON cannot hold.
        OSError: naming the file that cannot be written; none is replaced then.
    """
    require_packages("the comparison's report")
    if not isinstance(comparison, Comparison):
        raise ArgumentError("comparison", comparison, "not a comparison", "Pass what compare_solvers returned.")
    about = checked_provenance(provenance)
    page = comparison_page(comparison, about, title)
    results = comparison_results(comparison, about)
    return write_page(page, directory, results, {"results.csv": comparison.records()})


def comparison_results(comparison: Comparison, provenance: Mapping[str, Any]) -> dict[str, Any]:
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
    figures = comparison_figures(comparison)
    marks = " “≈” marks what is within two standard errors of real data: by that measure alone it cannot be told "
    key = "± is one standard error." + (f"{marks}apart from them." if comparison.judge is not None else "")
    failed = [row for row in comparison.rows if row.failure]
    failures = [f"**{comparison.label(row)} at {row.nfe}** failed: {row.failure}" for row in failed]
    together = "Every solver starts from the same initial noise: look down a column."
    if comparison.judge is not None:
        together += " The real data in the last place have no noise to start from and belong to no column."
    sheets: list[Block] = [figure for figure in figures if figure.name.startswith(SHEET)]
    sections = [
        Section("Results", (comparison_table(comparison), key, *failures)),
        Section("Curves", tuple(figure for figure in figures if not figure.name.startswith(SHEET))),
        Section("Samples", (together, *sheets)),
        Section("How this was measured", (Definitions(tuple(_explanations(comparison))),)),
    ]
    return Page(title, comparison_findings(comparison), facts, sections, provenance)


def _explanations(comparison: Comparison) -> list[tuple[str, str]]:
    """What was done, term by term."""
    request, endpoint, judge = comparison.request, comparison.endpoint, comparison.judge
    grids = ", ".join(dict.fromkeys(row.grid for row in comparison.rows))
    found = [
        (
            "Budget",
            "Evaluations of the network are counted as they happen (NFE). Each solver takes as many steps as its "
            "budget allows, counting the last evaluation, which replaces the state by the denoised estimate (Tweedie's "
            "formula). A grid that ends at the data itself has no such evaluation. Heun's method needs two evaluations "
            "per step, so it may stay below the budget.",
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
            f"{grids}, the same for all solvers. Which grid is best differs between solvers; compare others with "
            "`grid=[uniform,karras]`. All times are in `results.json`.",
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
            f"One run per row after a warm-up, batch size {request.batch_size or request.n}; “overhead” is the share "
            "spent on noise, arithmetic and bookkeeping. Not repeated: other work on the machine shows in it.",
        )
    )
    return found


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
