"""``sde-toolkit sample``: samples from a trained model, as arrays, as a picture, and with their provenance."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from sde_toolkit.auto import Plan
from sde_toolkit.cli.parts import build_grids, build_solvers, load_model, model_name, whole_number
from sde_toolkit.cli.setup import choose_device, set_threads
from sde_toolkit.errors import ArgumentError
from sde_toolkit.evaluation.planning import plan_run, run_of
from sde_toolkit.evaluation.provenance import provenance
from sde_toolkit.evaluation.report import save_figure
from sde_toolkit.evaluation.sheets import contact_sheet
from sde_toolkit.sampling import sample
from sde_toolkit.solvers import Solver

__all__ = ["run"]


def run(config: DictConfig) -> None:
    """Draw the samples and write ``samples.npz``, ``samples.png`` and ``samples.json``."""
    set_threads(config.threads)
    directory = Path(HydraConfig.get().runtime.output_dir)
    n, nfe = whole_number(config, "n", 1), whole_number(config, "nfe", 1)
    seed, first_index = whole_number(config, "seed", 0), whole_number(config, "first_index", 0)
    batch_size = None if config.batch_size is None else whole_number(config, "batch_size", 1)
    solvers, grids = build_solvers(config), build_grids(config)
    for what, chosen in (("solver", solvers), ("grid", grids)):
        if len(chosen) != 1:
            raise ArgumentError(what, list(chosen), f"exactly one {what} draws samples", "Use compare for several.")
    device = choose_device(config.device)
    model, weights = load_model(config)
    if model.event_shape is None:
        raise ArgumentError("model", model_name(config), "it has no event_shape", "Save it with event_shape=...")
    (solver_name, solver), (grid_name, build) = solvers.popitem(), grids.popitem()
    if isinstance(solver, Solver):
        planned = plan_run(model, solver_name, solver, grid_name, build, nfe)
    else:
        planned = run_of(model, solver_name, solver if isinstance(solver, Plan) else solver(model, nfe), "its own")
    OmegaConf.save(config, directory / "config.yaml", resolve=True)
    drawn = sample(
        model.to(device),
        planned.solver,
        planned.grid,
        shape=(n, *model.event_shape),
        seed=seed,
        first_index=first_index,
        batch_size=batch_size,
        tweedie=planned.tweedie,
        progress=bool(config.progress),
    )
    data = model.transform.inverse(drawn.x).cpu()
    np.savez_compressed(
        directory / "samples.npz", x=data.numpy(), x_model=drawn.x.cpu().numpy(), times=drawn.grid.numpy()
    )
    figure = contact_sheet(data)
    if figure is not None:
        save_figure(figure, directory / "samples.png")
    record = provenance(model, model_name(config), weights, seed=seed, command=[*sys.argv[0].split(), *sys.argv[1:]])
    record |= {
        "n": n,
        "first_index": first_index,
        "solver": {"name": solver_name, "eta": planned.solver.eta, "integrator": repr(planned.solver.integrator)},
        "grid": {"name": planned.grid_name, "times": drawn.grid.tolist()},
        "nfe": drawn.nfe,
        "tweedie": drawn.tweedie,
        "seconds": drawn.seconds,
        "network_seconds": drawn.network_seconds,
        "config": OmegaConf.to_container(config, resolve=True),
    }
    text = json.dumps(record, indent=2, ensure_ascii=False)
    (directory / "samples.json").write_text(text + "\n", encoding="utf-8")
    print(f"{n} samples of shape {model.event_shape}: {drawn.nfe} evaluations each, {drawn.seconds:.1f} s")
    print(f"written to {directory}")
