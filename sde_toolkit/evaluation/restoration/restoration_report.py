"""A restoration as files: one self-contained page, pictures, CSV, JSON and arrays that say the same."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sde_toolkit.evaluation.page import (
    Definitions,
    Page,
    Section,
    checked_provenance,
    facts_of,
    require_report_packages,
    write_page,
)
from sde_toolkit.evaluation.restoration.restoration_figures import restoration_figures
from sde_toolkit.evaluation.restoration.restoration_findings import restoration_findings, restoration_table
from sde_toolkit.evaluation.restoration.restoration_results import Restoration
from sde_toolkit.evaluation.restoration.restoration_scores import DISTANCE
from sde_toolkit.files.whole import atomic_file
from sde_toolkit.jobs.fingerprints import fingerprint_data

__all__ = ["write_restoration_report"]


def write_restoration_report(
    result: Restoration,
    directory: str | Path,
    provenance: Mapping[str, Any] | None = None,
    *,
    title: str = "Restoration",
) -> Path:
    """Write ``report.html``, ``results.json``, ``results.csv``, ``samples.npz`` and the PNGs; returns the page's path.

    Args:
        provenance: plain data from :func:`sde_toolkit.jobs.provenance.provenance_of`, and anything else to be recorded.

    Raises:
        ArgumentError: for a provenance that JSON cannot hold.
        OSError: naming the file that cannot be written.
    """
    require_report_packages()
    about = checked_provenance(provenance)
    page = restoration_page(result, about, title)
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(folder / "samples.npz") as stream:
        np.savez_compressed(stream, **result.arrays())  # type: ignore[arg-type]
    return write_page(page, folder, restoration_results(result, about), {"results.csv": result.cases()})


def restoration_results(result: Restoration, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """All of a restoration but its samples, as plain data: what ``results.json`` holds."""
    request, truth = result.request, result.misfit_of_truth
    return {
        "findings": restoration_findings(result),
        "rows": result.records(),
        "measurements": result.cases(),
        "truth": {"misfit": truth.value, "misfit_error": truth.error, "source": request.source},
        "exact": None
        if result.exact is None
        else {
            "distance": result.exact.floor.value,
            "distance_error": result.exact.floor.error,
            "reference": len(result.exact.reference[0].white),
        },
        "task": fingerprint_data(request.task),
        "noise_std": request.noise_std,
        "methods": {name: fingerprint_data(method) for name, method in request.methods.items()},
        "solver": request.steps.name,
        "grid": request.steps.grid_name,
        "cost": request.cost,
        "samples_per_measurement": request.n,
        "seed": request.seed,
        "device": str(request.device),
        "processes": result.processes,
        "seconds": result.seconds,
        "provenance": dict(provenance),
    }


def restoration_page(result: Restoration, provenance: Mapping[str, Any], title: str) -> Page:
    """The page of a restoration."""
    request = result.request
    k = len(request.truth)
    facts = facts_of(
        provenance,
        request.task.describe(tuple(request.truth.shape[1:])),
        f"σ_y = {request.noise_std:g}",
        f"{k} measurement{'s' * (k > 1)}, {request.n} samples of each",
        f"{request.steps.name}, {request.steps.grid_name}",
        f"seed {request.seed}",
        device=str(request.device),
        seconds=result.seconds,
    )
    figures = restoration_figures(result)
    of_cases = [figure for figure in figures if figure.name != "spread"]
    honest = [figure for figure in figures if figure.name == "spread"]
    key = "± is one standard error, over the measurements."
    if result.exact is not None:
        key += " “≈” marks what is within two standard errors of exact samples: that measure does not tell them apart."
    failures = [f"**{done.name}** failed: {done.failure}" for done in result.restored if done.failure]
    notes = [f"**{done.name}**: {note}" for done in result.restored for note in done.notes]
    sections = [Section("Results", (restoration_table(result), key, *failures, *notes))]
    if of_cases:
        sections.append(Section("Measurements and samples", tuple(of_cases)))
    if honest:
        sections.append(Section("Is the spread honest?", tuple(honest)))
    sections.append(Section("How this was measured", (Definitions(tuple(_explanations(result))),)))
    return Page(title, restoration_findings(result), facts, sections, provenance)


def _explanations(result: Restoration) -> list[tuple[str, str]]:
    """What was done, term by term."""
    request = result.request
    found = [
        ("Truth", f"{request.source}. No method sees it."),
        ("Measurement", _measurement_words(result)),
        (
            "Methods",
            "; ".join(f"**{name}**: `{_shown(method)}`" for name, method in request.methods.items()) + ".",
        ),
        (
            "Cost",
            "Network evaluations (NFE) and vector-Jacobian products are counted where the network is called. A product "
            "goes backwards through the network once, and takes one to two times as long as an evaluation."
            + ("" if request.cost is None else f" Each method takes as many steps as {request.cost} of both allow."),
        ),
        (
            "Misfit",
            "√(mean of ((y − A x)/σ_y)²). Exact posterior samples and the truth have the same law together with y, so "
            "1 is expected of both. Less means that the noise is fitted, more that the measurement is missed.",
        ),
        (
            "Errors and spread",
            "The mean's RMSE over √(1 + 1/n) times the samples' standard deviation (root mean squares). Truth and "
            "exact samples are exchangeable, so 1 is expected. Above 1 the samples are too sure of themselves.",
        ),
        (
            "Noise",
            f"The noise of measurement i and of sample j have streams of their own from seed {request.seed}. Every "
            "method starts from the same noise.",
        ),
    ]
    if result.exact is not None:
        exact = result.exact
        found.append(
            (
                "Exact posterior",
                "The prior is a Gaussian mixture, and so is its posterior, in closed form. All samples are whitened by "
                f"its covariance, so that distances are in exact standard deviations. {DISTANCE.heading}: "
                f"{DISTANCE.explanation} Each method's samples are compared with "
                f"{len(exact.reference[0].white)} exact ones after each measurement, and the floor is what {request.n} "
                "other exact samples score.",
            )
        )
    return found


def _measurement_words(result: Restoration) -> str:
    """A, the noise and the space of both."""
    request = result.request
    scale = getattr(request.model.transform, "scale", 1.0)
    where = "y = A T(x) + noise, with T the model's transform."
    noise = f"The noise has the standard deviation σ_y = {request.noise_std:g} in the model's space"
    if not isinstance(scale, tuple) and scale != 1.0:
        noise += f", which is {request.noise_std / abs(scale):.3g} in the units of the data"
    return f"A: {request.task.describe(tuple(request.truth.shape[1:]))}. {where} {noise}."


def _shown(method: Any) -> str:
    """A method with its settings."""
    if not isinstance(method, functools.partial):
        shown = repr(method)
        return getattr(method, "__qualname__", type(method).__qualname__) if shown.startswith("<") else shown
    settings = ", ".join(f"{name}={value!r}" for name, value in method.keywords.items())
    return f"{method.func.__qualname__}({settings})"
