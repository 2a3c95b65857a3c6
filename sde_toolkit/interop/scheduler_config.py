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

__all__ = ["CONFIG_FILE", "model_as_data", "model_from_data", "not_here", "solver_as_data", "solver_from_data"]

CONFIG_FILE = Path("scheduler_config.json")


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
    _refuse_own("solver", found)
    _refuse_own("solver's usual grid", builder)
    if builder not in grids.__all__:
        raise CheckpointError(CONFIG_FILE, f"sde_toolkit.grids has no {builder!r}", "Restore the file.")
    return replace(build_solver(CONFIG_FILE, found), usual_grid=getattr(grids, builder))


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
        _refuse_own(name, found.get(name))
    elsewhere = {"network": None, "transform": {"class": "Identity"}, "event_shape": None}
    return ScoreModel(**rebuild(CONFIG_FILE, {**found, **elsewhere}, CONFIG_FILE.name, {}, {"network": not_here}))


def _refuse_own(name: str, part: Any) -> None:
    """Refuse a part that is noted as the caller's own."""
    own = next((part[mark] for mark in (OWN, OWN_FUNCTION) if mark in part), None) if isinstance(part, dict) else None
    if own is not None:
        remedy = "Make the scheduler anew: to_diffusers(solver, grid, like=...)."
        raise CheckpointError(CONFIG_FILE, f"its {name} is your own, {own}", remedy)


def not_here(x: Tensor, time: Tensor) -> Tensor:
    """In place of a network that a pipeline holds."""
    raise NotImplementedError("the network is the pipeline's")
