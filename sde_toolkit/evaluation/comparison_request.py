"""The request for a comparison: checked and planned before any evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from sde_toolkit.checks import MOST, check_amount, check_count, is_count
from sde_toolkit.data.pictures import picture_kind
from sde_toolkit.errors import ArgumentError
from sde_toolkit.evaluation.candidates import named_grids, named_solvers
from sde_toolkit.evaluation.first_look import look_at_models, look_at_steps
from sde_toolkit.evaluation.planned_run import PlannedRun
from sde_toolkit.evaluation.planning import plan_all
from sde_toolkit.metrics.distances import FlowError
from sde_toolkit.metrics.judge import Judge
from sde_toolkit.metrics.metric import Against, Metric, check_metrics
from sde_toolkit.models.conditions import check_condition
from sde_toolkit.models.evaluation_mode import check_evaluation_mode
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.noise.streams import check_stream
from sde_toolkit.sampling.arguments import check_batches, check_model, device_of
from sde_toolkit.solvers import Solver

__all__ = ["BUDGETS", "POINTS", "ComparisonRequest", "check_judge", "check_models", "named_models"]

BUDGETS = (5, 10, 20)
POINTS = 1000  # in a panel of a report
_TRIED = 32  # samples of each set in the first try of a metric

RESERVED_COLUMNS = (
    "solver", "grid", "budget", "nfe", "products", "steps", "tweedie", "eta", "integrator", "model", "seconds",
    "network_seconds", "outside_network", "failure",
)  # fmt: skip
"""Columns of a comparison's CSV. No metric may have one of these names."""


@dataclass(frozen=True, eq=False)
class ComparisonRequest:
    """The request for a comparison, see :func:`~sde_toolkit.compare_solvers`. It is checked when it is built.

    ``models``: models of the same events by the names of their rows, such as one model under several guidances. Then
    every solver has a row for each of them: "ddim, guidance=3". ``model`` is the one that speaks for all in the report.
    ``pairs``: further rows by name, a model and the one solver that it is drawn by: step operators, which bring their
    own measurement or guidance. There may be no other rows: ``models={}``. ``points``: samples of each row in a picture
    of events of one or two numbers, which are cheap; what ``n`` lacks of them is drawn for the picture alone.
    ``device``: that of the model by default. ``runs``: the planned runs, in order; ``event_shape``: of a sample;
    ``measured``: the metrics.

    Raises:
        SDEToolkitError: for settings that do not fit together.
    """

    model: ScoreModel
    solvers: Any = None
    budgets: Sequence[int] = BUDGETS
    grids: Any = None
    n: int = 512
    seed: int = 0
    seeds: int = 1
    judge: Judge | None = None
    without_judge: str = "no real data were given"
    metrics: Any = None
    endpoint_n: int = 64
    endpoint_steps: int = 50
    references: bool = True
    batch_size: int | None = 64
    device: Any = None
    condition: Any = None
    check_declaration: bool = True
    progress: bool = False
    points: int = 0
    models: Mapping[str, ScoreModel] | None = None
    pairs: Mapping[str, tuple[ScoreModel, Solver]] = field(default_factory=dict)
    runs: tuple[PlannedRun, ...] = field(init=False)
    event_shape: tuple[int, ...] = field(init=False)
    measured: tuple[Metric, ...] = field(init=False)

    def __post_init__(self) -> None:
        solvers, grids = named_solvers(self.solvers), named_grids(self.grids)
        event_shape = check_models({"": self.model, **(self.models or {})} | {k: m for k, (m, _) in self.pairs.items()})
        if not solvers:
            raise ArgumentError("solvers", dict(solvers), "there is nothing to compare", "Name at least one solver.")
        _check_budgets(self.budgets)
        check_count("n", self.n, "512 is the default.", least=2)
        check_stream(self.seed, 0)
        check_stream(self.seed + check_count("seeds", self.seeds, "1 is the default.") - 1, self.n)
        check_count("endpoint_n", self.endpoint_n, "64 is the default.", least=0)
        check_count("endpoint_steps", self.endpoint_steps, "50 is the default.")
        check_count("points", self.points, "1000 is usual.", least=0)
        check_amount("n", self.n, self.n * self.seeds * math.prod(event_shape))
        for switch in ("references", "check_declaration", "progress"):
            if not isinstance(getattr(self, switch), bool):
                raise ArgumentError(switch, getattr(self, switch), "neither True nor False", "Pass True or False.")
        check_batches(self.batch_size, torch.float32)
        check_condition(self.condition, self.n)
        if self.judge is not None:
            check_judge(self.model, self.judge, self.n)
        device = _device(self.model, self.device)
        measured = self._metrics()
        look_at_models(self.all_models.values(), event_shape, self.condition)

        def look(run: PlannedRun) -> None:
            look_at_steps(run, self.model_of(run), event_shape, self.condition)

        # last, since planners may evaluate models
        runs = plan_all(self.all_models, solvers, self.budgets, grids, self.pairs, look)
        if not runs:
            remedy = f"Use {list(BUDGETS)}, for example."
            raise ArgumentError("budgets", list(self.budgets), "there is no budget to run the solvers at", remedy)
        found = {"runs": tuple(runs), "event_shape": event_shape, "measured": measured, "device": device}
        for attribute, value in found.items():
            object.__setattr__(self, attribute, value)

    def _metrics(self) -> tuple[Metric, ...]:
        usual = (FlowError(), *(() if self.judge is None else self.judge.metrics))
        if self.metrics is None:
            return check_metrics(usual, RESERVED_COLUMNS)
        chosen = check_metrics(self.metrics, RESERVED_COLUMNS)
        if isinstance(self.metrics, Mapping):
            chosen = check_metrics((*usual, *chosen), RESERVED_COLUMNS)
        for metric in chosen:
            if metric.against in (Against.PARTS, Against.ALL) and self.judge is None:
                problem = "it compares samples with real data, and there are none"
                raise ArgumentError("metrics", metric.name, problem, "Pass real samples: data=...")
            metric.check(self.n, 0 if self.judge is None else len(self.judge.real))
        if isinstance(self.metrics, Mapping) and self.judge is not None:
            for metric in (metric for metric in chosen if metric not in usual):
                _try_out(metric, self.judge)
        return chosen

    @property
    def all_models(self) -> Mapping[str, ScoreModel]:
        """The models of the rows by their names; "" is that of a comparison of one."""
        return {"": self.model} if self.models is None else self.models

    def model_of(self, run: PlannedRun) -> ScoreModel:
        """The model that a run samples from."""
        return self.model if run.model is None else run.model

    @property
    def points_missing(self) -> int:
        """Samples of each row that are drawn for the picture alone; none with a condition, which is of n samples."""
        shown = picture_kind(self.event_shape) in ("points", "histogram")
        return max(0, self.points - self.n) if shown and self.condition is None else 0

    @property
    def endpoints(self) -> dict[str, int]:
        """How many exact endpoints of the flow are computed for each model: none without a deterministic solver."""
        solved = {run.model_name for run in self.runs if run.deterministic}
        n = min(self.n, self.endpoint_n)
        return {name: n for name in self.all_models if name in solved and n > 0}


def _try_out(metric: Metric, judge: Judge) -> None:
    """Let a user's metric measure a few real samples against a few others: what it raises is better raised now."""
    places = np.arange(len(judge.real))
    of_each = min(_TRIED, len(places) // 2)
    metric.value(judge.parts.whole.at(places[:of_each]), judge.parts.whole.at(places[of_each : 2 * of_each]))


def named_models(model: Any) -> tuple[ScoreModel, dict[str, ScoreModel] | None]:
    """The model that speaks for all, the first, and all by their names; None for one without a name.

    Raises:
        ArgumentError: for a mapping that is empty, or that has a name which is none.
    """
    if not isinstance(model, Mapping):
        return model, None
    for name in model or (None,):
        if not isinstance(name, str) or not name:
            raise ArgumentError("model", model, "its keys are not names of models", 'Pass {"guided": model}.')
    return next(iter(model.values())), dict(model)


def check_models(models: Mapping[str, Any]) -> tuple[int, ...]:
    """Check models, and return the shape of their events.

    Raises:
        ArgumentError: naming the model.
    """
    shapes = {}
    for name, model in models.items():
        check_model(model)
        which = type(model).__name__ if name == "" else name
        if model.event_shape is None:
            raise ArgumentError("model", which, "it has no event_shape", "Build it with event_shape=...")
        check_evaluation_mode(model)
        shapes[which] = tuple(model.event_shape)
    first = next(iter(shapes.values()))
    for which, shape in shapes.items():
        if shape != first:
            problem = f"its samples have shape {shape}, those of the first model {first}"
            raise ArgumentError("model", which, problem, "Compare models of the same events.")
    return first


def _device(model: ScoreModel, given: Any) -> torch.device:
    """The device of a comparison, that of the model by default.

    Raises:
        ArgumentError: for what names no device.
    """
    if given is None:
        return device_of(model, None)
    try:
        return torch.device(given)
    except (RuntimeError, TypeError):
        raise ArgumentError("device", given, "it names no device", 'Pass "cpu", "cuda" or "cuda:0".') from None


def _check_budgets(budgets: Any) -> None:
    """Check that budgets are different whole numbers; there may be none, where all solvers are adaptive.

    Raises:
        ArgumentError: naming the budget.
    """
    remedy = f"Use {list(BUDGETS)}, for example."
    if isinstance(budgets, str) or not isinstance(budgets, Sequence):
        raise ArgumentError("budgets", budgets, "not a list of numbers of network evaluations", remedy)
    if not all(map(is_count, budgets)) or len(set(budgets)) != len(budgets):
        problem = "budgets are different whole numbers of network evaluations, at least 1"
        raise ArgumentError("budgets", list(budgets), problem, remedy)
    for budget in budgets:
        check_count("budgets", budget, remedy, most=MOST)


def check_judge(model: ScoreModel, judge: Any, n: int) -> None:
    """Check that a judge takes at most n samples, of the model's shape.

    Raises:
        ArgumentError: for anything else, such as the real samples themselves.
    """
    if not isinstance(judge, Judge):
        remedy = "Pass data=real, or Judge(real, n, features) from sde_toolkit.evaluation."
        raise ArgumentError("judge", type(judge).__name__, "not a Judge", remedy)
    shape = tuple(judge.real.shape[1:])
    if model.event_shape is not None and shape != tuple(model.event_shape):
        problem = f"it judges samples of shape {shape}, the model's have {tuple(model.event_shape)}"
        raise ArgumentError("judge", type(judge).__name__, problem, "Give it real data of the model's shape.")
    if judge.n > n:
        problem = f"it judges {judge.n} samples, and n={n} are drawn"
        raise ArgumentError("judge", type(judge).__name__, problem, "Build it with the same n.")
