"""Watchers look at a model while it trains. A run calls them at fixed intervals with the averaged model.

To add your own, pass any object with ``every`` and ``__call__(scene)``. If there are several processes, each calls it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from sde_toolkit.checks import check_count, is_count
from sde_toolkit.data import Dataset
from sde_toolkit.errors import ArgumentError
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.training.logbook import Logbook

__all__ = ["Likelihood", "SampleSheet", "Scene", "Watcher", "check_watchers"]


@dataclass(frozen=True)
class Scene:
    """The state of a run: ``model`` has the averaged weights, in evaluation mode. ``log`` takes numbers, pictures."""

    step: int
    model: ScoreModel
    dataset: Dataset
    log: Logbook
    device: torch.device


class Watcher(Protocol):
    """Called every ``every`` steps, and after the last step.

    If it has a method ``check(model)``, that is called before the first step, and raises if the watcher cannot work.
    """

    @property
    def every(self) -> int: ...

    def __call__(self, scene: Scene) -> None: ...


@dataclass(frozen=True)
class SampleSheet:
    """A sheet of ``n`` samples, from the same noise each time.

    It is saved as ``pictures/samples-<step>.png`` and sent to every tracker that takes images (TensorBoard, Weights &
    Biases, Aim, ClearML, SwanLab, MLflow, your own with ``log_images``). ``n=None`` means 36 images or signals, or
    2,000 points. A class-conditional network draws its classes in turn.
    """

    every: int = 5000
    n: int | None = None
    nfe: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        _check_counts(self, "every", "nfe", *(() if self.n is None else ("n",)))

    def check(self, model: ScoreModel) -> None:
        """Refuse to start without matplotlib.

        Raises:
            MissingDependencyError: if it is not installed.
        """
        from sde_toolkit.data.blank_figures import new_figure

        new_figure(1, 1)

    def __call__(self, scene: Scene) -> None:
        """Sample with ``solver="auto"`` and draw."""
        from sde_toolkit.data.pictures import contact_sheet, picture_kind
        from sde_toolkit.sampling.samples import sample

        if scene.model.event_shape is None:
            return
        usual = {"points": 2000, "histogram": 2000}.get(picture_kind(scene.model.event_shape), 36)
        n, classes = usual if self.n is None else self.n, scene.model.num_classes
        labels = torch.arange(n, device=scene.device) % classes if classes else None
        shape = (n, *scene.model.event_shape)
        drawn = sample(scene.model, "auto", nfe=self.nfe, shape=shape, condition=labels, seed=self.seed)
        figure = contact_sheet(scene.model.transform.inverse(drawn.x).cpu())
        if figure is not None:
            scene.log.picture(scene.step, "samples", figure)


@dataclass(frozen=True)
class Likelihood:
    """The likelihood of the first ``n`` test samples through the probability flow. It is sent to the trackers.

    It is in bits per dimension if the data are grey levels (dequantised once, with the same draws each time), else in
    nats per dimension.
    """

    every: int = 10000
    n: int = 16
    nfe: int = 30
    seed: int = 0

    def __post_init__(self) -> None:
        _check_counts(self, "every", "n", "nfe")

    def __call__(self, scene: Scene) -> None:
        """Evaluate and log the mean."""
        from sde_toolkit.likelihood import Levels, bits_per_dim, log_likelihood

        model, x, levels = scene.model, scene.dataset.test[: self.n].to(scene.device), scene.dataset.levels
        if len(x) == 0:
            return
        condition = scene.dataset.test_labels
        condition = condition[: self.n].to(scene.device) if model.num_classes and condition is not None else None
        if levels is None:
            found = log_likelihood(model, x, nfe=self.nfe, condition=condition, seed=self.seed)
            value = found.nats.double().mean().item() / x[0].numel()
            scene.log.scalars(scene.step, {"held_out_nats_per_dim": value})
        else:
            bits = bits_per_dim(
                model, x, Levels(levels, 0, levels - 1), nfe=self.nfe, condition=condition, seed=self.seed
            )
            scene.log.scalars(scene.step, {"held_out_bits_per_dim": bits.mean})


def check_watchers(watchers: Sequence[Watcher], model: ScoreModel) -> None:
    """Refuse, before the first step, what is no watcher.

    Raises:
        ArgumentError: naming it.
        SDEToolkitError: if the ``check`` of a watcher raises one.
    """
    for i, watcher in enumerate(watchers):
        if not (callable(watcher) and is_count(getattr(watcher, "every", None))):
            problem = "not a watcher: it must be callable, and its attribute every a number of steps"
            raise ArgumentError(f"watchers[{i}]", watcher, problem, "Use SampleSheet(), Likelihood() or your own.")
        check = getattr(watcher, "check", None)
        if check is not None:
            check(model)


def _check_counts(watcher: object, *names: str) -> None:
    for name in names:
        remedy = f"Pass another value. The default is {getattr(type(watcher), name)}."
        check_count(name, getattr(watcher, name), remedy)
