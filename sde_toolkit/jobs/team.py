"""Several processes at one piece of work: ``accelerate launch -m sde_toolkit sample ...`` or ``torchrun -m ...``.

The main process decides (the folder, which parts are missing) and tells the others; every process writes the parts it
computes into the same folder, which all of them must see; the main process waits and merges. Nothing else is exchanged.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch

from sde_toolkit.errors import MissingDependencyError

__all__ = ["Team"]

_PATIENCE = timedelta(days=7)  # shares are of unequal length, and waiting is no failure


@dataclass(frozen=True, eq=False)
class Team:
    """Process ``rank`` of ``size``; by default alone."""

    rank: int = 0
    size: int = 1
    device: torch.device | None = None
    state: Any = None

    @classmethod
    def join(cls, device: str = "auto") -> Team:
        """The processes that a launcher started, by its environment variables; alone where there was none.

        Raises:
            MissingDependencyError: if there are several processes and accelerate is not installed.
        """
        if os.environ.get("WORLD_SIZE", "1").strip() in ("", "1"):
            return cls()
        try:
            from accelerate import PartialState
        except ImportError as error:
            raise MissingDependencyError("accelerate", "work shared by several processes", "launch", error) from None
        state = PartialState(cpu=device == "cpu", timeout=_PATIENCE)
        return cls(state.process_index, state.num_processes, state.device, state)

    @property
    def main(self) -> bool:
        """The process that decides, merges and reports."""
        return self.rank == 0

    def place(self, chosen: torch.device, asked: str = "auto") -> torch.device:
        """Where to compute: the launcher's choice for this process, unless one was ``asked`` for by number."""
        return self.device if self.device is not None and asked in ("auto", "cuda") else chosen

    def agree(self, value: Any) -> Any:
        """What the main process passed, in all of them. Plain data."""
        if self.size == 1:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value if self.main else None])[0]

    def wait(self) -> None:
        """Until all are here."""
        if self.size > 1:
            self.state.wait_for_everyone()

    def leave(self) -> None:
        """The last word, when nothing is left to exchange."""
        if self.size > 1:
            self.state.destroy_process_group()
