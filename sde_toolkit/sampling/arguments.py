"""What a run refuses before its first evaluation: models, starts, conditions and paths that do not fit together."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.checks import check_amount, check_count, is_count
from sde_toolkit.errors import ArgumentError, warn_caller
from sde_toolkit.integrators import Integrator
from sde_toolkit.models.conditions import check_condition, tensors_of
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.noise.brownian import BrownianPath
from sde_toolkit.ranges import range_problems
from sde_toolkit.sampling.captured import check_recording
from sde_toolkit.sampling.cuda_graphs import CUDA_GRAPH
from sde_toolkit.sampling.loop import Options
from sde_toolkit.solvers import Solver

__all__ = [
    "check_batches",
    "check_compile",
    "check_deterministic",
    "check_generator",
    "check_gradients",
    "check_model",
    "check_noise_level",
    "check_parts",
    "check_path",
    "check_run",
    "check_shape",
    "check_space",
    "check_tensor",
    "device_of",
    "state_dtype",
    "warn_outside",
]


def check_run(
    model: ScoreModel,
    solver: Solver,
    grid: Tensor,
    shape: tuple[int, ...],
    start: tuple[str, Tensor | None],
    *,
    condition: Any,
    differentiable: bool,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
    **how: Any,
) -> Options:
    """The options of a run, after what ``sample`` and ``encode`` refuse alike.

    ``grid``: decreasing times. ``start``: the name of the argument that holds the start, and the start; None for noise.
    ``how``: the other fields of :class:`Options`.

    Raises:
        ArgumentError, GridError: naming the argument.
    """
    options = Options(state_dtype(dtype, start[1]), torch.device(device or device_of(model, start[1])), **how)
    check_batches(options.batch_size, options.dtype)
    check_noise_level(model, grid[0])
    check_condition(condition, shape[0])
    check_gradients(differentiable, *start, condition)
    check_compile(options.compile, solver.integrator, options.device, differentiable)
    if solver.integrator.evals_per_step is not None:  # others choose their times themselves
        model.check_times(grid if options.tweedie else grid[:-1])
    return options


def check_model(model: Any) -> None:
    """Refuse what is not a score model."""
    if not isinstance(model, ScoreModel):
        raise ArgumentError("model", model, "not a ScoreModel", "Wrap the network: ScoreModel(network, sde, ...).")


def check_parts(model: Any, solver: Any) -> None:
    """Refuse what is not a score model, or not a solver."""
    check_model(model)
    if not isinstance(solver, Solver):
        raise ArgumentError("solver", solver, "not a Solver", "Call the preset, ddim(), or build Solver(...).")


def check_deterministic(solver: Solver, purpose: str) -> None:
    """Refuse a solver that draws noise. ``purpose``, such as encoding, needs a map that has an inverse."""
    if solver.eta > 0:
        problem = f"{solver.name} adds noise, and {purpose} is a property of the probability flow, eta=0"
        raise ArgumentError("solver", solver.eta, problem, "Use ddim(), probability_flow(), Solver(name, 0.0, ...).")
    if solver.integrator.draws_noise(0.0):
        problem = f"it draws noise although eta is 0, and {purpose} belongs to the deterministic flow"
        raise ArgumentError("solver", solver.name, problem, "Use a deterministic integrator, for example S_churn=0.")


def check_tensor(name: str, x: Any) -> None:
    """Refuse what is not a tensor of real floating-point numbers. :func:`check_shape` looks at its values."""
    if not isinstance(x, Tensor):
        raise ArgumentError(name, x, "not a tensor", "Pass a tensor (n, *event), in model space.")
    if x.is_complex():
        problem, remedy = "states are real numbers", "Pass real and imaginary part as two channels, as in training."
        raise ArgumentError(name, x.dtype, problem, remedy)
    if not x.is_floating_point():
        problem = "a state in model space has floating-point numbers; integers are data"
        raise ArgumentError(name, x.dtype, problem, "Pass model.transform.forward(x), which is floating point.")


def check_space(space: Any) -> None:
    """Refuse a ``space`` that is neither "data" (the caller's) nor "model".

    Raises:
        ArgumentError: for anything else.
    """
    if space not in ("data", "model"):
        problem = "there is the caller's data space and the model's"
        raise ArgumentError("space", space, problem, 'Pass space="data" or space="model".')


def check_gradients(differentiable: Any, name: str, x: Tensor | None, condition: Any) -> None:
    """Refuse ``differentiable`` where no graph is recorded, and a start or condition whose gradient would be lost."""
    if not isinstance(differentiable, bool):
        raise ArgumentError("differentiable", differentiable, "neither True nor False", "True keeps the graph.")
    if differentiable:
        if torch.is_inference_mode_enabled():
            problem = "gradients are asked for, and inference mode records none"
            raise ArgumentError("torch.inference_mode", True, problem, "Leave it, or leave differentiable out.")
        return
    given = [("condition", tensor) for tensor in tensors_of(condition)] + ([] if x is None else [(name, x)])
    for argument, tensor in given:
        if tensor.requires_grad and torch.is_grad_enabled():
            problem = "it requires a gradient, and no graph is kept"
            raise ArgumentError(argument, tuple(tensor.shape), problem, "Pass differentiable=True, or .detach() it.")


def warn_outside(model: ScoreModel, name: str, x: Tensor, t: Tensor) -> None:
    """Warn of a state that is far outside the range that the transform names for data, with noise of time ``t``."""
    slack = 8 * model.sde.sigma(t).item() + 2 * model.sigma_data
    outside, _ = range_problems(model.transform, x.detach(), space="model", slack=slack)
    if outside:
        least, most = (value.item() for value in x.detach().aminmax())
        warn_caller(
            f"{name} holds values from {least:.4g} to {most:.4g}, and {outside}: "
            "pass model.transform.forward(x) for x in data space.",
        )


def check_shape(model: ScoreModel, name: str, shape: tuple[int, ...], x: Tensor | None) -> None:
    """Refuse no samples, events of another shape than the model's, and an ``x`` that is not finite."""
    if not shape or not all(map(is_count, shape)):
        raise ArgumentError("shape", shape, "no samples", "Pass (n, *event) with n >= 1.")
    if model.event_shape is not None and shape[1:] != model.event_shape:
        problem = f"the model was made for events of shape {model.event_shape}"
        raise ArgumentError("shape", shape, problem, f"Pass {(shape[0], *model.event_shape)}.")
    if x is None:
        check_amount("shape", shape, math.prod(shape))
    if x is not None and not bool(x.isfinite().all()):
        raise ArgumentError(name, tuple(x.shape), "it holds NaN or infinity", "Clean it first.")


def check_batches(batch_size: Any, dtype: Any) -> None:
    """Refuse a batch size that is no count, and a precision of the state that is not offered."""
    if batch_size is not None:
        check_count("batch_size", batch_size, "Use None for all at once.")
    if dtype not in (torch.float32, torch.float64):
        raise ArgumentError(
            "dtype",
            dtype,
            "the state is float32 or float64",
            "For a fast network use torch.autocast around the call.",
        )


def check_noise_level(model: ScoreModel, t: Tensor) -> None:
    """Refuse a grid that begins where σ is infinite."""
    if not math.isfinite(model.sde.sigma(t).item()):
        raise ArgumentError("grid", t.item(), "σ is not finite at the first time", "Start later.")


def check_generator(generator: Any) -> None:
    """Refuse what is not a generator."""
    if generator is not None and not isinstance(generator, torch.Generator):
        problem = f"a {type(generator).__name__} is no torch.Generator"
        remedy = "Pass one torch.Generator; seed= gives every sample a stream of its own without any."
        raise ArgumentError("generator", generator, problem, remedy)


def check_path(path: Any, solver: Solver, generator: torch.Generator | None) -> None:
    """Refuse a Brownian path that the solver cannot take its noise from."""
    if path is None:
        return
    if not isinstance(path, BrownianPath):
        raise ArgumentError("path", path, "not a BrownianPath", "Pass BrownianPath(), or leave it out.")
    if generator is not None:
        problem = "its noise comes from the seed, and a generator was given too"
        raise ArgumentError("path", path, problem, "Pass one of path and generator.")
    if solver.eta > 0 and solver.integrator.evals_per_step is None:
        problem = f"{solver.integrator} chooses its own steps, and the path knows those of the grid alone"
        raise ArgumentError("path", path, problem, "Leave path out, or take an integrator of fixed steps.")


def check_compile(compile: Any, integrator: Integrator, device: torch.device, differentiable: bool) -> None:
    """Refuse a ``compile`` that is unknown or impossible here, and integrators whose steps have no fixed shape."""
    if compile is False:
        return
    known = (*torch.compiler.list_backends(()), CUDA_GRAPH)
    if compile is not True and not (isinstance(compile, str) and compile in known):
        problem = f'neither True nor False nor "{CUDA_GRAPH}" nor a backend of torch.compile'
        raise ArgumentError("compile", compile, problem, 'Pass True, or a name such as "aot_eager".')
    if integrator.evals_per_step is None:
        problem = f"{integrator} chooses its steps on the host, which no graph can hold"
        raise ArgumentError("compile", compile, problem, "Leave compile out, or take an integrator of fixed steps.")
    if compile == CUDA_GRAPH:
        check_recording(device, differentiable)


def state_dtype(dtype: Any, x: Tensor | None) -> torch.dtype:
    """The precision of the state: what was asked for; by default float64 for a start in float64, else float32."""
    if dtype is not None:
        asked: torch.dtype = dtype
        return asked
    return torch.float64 if x is not None and x.dtype == torch.float64 else torch.float32


def device_of(model: ScoreModel, x: Tensor | None) -> torch.device:
    """Where to compute: the device of the start if there is one, else that of the model."""
    if x is not None:
        return x.device
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")
