"""The page of the suite: rankings with intervals, who beats whom, every cell, and what the truths are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sde_toolkit.evaluation.page import Definitions, Page, Section, facts_of, require_report_packages, write_page
from sde_toolkit.evaluation.report_table import Column, Line, Table, plus_minus
from sde_toolkit.files.whole import write_all
from sde_toolkit.metrics.metric import Estimate
from sde_toolkit.suite.rankings import Measure, Ranking, rank
from sde_toolkit.suite.suite_figures import curves
from sde_toolkit.suite.suite_results import Cell, Joined, SolverResults

__all__ = ["ranking_table", "suite_findings", "suite_page", "suite_records", "write_suite"]

_SURE = 0.975


def write_suite(joined: Joined, directory: str | Path, provenance: Mapping[str, Any] | None = None) -> Path:
    """Write ``report.html``, ``report.md``, the figures, ``results.csv`` and ``solvers/NAME.json``; the page's path.

    Raises:
        OSError: naming the file that cannot be written.
    """
    require_report_packages()
    folder = Path(directory)
    place = folder / "solvers"
    place.mkdir(parents=True, exist_ok=True)
    write_all(place, {r.file_name: r.as_bytes() for r in to_write(joined, folder)})
    page = suite_page(joined, dict(provenance or {}))
    return write_page(page, folder, {}, {"results.csv": suite_records(joined)}, results_name=None, markdown=True)


def to_write(joined: Joined, folder: Path) -> list[SolverResults]:
    """The results that are not in this folder yet."""
    return [r for r in joined.solvers if r.file is None or r.file.resolve().parent != (folder / "solvers").resolve()]


def suite_records(joined: Joined) -> list[dict[str, Any]]:
    """One flat dictionary per cell, without the errors of single samples."""
    return [
        {"solver": results.solver, **{key: value for key, value in cell.record().items() if key != "each"}}
        for results in joined.solvers
        for cell in results.cells
    ]


def suite_page(joined: Joined, provenance: Mapping[str, Any]) -> Page:
    """The page of joined results."""
    flow, distance = (rank(joined, measure) for measure in (Measure.ERROR, Measure.DISTANCE))
    sections = []
    if flow.standings:
        sections += [
            Section("Ranking: error against the exact flow", _ranked(joined, Measure.ERROR, flow, _OF_FLOW)),
            Section("Ranking: the typical sample", _ranked(joined, Measure.MEDIAN, None, _OF_MEDIAN)),
        ]
    sections.append(
        Section("Ranking: distance of distributions", _ranked(joined, Measure.DISTANCE, distance, _OF_DATA))
    )
    sections += [
        Section("Every cell: error against the exact flow", (_ERRORS, *_cells(joined, Measure.ERROR))),
        Section("Every cell: distance of distributions", (_DISTANCES, *_cells(joined, Measure.DISTANCE))),
        Section("The truths", (Definitions(tuple(_about(joined))),)),
        Section("How this was measured", (Definitions(tuple(_explanations(joined))),)),
    ]
    count = len(joined.truths)
    facts = facts_of(
        provenance, f"{len(joined.solvers)} solvers", f"{count} truth{'s' * (count != 1)}", _budgets(joined)
    )
    return Page("Suite of solvers", suite_findings(joined, flow, distance), facts, sections, provenance)


def suite_findings(joined: Joined, flow: Ranking | None = None, distance: Ranking | None = None) -> list[str]:
    """What the intervals allow to say."""
    flow = flow or rank(joined, Measure.ERROR)
    distance = distance or rank(joined, Measure.DISTANCE)
    found = []
    for ranking, what in ((flow, "error against the exact flow"), (distance, "distance to real samples")):
        ranked = [standing for standing in ranking.standings if standing.rank is not None]
        if len(ranked) < 2:
            continue
        first, others = ranked[0], [name for name in ranking.leaders if name != ranked[0].solver]
        text = f"Smallest {what} over {_truth_count(ranking)} and all budgets: {first.solver}, {_times(first.ratio)} "
        text += f"the best of each cell (95 %: {_times(first.low)} to {_times(first.high)})"
        if others:
            text += f". Not told apart from it: {', '.join(others)}."
        else:
            text += f"; every other solver has a larger one in {100 * _SURE:g} % of the resamples or more."
        found.append(text)
    found += [f"Left out: {sentence}" for sentence in joined.left_out]
    failed = sum(bool(cell.failure) for results in joined.solvers for cell in results.cells)
    if failed:
        found.append(f"{failed} cell{'s' * (failed > 1)} without samples: the reasons stand below the tables.")
    return found or ["One solver: there is nothing to rank it against."]


def _ranked(joined: Joined, measure: Measure, whole: Ranking | None, text: str) -> tuple[Any, ...]:
    """The blocks of a ranking: what it is, the table, the matrix, and curves."""
    whole = whole or rank(joined, measure)
    blocks: list[Any] = [text, ranking_table(joined, measure, whole)]
    ranked = [standing.solver for standing in whole.standings if standing.rank is not None]
    if len(ranked) > 1 and measure is not Measure.MEDIAN:
        blocks += [_MATRIX, _matrix(whole, ranked)]
    if measure is not Measure.MEDIAN:
        blocks.append(curves(joined, measure))
    return tuple(blocks)


def ranking_table(joined: Joined, measure: Measure, whole: Ranking | None = None) -> Table:
    """Solvers, best first: rank and ratio over all budgets, and the ratio at each budget."""
    whole = whole or rank(joined, measure)
    each = {budget: {s.solver: s for s in rank(joined, measure, [budget]).standings} for budget in whole.budgets}
    columns = (
        Column("rank", "by the geometric mean over all budgets; in brackets its 95 % interval"),
        Column("solver", left=True),
        Column("all budgets", "ratio to the best solver of each cell, geometric mean over truths and budgets, 95 %"),
        *(Column(str(budget), "the same at this number of evaluations" * (k == 0)) for k, budget in enumerate(each)),
    )
    lines = []
    for standing in whole.standings:
        place = f"{standing.rank} [{standing.rank_low}–{standing.rank_high}]" if standing.rank else "–"
        name = standing.solver
        if standing.rank is None:
            name += f" ({standing.covered} of {len(whole.truths)} truths)"
        if standing.failed:
            name += f", {standing.failed} failed"
        cells = [_interval(each[budget].get(standing.solver)) for budget in each]
        lines.append(Line((place, name, _interval(standing), *cells)))
    return Table(columns, tuple(lines))


def _interval(standing: Any) -> str:
    if standing is None or not math.isfinite(standing.ratio):
        return "–"
    return f"{standing.ratio:.3g} [{standing.low:.3g}, {standing.high:.3g}]"


def _matrix(ranking: Ranking, names: Sequence[str]) -> Table:
    """In how many of the resamples the row's solver is better than the column's."""
    columns = (Column("", left=True), *(Column(name) for name in names))
    lines = []
    for i, name in enumerate(names):
        shares = [100 * float(ranking.beats[i, j]) for j in range(len(names))]
        cells = ["" if i == j else f"{share:.0f} %{'*' * (share >= 100 * _SURE)}" for j, share in enumerate(shares)]
        lines.append(Line((name, *cells)))
    return Table(columns, tuple(lines))


def _cells(joined: Joined, measure: Measure) -> list[Any]:
    """The table of all values of a measure, a group of lines for each truth; and why cells have none."""
    budgets = joined.budgets
    columns = (Column("truth", left=True), Column("solver", left=True), *(Column(str(budget)) for budget in budgets))
    lines, failures = list[Line](), list[str]()
    for truth, facts in joined.truths.items():
        kind: Any = "group" if lines else ""
        for results in joined.solvers:
            cells = [joined.cell(results.solver, truth, budget) for budget in budgets]
            if not any(cell is not None and not cell.failure and measure.takes(cell) for cell in cells):
                continue
            lines.append(Line((truth, results.solver, *(_value(cell, measure, facts) for cell in cells)), kind))
            kind = ""
    for results in joined.solvers:
        for cell in results.cells:
            if cell.failure:
                failures.append(f"**{results.solver}** on {cell.truth} at {cell.budget}: {cell.failure}")
    if not lines:
        return []
    return [Table(columns, tuple(lines)), *failures]


def _value(cell: Cell | None, measure: Measure, facts: Any) -> str:
    if cell is None or not measure.takes(cell):
        return "–"
    if cell.failure:
        return "failed"
    if measure is Measure.DISTANCE and cell.distance is not None:
        floor = Estimate(facts.floor, facts.floor_error)
        spread = math.hypot(cell.distance.error, floor.error)
        near = cell.distance.value <= floor.value + 2 * (spread if math.isfinite(spread) else 0.0)
        return ("≈ " if near else "") + plus_minus(cell.distance)
    errors = cell.flow_errors
    return "–" if errors is None else f"{errors.rmse:.2g} ± {errors.standard_error:.1g} ({errors.median:.1g})"


def _about(joined: Joined) -> list[tuple[str, str]]:
    found = []
    for name, facts in joined.truths.items():
        text = f"{facts.description}. **Why:** {facts.reason}. " if facts.description else ""
        text += f"{facts.n} noises. Own error of the reference: {facts.own_error:.1e} of the data's size; floor of the "
        text += f"distance: {plus_minus(Estimate(facts.floor, facts.floor_error))}."
        found.append((name, text))
    return found


def _explanations(joined: Joined) -> list[tuple[str, str]]:
    return [
        (
            "Budget",
            "Evaluations of the network per sample, counted as they happen. Every solver runs on the grid that is "
            "usual for it, and takes as many steps as the budget allows. What a planner evaluates to choose its plan "
            "is not counted: `auto` asks a model once, 62 times for one sample.",
        ),
        (
            "Error against the exact flow",
            "The probability flow is followed from the same noises: exact scores by DOP853 in float64, networks by "
            "many more steps. The error is the root mean square difference per element, as a part of the data's size "
            "√E[x²]. In brackets: the median over samples, which a few noises that end in another mode do not change. "
            "Deterministic solvers only.",
        ),
        (
            "Distance of distributions",
            "Sliced Wasserstein distance W₂ (128 directions) to eight times as many real samples, after whitening by "
            "their covariance: it is in standard deviations of the data. ≈: within two standard errors of the floor, "
            "which is the distance of as many other real samples. For networks it includes the network's own error.",
        ),
        (
            "Ratios and intervals",
            "A value is divided by the smallest one of all solvers in its cell; the geometric mean is taken over "
            "truths and budgets. Intervals: 95 % over resampled truths and resampled noises, the same for all solvers. "
            "A value above 1 counts as 1, and so does a cell without samples: samples that are all the data's mean "
            "have about this error and this distance.",
        ),
        (
            "Code",
            "; ".join(f"{r.solver}: {r.code.get('version')}, {str(r.code.get('source'))[:12]}" for r in joined.solvers),
        ),
    ]


def _budgets(joined: Joined) -> str:
    return f"{', '.join(map(str, joined.budgets))} evaluations"


def _truth_count(ranking: Ranking) -> str:
    count = len(ranking.truths)
    return f"{count} truths" if count != 1 else "one truth"


def _times(ratio: float) -> str:
    return f"{ratio:.3g} ×"


_OF_FLOW = "RMSE to the endpoint of the exact flow, for solvers of the flow. 1 is the best solver of every cell."
_OF_MEDIAN = "The median over samples of the error against the exact flow: how good a typical sample is."
_OF_DATA = "Sliced Wasserstein distance to real samples, for all solvers. Near the floor all ratios tend to 1."
_MATRIX = "In how many resamples the solver of the row is better than that of the column; * at 97.5 % or more."
_ERRORS = "RMSE ± standard error (median of the samples), as a part of the data's size, by evaluations."
_DISTANCES = "Distance ± standard error by evaluations; ≈ marks what is within two standard errors of the floor."
