"""``load(path)``: a score model from a checkpoint of any family that has a file in this room.

Each family has a :class:`Reader`. It says by looking whether a file is its own, and builds the model. No reader runs
code of a file. What a file does not say, such as how its network was trained, is a keyword argument of ``read``. What
cannot be left out is asked for, with the choices.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from sde_toolkit.errors import ArgumentError, CheckpointError
from sde_toolkit.models.checkpoint import BEST, DESCRIPTION, checkpoint_folders, embedded_models
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.sde import SDE, Time
from sde_toolkit.transforms import Transform

__all__ = ["Reader", "load", "reader_of", "readers"]

_MODULES = (  # files of this room, each with its READER, in the order in which they are asked
    "edm_files",
    "k_diffusion_files",
    "adm_files",
    "diffusers_models",
    "lucidrains_files",
    "score_sde_files",
    "flow_matching_files",
)


@dataclass(frozen=True)
class Reader:
    """A family of checkpoints.

    Attributes:
        family: its name in messages, such as "EDM's pickle".
        recognises: whether a file or folder is of this family, by its names, keys and shapes. It never raises.
        read: the score model, in evaluation mode, of a path and of keyword arguments. It raises ``CheckpointError`` for
            a file that is damaged or holds what it cannot build, ``ArgumentError`` for what the file does not say and
            the caller did not tell.
    """

    family: str
    recognises: Callable[[Path], bool]
    read: Callable[..., ScoreModel]

    @property
    def arguments(self) -> frozenset[str]:
        """The names of what ``read`` can be told."""
        _, *parameters = inspect.signature(self.read).parameters.values()
        return frozenset(p.name for p in parameters)


def readers() -> Sequence[Reader]:
    """All readers, in the order in which they are asked."""
    return [OWN, *(import_module(f"sde_toolkit.interop.{name}").READER for name in _MODULES)]


def load(path: str | Path, **told: Any) -> ScoreModel:
    """The score model in a checkpoint, whoever wrote it.

    Args:
        path: a file or a folder, or the name of a model that ships with this package.
        **told: what the file does not say; each family has arguments of its own.

    Raises:
        CheckpointError: if nothing is there, no reader knows it, or it is damaged.
        ArgumentError: for an argument that this family does not have, or one that it needs.
    """
    reader = reader_of(path)
    for name, value in told.items():
        if name not in reader.arguments:
            remedy = f"It takes {', '.join(sorted(reader.arguments)) or 'no arguments'}."
            raise ArgumentError(name, value, f"{reader.family} has no such argument", remedy)
    return reader.read(Path(path), **told)


def reader_of(path: str | Path) -> Reader:
    """The reader of the family that a checkpoint belongs to.

    Raises:
        CheckpointError: if nothing is there, or no reader knows it.
    """
    place = Path(path)
    if not place.exists() and str(path) not in embedded_models():
        names = ", ".join(embedded_models())
        raise CheckpointError(path, "there is no such file or folder", f"Pass a path, or one of {names}.")
    known = readers()
    for reader in known:
        if reader.recognises(place):
            return reader
    families = "; ".join(reader.family for reader in known)
    remedy = f"These are read: {families}. For any other, build the network and pass it to ScoreModel."
    raise CheckpointError(path, f"{_seen(place)} is of no family that is known", remedy)


def _seen(place: Path) -> str:
    """What is there, in words."""
    if not place.is_dir():
        return f"this file ({place.suffix or 'without an ending'}, {place.stat().st_size:,} bytes)"
    names = sorted(p.name for p in place.iterdir())[:5]
    return f"this folder ({', '.join(names) or 'empty'})"


def _is_own(path: Path) -> bool:
    holds = (path / DESCRIPTION).is_file() or bool(checkpoint_folders(path)) or path.name == BEST
    return holds or str(path) in embedded_models()


def _read_own(
    path: Path,
    *,
    weights: Literal["ema", "raw"] = "ema",
    network: nn.Module | None = None,
    sde: SDE | None = None,
    time_input: Callable[[SDE, Time], Tensor] | None = None,
    transform: Transform | None = None,
) -> ScoreModel:
    return ScoreModel.from_pretrained(
        path, weights=weights, network=network, sde=sde, time_input=time_input, transform=transform
    )


OWN = Reader("folders of sde_toolkit", _is_own, _read_own)
