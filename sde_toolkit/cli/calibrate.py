"""``sde-toolkit calibrate``: the grid, the weights and the method for a model and a budget, as a file."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sde_toolkit.calibration import calibrate
from sde_toolkit.cli.folders import CONFIG, save_config
from sde_toolkit.cli.parts import build_solvers, load_model, model_name, number_of_evaluations, whole_number
from sde_toolkit.cli.setup import Workplace, command_words, join, switch
from sde_toolkit.jobs.provenance import provenance_of
from sde_toolkit.progress import require_progress

__all__ = ["run"]

FILE = "calibration.json"


def run(config: DictConfig) -> None:
    """Calibrate and write ``calibration.json``. The main process does all the work; other processes wait."""
    place = join(config)
    if place.main:
        with place.holding("calibrate", [FILE, CONFIG]):
            _calibrate(config, place)
    place.team.wait()
    place.team.leave()


def _calibrate(config: DictConfig, place: Workplace) -> None:
    nfe, seed = number_of_evaluations(config, "nfe", 2), whole_number(config, "seed", 0)
    batch_size = None if config.batch_size is None else whole_number(config, "batch_size", 1)
    solvers: list[Any] | None = list(build_solvers(config).values()) if config.get("solvers") else None
    progress = switch(config, "progress")
    require_progress(progress)
    model, weights = load_model(config)
    found = calibrate(
        model.to(place.device),
        solvers,
        nfe,
        strategy=config.strategy,
        weights=switch(config, "tune_weights"),
        n=None if config.n is None else whole_number(config, "n", 4),
        seed=seed,
        time_limit=config.time_limit,
        batch_size=batch_size,
        progress=progress,
    )
    about = provenance_of(model, model_name(config), weights, seed=seed, command=command_words())
    about["config"] = OmegaConf.to_container(config, resolve=True)
    found = replace(found, record={**found.record, "provenance": about})
    save_config(config, place.directory)
    found.save(place.directory / FILE)
    print(f"{found.solver.integrator}")
    print(f"root mean square error on fresh noise: {found.errors_in_words}")
    print(found.reason)
    print(f"written to {place.directory / FILE}")
