"""What a scheduler's file holds: a solver, and what its pipeline's network says and is told, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from sde_toolkit import grids
from sde_toolkit.calibration.calibration_files import build_solver, describe_solver
from sde_toolkit.errors import ArgumentError, CheckpointError
from sde_toolkit.models.descriptions import OWN, OWN_FUNCTION
from sde_toolkit.models.rebuilding import rebuild
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.solvers import Solver

__all__ = ["FILE", "model_as_data", "model_from_data", "solver_as_data", "solver_from_data"]

FILE = Path("scheduler_config.json")
_ANEW = "Make the scheduler anew: to_diffusers(solver, grid, like=model)."


def solver_as_data(solver: Solver) -> dict[str, Any]:
    """A solver as plain data. A part of the caller's own is noted as such."""
    try:
        found = describe_solver(solver)
    except ArgumentError:
        return {"name": solver.name, OWN: repr(solver.integrator)}
    builder = getattr(solver.usual_grid, "__name__", "")
    published = builder in grids.__all__ and getattr(grids, builder) is solver.usual_grid
    return {**found, "usual_grid": builder if published else {OWN_FUNCTION: builder}}


def solver_from_data(found: Mapping[str, Any]) -> Solver:
    """The solver of :func:`solver_as_data`.

    Raises:
        CheckpointError: for a part of the caller's own; for parts that do not exist, or do not fit.
    """
    builder = found.get("usual_grid")
    for name, part in (("solver", found), ("solver's usual grid", builder)):
        if isinstance(part, dict) and (OWN in part or OWN_FUNCTION in part):
            raise CheckpointError(FILE, f"its {name} is your own: {part.get(OWN, part.get(OWN_FUNCTION))}", _ANEW)
    if builder not in grids.__all__:
        raise CheckpointError(FILE, f"sde_toolkit.grids has no {builder!r}", "Restore the file.")
    return replace(build_solver(FILE, found), usual_grid=getattr(grids, builder))


def model_as_data(model: ScoreModel) -> dict[str, Any]:
    """The path, the parameterisation and the time input of a model as plain data."""
    left_out = ("network", "transform", "event_shape", "condition_name")
    return {key: value for key, value in model.description().items() if key not in left_out}


def model_from_data(found: Mapping[str, Any]) -> ScoreModel:
    """The model of :func:`model_as_data`, with a network that must not be called.

    Raises:
        CheckpointError: for an SDE or a time input of the caller's own; for parts that do not exist, or do not fit.
    """
    for name in ("sde", "time_input"):
        part = found.get(name)
        if isinstance(part, dict) and (OWN in part or OWN_FUNCTION in part):
            raise CheckpointError(FILE, f"its {name} is your own: {part.get(OWN, part.get(OWN_FUNCTION))}", _ANEW)
    elsewhere = {"network": None, "transform": {"class": "Identity"}, "event_shape": None}
    return ScoreModel(**rebuild(FILE, {**found, **elsewhere}, FILE.name, {}, {"network": _not_here}))


def _not_here(x: Tensor, time: Tensor) -> Tensor:
    raise NotImplementedError("the network is the pipeline's")
