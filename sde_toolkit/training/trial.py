"""Parts of a run may have the same name and compute something else. Their answers on a few values tell them apart.

Before a run continues, its SDE, time input, transform, times and augmentation are tried on the same values as at its
start (``run.yaml``), and the network on four samples with the checkpoint's weights. The loss is not tried, since it may
count its calls. It is compared by the numbers that it holds.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.data import Augmentation, Dataset
from sde_toolkit.errors import CheckpointError
from sde_toolkit.jobs.fingerprints import tensor_digest
from sde_toolkit.models.inspection import modules_of
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.training.objective import Objective, modes_kept

__all__ = ["check_trial", "differing_part", "held_numbers", "try_network", "try_parts"]

_SHOWN = 16  # values of an answer that are compared, besides its mean square
_SAMPLES = 4


def try_parts(objective: Objective, dataset: Dataset) -> dict[str, list[float]]:
    """The answers of each part on a few values, by its name. Parts that learn, or fail on these, are left out."""
    model, augmentation, x = objective.model, objective.augmentation, dataset.sample(_SAMPLES)
    sde, transform = model.sde, model.transform
    t = torch.linspace(0.05, 0.95, 7, dtype=torch.float64)
    u = torch.linspace(0, 0.9, 7, dtype=torch.float64)

    def of_transform() -> list[Any]:
        y = transform.forward(x)
        return [y, transform.inverse(y), transform.log_abs_det(dataset.event_shape)]

    questions: dict[str, tuple[Any, Callable[[], Sequence[Any]]]] = {
        "sde": (sde, lambda: [part(at) for part in (sde.alpha, sde.sigma) for at in (0.0, t, 1.0)]),
        "time_input": (model.time_input, lambda: [model.time_input(sde, t)]),
        "transform": (transform, of_transform),
        "times": (objective.times, lambda: list(objective.times(sde, u, objective.t_min))),
    }
    if augmentation is not None:
        questions["augmentation"] = augmentation, lambda: _augmented(augmentation, transform.forward(x).float())
    return {name: answer for name, (part, ask) in questions.items() if (answer := _answer(part, ask)) is not None}


def _augmented(augmentation: Augmentation, x: Tensor) -> list[Tensor]:
    uniform = torch.linspace(0.1, 0.9, len(x) * augmentation.draws.uniforms).reshape(len(x), -1)
    normal = torch.linspace(-1, 1, len(x) * augmentation.draws.normals).reshape(len(x), -1)
    return [part for part in augmentation(x, uniform, normal) if part is not None]


@torch.no_grad()
def _answer(part: Any, ask: Callable[[], Sequence[Any]]) -> list[float] | None:
    if any(p.requires_grad for _, module in modules_of(part) for p in module.parameters()):
        return None
    try:
        return [number for value in ask() for number in _chosen_values(value)]
    except Exception:  # a part of the user's own may raise anything on values that it was not made for
        return None


def _chosen_values(value: Any) -> list[float]:
    """Some values of a tensor, evenly spread over it, and its mean square."""
    flat = torch.as_tensor(value).detach().cpu().double().flatten()
    if len(flat) <= _SHOWN:
        return [float(number) for number in flat.tolist()]
    chosen = torch.linspace(0, len(flat) - 1, _SHOWN).long()
    return [*flat[chosen].tolist(), flat.square().mean().item()]


def differing_part(then: Any, now: Mapping[str, Sequence[float]]) -> str | None:
    """The name of the first part whose answers then and now differ by more than round-off. None if there is none.

    ``then`` is from a file. Files of earlier versions have no answers.
    """
    for name in sorted({*then} & {*now}) if isinstance(then, dict) else ():
        if not _close(then[name], now[name], 1e-5, 1e-6):
            return name
    return None


def _close(one: Sequence[float], other: Sequence[float], tolerance: float, of_largest: float) -> bool:
    """Whether numbers agree, each to ``tolerance`` times itself or ``of_largest`` times the largest."""
    try:
        a, b = np.array(one, float), np.array(other, float)
    except (TypeError, ValueError):  # the file holds something else
        return False
    if a.shape != b.shape:
        return False
    finite = np.abs(a[np.isfinite(a)])
    least = of_largest * (finite.max() if len(finite) else 0.0)
    return bool(np.allclose(a, b, rtol=tolerance, atol=least, equal_nan=True))


@torch.no_grad()
def try_network(model: ScoreModel, dataset: Dataset, device: torch.device) -> list[float] | None:
    """The answers of the network for four training samples, in evaluation mode. All processes have to call it.

    None if they cannot be compared: the network draws random numbers, or does not take such a batch.
    """
    x = model.transform.forward(dataset.sample(_SAMPLES)).to(device, torch.float32)
    t = torch.linspace(0.1, 0.9, len(x), dtype=torch.float64, device=device)
    labels = torch.zeros(len(x), dtype=torch.long, device=device) if model.num_classes else None
    with torch.random.fork_rng([device] if device.type == "cuda" else []), _plainly(model):
        found = []
        for seed in (0, 1):
            torch.manual_seed(seed)
            try:
                inputs = tuple(c.to(x.dtype) for c in model.network_inputs(t))
                found.append(_chosen_values(model.output(x, inputs, labels)))
            except Exception:  # the user's own network may raise anything, and so may one with sharded parameters
                return None
    return found[0] if found[0] == found[1] else None


@contextmanager
def _plainly(model: ScoreModel) -> Iterator[None]:
    """Inside the block the model is in evaluation mode and not compiled. (Four samples would compile it once more.)"""
    network: Any = model.network
    compiled = getattr(network, "_compiled_call_impl", None)
    with modes_kept(model):
        model.eval()
        if compiled is not None:
            network._compiled_call_impl = None
        try:
            yield
        finally:
            if compiled is not None:
                network._compiled_call_impl = compiled


def check_trial(folder: Any, then: Sequence[float] | None, now: Sequence[float] | None) -> None:
    """Refuse to continue with a network that gives other answers than when the checkpoint was made, with its weights.

    Raises:
        CheckpointError: if the answers differ.
    """
    if then is not None and now is not None and not _close(then, now, 0.01, 0.01):
        problem = "its network has the same name as before, but gives other answers with the same weights"
        raise CheckpointError(folder, problem, "Give the same network to continue, or train in another folder.")


def held_numbers(part: Any, depth: int = 4) -> Any:
    """The values that a function (closure, defaults) or an object (attributes) holds, as plain data.

    Modules, and values more than ``depth`` levels deep, appear by their class only.
    """
    if part is None or isinstance(part, (bool, int, str)):
        return part
    if isinstance(part, (float, np.generic)):
        return repr(float(part)) if isinstance(part, (float, np.floating)) else part.item()
    if isinstance(part, (Tensor, np.ndarray)):
        return tensor_digest(torch.as_tensor(part))
    name = str(getattr(part, "__qualname__", type(part).__qualname__))
    if isinstance(part, torch.nn.Module) or depth == 0:
        return name
    if isinstance(part, (list, tuple)):
        return [held_numbers(item, depth - 1) for item in part]
    if isinstance(part, dict):
        return {str(key): held_numbers(item, depth - 1) for key, item in part.items()}
    return {"name": name, **{key: held_numbers(item, depth - 1) for key, item in _holdings(part).items()}}


def _holdings(part: Any) -> dict[str, Any]:
    if isinstance(part, functools.partial):
        return {"function": part.func, "arguments": part.args, **part.keywords}
    if inspect.ismethod(part):
        return {"function": part.__func__, "self": part.__self__}
    if inspect.isfunction(part):
        closure = zip(part.__code__.co_freevars, part.__closure__ or (), strict=False)
        cells = {name: cell.cell_contents for name, cell in closure if _has_content(cell)}
        return {**cells, "defaults": part.__defaults__, **(part.__kwdefaults__ or {})}
    return dict(getattr(part, "__dict__", {}))


def _has_content(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
