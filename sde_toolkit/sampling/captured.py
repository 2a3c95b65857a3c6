"""A step as a CUDA graph: its kernels are recorded once, and the whole step is then launched at one go.

A small network spends most of a step on launching kernels. A recorded step launches once. Its kernels are those of the
step as it is, so that its results are, too; nothing is compiled, and the first steps take no longer than others.

A recording has tensors of its own. Before it runs, the arguments of the step (x, row, state, draws, condition) are
copied into them. The first step of a kind (:mod:`.compiled`) runs as it is; the second is recorded. Recordings live as
long as the run: weights may be replaced between two runs.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils import _pytree

from sde_toolkit.checks import without_branches_on_data
from sde_toolkit.equation import ReverseEquation
from sde_toolkit.errors import ArgumentError
from sde_toolkit.integrators import Integrator
from sde_toolkit.integrators.tables import Layout
from sde_toolkit.models.conditions import map_rows, named_rows
from sde_toolkit.sampling.compiled import CompiledSteps, kind_of, one_step
from sde_toolkit.sampling.monitors import Meter

__all__ = ["CUDA_GRAPH", "CapturedSteps", "Record", "check_recording", "record_cuda_graph"]

CUDA_GRAPH = "cuda_graph"
_WARM_UPS = 3  # runs before a recording: libraries choose their kernels and allocate in the first ones

Record: TypeAlias = Callable[[Callable[[], Any]], tuple[Callable[[], None], Any]]
"""From a function to another one that repeats its kernels, and the outputs that every repetition writes anew."""


def check_recording(device: torch.device, differentiable: bool) -> None:
    """Refuse to record where there is no CUDA device, and where the samples are to be differentiated."""
    if device.type != "cuda":
        problem = f"a CUDA graph is recorded on a CUDA device, and the state is on {device.type}"
        raise ArgumentError("compile", CUDA_GRAPH, problem, 'Pass device="cuda", or compile=True.')
    if differentiable:
        problem = "a recorded step cannot be differentiated"
        raise ArgumentError("compile", CUDA_GRAPH, problem, "Leave differentiable out, or pass compile=True.")


class CapturedSteps(CompiledSteps):
    """``integrator.step`` for one run, recorded by ``record``.

    Raises:
        ArgumentError: from the second step, if the network waits for the device, which no recording can hold.
    """

    def __init__(self, integrator: Integrator, layout: Layout, meter: Meter, record: Record | None = None) -> None:
        super().__init__(integrator, layout, meter, CUDA_GRAPH)
        self.record = record or record_cuda_graph
        self._recordings: dict[Hashable, _Recording] = {}

    def repeat(
        self, equation: ReverseEquation, x: Tensor, row: Tensor, state: Any, draws: tuple[Tensor, ...]
    ) -> tuple[Tensor, Any]:
        kind = kind_of(x, state)
        if kind not in self._recordings:
            self._recordings[kind] = self._recorded(equation, x, row, state, draws)
        return self._recordings[kind](equation.condition, x, row, state, draws)

    def _recorded(
        self, equation: ReverseEquation, x: Tensor, row: Tensor, state: Any, draws: tuple[Tensor, ...]
    ) -> _Recording:
        own = replace(equation, condition=map_rows(equation.condition, torch.clone))
        arguments: tuple[Any, ...] = _pytree.tree_map(
            lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, (x, row, state, draws)
        )

        inputs = _tensors(arguments)
        owned = {tensor.untyped_storage().data_ptr() for tensor in inputs}

        def apart(leaf: Any) -> Any:
            """An output that is an input would be overwritten while the inputs of the next step are copied."""
            shared = isinstance(leaf, Tensor) and leaf.untyped_storage().data_ptr() in owned
            return leaf.clone() if shared else leaf

        def step() -> Any:
            with without_branches_on_data():
                end = one_step(self.integrator, self.layout, own, *arguments)
            return _pytree.tree_map(apart, end)

        try:
            again, end = self.record(step)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise ArgumentError(
                "compile",
                CUDA_GRAPH,
                f"the step of {self.integrator} cannot be recorded: {reason}",
                "Leave compile out; or keep the network from reading the device: no .item(), no if on a tensor.",
            ) from error
        return _Recording(again, end, own.condition, inputs)


class _Recording:
    """A recorded step: copies its arguments into ``inputs``, repeats the kernels, and returns their outputs.

    x is returned as a copy. The state is not copied: the next step takes it before it is written again.
    """

    def __init__(self, again: Callable[[], None], end: Any, condition: Any, inputs: list[Tensor]) -> None:
        self.again, self.end, self.inputs = again, end, inputs
        self.condition = [rows for _, rows in named_rows(condition)]
        self.told: Any = None

    def __call__(self, condition: Any, *arguments: Any) -> tuple[Tensor, Any]:
        torch._foreach_copy_(self.inputs, _tensors(arguments))
        if self.condition and condition is not self.told:  # another batch
            torch._foreach_copy_(self.condition, [rows for _, rows in named_rows(condition)])
            self.told = condition
        self.again()
        x, state = self.end
        return x.clone(), state


def record_cuda_graph(step: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """Record the kernels of ``step`` on the current CUDA device."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(_WARM_UPS):
            step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        end = step()
    return graph.replay, end


def _tensors(structure: Any) -> list[Tensor]:
    """All tensors in a structure, in order."""
    return [leaf for leaf in _pytree.tree_flatten(structure)[0] if isinstance(leaf, Tensor)]
