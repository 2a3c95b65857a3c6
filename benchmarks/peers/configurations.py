"""All deterministic peers in one list. A library that is not installed is left out, and said so."""

from __future__ import annotations

import importlib
import sys

from peers.configuration import Configuration

__all__ = ["LIBRARIES", "all_configurations"]

LIBRARIES = {"k-diffusion": "peers.with_kdiffusion", "azula": "peers.with_azula", "diffusers": "peers.with_diffusers"}


def all_configurations(libraries: list[str] | None = None) -> list[Configuration]:
    """Every configuration of the named libraries (default: all that can be imported)."""
    rows: list[Configuration] = []
    for library in libraries or LIBRARIES:
        try:
            rows += importlib.import_module(LIBRARIES[library]).configurations()
        except ImportError as error:
            print(f"{library} left out: {error}", file=sys.stderr)
    return rows
