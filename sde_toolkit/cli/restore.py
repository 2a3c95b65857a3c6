"""``sde-toolkit restore``: measured samples are restored by several methods, and a report on them."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from sde_toolkit.cli.folders import CONFIG, save_config
from sde_toolkit.cli.guidances import guided_model
from sde_toolkit.cli.held_out import read_file
from sde_toolkit.cli.measured import check_noise, methods_of, truth_of
from sde_toolkit.cli.parts import (
    build_grids,
    build_solvers,
    choose_labels,
    load_model,
    model_name,
    number_of_evaluations,
    whole_number,
)
from sde_toolkit.cli.setup import Workplace, command_words, instantiate, join, switch
from sde_toolkit.errors import ArgumentError
from sde_toolkit.evaluation.page import require_report_packages
from sde_toolkit.evaluation.restoration import Restoration, RestorationRequest, Steps, restore_in_team
from sde_toolkit.evaluation.restoration.restoration_figures import figure_names
from sde_toolkit.evaluation.restoration.restoration_findings import restoration_findings, restoration_table
from sde_toolkit.evaluation.restoration.restoration_report import write_restoration_report
from sde_toolkit.jobs.provenance import provenance_of
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.progress import require_progress

__all__ = ["run"]

_SAMPLES, _SAMPLES_OF_MIXTURES = 16, 500


def run(config: DictConfig) -> None:
    """Check everything, restore, write the report, print the table."""
    require_report_packages()
    progress = switch(config, "progress")
    require_progress(progress)
    place = join(config)
    request, weights = prepare(config, place)
    files = ["report.html", "results.json", "results.csv", "samples.npz", CONFIG]
    with place.holding("restore", [*files, *(f"{name}.png" for name in figure_names(len(request.truth)))]):
        result = _restore(config, place, request, weights, progress)
    if result is not None:
        _print(result, place.directory / "report.html")
    place.team.leave()


def prepare(config: DictConfig, place: Workplace) -> tuple[RestorationRequest, str | None]:
    """The checked request, and which weights were loaded.

    Raises:
        SDEToolkitError: naming the setting.
    """
    k, seed = whole_number(config, "measurements", 1), whole_number(config, "seed", 0)
    n = None if config.n is None else whole_number(config, "n", 2)
    noise = check_noise(config)
    cost = None if config.cost is None else number_of_evaluations(config, "cost", 2)
    methods, task = methods_of(config), instantiate(config.task)
    model, weights = load_model(config)
    if n is None:
        n = _SAMPLES_OF_MIXTURES if model.has_exact_score else _SAMPLES
    labels = choose_labels(config, model, n)
    truth, source = _truth(config, model, k)
    request = RestorationRequest(
        model=guided_model(config, model, labels).to(place.device),
        truth=truth,
        task=task,
        noise_std=noise,
        methods=methods,
        steps=_steps(config),
        cost=cost,
        n=n,
        seed=seed,
        condition=None if labels is None else labels.to(place.device),
        source=source,
        device=place.device,
    )
    return request, weights


def _steps(config: DictConfig) -> Steps:
    """The one solver on the one grid."""
    solvers, grids = build_solvers(config), build_grids(config)
    for what, chosen in (("solver", solvers), ("grid", grids)):
        if len(chosen) != 1:
            problem = f"exactly one {what} restores, so that the methods are compared"
            raise ArgumentError(what, list(chosen), problem, f"Choose {what}=NAME.")
    (solver_name, solver), (grid_name, grid) = solvers.popitem(), grids.popitem()
    return Steps(solver_name, solver, grid_name, grid, number_of_evaluations(config))


def _truth(config: DictConfig, model: ScoreModel, k: int) -> tuple[Tensor, str]:
    """The samples (k, *event) that are measured, in data space, and their source.

    Raises:
        DataError: if there are none of the model's shape.
    """
    if model.event_shape is None:
        problem = "it does not say which shape its samples have"
        raise ArgumentError("model", model_name(config), problem, "Add event_shape to its model.yaml.")
    if config.file is not None:
        x = read_file(str(config.file), model.event_shape)
        return x, f"the file {Path(str(config.file)).name}"
    x, source, _ = truth_of(config, model, k, "measurements")
    return x, source


def _restore(
    config: DictConfig, place: Workplace, request: RestorationRequest, weights: str | None, progress: bool
) -> Restoration | None:
    """The restoration, its report written; None in all processes but the main one."""
    name, shape = model_name(config), tuple(request.truth.shape[1:])
    if place.main:
        what = f"{len(request.truth)} samples of shape {shape}, {request.task.describe(shape)}"
        print(f"{name}: {what}, noise {request.noise_std:g}, seed {request.seed}")
    result = restore_in_team(request, team=place.team, store_in=place.directory, progress=progress)
    if result is not None:
        record = provenance_of(request.model, name, weights, seed=request.seed, command=command_words())
        record["config"] = OmegaConf.to_container(config, resolve=True)
        write_restoration_report(result, place.directory, record, title=f"Restoration: {Path(name).name}")
        save_config(config, place.directory)  # last, so that it always belongs to the report
        result.forget_parts()
    return result


def _print(result: Restoration, page: Path) -> None:
    print(f"\n{restoration_table(result).text()}\n")
    print("±: one standard error, over the measurements.")
    for sentence in restoration_findings(result):
        print(sentence)
    for done in result.restored:
        for note in done.notes:
            print(f"{done.name}: {note}")
    print(f"\nreport: {page}  ({result.seconds:.0f} s)")
