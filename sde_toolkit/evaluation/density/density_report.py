"""An evaluation as files: a self-contained page, the same in Markdown, pictures, CSV of all samples, JSON of it all."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from sde_toolkit.errors import MissingDependencyError
from sde_toolkit.evaluation.density.density_figures import draw_all
from sde_toolkit.evaluation.density.evaluating import Evaluation
from sde_toolkit.evaluation.density.summary import (
    COLUMNS,
    Background,
    cells,
    findings,
    records,
    rows,
    scale,
    spread,
    unit,
)
from sde_toolkit.evaluation.report import _plain, as_bytes, png_of
from sde_toolkit.files.whole import write_all

__all__ = ["require_likelihood_packages", "write_likelihood_report"]


def require_likelihood_packages() -> None:
    """Find out before the work, not after it, that a package is missing.

    Raises:
        MissingDependencyError: without matplotlib or jinja2.
    """
    for module in ("matplotlib", "jinja2"):
        try:
            __import__(module)
        except ImportError as error:
            raise MissingDependencyError(module, "the likelihood report", "cli", error) from None


def write_likelihood_report(
    evaluation: Evaluation,
    background: Background,
    directory: str | Path,
    provenance: Mapping[str, Any],
    *,
    title: str = "Likelihood",
) -> Path:
    """Write ``report.html``, ``report.md``, ``samples.csv``, ``results.json`` and the PNGs; returns the page's path."""
    require_likelihood_packages()
    files: dict[str, bytes] = {}
    figures = []
    for name, (caption, figure) in draw_all(evaluation, background).items():
        files[f"{name}.png"] = png_of(figure)
        figures.append({"name": name, "caption": caption, "data": base64.b64encode(files[f"{name}.png"]).decode()})
    content = _plain(_content(evaluation, background, provenance))
    files["results.json"] = as_bytes(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    files["samples.csv"] = as_bytes(_csv(records(evaluation, background)))
    header = [unit(evaluation) if name == "value" else name for name, _ in COLUMNS]
    parts = {
        "title": title,
        "findings": content["findings"],
        "columns": list(zip(header, [meaning for _, meaning in COLUMNS], strict=True)),
        "table": [cells(row) for row in rows(evaluation, background)],
        "ends": _end_cells(evaluation),
        "unit": unit(evaluation),
        "figures": figures,
        "content": content,
        "provenance": json.dumps(content["provenance"], indent=2, ensure_ascii=False),
    }
    files["report.md"] = as_bytes(_render("likelihood.md.j2", parts, escape=False))
    files["report.html"] = as_bytes(_render("likelihood.html.j2", parts, escape=True))
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    write_all(directory, files)
    return directory / "report.html"


def _content(evaluation: Evaluation, background: Background, provenance: Mapping[str, Any]) -> dict[str, Any]:
    request, factor = evaluation.request, scale(evaluation)
    return {
        "findings": findings(evaluation, background),
        "unit": unit(evaluation),
        "rows": [vars(row) for row in rows(evaluation, background)],
        "samples": evaluation.n,
        "dimension": evaluation.dimension,
        "data": background.source,
        "levels": None if request.levels is None else vars(request.levels),
        "end": request.end_of(evaluation.model),
        "end_times": [
            {
                "end": e.end,
                "samples": len(e.nats),
                "mean": float(e.nats.mean()) * factor,
                "truncation_estimate": float(e.truncation.mean()) * factor,
                "shift": float(e.shift.mean()) * factor,
                "shift_error": spread(e.shift * factor),
            }
            for e in evaluation.ends
        ],
        "finer": None
        if evaluation.finer is None
        else {
            "samples": len(evaluation.finer.nats),
            "shift": float(evaluation.finer.shift.mean()) * factor,
            "shift_error": spread(evaluation.finer.shift * factor),
        },
        "prior": request.prior_name,
        "prior_kl": float(evaluation.values["prior_kl"].mean()) * abs(factor),
        "prior_mismatch": None
        if background.moments is None
        else {"value": background.moments.mismatch(1.0) * abs(factor), "moments": background.moments_name},
        "quadrature_error": float(evaluation.values["quadrature_error"].mean()) * abs(factor),
        "divergence": repr(evaluation.divergence),
        "quadrature": repr(request.quadrature),
        "mode": evaluation.rehearsal.mode,
        "mode_seconds": evaluation.rehearsal.mode_seconds,
        "numbers": evaluation.numbers,
        "draws": request.draws,
        "elbo_draws": request.elbo_draws,
        "discrete_draws": request.discrete_draws,
        "seed": request.seed,
        "chunk": request.chunk,
        "parts": {"found": evaluation.found, "computed": evaluation.computed},
        "processes": evaluation.processes,
        "seconds": evaluation.seconds,
        "provenance": dict(provenance),
    }


def _end_cells(evaluation: Evaluation) -> list[list[str]]:
    factor = scale(evaluation)
    lines = []
    for e in evaluation.ends:
        mean, estimate = float(e.nats.mean()) * factor, float(e.truncation.mean()) * factor
        lines.append([f"{e.end:g}", f"{mean:.4f}", f"{estimate:+.4f}", f"{mean - estimate:.4f}"])
    return lines


def _csv(lines: list[dict[str, Any]]) -> str:
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, fieldnames=list(lines[0]))
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()


def _render(template: str, parts: Mapping[str, Any], *, escape: bool) -> str:
    import jinja2

    source = (resources.files("sde_toolkit.evaluation") / "templates" / template).read_text("utf-8")
    environment = jinja2.Environment(autoescape=escape, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(source).render(**parts)
