"""What every command does first: device, threads, and building objects from their configuration."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra.utils
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from omegaconf import DictConfig

from sde_toolkit.errors import ArgumentError, SDEToolkitError
from sde_toolkit.evaluation.team import Team

__all__ = ["Place", "choose_device", "command_words", "instantiate", "join", "set_threads"]


@dataclass(frozen=True, eq=False)
class Place:
    """Where a command works: its folder, its device, and the processes that share the work."""

    directory: Path
    device: torch.device
    team: Team

    @property
    def main(self) -> bool:
        """Whether this process writes the results and prints."""
        return self.team.main


def join(config: DictConfig) -> Place:
    """Threads, device and folder as the configuration says, and the other processes if a launcher started some.

    All processes work in the folder of the main one, whatever each of them makes of a folder's name with a time in it.
    """
    set_threads(config.threads)
    device = choose_device(config.device)
    team = Team.join(device.type)
    directory = Path(team.agree(str(Path(HydraConfig.get().runtime.output_dir).absolute())))
    return Place(directory, team.place(device, config.device), team)


def command_words() -> list[str]:
    """The command as it was typed, for the record."""
    return [*sys.argv[0].split(), *sys.argv[1:]]


def instantiate(config: Any, **arguments: Any) -> Any:
    """Hydra's instantiate, with the error of the called class instead of Hydra's wrapping of it.

    Raises:
        SDEToolkitError: whatever the class itself raised; ArgumentError for arguments it does not have.
    """
    try:
        return hydra.utils.instantiate(config, _convert_="all", **arguments)
    except InstantiationException as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, SDEToolkitError):
                raise cause from None
            cause = cause.__cause__
        target = config.get("_target_", "the configuration")
        problem = str(error.__cause__ or error).splitlines()[0]
        raise ArgumentError(str(target), dict(config), problem, "Check the keys of this group.") from None


def choose_device(name: str) -> torch.device:
    """``auto`` is CUDA where there is one, else the CPU.

    Raises:
        ArgumentError: for a device that torch does not know or that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        problem = str(error).splitlines()[0]
        raise ArgumentError("device", name, problem, "Use auto, cpu, cuda or cuda:N.") from None
    return device


def set_threads(threads: int | None) -> None:
    """CPU threads of torch's kernels; None leaves its choice."""
    if threads is not None:
        if threads < 1:
            raise ArgumentError("threads", threads, "at least one thread is needed", "Use null for all cores.")
        torch.set_num_threads(threads)
