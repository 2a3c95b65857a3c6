"""A comparison as files: one self-contained page, pictures, CSV and JSON that say the same."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from sde_toolkit.errors import ArgumentError, MissingDependencyError
from sde_toolkit.evaluation.comparison import Comparison
from sde_toolkit.evaluation.figures import draw_all
from sde_toolkit.evaluation.findings import cells, columns, findings, floor_cells
from sde_toolkit.files.whole import write_all

__all__ = ["as_bytes", "png_of", "require_report_packages", "summary", "write_report"]


def require_report_packages() -> None:
    """Find out before the work, not after it, that a package is missing.

    Raises:
        MissingDependencyError: without matplotlib, jinja2 or POT.
    """
    for module, package in (("matplotlib", "matplotlib"), ("jinja2", "jinja2"), ("ot", "POT")):
        try:
            __import__(module)
        except ImportError as error:
            raise MissingDependencyError(package, "the comparison's report", "cli", error) from None


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
        provenance: plain data, from :func:`sde_toolkit.jobs.provenance.provenance`, with whatever else shall be
            on record; None: the report says nothing of the model and of the machine.

    Raises:
        ArgumentError: for what is no comparison, or a provenance that JSON cannot hold.
        OSError: naming the file that cannot be written; none is replaced then.
    """
    require_report_packages()
    if not isinstance(comparison, Comparison):
        raise ArgumentError("comparison", comparison, "not a comparison", "Pass what compare_solvers returned.")
    about = _plain(dict(provenance or {}))
    try:
        json.dumps(about, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ArgumentError("provenance", provenance, f"not plain data ({error})", "Use numbers and texts.") from None
    content = summary(comparison, about)
    files: dict[str, bytes] = {}
    figures = []
    for name, (caption, figure) in draw_all(comparison).items():
        files[f"{name}.png"] = png_of(figure)
        figures.append({"name": name, "caption": caption, "data": base64.b64encode(files[f"{name}.png"]).decode()})
    files["results.json"] = as_bytes(json.dumps(_plain(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    files["results.csv"] = as_bytes(_csv(comparison))
    files["report.html"] = as_bytes(_page(comparison, figures, content, title))
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    write_all(directory, files)
    return directory / "report.html"


def as_bytes(text: str) -> bytes:
    """UTF-8; what a file name or an argument had that is no letter of any alphabet is spelled out."""
    return text.encode("utf-8", "backslashreplace")


def png_of(figure: Any) -> bytes:
    """A figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()


def summary(comparison: Comparison, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """All of a comparison but its samples, as plain data: what ``results.json`` holds."""
    endpoint, judge = comparison.endpoint, comparison.judge
    times = {}
    for row in comparison.rows:
        times[f"{row.solver}, {row.grid}, {row.nfe}"] = list(row.times)
    floor = judge.floor if judge else None
    return {
        "findings": findings(comparison),
        "rows": comparison.records(),
        "real_data": {
            "source": judge.source,
            "count": len(judge.real),
            "compared": judge.n,
            "features": judge.features.name,
            "splits": judge.splits,
            "projections": judge.projections,
            "sliced_wasserstein": floor.sliced_wasserstein.value,
            "sliced_wasserstein_error": floor.sliced_wasserstein.error,
            "kernel_distance": floor.kernel_distance.value,
            "kernel_distance_error": floor.kernel_distance.error,
            "kernel": judge.features.kernel_name,
            "plausible": floor.plausible.value if floor.plausible else None,
            "plausible_error": floor.plausible.error if floor.plausible else None,
            "plausible_means": judge.features.plausible.meaning if judge.features.plausible else None,
        }
        if judge and floor
        else {"skipped": comparison.without_judge},
        "exact_flow": {
            "method": endpoint.method,
            "samples": endpoint.n,
            "nfe": endpoint.nfe,
            "own_error": endpoint.error.value,
            "checked": endpoint.checked,
            "seconds": endpoint.seconds,
        }
        if endpoint
        else None,
        "samples_per_row": comparison.n,
        "seed": comparison.seed,
        "batch_size": comparison.batch_size,
        "device": comparison.device,
        "processes": comparison.processes,
        "seconds": comparison.seconds,
        "times": times,
        "provenance": dict(provenance),
    }


def _plain(value: Any) -> Any:
    """JSON knows no NaN and no infinity: they become null."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _csv(comparison: Comparison) -> str:
    records = comparison.records()
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, fieldnames=list(records[0]))
    writer.writeheader()
    writer.writerows(records)
    return buffer.getvalue()


def _page(comparison: Comparison, figures: list[dict[str, str]], content: Mapping[str, Any], title: str) -> str:
    import jinja2

    source = (resources.files("sde_toolkit.evaluation") / "templates" / "report.html.j2").read_text("utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    lines, before = [], None
    for row in comparison.rows:
        here = (row.budget, row.grid)
        lines.append({"cells": cells(comparison, row), "first": before is not None and here != before})
        before = here
    return environment.from_string(source).render(
        title=title,
        facts=_facts(content),
        command=content["provenance"].get("command"),
        headline=content["findings"][0],
        more=content["findings"][1:],
        columns=columns(comparison),
        left=2 if comparison.several_grids else 1,
        lines=lines,
        floor=floor_cells(comparison),
        figures=figures,
        content=content,
        comparison=comparison,
        failures=[row for row in comparison.rows if row.failure],
        provenance=json.dumps(_plain(content["provenance"]), indent=2, ensure_ascii=False),
    )


def _facts(content: Mapping[str, Any]) -> list[str]:
    """One line: what was compared, on what, and what is known of when and where."""
    about = content["provenance"]
    model, machine = (part if isinstance(part, dict) else {} for part in (about.get("model"), about.get("machine")))
    threads = machine.get("cpu_threads")
    found = [
        model.get("name"),
        f"{content['samples_per_row']} samples per row",
        f"seed {content['seed']}",
        content["device"] + (f", {threads} CPU threads" if threads else ""),
        f"{content['seconds']:.0f} s in all",
        about.get("date"),
    ]
    return [str(fact) for fact in found if fact]
