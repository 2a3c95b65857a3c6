"""Several comparisons as one table: models × solvers, in one metric.

What is joined are the files ``results.json`` of reports. A line is a solver on a grid with a model, a column a budget.
Only what was measured alike can be joined: the same metric with the same settings, in the same features, with as many
samples, and for one model the same real data. Budgets, seeds, solvers and models may differ.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from sde_toolkit.errors import ArgumentError
from sde_toolkit.evaluation.comparison_results import results_as_data
from sde_toolkit.evaluation.latex import latex_table
from sde_toolkit.evaluation.report_table import Column, Line, Table, percent, plus_minus
from sde_toolkit.evaluation.rows import Comparison
from sde_toolkit.files.plain import UnreadableFileError, read_json
from sde_toolkit.jobs.fingerprints import differences
from sde_toolkit.metrics.metric import Estimate

__all__ = ["JoinedComparisons", "JoinedValue", "join_comparisons"]

_RESULTS = "results.json"
_ADAPTIVE = "adaptive"


@dataclass(frozen=True)
class JoinedValue:
    """The value of a solver on a grid with a model at a budget; ``run``: where it stands."""

    model: str
    solver: str
    grid: str
    budget: int | None
    nfe: int
    value: Estimate
    run: str


@dataclass(frozen=True)
class JoinedComparisons:
    """All values of one metric. ``floors``: what as many real samples score, by the models' names."""

    metric: str
    heading: str
    lower_is_better: bool | None
    share: bool
    cells: tuple[JoinedValue, ...]
    floors: Mapping[str, Estimate] = field(default_factory=dict)
    near: Mapping[tuple[JoinedValue, JoinedValue], bool] = field(default_factory=dict, repr=False)

    @property
    def models(self) -> list[str]:
        return list(dict.fromkeys(cell.model for cell in self.cells))

    @property
    def budgets(self) -> list[int | None]:
        """The smallest first, adaptive solvers last."""
        return sorted({cell.budget for cell in self.cells}, key=lambda budget: (budget is None, budget or 0))

    def table(self) -> Table:
        """A line for each model, solver and grid, a column for each budget; the best of a model and budget in bold.

        In bold, too, is what cannot be told from the best: by the paired interval if both are of one comparison, or
        else within two standard errors of the difference.
        """
        heads = [_ADAPTIVE if budget is None else str(budget) for budget in self.budgets]
        columns = [Column("model", left=True), Column("solver", left=True), Column("grid", left=True)]
        columns += [Column(head) for head in heads]
        lines: list[Line] = []
        for model in self.models:
            own = [cell for cell in self.cells if cell.model == model]
            bold = {cell for budget in self.budgets for cell in self._best([c for c in own if c.budget == budget])}
            for k, (solver, grid) in enumerate(dict.fromkeys((cell.solver, cell.grid) for cell in own)):
                known = {cell.budget: cell for cell in own if (cell.solver, cell.grid) == (solver, grid)}
                texts = [self._text(known[b].value) if b in known else "–" for b in self.budgets]
                best = frozenset(3 + j for j, b in enumerate(self.budgets) if known.get(b) in bold)
                lines.append(Line((model, solver, grid, *texts), "group" if k == 0 and lines else "", best))
            if model in self.floors:
                floor = self._text(self.floors[model])
                lines.append(Line((model, "real data (floor)", "", *(floor for _ in self.budgets))))
        return Table(tuple(columns), tuple(lines), sortable=True)

    def text(self) -> str:
        """For a terminal."""
        return f"{self.heading} by network evaluations\n\n{self.table().text()}"

    def markdown(self) -> str:
        """For Markdown."""
        return f"{self.heading} by network evaluations\n\n{self.table().markdown()}\n"

    def latex(self) -> str:
        """For LaTeX with booktabs."""
        bold = " In bold: the best of each model and budget, and what cannot be told from it."
        caption = f"{self.heading} by network evaluations; ± is one standard error.{bold}"
        return latex_table(self.table(), caption, "tab:comparisons")

    def records(self) -> list[dict[str, Any]]:
        """A flat dictionary for each value: what the CSV is made of."""
        return [
            {
                "model": cell.model,
                "solver": cell.solver,
                "grid": cell.grid,
                "budget": cell.budget,
                "nfe": cell.nfe,
                self.metric: cell.value.value,
                f"{self.metric}_error": cell.value.error,
                "run": cell.run,
            }
            for cell in self.cells
        ]

    def _text(self, value: Estimate) -> str:
        return percent(value) if self.share else plus_minus(value)

    def _best(self, cells: Sequence[JoinedValue]) -> list[JoinedValue]:
        """The best cell and those that cannot be told from it; none of a single one."""
        if len(cells) < 2 or self.lower_is_better is None:
            return []
        sign = 1 if self.lower_is_better else -1
        best = min(cells, key=lambda cell: sign * cell.value.value)

        def near(cell: JoinedValue) -> bool:
            if (best, cell) in self.near:
                return self.near[best, cell]
            errors = (e for e in (best.value.error, cell.value.error) if math.isfinite(e))
            return sign * (cell.value.value - best.value.value) <= 2 * math.hypot(*errors)

        return [cell for cell in cells if cell is best or near(cell)]


Run: TypeAlias = Comparison | str | Path
"""A comparison, the folder of its report, or the report's ``results.json``."""


def join_comparisons(runs: Mapping[str, Run] | Sequence[Run] | Run, metric: str | None = None) -> JoinedComparisons:
    """The values of one metric from several comparisons.

    Args:
        runs: comparisons, folders of reports, or their files ``results.json``; a mapping gives the models their names.
        metric: the name of a metric that all runs have; by default the first one.

    Raises:
        ArgumentError: for what is no report, a metric that a run does not have, and for comparisons that are not alike:
            naming the run and what differs.
    """
    read = _read(runs)
    name = _common_metric(read, metric)
    _check_alike(read, name)
    first = next(iter(read.values()))["metrics"][name]
    names = _model_names(read, given=isinstance(runs, Mapping))
    cells, near, floors = list[JoinedValue](), dict[tuple[JoinedValue, JoinedValue], bool](), dict[str, Estimate]()
    for run, content in read.items():
        own = _cells(run, content, name, names)
        _check_new(cells, own)
        cells += own
        near |= _near(content, name, own)
        floor = content["real_data"].get(name)
        if floor is not None:
            floors |= {cell.model: _estimate(floor, content["real_data"].get(f"{name}_error")) for cell in own}
    better, share = first["lower_is_better"], bool(first.get("share"))
    return JoinedComparisons(name, first["heading"], better, share, tuple(cells), floors, near)


def _read(runs: Any) -> dict[str, dict[str, Any]]:
    """The content of each run by its name: the key of a mapping, or the path."""
    if isinstance(runs, Run):
        runs = [runs]
    if not isinstance(runs, Mapping):
        runs = {f"runs[{k}]" if isinstance(run, Comparison) else str(run): run for k, run in enumerate(runs)}
    if not runs:
        raise ArgumentError("runs", [], "there is nothing to join", "Give folders that compare has written.")
    found = {}
    for name, given in runs.items():
        if isinstance(given, Comparison):
            found[str(name)] = results_as_data(given, {})
            continue
        file = Path(given) / _RESULTS if Path(given).is_dir() else Path(given)
        try:
            content = read_json(file)
        except (OSError, UnreadableFileError) as error:
            raise ArgumentError("runs", str(given), f"no report is there ({error})", _REMEDY) from None
        if not isinstance(content, dict) or not {"rows", "metrics", "hashes", "real_data"} <= set(content):
            raise ArgumentError("runs", str(given), "its results.json is not that of a comparison", _REMEDY)
        found[str(name)] = content
    return found


_REMEDY = "Give the output folders of sde-toolkit compare."


def _common_metric(read: Mapping[str, Any], metric: str | None) -> str:
    measured = {run: list(content["metrics"]) for run, content in read.items()}
    common = [name for name in next(iter(measured.values())) if all(name in names for names in measured.values())]
    if metric is None and common:
        return common[0]
    if metric in common:
        return str(metric)
    lacking = next((run for run, names in measured.items() if metric not in names), "")
    have = "; ".join(f"{run}: {', '.join(names)}" for run, names in measured.items())
    problem = "no metric is in all runs" if metric is None else f"{lacking} does not have it"
    raise ArgumentError("metric", metric, f"{problem} ({have})", "Join runs that were measured alike.")


def _conditions(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What a value of this metric depends on, the model and the data apart."""
    about, real = content["metrics"][name], content["real_data"]
    found = {"metric": about}
    if about["against"] in ("PARTS", "ALL"):
        found["real_data"] = {key: real.get(key) for key in ("features", "compared", "count")}
    return found


def _check_alike(read: Mapping[str, Any], name: str) -> None:
    """Check that all runs measured the metric in the same way, and one model against the same data."""
    first, *others = read
    for other in others:
        unlike = differences(_conditions(read[first], name), _conditions(read[other], name))
        if unlike:
            problem = f"{name} was not measured as in {first}: {'; '.join(unlike)}"
            raise ArgumentError("runs", other, problem, "Compare with the same settings, or choose another metric.")
    data: dict[str, tuple[str, Any]] = {}
    for run, content in read.items():
        if content["metrics"][name]["against"] not in ("PARTS", "ALL"):
            continue
        for model in content["hashes"]["models"].values():
            known, digest = data.setdefault(model, (run, content["hashes"]["data"]))
            if digest != content["hashes"]["data"]:
                problem = f"its real data are not those of {known}, and the model is the same"
                raise ArgumentError("runs", run, problem, "Compare both with the same data=... and n_real=...")


def _model_names(read: Mapping[str, Any], *, given: bool) -> dict[tuple[str, str], str]:
    """The name in the table of each model of each run: (run, name there) to name. One model has one name."""
    wished: dict[tuple[str, str], tuple[str, str]] = {}
    for run, content in read.items():
        models = content["hashes"]["models"]
        known = (content.get("provenance") or {}).get("model")
        usual = str(known["name"]) if isinstance(known, Mapping) and known.get("name") else Path(run).name
        for name, digest in models.items():
            alone = run if given else usual
            wished[run, name] = (name if len(models) > 1 else alone, digest)
    hashes: dict[str, set[str]] = {}
    for name, digest in wished.values():
        hashes.setdefault(name, set()).add(digest)
    return {
        (run, there): name if len(hashes[name]) == 1 else f"{name} ({Path(run).name})"
        for (run, there), (name, _) in wished.items()
    }


def _cells(run: str, content: Mapping[str, Any], name: str, names: Mapping[tuple[str, str], str]) -> list[JoinedValue]:
    """The values of a run; rows without one are left out."""
    found = []
    for row in content["rows"]:
        if row.get(name) is None:
            continue
        model = row["model"] if (run, row["model"]) in names else next(iter(content["hashes"]["models"]))
        value = _estimate(row[name], row.get(f"{name}_error"))
        solver = row["solver"].removesuffix(f", {row['model']}")  # a comparison of several models names both
        found.append(JoinedValue(names[run, model], solver, row["grid"], row["budget"], row["nfe"], value, run))
    return found


def _estimate(value: float, error: float | None) -> Estimate:
    return Estimate(value, math.nan if error is None else error)


def _check_new(cells: Sequence[JoinedValue], new: Sequence[JoinedValue]) -> None:
    """Check that no row is there twice."""
    known = {(cell.model, cell.solver, cell.grid, cell.budget): cell.run for cell in cells}
    for cell in new:
        place = (cell.model, cell.solver, cell.grid, cell.budget)
        if place in known:
            row = f"{cell.solver}, {cell.grid}, {cell.budget} of the model {cell.model}"
            problem = f"its row {row} is in {known[place]}, too"
            remedy = 'Leave one of the runs out, or name the models: {"first": ..., "second": ...}.'
            raise ArgumentError("runs", cell.run, problem, remedy)


def _near(
    content: Mapping[str, Any], name: str, own: Sequence[JoinedValue]
) -> dict[tuple[JoinedValue, JoinedValue], bool]:
    """For pairs of one comparison whether the first one is not the better by their paired interval."""
    rows = [row for row in content["rows"] if row.get(name) is not None]
    places = {(row["solver"], row["grid"], row["budget"]): cell for row, cell in zip(rows, own, strict=True)}
    found = {}
    for pair in content.get("paired") or ():
        one, other = ((pair[key], pair[f"{key}_grid"], pair["budget"]) for key in ("row", "minus"))
        if pair["metric"] == name and one in places and other in places:
            found[places[one], places[other]] = pair["verdict"] != "better"
            found[places[other], places[one]] = pair["verdict"] != "worse"
    return found
