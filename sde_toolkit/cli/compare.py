"""``sde-toolkit compare``: solvers at equal budgets, and a report on them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from sde_toolkit.calibration import load_calibration
from sde_toolkit.checks import MOST, is_count
from sde_toolkit.cli.folders import CONFIG, save_config
from sde_toolkit.cli.guidances import guided_models
from sde_toolkit.cli.measured import measured_models
from sde_toolkit.cli.parts import (
    build_grids,
    build_solvers,
    check_room,
    choose_labels,
    load_models,
    model_name,
    number_of_evaluations,
    whole_number,
)
from sde_toolkit.cli.real_data import real_data
from sde_toolkit.cli.setup import Workplace, command_words, join, listed, switch
from sde_toolkit.cli.user_files import metrics_of_user
from sde_toolkit.errors import ArgumentError
from sde_toolkit.evaluation.candidates import Candidate
from sde_toolkit.evaluation.comparison import Comparison, compare_in_team
from sde_toolkit.evaluation.comparison_request import POINTS, ComparisonRequest
from sde_toolkit.evaluation.comparison_tables import comparison_table
from sde_toolkit.evaluation.findings import comparison_findings
from sde_toolkit.evaluation.page import require_report_packages
from sde_toolkit.evaluation.real_samples import usual_features
from sde_toolkit.evaluation.report import report_files
from sde_toolkit.metrics.judge import Judge
from sde_toolkit.models.conditions import map_rows
from sde_toolkit.models.mixture import GaussianMixture
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.progress import require_progress
from sde_toolkit.sampling.automatic import Plan
from sde_toolkit.solvers import Solver

__all__ = ["run"]


def run(config: DictConfig) -> None:
    """Check everything, compare, write the report, print the table."""
    require_report_packages()
    place = join(config)
    request, weights = _prepare(config, place)
    with place.holding("compare", _files(request)):
        comparison = _compare(config, place, request, weights)
    if comparison is not None:
        _print(comparison, place.directory / "report.html")
    place.team.leave()


@dataclass(frozen=True, eq=False)
class _Models:
    """The models of the rows; ``names`` is None for one without a name.

    ``first`` speaks for all in the report; ``prior`` is the same without a measurement. ``condition``: of the samples.
    ``exact_flow``: whether flows are solved. ``measured``: places of held-out samples that were measured. ``steps``:
    the solvers of step operators, which run on ``prior``.
    """

    first: ScoreModel
    prior: ScoreModel
    names: dict[str, ScoreModel] | None
    condition: Any
    labels: Tensor | None
    exact_flow: bool = True
    measured: Tensor | None = None
    steps: dict[str, Solver] = field(default_factory=dict)


def _models(config: DictConfig, loaded: dict[str, ScoreModel], n: int) -> _Models:
    """What ``model``, ``guidance``, ``task`` and ``method`` make of the loaded models.

    Raises:
        ArgumentError: for several models where one is wanted.
    """
    model = next(iter(loaded.values()))
    labels = choose_labels(config, model, n)
    if len(loaded) > 1:
        for name in ("guidance", "task", "class", "labels"):
            if config.get(name) is not None:
                problem = f"it is for one model, and {len(loaded)} were given"
                raise ArgumentError(name, config[name], problem, "Give one model, or leave it out.")
        return _Models(model, model, loaded, labels, labels)
    guided = guided_models(config, model, labels)
    model = guided.get("guidance=1", next(iter(guided.values()), model))
    measured = measured_models(config, model, labels, n)
    task = config.get("task") is not None
    if task and len(guided) > 1:
        raise ArgumentError("guidance", list(guided), "one is wanted beside task=...", "Give one guidance.")
    if task:
        first = next(iter(measured.models.values()), model)
        found = dict(measured.models)
        return _Models(first, model, found, measured.condition, labels, False, measured.index, measured.steps)
    named = guided or ({name: each for name, each in loaded.items() if name} or None)
    return _Models(model, model, named, measured.condition, labels)


def _prepare(config: DictConfig, place: Workplace) -> tuple[ComparisonRequest, dict[str, str | None]]:
    """The checked request, and which weights were loaded of each model. Only the main process builds the judge."""
    n, seed = whole_number(config, "n", 2), whole_number(config, "seed", 0)
    seeds = whole_number(config, "seeds", 1)
    n_real = whole_number(config, "n_real", 4)
    endpoint_n = whole_number(config, "exact_flow.n", 0)
    endpoint_steps = number_of_evaluations(config, "exact_flow.steps")
    batch_size = None if config.batch_size is None else whole_number(config, "batch_size", 1)
    progress = switch(config, "progress")
    require_progress(progress)
    budgets = _budgets(config.budgets)
    solvers, grids = build_solvers(config), build_grids(config) if config.get("grids") else None
    metrics = metrics_of_user(listed(config.metric))
    loaded = load_models(config)
    models = _models(config, {name: model for name, (model, _) in loaded.items()}, n)
    model = models.first
    if endpoint_n and isinstance(model, GaussianMixture):
        endpoint_n = n
    real, source = real_data(config, models.prior, n_real, n, models.labels, models.measured)
    features = None if real is None else usual_features(models.prior, real, config.features)
    judge = None
    if place.main and real is not None and features is not None:
        judge = Judge(real, n, features, source=source, seed=seed)
    for each in (*(models.names or {}).values(), model, models.prior):
        each.to(place.device)
    request = ComparisonRequest(
        model=model,
        models=models.names,
        pairs={name: (models.prior, solver) for name, solver in models.steps.items()},
        solvers=solvers | _calibrated(config, model),
        budgets=budgets,
        grids=grids,
        n=n,
        points=POINTS,
        seed=seed,
        seeds=seeds,
        judge=judge,
        without_judge=source,
        metrics=metrics if place.main and metrics else None,
        endpoint_n=endpoint_n if models.exact_flow else 0,
        endpoint_steps=endpoint_steps,
        references=switch(config, "references") and models.exact_flow,
        batch_size=batch_size,
        device=place.device,
        condition=map_rows(models.condition, lambda part: part.to(place.device)),
        check_declaration=switch(config, "check_declaration"),
        progress=progress,
    )
    check_room("n", n, request.event_shape, len(request.runs) * seeds)
    return request, {name: weights for name, (_, weights) in loaded.items()}


def _files(request: ComparisonRequest) -> list[str]:
    """The names of the files that the command writes."""
    return [*report_files(request.runs), CONFIG]


def _compare(
    config: DictConfig, place: Workplace, request: ComparisonRequest, weights: dict[str, str | None]
) -> Comparison | None:
    """The comparison, its report written; None in all processes but the main one."""
    name, model = model_name(config), request.model
    if place.main:
        last = request.seed + request.seeds - 1
        seeds = f"seed {last}" if request.seeds == 1 else f"seeds {request.seed} to {last}"
        print(f"{name}: {_size(model)} on {model.sde}, {request.n} samples per row, {seeds}")
    comparison = compare_in_team(request, place.team, place.directory, say=print)
    if comparison is not None:
        one = next(iter(weights.values())) if len(weights) == 1 else None
        record = comparison.provenance(name, one, command_words())
        record["weights"] = {model or name: each for model, each in weights.items()}
        record["config"] = OmegaConf.to_container(config, resolve=True)
        comparison.write(place.directory, record, title=f"Solver comparison: {Path(name).name}")
        save_config(config, place.directory)  # last, so that it always belongs to the report
        comparison.forget_parts()
    return comparison


def _print(comparison: Comparison, page: Path) -> None:
    print(f"\n{comparison_table(comparison).text()}\n")
    judge = comparison.judge
    if judge is not None:
        print("±: one standard error. ≈: within two standard errors of real data. overhead: time outside the network.")
    if judge is None:
        print(f"No distances to real data: {comparison.request.without_judge}.")
    elif judge.n < comparison.n:
        print(f"Distances use the first {judge.n} samples of each row: half of the {len(judge.real)} real ones.")
    for sentence in comparison_findings(comparison):
        print(sentence)
    print(f"{comparison.n} samples per row; n={4 * comparison.n} halves the errors and takes four times as long.")
    print(f"\nreport: {page}  ({comparison.seconds:.0f} s)")


def _calibrated(config: DictConfig, model: ScoreModel) -> dict[str, Candidate]:
    """``calibrations=[FILE,...]``: what ``sde-toolkit calibrate`` wrote, by the name of its folder or file."""
    found: dict[str, Candidate] = {}
    for given in listed(config.calibrations):
        path = Path(str(given))
        calibration = load_calibration(path)
        calibration.check(model)
        name = path.parent.name if path.stem == "calibration" else path.stem
        found[f"calibrated {name}"] = Plan(calibration.solver, calibration.grid, calibration.tweedie)
    return found


def _budgets(given: Any) -> list[int]:
    """``budgets=10`` and ``budgets=[5,10]`` as a list. The comparison checks its entries."""
    budgets = listed(given)
    if any(is_count(budget) and budget > MOST for budget in budgets):
        problem = f"at most {MOST} evaluations per sample can be planned"
        raise ArgumentError("budgets", budgets, problem, "Use [5,10,20], for example.")
    return budgets


def _size(model: ScoreModel) -> str:
    parameters = sum(p.numel() for p in model.parameters())
    return f"{type(model.network).__name__} with {parameters:,} parameters" if parameters else "an exact score"
