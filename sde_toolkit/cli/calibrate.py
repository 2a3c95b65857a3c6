"""``sde-toolkit calibrate``: the grid, the weights and the method for a model and a budget, as a file."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from sde_toolkit.calibration import calibrate
from sde_toolkit.cli.parts import build_solvers, load_model, model_name, whole_number
from sde_toolkit.cli.setup import choose_device, set_threads
from sde_toolkit.evaluation.provenance import provenance

__all__ = ["run"]


def run(config: DictConfig) -> None:
    """Calibrate and write ``calibration.json``."""
    set_threads(config.threads)
    directory = Path(HydraConfig.get().runtime.output_dir)
    nfe, seed = whole_number(config, "nfe", 2), whole_number(config, "seed", 0)
    batch_size = None if config.batch_size is None else whole_number(config, "batch_size", 1)
    solvers: list[Any] | None = list(build_solvers(config).values()) if config.get("solvers") else None
    device = choose_device(config.device)
    model, weights = load_model(config)
    found = calibrate(
        model.to(device),
        solvers,
        nfe,
        method=config.method,
        weights=bool(config.tune_weights),
        n=None if config.n is None else whole_number(config, "n", 4),
        seed=seed,
        time_limit=config.time_limit,
        batch_size=batch_size,
        progress=bool(config.progress),
    )
    command = [*sys.argv[0].split(), *sys.argv[1:]]
    record = {**found.record, "provenance": provenance(model, model_name(config), weights, seed=seed, command=command)}
    record["provenance"]["config"] = OmegaConf.to_container(config, resolve=True)
    found = replace(found, record=record)
    OmegaConf.save(config, directory / "config.yaml", resolve=True)
    found.save(directory / "calibration.json")
    print(f"{found.solver.integrator}")
    print(f"root mean square error on fresh noise: {found.before} before, {found.after} after")
    print(found.reason)
    print(f"written to {directory / 'calibration.json'}")
