"""What every command does first: device, threads, and building objects from their configuration."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from sde_toolkit.checks import is_count
from sde_toolkit.cli.building import instantiate
from sde_toolkit.cli.folders import holding, output_folder
from sde_toolkit.cli.words import folder_name
from sde_toolkit.errors import ArgumentError
from sde_toolkit.jobs.team import Team

__all__ = ["Workplace", "choose_device", "command_words", "instantiate", "join", "listed", "set_threads", "switch"]

OmegaConf.register_new_resolver("folder_name", folder_name, replace=True)


@dataclass(frozen=True, eq=False)
class Workplace:
    """Where a command works: its folder, its device, and the processes that share the work."""

    directory: Path
    device: torch.device
    team: Team
    name: str = "output"

    @property
    def main(self) -> bool:
        """Whether this process writes the results and prints."""
        return self.team.main

    @contextmanager
    def holding(self, command: str, files: Sequence[str]) -> Iterator[None]:
        """Work in the folder, which the main process claims for all: see :func:`sde_toolkit.cli.folders.holding`."""
        with holding(self.directory, command, files, main=self.main, name=self.name):
            yield


def join(config: DictConfig, name: str = "output") -> Workplace:
    """Set threads, device and folder from the configuration, and join the other processes if a launcher started some.

    All processes work in the folder of the main one: a folder's name with a time in it may differ between them.
    ``name``: the setting that names the folder. The folder is not made yet.
    """
    set_threads(config.threads)
    device = choose_device(config.device)
    directory = output_folder(config, name)
    team = Team.join(device.type)
    directory = Path(team.agree(str(directory)))
    return Workplace(directory, team.place(device, config.device), team, name)


def command_words() -> list[str]:
    """The command as it was typed, for the record."""
    return [*sys.argv[0].split(), *sys.argv[1:]]


def switch(config: DictConfig, name: str) -> bool:
    """A setting that is true or false. YAML's other words, such as off, are refused: Hydra reads them as texts.

    Raises:
        ArgumentError: for anything else.
    """
    value = OmegaConf.select(config, name)
    if not isinstance(value, bool):
        raise ArgumentError(name, value, "neither true nor false", f"Give {name}=true or {name}=false.")
    return value


def listed(value: Any) -> list[Any]:
    """A setting that is one thing or a list of them, as a list; none for null."""
    if OmegaConf.is_list(value):
        return list(value)
    return [] if value is None else [value]


def choose_device(name: Any) -> torch.device:
    """``auto`` is CUDA where there is one, else the CPU.

    Raises:
        ArgumentError: for a device that torch does not know, that is not there, or that cannot compute.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).add(1).item()
    except (RuntimeError, AssertionError, TypeError, ValueError, ImportError) as error:
        unknown = isinstance(error, TypeError | ValueError | NotImplementedError)
        problem = "nothing can be computed there" if unknown else str(error).splitlines()[0]
        raise ArgumentError("device", name, problem, "Use auto, cpu, cuda or cuda:N.") from None
    return device


def set_threads(threads: Any) -> None:
    """CPU threads of torch's kernels; None leaves its choice.

    Raises:
        ArgumentError: for anything but a number of threads that the machine can use.
    """
    if threads is None:
        return
    most = max(64, 4 * (os.cpu_count() or 1))
    if not is_count(threads) or threads > most:
        problem = f"not a number of threads from 1 to {most}"
        raise ArgumentError("threads", threads, problem, "Use threads=null for all cores.")
    torch.set_num_threads(threads)
