"""What accelerate does in a run: devices, precision, processes. And whole weights, also of sharded models."""

from __future__ import annotations

import atexit
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from sde_toolkit.errors import ArgumentError, CheckpointError, MissingDependencyError
from sde_toolkit.models.checkpoint import checkpoint_folders
from sde_toolkit.training.options import PRECISIONS, TrainingOptions

__all__ = [
    "check_sharding",
    "full_optimizer",
    "full_weights",
    "gather_objects",
    "load_full_optimizer",
    "load_full_weights",
    "make_accelerator",
    "newest_for_all",
    "split_batch",
]

_FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)
_FROM_ALL = StateDictOptions(full_state_dict=True)


def make_accelerator(
    options: TrainingOptions, device: torch.device | str, trackers: Sequence[str], directory: Path
) -> Any:
    """An Accelerator for the processes that a launcher started, or for this one alone.

    Raises:
        MissingDependencyError: if accelerate or the package of a tracker is not installed.
        ArgumentError: if the device does not exist, for float16 without CUDA, for an unknown tracker, or for FSDP 1.
    """
    try:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
    except ImportError as error:
        raise MissingDependencyError("accelerate", "training", "train", error) from None
    device = _existing(device)
    if options.precision == "float16" and device.type != "cuda":
        raise ArgumentError("precision", "float16", f"it needs CUDA, not {device}", "Use bfloat16 or float32.")
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    _check_trackers(trackers)
    # Each run has its own precision and, alone, its own device. A group of processes stays.
    AcceleratorState._reset_state(reset_partial_state=not _launched())
    atexit.unregister(_dissolve)
    atexit.register(_dissolve)
    made = Accelerator(
        mixed_precision=PRECISIONS[options.precision],
        cpu=device.type == "cpu",
        log_with=sorted(trackers) or None,
        project_dir=directory,
    )
    if made.device.type != device.type and not _launched():
        problem = f"accelerate would train on {made.device}"
        raise ArgumentError("device", str(device), problem, f"Pass device={made.device.type!r}, or 'cpu'.")
    check_sharding(made)
    return made


def check_sharding(accelerator: Any) -> None:
    """Refuse the first version of FSDP, which hides the parameters from the averages and the checkpoints.

    Raises:
        ArgumentError: naming the second version, which is accepted.
    """
    if accelerator.distributed_type == "FSDP" and not accelerator.is_fsdp2:
        problem = "the parameters of this version are no tensors of their own"
        remedy = "Set fsdp_version: 2 in accelerate's configuration, or FSDP_VERSION=2."
        raise ArgumentError("fsdp_version", 1, problem, remedy)


def _existing(device: torch.device | str) -> torch.device:
    """The device, after a first computation on it.

    Raises:
        ArgumentError: if torch does not know it, or cannot compute on it.
    """
    try:
        found = torch.device(device)
        torch.zeros(1, device=found).add(1).item()
    except (RuntimeError, AssertionError, TypeError, ValueError, ImportError) as error:
        problem = (str(error).splitlines() or [type(error).__name__])[0]
        raise ArgumentError("device", str(device), problem, "Pass a device of this machine, such as 'cpu'.") from None
    return found


def _launched() -> bool:
    """Whether accelerate or torchrun started this process. If so, they choose the device."""
    return any(name in os.environ for name in ("WORLD_SIZE", "LOCAL_RANK", "ACCELERATE_USE_CPU"))


def _dissolve() -> None:
    """Leave the group of processes before the interpreter ends. A group that nobody left may abort the process."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _check_trackers(trackers: Sequence[str]) -> None:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
    from accelerate.utils import LoggerType

    if isinstance(trackers, str):
        raise ArgumentError("trackers", trackers, "a list of names is expected", f"Pass [{trackers!r}].")
    known, there = sorted(str(name) for name in LOGGER_TYPE_TO_CLASS), [str(name) for name in get_available_trackers()]
    for name in trackers:
        if name not in known:
            raise ArgumentError("trackers", name, "accelerate knows no such tracker", f"Use some of {known}.")
        if name in LoggerType.list() and name not in there:  # users can register other trackers with accelerate
            extra = "train" if name == "tensorboard" else None
            raise MissingDependencyError(name, f"the tracker {name!r}", extra)


def newest_for_all(directory: Path, accelerator: Any) -> Path | None:
    """The last checkpoint of a run, the same for all processes. None if there is none.

    Raises:
        CheckpointError: if the processes see different last checkpoints.
    """
    found = checkpoint_folders(directory)
    seen = gather_objects(found[-1][0] if found else 0, accelerator)
    if len(set(seen)) > 1:
        problem = f"the processes see different last checkpoints in it: of steps {seen}, by rank"
        raise CheckpointError(directory, problem, "Give all processes one folder on a shared file system.")
    return found[-1][1] if found else None


def split_batch(options: TrainingOptions, processes: int) -> tuple[int, int]:
    """(passes per process, samples per pass): the fewest equal passes of at most ``pass_size``.

    Raises:
        ArgumentError: if the processes cannot have equal shares of the batch.
    """
    share, rest = divmod(options.batch_size, processes)
    if rest:
        problem = f"{processes} processes cannot share it equally"
        raise ArgumentError("batch_size", options.batch_size, problem, f"Use {share * processes or processes}.")
    limit = share if options.pass_size is None else min(options.pass_size, share)
    passes = next(n for n in range(-(-share // limit), share + 1) if share % n == 0)
    return passes, share // passes


def full_weights(model: nn.Module) -> dict[str, Tensor]:
    """The whole state dict on the CPU, in the main process. Shards are gathered. All processes have to call it."""
    found: Any = get_model_state_dict(model, options=_FULL)
    return {name: value.clone() for name, value in found.items()}


def load_full_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """The inverse of :func:`full_weights`."""
    set_model_state_dict(model, dict(weights), options=_FROM_ALL)


def full_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The whole optimizer state by parameter names, on the CPU, in the main process. All processes have to call it.

    What a recorded update sets in the groups is written as for an update as it is.
    """
    found: dict[str, Any] = dict(get_optimizer_state_dict(model, optimizer, options=_FULL))
    for group in found.get("param_groups", ()):
        group.update(lr=float(group["lr"]), capturable=False)
    return found


def load_full_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """The inverse of :func:`full_optimizer`."""
    set_optimizer_state_dict(model, optimizer, state, options=_FROM_ALL)


def gather_objects(value: Any, accelerator: Any) -> list[Any]:
    """The values of all processes, by rank. ``value`` is plain data. All processes have to call it."""
    if accelerator.num_processes == 1:
        return [value]
    from accelerate.utils import gather_object

    return list(gather_object([value]))
