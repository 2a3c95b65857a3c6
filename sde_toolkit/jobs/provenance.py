"""What a result must carry to be repeated: versions, weights, command, machine."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import platform
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from sde_toolkit.models import checkpoint
from sde_toolkit.models.score_model import ScoreModel

__all__ = [
    "code_identity",
    "provenance_of",
    "provenance_of_run",
    "source_digest",
    "toolkit_version",
    "weights_digest",
]

_PACKAGES = ("sde-toolkit", "torch", "numpy", "scipy", "torchdiffeq", "matplotlib")


def provenance_of(
    model: ScoreModel, model_name: str, weights: str | None, *, seed: int, command: list[str] | None = None
) -> dict[str, Any]:
    """Plain data for JSON. ``weights``: "ema" or "raw", None for a model without a file; ``command``: its
    words, ``sys.argv`` by default."""
    run = provenance_of_run(command)
    return {
        "command": run["command"],
        "date": run["date"],
        "model": {
            "name": model_name,
            "weights": weights,
            "sha256": weights_digest(model_name, weights) if weights else None,
            "parameters": sum(p.numel() for p in model.parameters()),
            "description": model.description(),
        },
        "seed": seed,
        "versions": run["versions"],
        "machine": run["machine"],
    }


def provenance_of_run(command: list[str] | None = None) -> dict[str, Any]:
    """The same without a model: command, date, versions and machine."""
    return {
        "command": shlex.join(sys.argv if command is None else command),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **_versions()},
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "cpu_threads": torch.get_num_threads(),
            "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }


@functools.cache
def code_identity() -> dict[str, str | None]:
    """This package: its version, the digest of its source, and the commit it is checked out at, where there is one."""
    checkout = Path(__file__).parent.parent.parent
    return {"version": toolkit_version(), "source_sha256": source_digest(), "commit": _commit(checkout)}


def _commit(checkout: Path) -> str | None:
    """The commit of a checkout; None if it is none, or without git."""
    if not (checkout / ".git").exists():
        return None
    command = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
    with contextlib.suppress(OSError):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout.strip() or None
    return None


def weights_digest(model_name: str, weights: str) -> str:
    """SHA-256 of the weights file of a checkpoint, or of the whole file where a checkpoint is one file."""
    file = Path(model_name)
    if not file.is_file() or model_name in checkpoint.embedded_models():
        file = Path(checkpoint.locate(model_name)) / f"{weights}.safetensors"
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()


@functools.cache
def source_digest() -> str:
    """SHA-256 of the source files of this package, by their names: the code that computed a result."""
    digest, root = hashlib.sha256(), Path(__file__).parent.parent
    for file in sorted(root.rglob("*.py")):
        digest.update(f"{file.relative_to(root).as_posix()}\n".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    if found["sde-toolkit"] is None:  # used from a checkout
        found["sde-toolkit"] = f"{toolkit_version()} (not installed)"
    return found


def toolkit_version() -> str:
    """The version of this package."""
    from sde_toolkit import __version__

    return __version__
