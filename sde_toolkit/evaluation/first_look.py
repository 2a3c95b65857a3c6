"""What a model or a step operator refuses when it is called, found before any network is evaluated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch

from sde_toolkit.evaluation.planned_run import PlannedRun, SolverRun
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.noise.streams import per_sample_noise
from sde_toolkit.sampling.arguments import device_of
from sde_toolkit.sampling.loop import rows_of
from sde_toolkit.sampling.samples import sample

__all__ = ["look_at_models", "look_at_steps"]

_SAMPLES = 2


class _ReachedError(Exception):
    """A network is about to be evaluated."""


def look_at_models(models: Iterable[ScoreModel], shape: tuple[int, ...], condition: Any) -> None:
    """Ask every model once, and stop where its network would be evaluated.

    Raises:
        Exception: what a model raises before that: a posterior without a measurement, for example.
    """
    some = rows_of(condition, 0, _SAMPLES)
    for model in models:
        with _stopped_at_networks(model) as can_be_stopped:
            if can_be_stopped:
                x = per_sample_noise(0, 0, (_SAMPLES, *shape), device=device_of(model, None))()
                model(x, 0.5, some)


def look_at_steps(run: PlannedRun, model: ScoreModel, shape: tuple[int, ...], condition: Any) -> None:
    """Take the first step of a step operator, and stop where the network would be evaluated.

    Raises:
        Exception: what it raises before that: for a measurement that is missing, for example.
    """
    if run.samples_the_model or not isinstance(run, SolverRun):
        return
    step, some = run.first_step(), rows_of(condition, 0, _SAMPLES)
    with _stopped_at_networks(model) as can_be_stopped:
        if can_be_stopped:
            sample(model, step.solver, step.grid, shape=(_SAMPLES, *shape), condition=some)


@contextmanager
def _stopped_at_networks(model: ScoreModel) -> Iterator[bool]:
    """End the block where a network of ``model`` would be evaluated. False: its networks are no modules."""
    found = [part.network for part in model.modules() if isinstance(part, ScoreModel)]
    outside = [network for network in found if not isinstance(network, ScoreModel)]
    networks = [network for network in outside if isinstance(network, torch.nn.Module)]
    if not networks or len(networks) < len(outside):
        yield False
        return
    hooks = [network.register_forward_pre_hook(_stop) for network in networks]
    try:
        yield True
    except _ReachedError:
        pass
    finally:
        for hook in hooks:
            hook.remove()


def _stop(*_: Any) -> NoReturn:
    raise _ReachedError
