"""A calibration as a JSON file. Nothing is unpickled: solvers are rebuilt from the names of public classes and
functions of ``sde_toolkit.integrators``.

Times are written as hexadecimal floats, factors in Python's shortest exact form. So a loaded calibration draws exactly
the samples of the saved one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
from typing import Any

import torch

from sde_toolkit import integrators
from sde_toolkit.errors import ArgumentError, CheckpointError
from sde_toolkit.integrators.bespoke import Bespoke
from sde_toolkit.integrators.gaussian_start import GaussianStart
from sde_toolkit.integrators.tuned import Tuned
from sde_toolkit.models.checkpoint import state_of
from sde_toolkit.models.descriptions import plain_data
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.sde import SDE
from sde_toolkit.showing import shown
from sde_toolkit.solvers import Solver

__all__ = ["build_solver", "describe_solver", "model_digest", "sde_fingerprint"]

_CALIBRATED = {
    "Tuned": Tuned,
    "GaussianStart": GaussianStart,
    "Bespoke": Bespoke,
}  # that a file may name, besides what is published
_TIMES = tuple(i / 16 for i in range(1, 16))


def describe_solver(solver: Solver) -> dict[str, Any]:
    """Name, η and integrator as plain data.

    Raises:
        ArgumentError: for an integrator that :func:`build_solver` would not find again.
    """
    eta = plain_data(solver.eta, "solver.eta")
    return {"name": str(solver.name), "eta": eta, "integrator": _published_data(solver.integrator, "solver.integrator")}


def _published_data(value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        _check_published(value, type(value), where)
        names = [f.name for f in dataclasses.fields(value) if f.init]
        fields = {name: _published_data(getattr(value, name), f"{where}.{name}") for name in names}
        return {"class": type(value).__qualname__, **fields}
    if isinstance(value, (tuple, list)):
        return [_published_data(v, f"{where}[{i}]") for i, v in enumerate(value)]
    if callable(value):
        _check_published(value, value, where)
        return {"function": value.__qualname__}
    return plain_data(value, where)


def _check_published(value: Any, part: Any, where: str) -> None:
    name = getattr(part, "__qualname__", None)
    if part not in _CALIBRATED.values() and (name not in integrators.__all__ or getattr(integrators, name) is not part):
        problem = "it is not a public part of sde_toolkit.integrators, so that a file cannot name it"
        raise ArgumentError(where, value, problem, "Keep the calibration in memory, or use one of this package.")


def build_solver(place: Any, found: Any) -> Solver:
    """The solver of :func:`describe_solver`.

    Raises:
        CheckpointError: for a class or function that this package does not publish, or arguments that do not fit.
    """
    try:
        return Solver(str(found["name"]), found["eta"], _build(place, found["integrator"]))
    except CheckpointError:
        raise
    except Exception as error:  # of our own constructors, for arguments that nobody but a file would give
        said = f"{type(error).__name__}: {error}"[:300]
        raise CheckpointError(place, f"its solver cannot be rebuilt: {said}", "Restore the file.") from None


def _build(place: Any, value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_build(place, v) for v in value)
    if not isinstance(value, dict):
        return value
    value = _renamed(value)
    if "function" in value:
        return _published(place, value["function"], inspect.isfunction)
    arguments = {k: _build(place, v) for k, v in value.items() if k != "class"}
    return _published(place, value.get("class"), inspect.isclass)(**arguments)


_POSITIONS = {"in_lambda": "HalfLogSNR", "in_tau": "NoiseToSignal", "in_phi": "Angle", "in_time": "Time"}
_COORDINATES = {"Straight": "NoiseToSignal", "InTime": "Time"}


def _renamed(value: dict[str, Any]) -> dict[str, Any]:
    """A part of an older file under its present name: coordinates were functions, and Heun's method was in t alone."""
    name = value.get("class", value.get("function"))
    if name in _POSITIONS or name in _COORDINATES:
        return {"class": _POSITIONS.get(name) or _COORDINATES[name]}
    if name == "EDMHeun":
        return {**value, "class": "ChurnedHeun"}
    if name == "Heun" and "coordinate" not in value:
        return {**value, "coordinate": {"class": "Time"}}
    if name == "RungeKutta4" and "coordinates" in value:
        return {"class": name, "coordinate": value["coordinates"]}
    return value


def _published(place: Any, name: Any, kind: Any) -> Any:
    if name in _CALIBRATED and kind(_CALIBRATED[name]):
        return _CALIBRATED[name]
    found = getattr(integrators, name) if name in integrators.__all__ else None
    if found is None or not kind(found):
        problem = f"its solver has a part {shown(name)}, which sde_toolkit.integrators does not publish"
        raise CheckpointError(place, problem, "Calibrate again, with an integrator of this package.")
    return found


def sde_fingerprint(sde: SDE) -> dict[str, Any]:
    """α and σ at a few times, and the name: two SDEs with the same path have the same fingerprint but for the name."""
    t = torch.tensor(_TIMES, dtype=torch.float64)
    return {"name": repr(sde)[:500], "alpha": sde.alpha(t).tolist(), "sigma": sde.sigma(t).tolist()}


def model_digest(model: ScoreModel) -> str:
    """SHA-256 of all parameters and buffers, with their names; the same for a compiled network."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state_of(model).items()):
        if not isinstance(tensor, torch.Tensor):  # extra state of a module
            continue
        values = tensor.detach().cpu()
        values = (values.to_dense() if values.layout != torch.strided else values).contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
