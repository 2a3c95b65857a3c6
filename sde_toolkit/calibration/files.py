"""A calibration as a JSON file. Solvers are rebuilt from the names of public classes and functions of
``sde_toolkit.integrators`` alone: nothing is unpickled, and no code is loaded by name.

Times are written as hexadecimal floats and factors by Python's shortest exact representation, so that a calibration
that was loaded draws the very samples of the one that was saved.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
from typing import Any

import torch

from sde_toolkit import integrators
from sde_toolkit.errors import CheckpointError, SDEToolkitError
from sde_toolkit.integrators.tuned import Tuned
from sde_toolkit.score_model import ScoreModel
from sde_toolkit.sde import SDE
from sde_toolkit.solvers import Solver

__all__ = ["build_solver", "describe_solver", "model_digest", "sde_fingerprint"]

_TIMES = tuple(i / 16 for i in range(1, 16))


def describe_solver(solver: Solver) -> dict[str, Any]:
    """Name, η and integrator as plain data."""
    return {"name": solver.name, "eta": solver.eta, "integrator": _plain(solver.integrator)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
        return {"class": type(value).__qualname__, **fields}
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    if callable(value):
        return {"function": getattr(value, "__qualname__", repr(value))}
    return value


def build_solver(place: Any, found: Any) -> Solver:
    """The solver of :func:`describe_solver`.

    Raises:
        CheckpointError: for a class or function that this package does not publish, or arguments that do not fit.
    """
    try:
        return Solver(str(found["name"]), found["eta"], _build(place, found["integrator"]))
    except (KeyError, TypeError, SDEToolkitError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(place, f"its solver cannot be rebuilt: {error}", "Restore the file.") from None


def _build(place: Any, value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_build(place, v) for v in value)
    if not isinstance(value, dict):
        return value
    if "function" in value:
        return _published(place, value["function"], inspect.isfunction)
    arguments = {k: _build(place, v) for k, v in value.items() if k != "class"}
    return _published(place, value.get("class"), inspect.isclass)(**arguments)


def _published(place: Any, name: Any, kind: Any) -> Any:
    if name == Tuned.__name__ and kind(Tuned):
        return Tuned
    found = getattr(integrators, name) if name in integrators.__all__ else None
    if found is None or not kind(found):
        problem = f"its solver has a part {name!r}, which sde_toolkit.integrators does not publish"
        raise CheckpointError(place, problem, "Calibrate again, with an integrator of this package.")
    return found


def sde_fingerprint(sde: SDE) -> dict[str, Any]:
    """α and σ at a few times: what a grid was made for, whatever the class is called."""
    t = torch.tensor(_TIMES, dtype=torch.float64)
    return {"name": repr(sde)[:500], "alpha": sde.alpha(t).tolist(), "sigma": sde.sigma(t).tolist()}


def model_digest(model: ScoreModel) -> str:
    """SHA-256 of all parameters and buffers, with their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
