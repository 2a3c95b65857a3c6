"""References are computed once: they are kept in memory, and as files in a folder of the user's cache."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.data.reading import read_numpy
from sde_toolkit.errors import DataError
from sde_toolkit.files.whole import write_atomically
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.suite.exact_flow import ExactFlow, solve_flow

__all__ = ["FOLDER", "flow_of", "folder_of_flows"]

FOLDER = "SDE_TOOLKIT_CACHE"
"""The environment variable that names another folder."""

_known: dict[str, ExactFlow] = {}


def folder_of_flows() -> Path:
    """Where references are kept: ``$SDE_TOOLKIT_CACHE``, or ``sde_toolkit`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    named = os.environ.get(FOLDER)
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "sde_toolkit"


def flow_of(digest: str, model: ScoreModel, noise: Tensor) -> ExactFlow:
    """The exact flow of a truth with this digest: from memory, from its file, or solved now and kept."""
    if digest in _known:
        return _known[digest]
    file = folder_of_flows() / f"flow-{digest}.npz"
    found = _read(file, tuple(noise.shape))
    if found is None:
        found = solve_flow(model, noise)
        _write(file, found)
    _known[digest] = found
    return found


def _read(file: Path, shape: tuple[int, ...]) -> ExactFlow | None:
    """What the file holds; None if it is not there, or damaged."""
    if not file.is_file():
        return None
    try:
        arrays = read_numpy(file)
        x, own = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["own"])
    except (DataError, KeyError, TypeError):
        return None
    whole = tuple(x.shape) == shape and tuple(own.shape) == shape[:1] and bool(x.isfinite().all())
    return ExactFlow(x.double(), own.double()) if whole else None


def _write(file: Path, flow: ExactFlow) -> None:
    """Keep it, if the folder can be written to."""
    buffer = io.BytesIO()
    np.savez(buffer, x=flow.x.numpy(), own=flow.own.numpy())
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, buffer.getvalue())
