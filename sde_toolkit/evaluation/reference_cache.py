"""Where reference samples are kept: with the package for the README's command, in the user's cache folder for others.

A set of samples is one file, named after the digest of all that it depends on: model, noise, number, method. A file of
another digest is never looked at, so nothing can be stale. What the package ships are 8-bit images.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.data.reading import read_numpy
from sde_toolkit.errors import ArgumentError, DataError, warn_caller
from sde_toolkit.files.user_cache import user_cache
from sde_toolkit.files.whole import write_atomically
from sde_toolkit.jobs.fingerprints import digest
from sde_toolkit.transforms import Transform

__all__ = ["SHIPPED", "ReferenceCache", "image_bytes"]

SHIPPED = Path(__file__).parent / "reference_samples"


@dataclass(frozen=True)
class ReferenceCache:
    """Files of reference samples. ``directory``: where new ones go; None: nowhere. ``chosen``: by the caller."""

    directory: Path | None
    chosen: bool = False

    @classmethod
    def at(cls, cache: str | Path | bool) -> ReferenceCache:
        """The user's cache folder (True), another folder, or none (False).

        Raises:
            ArgumentError: for a folder of the caller's choice that cannot be written.
        """
        if isinstance(cache, bool):
            return cls(user_cache("references") if cache else None)
        folder = Path(cache)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            problem = f"it cannot be made ({type(error).__name__})"
            raise ArgumentError("cache", str(folder), problem, "Name another folder, or pass cache=False.") from None
        if not os.access(folder, os.W_OK):
            problem = "it cannot be written"
            raise ArgumentError("cache", str(folder), problem, "Name another folder, or pass cache=False.")
        return cls(folder, chosen=True)

    def read(self, key: Mapping[str, Any], transform: Transform) -> tuple[Tensor, str] | None:
        """Samples in model space and where they are from; None if they have to be computed."""
        places = [] if self.directory is None else [("cache", self.directory)]
        for source, folder in [*places, *([] if self.chosen else [("package", SHIPPED)])]:
            try:
                arrays = read_numpy(folder / f"{digest(key)}.npz")
            except (DataError, OSError):
                continue  # none, or damaged
            if "x" in arrays:
                return torch.from_numpy(arrays["x"]), source
            if "images" in arrays:
                return transform.forward(torch.from_numpy(arrays["images"]).float()), source
        return None

    def write(self, key: Mapping[str, Any] | None, x: Tensor) -> None:
        """Keep samples in model space, if they have a key. A folder that cannot be written is worth a warning."""
        if self.directory is None or key is None:
            return
        content = io.BytesIO()
        np.savez(content, x=x.float().cpu().numpy())
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            write_atomically(self.directory / f"{digest(key)}.npz", content.getvalue())
        except OSError as error:
            warn_caller(
                f"reference samples are not kept: {self.directory} cannot be written ({type(error).__name__}). "
                "They will be computed again. SDE_TOOLKIT_CACHE names another folder."
            )


def image_bytes(x: Tensor, transform: Transform) -> bytes:
    """Samples in model space as a compressed file of 8-bit images."""
    content = io.BytesIO()
    images = transform.inverse(x).clamp(0, 255).round().to(torch.uint8).numpy()
    np.savez_compressed(content, images=images)
    return content.getvalue()
