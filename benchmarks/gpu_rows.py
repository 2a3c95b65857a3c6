"""Rows of the table that gpu.py prints, on sampling and likelihood: what was seen, what is wanted, what measures it.

"Seen" was measured on an H200 with torch 2.11 before the work that the rows judge. A row measures one figure and may
tell others beside it. Times are medians after a warm-up, with the device synchronised before and after.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from sde_toolkit import (
    VPSDE,
    ReverseEquation,
    ScoreModel,
    Solver,
    ddim,
    ddpm,
    dpmpp_2m,
    grids,
    log_likelihood,
    sample,
    unipc,
)
from sde_toolkit.likelihood import Divergence, ExactTrace, HutchPlusPlus
from sde_toolkit.noise.streams import per_sample_noise, shared_noise

__all__ = ["Figure", "Row", "Setting", "agreement", "mnist", "noise", "seconds", "steps"]

CUDA_GRAPH = "cuda_graph"


class Figure(NamedTuple):
    """What a row found, and in words what belongs to it."""

    value: float
    unit: str
    beside: str = ""


class Row(NamedTuple):
    """``share``: seconds that it may take of eight minutes."""

    what: str
    seen: str
    wanted: str
    share: float
    measure: Callable[[], Figure]


class Setting(NamedTuple):
    """Where and how large: ``tiny`` replaces all sizes by small ones."""

    device: str
    tiny: bool

    def size(self, usual: int, tiny: int = 2) -> int:
        return tiny if self.tiny else usual

    @property
    def on_cuda(self) -> bool:
        return self.device.startswith("cuda")


def wait(at: Setting) -> None:
    if at.on_cuda:
        torch.cuda.synchronize()


def seconds(call: Callable[[], object], at: Setting, repeats: int = 7) -> float:
    """Median seconds of a call, after two that do not count."""
    found = []
    for repeat in range(at.size(repeats, 1) + at.size(2, 1)):
        wait(at)
        began = time.perf_counter()
        call()
        wait(at)
        if repeat >= at.size(2, 1):
            found.append(time.perf_counter() - began)
    return statistics.median(found)


def agreement(at: Setting) -> Iterator[Row]:
    """The device against the CPU, and a recorded step against the step as it is."""

    def presets() -> Figure:
        run = {"steps": 10, "shape": (at.size(16), 1, 8, 8), "dtype": torch.float64}
        ends = [
            [sample(ScoreModel.from_pretrained("digits").to(device).double(), solver, **run).x.cpu() for solver in few]
            for device in ("cpu", at.device)
        ]
        return Figure(max((a - b).abs().max().item() for a, b in zip(*ends, strict=True)), "")

    def recorded() -> Figure:
        model = ScoreModel.from_pretrained("digits").to(at.device).double()
        run = {"steps": 12, "shape": (at.size(16), 1, 8, 8), "dtype": torch.float64}
        pairs = [[sample(model, solver, **run, compile=how).x for how in (False, CUDA_GRAPH)] for solver in few]
        return Figure(max((a - b).abs().max().item() for a, b in pairs), "")

    def density(divergence: Divergence) -> Figure:
        drawn = sample(ScoreModel.from_pretrained("digits"), ddim(), steps=10, shape=(at.size(16), 1, 8, 8))
        found = []
        for device in ("cpu", at.device):
            model = ScoreModel.from_pretrained("digits").to(device)
            data = drawn.data.clamp(0, 16).to(device)
            found.append(log_likelihood(model, data, divergence=divergence, nfe=24).nats.cpu())
        return Figure((found[0] - found[1]).abs().max().item(), "nats")

    few = (ddim(), ddpm(), dpmpp_2m(), unipc())
    yield Row("presets in float64 against the CPU: largest difference", "equal", "≤ 1e-6", 10, presets)
    if at.on_cuda:
        yield Row("CUDA graph against eager steps: largest difference", "–", "≤ 1e-6", 15, recorded)
    hutch = functools.partial(density, HutchPlusPlus(4, 4))
    yield Row("Hutch++ against the CPU, same probes, float32: log p", "0.10", "≤ 1e-3", 15, hutch)
    yield Row("exact trace, the same", "4e-5", "≤ 1e-3", 15, functools.partial(density, ExactTrace()))


def noise(at: Setting) -> Iterator[Row]:
    """Per-sample streams over one generator for the batch."""

    def measured(shape: tuple[int, ...]) -> Figure:
        generator = torch.Generator(at.device).manual_seed(0)
        own = seconds(per_sample_noise(0, 0, shape, device=at.device), at, 33)
        one = seconds(shared_noise(generator, shape, device=at.device), at, 33)
        return Figure(own / one, "×", f"{1e3 * own:.3f} ms over {1e3 * one:.3f} ms")

    for shape, seen in (((256, 3, 32, 32), "63 (11.3 over 0.18 ms)"), ((16, 3, 256, 256), "233 (42 over 0.18 ms)")):
        sizes = tuple(at.size(length) for length in shape)
        name = f"noise {'×'.join(map(str, sizes))}: per-sample streams over `generator=`"
        yield Row(name, seen, "≤ 2", 5, functools.partial(measured, sizes))


def steps(at: Setting) -> Iterator[Row]:
    """The cost of a step beside a network that returns its input, over a loop of as many operations."""
    count, shape = at.size(200, 4), (at.size(16), 3, 32, 32)
    model = ScoreModel(lambda x, t: x, VPSDE(), "epsilon")

    def measured(solver: Solver, how: bool | str) -> Figure:
        x, grid = torch.randn(shape, device=at.device), grids.uniform(model.sde, count)
        equation = ReverseEquation(model, solver.eta)
        terms = solver.integrator.prepare(equation, grid).layout.width - len(equation.inputs(grid[:1]))
        other, factors = torch.randn_like(x), torch.rand(count, device=at.device).unbind()

        def bare() -> None:
            state = x
            for factor in factors:
                state = factor * state
                for _ in range(terms - 1):
                    state.addcmul_(factor, other)

        floor = seconds(bare, at, 21) / count
        took = seconds(lambda: sample(model, solver, grid, x_start=x, compile=how), at, 21) / count
        return Figure(took / floor, "×", f"{1e6 * took:.0f} µs over {1e6 * floor:.0f} µs of {terms} operations")

    for name, solver, seen in (
        ("ddim", ddim(), "60 to 95 µs (diffusers 213)"),
        ("dpmpp_2m", dpmpp_2m(), "101 to 150 µs (diffusers 227)"),
        ("unipc", unipc(), "255 µs"),
    ):
        what = f"step of {name}, trivial network, over a bare loop of its operations"
        yield Row(what, seen, "≤ 1.5", 6, functools.partial(measured, solver, False))
        if at.on_cuda:
            yield Row(
                f"the same of {name}, CUDA graph", "–", "≤ 1.5", 6, functools.partial(measured, solver, CUDA_GRAPH)
            )


def mnist(at: Setting) -> Iterator[Row]:
    """Sampling with the embedded MNIST network."""
    count, batch, many = at.size(50, 3), at.size(64), at.size(512)

    def whole(how: bool | str) -> Figure:
        model = ScoreModel.from_pretrained("mnist").to(at.device)
        run = functools.partial(sample, model, dpmpp_2m(), steps=count, shape=(batch, 1, 28, 28), compile=how)
        began = time.perf_counter()
        run()
        wait(at)
        first = time.perf_counter() - began
        return Figure(1e3 * seconds(run, at, 3), "ms", f"first call {first:.1f} s")

    def ancestral() -> Figure:
        model = ScoreModel.from_pretrained("mnist").to(at.device)
        x, t = torch.randn(many, 1, 28, 28, device=at.device), torch.tensor(0.5, dtype=torch.float64)
        inputs = tuple(part.to(at.device, x.dtype) for part in model.network_inputs(t))

        @torch.no_grad()
        def alone() -> None:
            for _ in range(count):
                model.output(x, inputs)

        grid = grids.uniform(model.sde, count)
        took, floor = (seconds(call, at, 3) for call in (lambda: sample(model, ddpm(), grid, shape=x.shape), alone))
        return Figure(took / floor, "×", f"{1e3 * took:.0f} ms over {1e3 * floor:.0f} ms")

    label = f"MNIST network, batch {batch}, {count} steps of dpmpp_2m"
    yield Row(f"{label}, eager", "415 ms", "", 8, functools.partial(whole, False))
    if at.on_cuda:
        wanted = "≤ 100 ms, first call ≤ 10 s"
        yield Row(f"{label}, CUDA graph", "–", wanted, 8, functools.partial(whole, CUDA_GRAPH))
        yield Row(f"{label}, compiled", "207 ms, first call 16 s", "", 30, functools.partial(whole, True))
    yield Row(f"`ddpm` on the MNIST network, batch {many}, over the network alone", "1.73", "≤ 1.05", 10, ancestral)
