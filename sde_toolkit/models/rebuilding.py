"""A model from its description. Parts are built from the public classes of this package alone, and no larger than their
weights are: what a description declares costs nothing before it is compared with the file of weights beside it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from sde_toolkit.errors import CheckpointError, SDEToolkitError
from sde_toolkit.files.plain import UnreadableFileError, read_yaml
from sde_toolkit.files.tensors import TensorSpec, match_names, specs_of
from sde_toolkit.models.descriptions import CLASS, HOMES, OWN, OWN_FUNCTION, published
from sde_toolkit.showing import shown

__all__ = ["DESCRIPTION", "FORMAT", "TooLargeError", "check_fit", "read_description", "rebuild", "sketch_of"]

FORMAT = "sde_toolkit/1"
DESCRIPTION = "model.yaml"
_KEYS = ("network", "sde", "prediction", "time_input", "sigma_data", "transform", "event_shape")
_SPARE = 2**24  # numbers that a network may hold beside its weights: tables that are computed


def rebuild(
    directory: Path, found: Mapping[str, Any], file: str, weights: Mapping[str, TensorSpec], own: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of a score model, rebuilt from ``model.yaml``.

    Args:
        directory: the checkpoint.
        found: its description.
        file: the name of the file of weights.
        weights: what it holds, by name.
        own: parts that replace those of the description, by role.

    Raises:
        CheckpointError: an incomplete description; a part of the user's own that was not passed; a network that the
            weights do not fit.
    """
    missing = [key for key in _KEYS if key not in found]
    if missing:
        raise CheckpointError(directory, f"{DESCRIPTION} lacks {', '.join(missing)}", "Restore the file.")
    rebuilt = {key: found[key] for key in _KEYS}
    usual = {"learned_variance": False, "sign": 1, "condition_name": "condition"}
    rebuilt |= {key: found.get(key, value) for key, value in usual.items()}
    for key in ("prediction", "event_shape", "sigma_data"):
        if isinstance(rebuilt[key], dict) or (key == "prediction" and not isinstance(rebuilt[key], str)):
            problem = f"its {key} is {shown(rebuilt[key])}"
            raise CheckpointError(directory, problem, f"Check {key} in {DESCRIPTION}.")
    for role in HOMES:
        if own.get(role) is not None:
            rebuilt[role] = own[role]
        elif role == "network":
            rebuilt[role] = _network(directory, found[role], file, weights)
        else:
            rebuilt[role] = _part(directory, role, found[role])()
    return rebuilt


def read_description(directory: Path) -> dict[str, Any]:
    """What ``model.yaml`` holds.

    Raises:
        CheckpointError: missing, unreadable or foreign.
    """
    try:
        found = read_yaml(directory / DESCRIPTION)
    except FileNotFoundError:
        raise CheckpointError(directory, f"it has no {DESCRIPTION}", "Is this the right folder?") from None
    except UnreadableFileError as error:
        raise CheckpointError(directory, str(error), "Restore the file.") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        saw = found.get("format") if isinstance(found, dict) else type(found).__name__
        problem = f"{DESCRIPTION} has format {shown(saw)}, not {FORMAT!r}"
        raise CheckpointError(directory, problem, "It was not written by this package.")
    return found


def _part(directory: Path, role: str, description: Any) -> Callable[[], Any]:
    """What constructs a part: its class is looked up among the public names of its room only."""
    arguments = dict(description) if isinstance(description, dict) else {}
    remedy = f"Pass your own: ScoreModel.from_pretrained(path, {role}=...)."
    for mark in (OWN, OWN_FUNCTION):
        if mark in arguments:
            raise CheckpointError(directory, f"its {role} is your own, {shown(arguments[mark])}", remedy)
    name = arguments.pop(CLASS, None)
    kind = published(role, name)
    if kind is None:
        raise CheckpointError(directory, f"its {role} is {shown(name)}, which is not a class of sde_toolkit", remedy)
    inner = {k: _part(directory, role, v) if _is_part(v) else _with_tuples(v) for k, v in arguments.items()}

    def construct() -> Any:
        try:
            return kind(**{k: v() if callable(v) else v for k, v in inner.items()})
        except (TooLargeError, CheckpointError):
            raise
        except Exception as error:  # of our own constructors, for arguments that nobody but a file would give
            said = error if isinstance(error, (SDEToolkitError, TypeError)) else f"{type(error).__name__}: {error}"
            problem = f"its {role} cannot be rebuilt: {str(said)[:300]}"
            raise CheckpointError(directory, problem, f"Check {role} in {DESCRIPTION}.") from None

    return construct


def _is_part(value: Any) -> bool:
    return isinstance(value, dict) and any(mark in value for mark in (CLASS, OWN, OWN_FUNCTION))


def _with_tuples(value: Any) -> Any:
    """Lists as tuples: YAML has no tuples, and arguments were tuples before they were written."""
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def _network(directory: Path, description: Any, file: str, weights: Mapping[str, TensorSpec]) -> Any:
    """The network, allocated only if the weights fit it."""
    construct = _part(directory, "network", description)
    try:
        sketch = sketch_of(construct, 2 * len(weights))
    except TooLargeError:
        check_fit(directory, file, [f"the network has more parameters than the {len(weights)} tensors in it"])
    if isinstance(sketch, nn.Module):
        _check_sketch(directory, sketch, file, weights)
    return construct()


def sketch_of(construct: Callable[[], Any], parameters: int) -> Any:
    """What ``construct`` returns, its tensors without memory. It is stopped at more than so many parameters.

    Raises:
        TooLargeError: when it is stopped.
    """
    with _at_most(parameters), torch.device("meta"), _Uninitialised():
        return construct()


class _Uninitialised(TorchFunctionMode):
    """No random numbers are drawn for tensors without memory: the first draw would import half of torch's compiler."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init" or func in (Tensor.normal_, Tensor.uniform_):
            return args[0] if args else kwargs["tensor"]
        if func in (torch.randn, torch.rand):  # also where it asks for the CPU
            return torch.empty(*args, dtype=kwargs.get("dtype"), device="meta")
        return func(*args, **kwargs)


def _check_sketch(directory: Path, sketch: nn.Module, file: str, weights: Mapping[str, TensorSpec]) -> None:
    """Refuse a network whose parameters, sketched without memory, do not fit the weights in the file."""
    wanted = {f"network.{name}": spec for name, spec in specs_of(sketch.state_dict()).items()}
    _, problems = match_names(wanted, weights)
    check_fit(directory, file, [p for p in problems if not p.endswith("belongs to nothing")])
    held = sum(spec.numel for spec in weights.values())
    if sum(buffer.numel() for buffer in sketch.buffers()) > held + _SPARE:
        raise CheckpointError(directory, "its network needs far more memory than its weights", f"Check {DESCRIPTION}.")


def check_fit(directory: Path, file: str, problems: list[str], description: str = DESCRIPTION) -> None:
    """Refuse weights that do not fit the network, naming the first few that do not.

    Raises:
        CheckpointError: if there are any problems.
    """
    if problems:
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        problem = f"{file} does not fit the network: {'; '.join(problems[:3])}{more}"
        raise CheckpointError(directory, problem[:600], f"Is {description} the one it was saved with?")


class TooLargeError(Exception):
    """More parameters were made than the file has tensors."""


@contextmanager
def _at_most(parameters: int) -> Iterator[None]:
    """Stop building a network as soon as it has more parameters than there are tensors to fill them."""
    thread, count = threading.get_ident(), 0

    def count_one(module: nn.Module, name: str, value: Any) -> None:
        nonlocal count
        if threading.get_ident() == thread:
            count += 1
            if count > parameters:
                raise TooLargeError

    handle = register_module_parameter_registration_hook(count_one)
    try:
        yield
    finally:
        handle.remove()
