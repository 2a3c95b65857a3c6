"""The likelihood of a data set as files: a page, also in Markdown, pictures, a CSV of all samples, and JSON."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sde_toolkit.evaluation.density.density_figures import likelihood_figures
from sde_toolkit.evaluation.density.density_findings import (
    Background,
    likelihood_findings,
    likelihood_table,
    quantities,
    sample_records,
    scale,
    spread,
    unit,
)
from sde_toolkit.evaluation.density.evaluating import DatasetLikelihood
from sde_toolkit.evaluation.page import (
    Block,
    Definitions,
    Page,
    Section,
    checked_provenance,
    facts_of,
    require_report_packages,
    write_page,
)
from sde_toolkit.evaluation.report_table import Column, Line, Table

__all__ = ["write_likelihood_report"]


def write_likelihood_report(
    result: DatasetLikelihood,
    background: Background,
    directory: str | Path,
    provenance: Mapping[str, Any],
    *,
    title: str = "Likelihood",
) -> Path:
    """Write ``report.html``, ``report.md``, ``samples.csv``, ``results.json`` and the PNGs; returns the page's path."""
    require_report_packages()
    about = checked_provenance(provenance)
    page = likelihood_page(result, background, about, title)
    tables = {"samples.csv": sample_records(result, background)}
    return write_page(page, directory, likelihood_results(result, background, about), tables, markdown=True)


def likelihood_page(
    result: DatasetLikelihood, background: Background, provenance: Mapping[str, Any], title: str
) -> Page:
    """The page of a data set's likelihood."""
    figures = likelihood_figures(result, background)
    of_ends = [figure for figure in figures if figure.name == "end_times"]
    others = [figure for figure in figures if figure.name != "end_times"]
    levels = result.request.levels
    data = f"{background.source}, {result.n} samples of {result.dimension} elements"
    if levels is not None:
        data += f", {levels.count} levels from {levels.low:g} to {levels.high:g}"
    processes = f"{result.processes} process" + "es" * (result.processes > 1)
    facts = facts_of(provenance, data, f"seed {result.request.seed}", processes, seconds=result.seconds)
    sections = [Section("Results", (likelihood_table(result, background), *others))]
    if result.ends:
        blocks: list[Block] = [_end_table(result), *of_ends]
        sections.append(Section("Where the flow ends", tuple(blocks)))
    sections.append(Section("How this was measured", (Definitions(tuple(_explanations(result))),)))
    return Page(title, likelihood_findings(result, background), facts, sections, provenance)


def _explanations(result: DatasetLikelihood) -> list[tuple[str, str]]:
    """What was done, term by term."""
    request, numbers, end = result.request, result.numbers, result.request.end_of(result.model)
    found = [
        (
            "Flow",
            "log p(x) = log p_1(x_1) + the integral of the divergence along the path of the probability flow (Song et "
            f"al. 2021, eq. 39): {numbers['nfe']:.0f} evaluations along the path and {numbers['divergence_nfe']:.0f} "
            f"of the divergence, {result.divergence!r}, each with {numbers['products']:.0f} products with the "
            f"Jacobian in {result.rehearsal.mode} mode, all draws together. The path ends at t = {end:g}.",
        )
    ]
    if request.levels is not None:
        found.append(("Levels", _levels(result)))
    elbo = (
        f"Kingma et al. 2021, {request.elbo_draws} random times per sample, drawn by importance and stratified, from "
        f"t = 1 to t = {end:g}."
    )
    parts = f"{result.computed} parts were computed by this command, {result.found} were there before."
    return [
        *found,
        ("ELBO", elbo if request.elbo_draws else "Not asked for."),
        (
            "DDPM bound",
            "L_T + Σ L_t + L_0 of Ho et al. 2020 with the posterior's variance, "
            f"{request.discrete_draws or 'all'} terms per sample.",
        ),
        (
            "Randomness",
            f"Sample i draws from streams of its own, (seed {request.seed}, i). No number depends on the chunks or on "
            f"the number of processes. {parts}",
        ),
    ]


def _levels(result: DatasetLikelihood) -> str:
    levels, draws = result.request.levels, result.request.draws
    if levels is None:
        return ""
    weighted = (
        "; the bound from importance-weighted draws is tighter, but the probes' noise inside its logarithm makes it "
        "look a little too good"
    )
    return (
        f"{levels.count} from {levels.low:g} to {levels.high:g}. Uniform noise over each level's bin makes a density "
        f"of them, {draws} draw{'s' * (draws > 1)} per sample; by Jensen's inequality the flow's row is above "
        f"−log2 P(x)/D in expectation{weighted * (draws > 1)}. The bounds need no such noise: their decoders are "
        "probabilities of the levels."
    )


def likelihood_results(
    result: DatasetLikelihood, background: Background, provenance: Mapping[str, Any]
) -> dict[str, Any]:
    """All of it but the samples, as plain data: what ``results.json`` holds."""
    request, factor = result.request, scale(result)
    return {
        "findings": likelihood_findings(result, background),
        "unit": unit(result),
        "rows": [vars(quantity) for quantity in quantities(result, background)],
        "samples": result.n,
        "dimension": result.dimension,
        "data": background.source,
        "levels": None if request.levels is None else vars(request.levels),
        "end": request.end_of(result.model),
        "end_times": [
            {
                "end": e.end,
                "samples": len(e.nats),
                "mean": float(e.nats.mean()) * factor,
                "truncation_estimate": float(e.truncation.mean()) * factor,
                "shift": float(e.shift.mean()) * factor,
                "shift_error": spread(e.shift * factor),
            }
            for e in result.ends
        ],
        "finer": None
        if result.finer is None
        else {
            "samples": len(result.finer.nats),
            "shift": float(result.finer.shift.mean()) * factor,
            "shift_error": spread(result.finer.shift * factor),
        },
        "prior": request.prior_name,
        "prior_cost": float(result.values["prior_cost"].mean()) * abs(factor),
        "prior_mismatch": None
        if background.moments is None
        else {"value": background.moments.mismatch(1.0) * abs(factor), "moments": background.moments_name},
        "quadrature_error": float(result.values["quadrature_error"].mean()) * abs(factor),
        "divergence": repr(result.divergence),
        "quadrature": repr(request.quadrature),
        "mode": result.rehearsal.mode,
        "mode_seconds": result.rehearsal.mode_seconds,
        "numbers": result.numbers,
        "draws": request.draws,
        "elbo_draws": request.elbo_draws,
        "discrete_draws": request.discrete_draws,
        "seed": request.seed,
        "chunk": request.chunk,
        "parts": {"found": result.found, "computed": result.computed},
        "processes": result.processes,
        "seconds": result.seconds,
        "provenance": dict(provenance),
    }


def _end_table(result: DatasetLikelihood) -> Table:
    """The answer at each end time, with and without the first-order estimate of log p_end − log p_0."""
    columns = [Column("end time", left=True), Column(unit(result)), Column("estimated log p_end − log p_0")]
    factor, lines = scale(result), []
    for e in result.ends:
        mean, estimate = float(e.nats.mean()) * factor, float(e.truncation.mean()) * factor
        lines.append(Line((f"{e.end:g}", f"{mean:.4f}", f"{estimate:+.4f}", f"{mean - estimate:.4f}")))
    return Table((*columns, Column("without it")), tuple(lines))
