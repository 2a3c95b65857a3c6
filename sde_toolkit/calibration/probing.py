"""What a calibration asks of a model before it begins: the dtype that it takes, and what an evaluation costs."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from sde_toolkit.calibration.problem import Problem
from sde_toolkit.calibration.reference import solve_finely
from sde_toolkit.errors import ArgumentError
from sde_toolkit.models.evaluation_mode import refuse_random_numbers
from sde_toolkit.models.inspection import modules_of
from sde_toolkit.models.score_model import ScoreModel

__all__ = ["cost_of", "default_n", "dtypes_and_device", "first_that_answers"]

_REFERENCE = 0.15  # share of the time for the reference
_SOLVES = 5.0  # of all its noises: fit, select, fresh, and fresh with twice the steps


def default_n(problem: Problem, cheap: bool, time_limit: float) -> int:
    """64 to 256; for cheap models up to 4096, as far as their reference takes a seventh of the time."""
    cost = _cost_of_a_step(problem, 1024) if cheap else _cost_of_a_step(problem, 16)
    affordable = _REFERENCE * time_limit / (cost * problem.fine_steps * _SOLVES)
    return int(max(64, min(4096 if cheap else 256, 2**18 // math.prod(problem.event_shape), affordable)))


@torch.no_grad()
def _cost_of_a_step(problem: Problem, n: int) -> float:
    """Seconds per sample of one step of the fine solve, by the faster of two solves of eight steps."""
    x = torch.zeros(n, *problem.event_shape, dtype=problem.dtype, device=problem.device)
    took = []
    for _ in range(2):
        begin = time.perf_counter()
        solve_finely(problem.flow, x, problem.fine_times(8)).end.sum().item()
        took.append(time.perf_counter() - begin)
    return min(took) / (9 * n)


def dtypes_and_device(model: ScoreModel, dtype: torch.dtype | None) -> tuple[list[torch.dtype], torch.device]:
    """The dtypes of the state to try, in order: the one that is asked for, or the model's own and the other one."""
    tensors = [*model.parameters(), *model.buffers()]
    device = tensors[0].device if tensors else torch.device("cpu")
    if dtype not in (None, torch.float32, torch.float64):
        raise ArgumentError("dtype", dtype, "the state is float32 or float64", "Leave it out.")
    if dtype is not None:
        return [dtype], device
    own = _own_dtype(model)
    return [own, torch.float32 if own == torch.float64 else torch.float64], device


@torch.no_grad()
def first_that_answers(problems: Sequence[Problem]) -> Problem:
    """The first whose model takes its dtype: a function may hold tensors of a dtype that nothing else tells."""
    refused: RuntimeError | None = None
    for problem in problems:
        try:
            _ask(problem, 1)
        except RuntimeError as error:
            if isinstance(error, torch.cuda.OutOfMemoryError):
                raise
            refused = refused or error
        else:
            return problem
    raise refused or ArgumentError("dtype", None, "there is none to try", "Leave it out.")


def _ask(problem: Problem, size: int) -> Tensor:
    """One evaluation of ``size`` samples."""
    x = torch.zeros(size, *problem.event_shape, dtype=problem.dtype, device=problem.device)
    equation = problem.descent.equation
    inputs = tuple(c.to(x.device, x.dtype) for c in equation.inputs(torch.tensor(0.5, dtype=torch.float64)))
    return equation.output(x, inputs)


def _own_dtype(model: ScoreModel) -> torch.dtype:
    """float64 if all parameters are float64 (all buffers, if there are no parameters); also for functions."""
    modules = [module for _, module in modules_of(model, "model")]
    parameters = [p.dtype for module in modules for p in module.parameters() if p.is_floating_point()]
    buffers = [b.dtype for module in modules for b in module.buffers() if b.is_floating_point()]
    return torch.float64 if set(parameters or buffers) == {torch.float64} else torch.float32


@torch.no_grad()
def cost_of(problem: Problem) -> float:
    """Seconds per sample of one evaluation, after a first one that does not count."""
    size = 32
    with refuse_random_numbers(problem.device, problem.model.network):
        _ask(problem, size)
    took = []
    for _ in range(3):
        begin = time.perf_counter()
        _ask(problem, size).sum().item()
        took.append(time.perf_counter() - begin)
    return min(took) / size
