"""CUDA graphs: the kernels of a piece of work are recorded once, and launched at one go from then on.

A recording has fixed addresses. What changes from launch to launch is copied into tensors of its own. Work that asks
the device for a number cannot be recorded: the host would have to wait for kernels that do not run yet.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils import _pytree

from sde_toolkit.errors import ArgumentError

__all__ = [
    "CUDA_GRAPH",
    "Launch",
    "cannot_be_recorded",
    "on_recording_stream",
    "record_kernels",
    "tensors_in",
]

CUDA_GRAPH = "cuda_graph"
"""The value of ``compile`` that asks for recordings."""

Launch: TypeAlias = Callable[[], None]
"""Repeats the kernels of a recording."""


def record_kernels(work: Callable[[], None], device: torch.device) -> Launch:
    """Record the kernels of ``work`` on a CUDA device, without running them.

    What ``work`` allocates belongs to a memory pool of the recording, which lives as long as the launch.
    """
    with torch.cuda.device(device):
        index, own = torch.cuda.current_device(), torch.cuda.current_stream()
        graph = torch.cuda.CUDAGraph()
        try:  # other threads, such as one that fills pinned memory, may go on with their work
            with torch.cuda.graph(graph, stream=_recording_stream(index), capture_error_mode="thread_local"):
                work()
        finally:
            torch.cuda.set_stream(own)  # torch does not come back from a recording that fails
    return graph.replay if index == torch.cuda.current_device() else functools.partial(_replay_on, index, graph)


@contextmanager
def on_recording_stream(device: torch.device) -> Iterator[None]:
    """A warm-up on the stream that records, for which libraries prepare themselves. Without CUDA, nothing changes."""
    if device.type != "cuda":
        yield
        return
    with torch.cuda.device(device):
        own, aside = torch.cuda.current_stream(), _recording_stream(torch.cuda.current_device())
        aside.wait_stream(own)
        with torch.cuda.stream(aside):
            yield
        own.wait_stream(aside)


@functools.cache
def _recording_stream(index: int) -> torch.cuda.Stream:
    """One for each device: for every stream that it has seen, cuBLAS keeps a workspace, 32 MiB on an H100."""
    return torch.cuda.Stream(index)


def _replay_on(index: int, graph: torch.cuda.CUDAGraph) -> None:
    with torch.cuda.device(index):
        graph.replay()


@contextmanager
def cannot_be_recorded(what: str, remedy: str) -> Iterator[None]:
    """Errors of a recording say ``what`` cannot be recorded, and why.

    Raises:
        ArgumentError: for an error of CUDA, except where memory runs out.
    """
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError as error:  # the error at the end of a recording hides the one that spoilt it
        reason = str(error.__context__ or error).partition("\n")[0]
        raise ArgumentError("compile", CUDA_GRAPH, f"{what} cannot be recorded: {reason}", remedy) from error


def tensors_in(structure: Any) -> list[Tensor]:
    """All tensors in a structure, in order."""
    return [leaf for leaf in _pytree.tree_flatten(structure)[0] if isinstance(leaf, Tensor)]
