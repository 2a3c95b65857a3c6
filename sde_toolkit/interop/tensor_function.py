"""A score model as a function of tensors alone, which torch can trace: x, a time and the rows of a condition."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from sde_toolkit.batching import expand_to
from sde_toolkit.errors import ArgumentError
from sde_toolkit.models.conditions import check_condition, map_rows, named_rows, repeat_rows
from sde_toolkit.models.evaluation_mode import check_evaluation_mode, refuse_random_numbers
from sde_toolkit.models.inspection import dtype_of, name_of
from sde_toolkit.models.prediction import Kind, check_kind
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.sde import SDE

__all__ = ["Coefficients", "TensorFunction", "ToldTime"]

ToldTime: TypeAlias = Literal["t", "sigma"]
"""What the second input is: the time t of the model's SDE, or sigma, with x = x_0 + sigma ε."""

_ON_ANY_PATH = ("x0", "epsilon", "edm")  # what does not depend on the path along which x was made
_SLACK = 1e-6  # of t and λ: times rounded to float32 are inside
_AGREEMENT = 1e-4  # of a graph's answers with the model's, relative to the largest


class TensorFunction(nn.Module):
    """A model as a function of tensors alone: (x, time, *rows of the condition) to one view of its prediction."""

    def __init__(self, model: ScoreModel, answer: Kind, time: ToldTime, condition: Any) -> None:
        super().__init__()
        _check(model, answer, time)
        self.model, self.answer, self.time = model, answer, time
        self.names = [name for name, _ in named_rows(condition)]
        self.rows = next((len(rows) for _, rows in named_rows(condition)), 1)
        check_condition(condition, self.rows)
        self.condition = condition
        self.low, self.high = (model.sde.half_log_snr(end).item() for end in (1.0, 0.0))
        self.wanted = self._answer_of_model()

    def forward(self, x: Tensor, time: Tensor, *rows: Tensor) -> Tensor:
        told = iter(rows)
        condition = map_rows(self.condition, lambda _: next(told))
        t, known = self.time_of(time.to(torch.float64))
        if self.time == "sigma":
            x = expand_to(self.model.sde.alpha(t).to(x.dtype), x) * x
        return torch.where(expand_to(known, x), self.model(x, t, condition).view(self.answer), math.nan)

    def time_of(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """The model's t of the second input or the nearest one, and whether the model has it."""
        if self.time == "t":
            return time.clamp(0.0, 1.0), (time >= -_SLACK) & (time <= 1 + _SLACK)
        half_log_snr = -torch.log(time)
        t = self.model.sde.solve_half_log_snr(half_log_snr.clamp(self.low, self.high)).clamp(0.0, 1.0)
        return t, (half_log_snr >= self.low - _SLACK) & (half_log_snr <= self.high + _SLACK)

    def example(self, times: int) -> tuple[Tensor, ...]:
        """Inputs for the rows of the condition so many times over."""
        n, sde = times * self.rows, self.model.sde
        dtype = torch.float64 if dtype_of(self.model.network) == torch.float64 else torch.float32
        t = (torch.arange(n, dtype=torch.float64) + 0.5) / n
        noise = torch.randn(n, *(self.model.event_shape or ()), generator=torch.Generator().manual_seed(0), dtype=dtype)
        scale = (1.0 if self.time == "sigma" else sde.alpha(t)) + sde.sigma(t)
        told = t if self.time == "t" else torch.exp(-sde.half_log_snr(t))
        x = expand_to(scale.to(dtype), noise) * noise
        device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        rows = (rows for _, rows in named_rows(repeat_rows(self.condition, times)))
        return x.to(device), told.to(device, dtype), *rows

    @torch.no_grad()
    def _answer_of_model(self) -> Tensor:
        """What the model itself answers to ``example(3)``, with all its checks."""
        x, time, *rows = self.example(3)
        with refuse_random_numbers(x.device, self.model.network):
            return self(x, time, *rows)

    def check(self, run: Callable[..., Tensor]) -> None:
        """Refuse a graph whose answers are not the model's, for another number of samples than it was traced with."""
        with torch.no_grad():
            found = run(*self.example(3)).to(self.wanted.device)
        most = max(_AGREEMENT, 8 * torch.finfo(dtype_of(self.model.network) or found.dtype).eps)
        off = (found - self.wanted).abs().max() / self.wanted.abs().max().clamp(min=1e-30)
        if not off <= most:
            problem = f"its graph gives other answers: they differ by {off:.1e} of the largest"
            remedy = "Its forward may not depend on Python's own numbers, on values of x, or on earlier calls."
            raise ArgumentError("model.network", name_of(self.model.network), problem, remedy)


class Coefficients(nn.Module):
    """What a graph computes from the time alone."""

    def __init__(self, graph: TensorFunction) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, time: Tensor) -> tuple[Tensor, ...]:
        t, _ = self.graph.time_of(time.to(torch.float64))
        return *self.graph.model.network_inputs(t), *self.graph.model.readout(t).view(self.graph.answer)


def _check(model: Any, answer: Any, time: Any) -> None:
    if not isinstance(model, ScoreModel):
        raise ArgumentError("model", model, "not a ScoreModel", "Build one: ScoreModel(network, sde, ...).")
    check_kind(answer, "answer")
    if time not in ("t", "sigma"):
        raise ArgumentError("time", time, "unknown", 'Pass "t", the time of its SDE, or "sigma", of x_0 + sigma ε.')
    if time == "sigma" and answer not in _ON_ANY_PATH:
        problem = "it depends on the path, and with sigma x is x_0 + sigma ε on no path of the model's own"
        raise ArgumentError("answer", answer, problem, f'Choose one of {", ".join(_ON_ANY_PATH)}, or pass time="t".')
    if model.event_shape is None:
        remedy = "Give the model one: ScoreModel(..., event_shape=(3, 32, 32)), for example."
        raise ArgumentError("model.event_shape", None, "a graph is made for one shape of samples", remedy)
    if time == "sigma" and type(model.sde).solve_half_log_snr is SDE.solve_half_log_snr:
        problem = "its λ is inverted by bisection, which no graph holds"
        raise ArgumentError("model.sde", model.sde, problem, 'Pass time="t", or define its solve_half_log_snr.')
    check_evaluation_mode(model)
