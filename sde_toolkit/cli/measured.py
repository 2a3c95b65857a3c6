"""``task=inpaint method=[mmps,dps]`` of ``sde-toolkit compare``: models after a measurement, and step operators."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from sde_toolkit.checks import is_number
from sde_toolkit.cli.held_out import HeldOut
from sde_toolkit.cli.parts import find_dataset
from sde_toolkit.cli.setup import instantiate
from sde_toolkit.errors import ArgumentError, DataError
from sde_toolkit.guidance import Measurement, Posterior, PosteriorMethod
from sde_toolkit.models.mixture import GaussianMixture
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.solvers import Solver

__all__ = ["Measured", "check_noise", "measured_models", "methods_of", "truth_of"]


@dataclass(frozen=True, eq=False)
class Measured:
    """Models after a measurement by the names of the methods, and the solvers of step operators; none without a task.

    ``condition``: of the samples, a y for each, or their labels alone without a task. ``index``: which samples of the
    data set were measured, (n,); None where they belong to none.
    """

    models: dict[str, ScoreModel]
    condition: Any
    index: Tensor | None = None
    steps: dict[str, Solver] = field(default_factory=dict)


def measured_models(config: DictConfig, model: ScoreModel, labels: Tensor | None, n: int) -> Measured:
    """What ``task=`` and ``method=`` make of a model.

    Sample i is one given the measurement of held-out sample i. So samples of the exact posterior have the law of the
    data, all together, and may be compared with real data: with others than those that were measured.

    Raises:
        ArgumentError: for methods without a task or the reverse, and for a method that cannot take the measurement.
    """
    chosen = config.get("methods") or {}
    if config.get("task") is None:
        if chosen:
            problem = "a method needs a measurement"
            raise ArgumentError("method", list(chosen), problem, "Choose task=inpaint, for example.")
        return Measured({}, labels)
    methods = methods_of(config)
    noise = check_noise(config)
    truth, _, index = truth_of(config, model, n, "n")
    measurement = Measurement(instantiate(config.task).operator(tuple(truth.shape[1:])), noise_std=noise)
    y = measurement.simulate(model.transform.forward(truth).float(), seed=config.seed)
    found: dict[str, ScoreModel] = {}
    steps: dict[str, Solver] = {}
    for name, method in methods.items():
        if isinstance(method, PosteriorMethod):
            found[name] = Posterior(model, measurement, method)
        else:
            steps[name] = method(model, measurement)
    return Measured(found, y if labels is None else {"y": y, "condition": labels}, index, steps)


def methods_of(config: DictConfig) -> dict[str, Any]:
    """The chosen methods by the names of their files.

    Raises:
        ArgumentError: if there are none.
    """
    chosen = config.get("methods")
    if not isinstance(chosen, DictConfig) or not chosen:
        raise ArgumentError("method", chosen, "no method was chosen", "Choose some with method=[name,name].")
    return {str(name): instantiate(part) for name, part in chosen.items()}


def check_noise(config: DictConfig) -> float:
    """``noise``, a standard deviation.

    Raises:
        ArgumentError: for anything else.
    """
    if not (is_number(config.noise) and config.noise >= 0):
        problem = "a standard deviation is finite and not negative"
        raise ArgumentError("noise", config.noise, problem, "Give noise=0.05, for example.")
    return float(config.noise)


def truth_of(config: DictConfig, model: ScoreModel, k: int, name: str) -> tuple[Tensor, str, Tensor | None]:
    """Held-out samples (k, *event) that are measured, in data space; their source; and which ones they are, (k,).

    ``name``: the setting that asks for so many.

    Raises:
        DataError: if there are none of the model's shape.
        ArgumentError: if there are fewer.
    """
    if isinstance(model, GaussianMixture) and config.get("data") is None:
        return model.draw(k, generator=torch.Generator().manual_seed(1)), "exact draws of the mixture", None
    dataset = find_dataset(config, model)
    if dataset is None:
        problem = f"no data of shape {model.event_shape} ship with the package"
        raise DataError("data", None, problem, "Choose some, such as data=array data.path=test.npy.")
    chosen = HeldOut(dataset, k, name)
    return chosen.x, chosen.source, chosen.index
