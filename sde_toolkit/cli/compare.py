"""``sde-toolkit compare``: solvers at equal budgets, and a report that says how they did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import Tensor

from sde_toolkit.auto import Plan
from sde_toolkit.calibration import load_calibration
from sde_toolkit.cli.parts import (
    build_grids,
    build_solvers,
    choose_labels,
    load_model,
    model_name,
    real_data,
    whole_number,
)
from sde_toolkit.cli.setup import command_words, join
from sde_toolkit.errors import ArgumentError
from sde_toolkit.evaluation.comparison import Comparison, compare_in_team
from sde_toolkit.evaluation.findings import findings, text_table
from sde_toolkit.evaluation.judging import Features, Judge, classifier_features, exact_features, flat_features
from sde_toolkit.evaluation.planning import Candidate, check_request, plan_all
from sde_toolkit.evaluation.provenance import provenance
from sde_toolkit.evaluation.report import require_report_packages, write_report
from sde_toolkit.exact import GaussianMixture
from sde_toolkit.score_model import ScoreModel

__all__ = ["run"]


def run(config: DictConfig) -> None:
    """Check everything, compare, write the report, print the table."""
    require_report_packages()
    place = join(config)
    n, seed = whole_number(config, "n", 2), whole_number(config, "seed", 0)
    n_real = whole_number(config, "n_real", 4)
    endpoint_n = whole_number(config, "exact_flow.n", 0)
    endpoint_steps = whole_number(config, "exact_flow.steps", 1)
    batch_size = None if config.batch_size is None else whole_number(config, "batch_size", 1)
    budgets = _budgets(config.budgets)
    solvers, grids = build_solvers(config), build_grids(config)
    model, weights = load_model(config)
    solvers |= _calibrated(config, model)
    check_request(model, solvers, budgets, n)
    plan_all(model, solvers, budgets, grids)
    labels = choose_labels(config, model, n)
    real, source = real_data(config, model, n_real, n, labels)
    features = None if real is None else _features(config.features, model, real)
    name = model_name(config)
    judge = None
    if place.main:
        if real is not None and features is not None:
            judge = Judge(real, n, features, source=source, seed=seed)
        OmegaConf.save(config, place.directory / "config.yaml", resolve=True)
        print(f"{name}: {_size(model)} on {model.sde}, {n} samples per row, seed {seed}")
    comparison = compare_in_team(
        model.to(place.device),
        solvers,
        budgets,
        place.team,
        place.directory,
        grids=grids,
        n=n,
        seed=seed,
        judge=judge,
        without_judge=source,
        endpoint_n=n if endpoint_n and isinstance(model, GaussianMixture) else endpoint_n,
        endpoint_steps=endpoint_steps,
        batch_size=batch_size,
        device=place.device,
        condition=None if labels is None else labels.to(place.device),
        progress=bool(config.progress),
    )
    if comparison is not None:
        record = provenance(model, name, weights, seed=seed, command=command_words())
        record["config"] = OmegaConf.to_container(config, resolve=True)
        page = write_report(comparison, place.directory, record, title=f"Solver comparison: {Path(name).name}")
        comparison.forget_parts()
        _print(comparison, judge, source, page)
    place.team.leave()


def _print(comparison: Comparison, judge: Judge | None, source: str, page: Path) -> None:
    print(f"\n{text_table(comparison)}\n")
    if judge is None:
        print(f"No distances to real data: {source}.")
    elif judge.n < comparison.n:
        print(f"Distances use the first {judge.n} samples of each row: half of the {len(judge.real)} real ones.")
    for sentence in findings(comparison):
        print(sentence)
    print(f"\nreport: {page}  ({comparison.seconds:.0f} s)")


def _calibrated(config: DictConfig, model: ScoreModel) -> dict[str, Candidate]:
    """``calibrations=[FILE,...]``: what ``sde-toolkit calibrate`` wrote, by the name of its folder or file."""
    found: dict[str, Candidate] = {}
    for given in config.calibrations or []:
        path = Path(str(given))
        calibration = load_calibration(path)
        calibration.check(model)
        name = path.parent.name if path.stem == "calibration" else path.stem
        found[f"calibrated {name}"] = Plan(calibration.solver, calibration.grid, calibration.tweedie)
    return found


def _budgets(given: Any) -> list[int]:
    """``budgets=10`` and ``budgets=[5,10]`` as a list; what is in it, the comparison checks."""
    return list(given) if isinstance(given, ListConfig) else [given]


def _features(name: str, model: ScoreModel, real: Tensor) -> Features:
    event_shape = tuple(real.shape[1:])
    digits = event_shape == (1, 28, 28)
    if name == "classifier" and not digits:
        problem = f"the classifier sees images of shape (1, 28, 28), these have {event_shape}"
        raise ArgumentError("features", name, problem, "Use features=data.")
    if name not in ("auto", "classifier", "data"):
        raise ArgumentError("features", name, "there are no such features", "Choose auto, classifier or data.")
    if isinstance(model, GaussianMixture):
        return exact_features(model, real)
    return classifier_features() if digits and name != "data" else flat_features(model.transform, real)


def _size(model: ScoreModel) -> str:
    parameters = sum(p.numel() for p in model.parameters())
    return f"{type(model.network).__name__} with {parameters:,} parameters" if parameters else "an exact score"
