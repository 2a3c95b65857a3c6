"""Score models as graphs for deployment: an ONNX file, or a program of ``torch.export``.

    export_onnx(model, "denoiser.onnx", time="sigma")      x̂_0 = D(x, sigma), as k-diffusion and EDM call a denoiser
    export_onnx(model, "score.onnx", answer="score")       ∇ log p_t(x) as a function of x and t

The network, its preconditioning and the readout of its output are one graph, for any number of samples:

    time        graph             x
    "t"         y(x, t)           the state of the model's own path, α x_0 + σ ε at t in [0, 1]
    "sigma"     y(x, sigma)       x_0 + sigma ε: the path of EDM and k-diffusion, whatever path the model was trained on

Both are in model space: the model's ``transform`` is not part of the graph. x, the times and the answer are float32.
Inside, α, σ, λ and the coefficients of the readout are computed from the time in float64, as in the model: at t = 1e-5
the float32 value of 1 − e^(−B) is wrong by 2 %. At a time that the model's path does not have, the answer is NaN.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.checks import check_count
from sde_toolkit.errors import ArgumentError, MissingDependencyError, SDEToolkitError
from sde_toolkit.interop.onnx_doubles import with_known_functions
from sde_toolkit.interop.tensor_function import Coefficients, TensorFunction, ToldTime
from sde_toolkit.models.inspection import name_of
from sde_toolkit.models.prediction import Kind
from sde_toolkit.models.score_model import ScoreModel

__all__ = ["export_onnx", "export_program"]


def export_onnx(
    model: ScoreModel,
    path: str | Path,
    *,
    answer: Kind = "x0",
    time: ToldTime = "t",
    condition: Any = None,
    opset: int | None = None,
) -> None:
    """Write the model as an ONNX file with inputs ``x``, ``t`` or ``sigma``, and those of the condition.

    The file is written after onnxruntime has given the model's answers with it. Weights beyond 2 GB stand in a second
    file beside it.

    Args:
        model: in evaluation mode, with an ``event_shape``. Wrappers (guidance, ``reschedule``) are exported whole.
        path: of the file.
        answer: what the graph computes, any view of a prediction: ``x0``, ``epsilon``, ``score``, ``v``, ``velocity``
            or ``edm``. With ``time="sigma"``: ``x0``, ``epsilon`` or ``edm``.
        time: the second input, (B,): ``t`` of the model's SDE, or ``sigma``, see above.
        condition: an example. Each of its tensors with a row per sample becomes an input, ``condition`` or
            ``condition.KEY``; all else in it becomes part of the graph. None: the network is told no condition.
        opset: version of ONNX's operators, 18 or later; by default torch's choice.

    Raises:
        ArgumentError: for a model that has no ``event_shape``, that draws random numbers, or whose network or SDE
            torch cannot trace; for a graph that gives other answers than the model. No file is written then.
        MissingDependencyError: without onnx, onnxscript or onnxruntime (extra ``export``).
    """
    target = Path(path)
    if not target.parent.is_dir() or target.is_dir():
        raise ArgumentError("path", str(path), "not a file in an existing folder", "Make the folder first.")
    if opset is not None:
        check_count("opset", opset, "Leave it out, or pass 18 or later.", least=18)
    graph = TensorFunction(model, answer, time, condition)
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            import_module(package)
        except ImportError as error:
            raise MissingDependencyError(package, "an ONNX file", "export", error) from None
    program = _traced(graph)
    inputs = ["x", time, *graph.names]
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        file = Path(folder) / target.name
        try:
            written: Any = torch.onnx.export(
                with_known_functions(program),
                dynamo=True,
                input_names=inputs,
                output_names=[answer],
                opset_version=opset,
                verbose=False,
            )
            for value in (*written.model.graph.inputs, *written.model.graph.outputs):
                value.shape[0] = "batch"
            written.save(str(file))
            graph.check(_in_onnxruntime(file, inputs))
        except SDEToolkitError:
            raise
        except Exception as error:  # of many classes, each package its own
            raise _refusal("model.network", name_of(model.network), "ONNX", error) from error
        for part in sorted(Path(folder).iterdir(), key=lambda part: part == file):  # the graph last
            os.replace(part, target.parent / part.name)


def export_program(
    model: ScoreModel, *, answer: Kind = "x0", time: ToldTime = "t", condition: Any = None
) -> torch.export.ExportedProgram:
    """The model as a program of ``torch.export``: ``program.module()(x, time, *rows of the condition)``.

    ``torch.export.save`` writes it, and AOTInductor and ExecuTorch compile it. The arguments, and what is refused, are
    those of :func:`export_onnx`.
    """
    return _traced(TensorFunction(model, answer, time, condition))


def _traced(graph: TensorFunction) -> torch.export.ExportedProgram:
    """The graph for any number of samples; its answers have been compared with the model's."""
    example, any_number = graph.example(2), {0: torch.export.Dim("batch")}
    shapes = (any_number, any_number, *((any_number,) * n for n in (len(graph.names),) if n))
    try:
        with torch.no_grad():
            program = torch.export.export(graph, example, dynamic_shapes=shapes)
    except SDEToolkitError:
        raise
    except Exception as error:
        raise _untraceable(graph, example[1], error) from error
    graph.check(program.module())
    return program


def _untraceable(graph: TensorFunction, time: Tensor, error: Exception) -> ArgumentError:
    model = graph.model
    try:
        torch.export.export(Coefficients(graph), (time,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    except Exception as schedule:
        return _refusal("model.sde", model.sde, "a graph", schedule)
    return _refusal("model.network", name_of(model.network), "a graph", error)


def _refusal(argument: str, value: Any, what: str, error: Exception) -> ArgumentError:
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    problem = f"it cannot be written as {what} ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
    remedy = "Write it with torch's operations alone, and without looking at values or at the number of samples."
    if argument == "model.sde":
        remedy = "Define alpha(t) and sigma(t) in closed form, and d_alpha(t) and d_sigma(t) for velocities."
    return ArgumentError(argument, value, problem, remedy)


def _in_onnxruntime(file: Path, inputs: list[str]) -> Callable[..., Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

    def run(*tensors: Tensor) -> Tensor:
        told = {name: tensor.cpu().numpy() for name, tensor in zip(inputs, tensors, strict=True)}
        return torch.from_numpy(session.run(None, told)[0])

    return run
