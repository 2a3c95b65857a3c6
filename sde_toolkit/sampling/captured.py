"""A step as a CUDA graph: its kernels are recorded once, and the whole step is then launched at one go.

A small network spends most of a step on launching kernels. A recorded step launches once. Its kernels are those of the
step as it is, so that its results are, too; nothing is compiled, and the first steps take no longer than others.

A recording has tensors of its own, at fixed addresses: x, the state, the draws, the condition, the table of
coefficients, and the position in it. Its last kernels write the new x and state over the old ones and move the position
on by one. So the next step needs no argument: it is the same launch once more. Tensors are copied into the recording
only where they are not those that it left: at its first step, after a callback has replaced x, and for draws, which
are made between two launches.

The first step of a kind (:mod:`.compiled`) runs as it is; the second is recorded. Recordings and their memory live as
long as the run: weights may be replaced between two runs. A whole run is not recorded as one graph. To record it takes
as long as to run it, so that the first batch would gain nothing; and callbacks stand between two steps.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from sde_toolkit.checks import without_branches_on_data
from sde_toolkit.equation import ReverseEquation
from sde_toolkit.errors import ArgumentError
from sde_toolkit.integrators import Integrator
from sde_toolkit.integrators.tables import Layout
from sde_toolkit.models.conditions import map_rows, named_rows
from sde_toolkit.sampling.compiled import CompiledSteps, Place, one_step
from sde_toolkit.sampling.cuda_graphs import (
    CUDA_GRAPH,
    Launch,
    cannot_be_recorded,
    on_recording_stream,
    record_kernels,
    tensors_in,
)
from sde_toolkit.sampling.monitors import Meter

__all__ = ["CapturedSteps", "check_recording", "copied"]


def check_recording(device: torch.device, differentiable: bool) -> None:
    """Refuse to record where there is no CUDA device, and where the samples are to be differentiated."""
    if device.type != "cuda":
        problem = f"a CUDA graph is recorded on a CUDA device, and the state is on {device.type}"
        raise ArgumentError("compile", CUDA_GRAPH, problem, 'Pass device="cuda", or compile=True.')
    if differentiable:
        problem = "a recorded step cannot be differentiated"
        raise ArgumentError("compile", CUDA_GRAPH, problem, "Leave differentiable out, or pass compile=True.")


def copied(structure: Any) -> Any:
    """A structure with copies of its tensors."""
    return _pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, structure)


class CapturedSteps(CompiledSteps):
    """``integrator.step`` for one run of ``steps`` steps, recorded.

    The x and the state that it returns are those of the recording, and the next step overwrites them. ``kept``: whether
    the caller keeps every x, which then is a copy.

    Raises:
        ArgumentError: from the second step, if the network waits for the device, which no recording can hold.
    """

    def __init__(
        self,
        integrator: Integrator,
        layout: Layout,
        meter: Meter,
        steps: int,
        *,
        kept: bool = False,
    ) -> None:
        super().__init__(integrator, layout, meter, CUDA_GRAPH)
        self.steps, self.kept = steps, kept
        self._recordings: dict[Hashable, _Recording] = {}
        self._latest: _Recording | None = None

    def kind(self, x: Tensor, state: Any) -> Hashable:
        latest = self._latest
        return latest.kind if latest is not None and latest.has_left(x, state) else super().kind(x, state)

    def repeat(
        self, equation: ReverseEquation, x: Tensor, place: Place, state: Any, draws: tuple[Tensor, ...], kind: Hashable
    ) -> tuple[Tensor, Any]:
        recording = self._recordings.get(kind)
        if recording is None:
            table = place.values.new_zeros(self.steps, place.values.shape[1])
            recording = _Recording(kind, equation.condition, x, table, state, draws)
            recording.launch = self._recorded(equation, recording)
            self._recordings[kind] = recording
        self._latest = recording
        return recording.step(equation.condition, x, place, state, draws, self.kept)

    def _recorded(self, equation: ReverseEquation, own: _Recording) -> Launch:
        """The launch of a step on the tensors of a recording."""
        here = replace(equation, condition=own.condition)
        inputs = [own.x, *tensors_in(own.state)]
        owned = {tensor.untyped_storage().data_ptr() for tensor in inputs}

        def apart(leaf: Tensor) -> Tensor:
            """An output that is an input is written over while another one is still read from it."""
            return leaf.clone() if leaf.untyped_storage().data_ptr() in owned else leaf

        def step() -> None:
            row = own.table.index_select(0, own.position)[0]
            with without_branches_on_data():
                end = one_step(self.integrator, self.layout, here, own.x, row, own.state, own.draws)
            torch._foreach_copy_(inputs, [apart(leaf) for leaf in tensors_in(end)])
            own.position.add_(1).clamp_(max=len(own.table) - 1)

        remedy = "Leave compile out; or keep the network from reading the device: no .item(), no if on a tensor."
        with cannot_be_recorded(f"the step of {self.integrator}", remedy):
            with on_recording_stream(own.x.device):
                step()
            return record_kernels(step, own.x.device)


class _Recording:
    """The tensors of a recorded step, and what they hold now. ``table`` has room for the longest grid."""

    launch: Launch

    def __init__(
        self, kind: Hashable, condition: Any, x: Tensor, table: Tensor, state: Any, draws: tuple[Tensor, ...]
    ) -> None:
        self.kind = kind
        self.x, self.state, self.draws = copied((x, state, draws))
        self.condition = map_rows(condition, torch.clone)
        self.table, self.position = table, torch.zeros(1, dtype=torch.int64, device=x.device)
        self._rows = [rows for _, rows in named_rows(self.condition)]
        self._left: tuple[Any, Any] = (None, None)  # x and state as they were returned
        self._place: tuple[Any, int] = (None, 0)  # the table that was copied, and the position in it
        self._told: Any = None

    def has_left(self, x: Tensor, state: Any) -> bool:
        """Whether x and state are what the last step returned."""
        return x is self._left[0] and state is self._left[1]

    def step(
        self, condition: Any, x: Tensor, place: Place, state: Any, draws: tuple[Tensor, ...], kept: bool
    ) -> tuple[Tensor, Any]:
        """The step from x at the ``place``; only what the recording does not hold yet is copied."""
        into, given = list(self.draws), list(draws)
        if not self.has_left(x, state):
            into += [self.x, *tensors_in(self.state)]
            given += [x, *tensors_in(state)]
        if self._rows and condition is not self._told:  # another batch
            into += self._rows
            given += [rows for _, rows in named_rows(condition)]
            self._told = condition
        if into:
            torch._foreach_copy_(into, given)
        values, position = self._place
        if place.values is not values:
            self.table[: len(place.values)].copy_(place.values)
        if place.values is not values or place.position != position:
            self.position.fill_(place.position)
        self._place = (place.values, place.position + 1)
        self.launch()
        self._left = (self.x.clone() if kept else self.x, self.state)
        return self._left
