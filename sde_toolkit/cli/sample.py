"""``sde-toolkit sample``: samples from a trained model, as arrays, as a picture, and with their provenance."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from sde_toolkit.cli.folders import CONFIG, save_config
from sde_toolkit.cli.guidances import guided_model
from sde_toolkit.cli.parts import (
    build_grids,
    build_solvers,
    check_room,
    choose_labels,
    load_model,
    model_name,
    number_of_evaluations,
    whole_number,
)
from sde_toolkit.cli.setup import Workplace, command_words, join, switch
from sde_toolkit.data.pictures import contact_sheet, require_pictures
from sde_toolkit.errors import ArgumentError
from sde_toolkit.evaluation.drawing import Drawn, draw_samples
from sde_toolkit.evaluation.page import as_png
from sde_toolkit.evaluation.planned_run import PlannedRun
from sde_toolkit.evaluation.planning import plan_on
from sde_toolkit.files.whole import atomic_file, write_atomically
from sde_toolkit.interop.loading import reader_of
from sde_toolkit.jobs.provenance import provenance_of
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.progress import require_progress

__all__ = ["FILES", "SampleRequest", "draw", "plan", "prepare", "run"]

FILES = ("samples.npz", "samples.png", "samples.json", CONFIG)

_DECODED_AT_ONCE = 8  # latents
_DRAWN_AT_MOST = 1024  # images or signals on the picture; points are all shown


def run(config: DictConfig) -> None:
    """Draw the samples and write ``samples.npz``, ``samples.png`` and ``samples.json``."""
    place = join(config)
    request = prepare(config)
    with place.holding("sample", FILES):
        drawn = draw(config, place, request)
    if drawn is not None:
        print(f"{len(drawn.x)} samples of shape {tuple(drawn.x.shape[1:])}: {drawn.nfe} evaluations each, ", end="")
        print(f"{drawn.seconds:.1f} s" + f", {drawn.processes} processes" * (drawn.processes > 1))
        print(f"written to {place.directory}")
    place.team.leave()


@dataclass(frozen=True, eq=False)
class SampleRequest:
    """A checked request for samples."""

    model: ScoreModel
    weights: str | None
    planned: PlannedRun
    n: int
    seed: int
    first_index: int
    batch_size: int | None
    labels: Tensor | None
    progress: bool


def prepare(config: DictConfig) -> SampleRequest:
    """Check everything that can be checked before the first evaluation.

    Raises:
        SDEToolkitError: naming the setting, or the package that is missing.
    """
    n, seed = whole_number(config, "n", 1), whole_number(config, "seed", 0)
    first_index = whole_number(config, "first_index", 0)
    batch_size = None if config.batch_size is None else whole_number(config, "batch_size", 1)
    progress = switch(config, "progress")
    require_progress(progress)
    model, weights = load_model(config)
    labels = choose_labels(config, model, n, first_index)
    model = guided_model(config, model, labels)
    planned = plan(config, model)
    shape = model.event_shape or ()
    check_room("n", n, shape)
    require_pictures(None if model.decoder is not None else shape)
    return SampleRequest(
        model=model,
        weights=weights,
        planned=planned,
        n=n,
        seed=seed,
        first_index=first_index,
        batch_size=batch_size,
        labels=labels,
        progress=progress,
    )


def draw(config: DictConfig, place: Workplace, request: SampleRequest, keep: bool = False) -> Drawn | None:
    """The samples, drawn and written; None in all processes but the main one. ``keep``: leave the finished parts."""
    model, planned, labels, seed = request.model, request.planned, request.labels, request.seed
    drawn = draw_samples(
        model.to(place.device),
        planned,
        request.n,
        seed=seed,
        first_index=request.first_index,
        batch_size=request.batch_size,
        condition=None if labels is None else labels.to(place.device),
        team=place.team,
        directory=place.directory,
        device=place.device,
        progress=request.progress,
    )
    if drawn is None:
        return None
    record = provenance_of(model, model_name(config), request.weights, seed=seed, command=command_words())
    record |= {
        "n": request.n,
        "first_index": request.first_index,
        "labels": None if labels is None else labels.unique().tolist(),
        "solver": {"name": planned.name, "eta": planned.eta, "integrator": planned.integrator},
        "grid": {"name": planned.grid_name, "times": list(planned.times)},
        "nfe": drawn.nfe,
        "tweedie": planned.tweedie,
        "seconds": drawn.seconds,
        "computing_seconds": drawn.computing_seconds,
        "network_seconds": drawn.network_seconds,
        "processes": drawn.processes,
        "config": OmegaConf.to_container(config, resolve=True),
    }
    _write(place.directory, drawn, model, planned, labels, record)
    save_config(config, place.directory)  # last, so that it always belongs to the samples
    if drawn.store is not None and not keep:
        drawn.store.clear()
    return drawn


def _how_to_tell_shape(name: str) -> str:
    """What to do about a model without ``event_shape``."""
    for argument, example in (("event_shape", "[3, 32, 32]"), ("image_size", "32")):
        if Path(name).is_file() and argument in reader_of(name).arguments:
            return f"Write it so: 'model={{path: {name}, {argument}: {example}}}'."
    return "Add event_shape: [1, 28, 28], for example, to its model.yaml."


def plan(config: DictConfig, model: ScoreModel) -> PlannedRun:
    """The one solver on the one grid that draws samples, at ``nfe`` evaluations."""
    nfe = number_of_evaluations(config)
    if model.event_shape is None:
        name = model_name(config)
        raise ArgumentError("model", name, "it does not say which shape its samples have", _how_to_tell_shape(name))
    solvers, grids = build_solvers(config), build_grids(config)
    for what, chosen in (("solver", solvers), ("grid", grids)):
        if len(chosen) != 1:
            raise ArgumentError(what, list(chosen), f"exactly one {what} draws samples", "Use compare for several.")
    (solver_name, solver), (grid_name, build) = solvers.popitem(), grids.popitem()
    return plan_on(model, solver_name, solver, grid_name, build, nfe)


def _write(
    directory: Path, drawn: Drawn, model: ScoreModel, planned: PlannedRun, labels: Tensor | None, record: dict[str, Any]
) -> None:
    """Write the picture, the samples and their provenance, in this order, each file whole or not at all."""
    data = torch.cat([model.transform.inverse(part).cpu() for part in drawn.x.split(4096)])
    arrays = {"x": data.numpy(), "x_model": drawn.x.numpy(), "times": np.array(planned.times)}
    shown = data
    if model.decoder is not None:  # data are latents
        parts = [model.decoder(part.to(drawn.x.device)).cpu() for part in data.split(_DECODED_AT_ONCE)]
        shown = torch.cat(parts).round().to(torch.uint8)
        arrays["pictures"] = shown.numpy()
    figure = contact_sheet(shown if shown.ndim < 3 else shown[:_DRAWN_AT_MOST])
    if figure is not None:
        write_atomically(directory / "samples.png", as_png(figure))
    if labels is not None:
        arrays["labels"] = labels.numpy()
    with atomic_file(directory / "samples.npz") as stream:
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    text = json.dumps(record, indent=2, ensure_ascii=False)
    write_atomically(directory / "samples.json", f"{text}\n".encode("utf-8", "backslashreplace"))
