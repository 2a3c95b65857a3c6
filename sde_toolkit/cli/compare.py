"""``sde-toolkit compare``: solvers at equal budgets, and a report that says how they did."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import Tensor

from sde_toolkit.auto import Plan
from sde_toolkit.calibration import load_calibration
from sde_toolkit.cli.parts import build_grids, build_solvers, load_model, model_name, real_data, whole_number
from sde_toolkit.cli.setup import choose_device, set_threads
from sde_toolkit.errors import ArgumentError
from sde_toolkit.evaluation.comparison import compare_solvers
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
    set_threads(config.threads)
    directory = Path(HydraConfig.get().runtime.output_dir)
    n, seed = whole_number(config, "n", 2), whole_number(config, "seed", 0)
    n_real = whole_number(config, "n_real", 4)
    endpoint_n = whole_number(config, "exact_flow.n", 0)
    endpoint_steps = whole_number(config, "exact_flow.steps", 1)
    batch_size = None if config.batch_size is None else whole_number(config, "batch_size", 1)
    budgets = _budgets(config.budgets)
    solvers, grids = build_solvers(config), build_grids(config)
    device = choose_device(config.device)
    model, weights = load_model(config)
    solvers |= _calibrated(config, model)
    check_request(model, solvers, budgets, n)
    plan_all(model, solvers, budgets, grids)
    real, source = real_data(config, model, n_real, n)
    judge = None
    if real is not None:
        judge = Judge(real, n, _features(config.features, model, real), source=source, seed=seed)
    OmegaConf.save(config, directory / "config.yaml", resolve=True)
    name = model_name(config)
    print(f"{name}: {_size(model)} on {model.sde}, {n} samples per row, seed {seed}")
    comparison = compare_solvers(
        model.to(device),
        solvers,
        budgets,
        grids=grids,
        n=n,
        seed=seed,
        judge=judge,
        without_judge=source,
        endpoint_n=n if endpoint_n and isinstance(model, GaussianMixture) else endpoint_n,
        endpoint_steps=endpoint_steps,
        batch_size=batch_size,
        device=device,
        progress=bool(config.progress),
    )
    record = provenance(model, name, weights, seed=seed, command=[*sys.argv[0].split(), *sys.argv[1:]])
    record["config"] = OmegaConf.to_container(config, resolve=True)
    page = write_report(comparison, directory, record, title=f"Solver comparison: {Path(name).name}")
    print(f"\n{text_table(comparison)}\n")
    if judge is None:
        print(f"No distances to real data: {source}.")
    elif judge.n < n:
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
