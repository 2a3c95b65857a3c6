"""Rows of the table that gpu.py prints, on the networks and on training (:mod:`gpu_rows` says what a row is)."""

from __future__ import annotations

import functools
import importlib.util
import statistics
from collections.abc import Iterator
from typing import Any

import torch
from gpu_rows import Figure, Row, Setting, seconds
from networks_against_peers import NETWORKS
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from training import Way, over_bare, training_rates

__all__ = ["training", "trunks"]


class Trunk:
    """A network of 3×32×32 images in channels-last memory, as ``mode`` says."""

    def __init__(self, at: Setting, name: str, mode: str) -> None:
        torch.manual_seed(0)
        self.at, dtype = at, torch.bfloat16 if mode.endswith("bfloat16") else torch.float32
        self.network: Any = NETWORKS[name]().to(at.device, dtype, memory_format=torch.channels_last)
        self.called = torch.compile(self.network) if mode.startswith("compiled") else self.network
        batch = at.size(256)
        self.x = torch.randn(batch, 3, 32, 32, device=at.device, dtype=dtype).to(memory_format=torch.channels_last)
        self.t = torch.linspace(0, 999, batch, device=at.device).round()

    def forward(self, called: Any = None) -> Tensor:
        y = (called or self.called)(self.x, self.t)
        return y if isinstance(y, Tensor) else y.sample

    def backward(self, called: Any = None) -> None:
        self.network.zero_grad()
        self.forward(called).float().square().mean().backward()

    def seconds(self) -> tuple[float, float]:
        """Of a forward pass, and of one with its backward pass."""
        self.network.eval()
        with torch.no_grad():
            forward = seconds(self.forward, self.at)
        self.network.train()
        return forward, seconds(self.backward, self.at)

    def operations(self) -> tuple[int, int]:
        """Floating-point operations of the two."""
        found = []
        for call in (self.forward, self.backward):
            with FlopCounterMode(display=False) as counter:
                call(self.network)
            found.append(counter.get_total_flops())
        return found[0], found[1]


def trunks(at: Setting) -> Iterator[Row]:
    """Our U-Nets over those of azula and diffusers, and the share of the card's rate that ours reach."""
    took: dict[tuple[str, str], tuple[float, float]] = {}

    def timed(name: str, mode: str) -> tuple[float, float]:
        if (name, mode) not in took:
            took[name, mode] = Trunk(at, name, mode).seconds()
        return took[name, mode]

    def compared(own: str, peer: str, mode: str, k: int) -> Figure:
        ours = timed(own, mode)[k]
        if not importlib.util.find_spec(peer):
            return Figure(1e3 * ours, "ms", f"{peer} is not installed")
        theirs = timed(peer, mode)[k]
        return Figure(ours / theirs, "×", f"{1e3 * ours:.1f} ms over {1e3 * theirs:.1f} ms")

    def share(mode: str, k: int) -> Figure:
        n = at.size(8192, 64)
        a = torch.randn(n, n, device=at.device, dtype=torch.bfloat16)
        best = 2 * n**3 / seconds(lambda: a @ a, at, 15)
        rate = Trunk(at, "DDPM", "bfloat16").operations()[k] / timed("DDPM", mode)[k]
        return Figure(rate / best, "", f"{rate / 1e12:.0f} of {best / 1e12:.0f} TFLOP/s")

    seen = {
        ("UNet", "bfloat16"): ("1.22 (24.3 over 19.9 ms)", "1.52 (82.6 over 54.4 ms)"),
        ("DDPM", "bfloat16"): ("0.80 (28.2 over 35.1 ms)", "1.06 (94.1 over 89.0 ms)"),
    }
    passes = ("forward", "forward and backward")
    for mode, seconds_each in (("bfloat16", 10), ("float32", 12), ("compiled bfloat16", 70))[: at.size(3, 1)]:
        for own, peer, wanted in (("DDPM", "diffusers", "≤ 0.8"), ("UNet", "azula", "≤ 0.95")):
            for k, name in enumerate(passes):
                what = f"{own} network over that of {peer}, {mode}, batch {at.size(256)}, {name}"
                before, part = seen.get((own, mode), ("–", "–"))[k], seconds_each if k == 0 else 2
                yield Row(what, before, wanted, part, functools.partial(compared, own, peer, mode, k))
    fastest = "bfloat16" if at.tiny else "compiled bfloat16"
    for k, (name, before, wanted) in enumerate((("forward", "0.15", "≥ 0.35"), ("training", "0.14", "≥ 0.21"))):
        what = f"share of the card's bfloat16 rate, DDPM network, {fastest}, {name}"
        yield Row(what, before, wanted, 5, functools.partial(share, fastest, k))


def training(at: Setting) -> Iterator[Row]:
    """Images a second of `train`."""
    some = at.size(128)

    @functools.cache
    def rate(network: str, precision: str, batch: int, mode: str, count: int) -> float:
        (found,) = training_rates(network, precision, batch, at.device, (mode,), at.size(count, 2))
        return found[1]

    def eager() -> Figure:
        alone, ours = (rate("ddpm", "bfloat16", some, mode, 60) for mode in ("alone", "train"))
        return Figure(ours / alone, "×", f"{ours:.0f} of {alone:.0f} images/s")

    def images(network: str, batch: int, mode: str) -> Figure:
        return Figure(rate(network, "bfloat16", batch, mode, 200), "images/s")

    def loops() -> Figure:
        ratios, took = over_bare("unet", some, at.size(100, 2), at.size(3, 1), Way(at.device))
        return Figure(statistics.median(ratios), "×", f"{1e3 * statistics.median(took):.1f} ms a step")

    what = f"`train`, DDPM network, batch {some}, bfloat16"
    yield Row(f"{what}, over the network alone", "0.49 (1,320 of 2,720)", "≥ 0.9", 25, eager)
    graph = "train, CUDA graph" if at.on_cuda else "train"
    for batch, seen in ((512, "9,600"), (1024, "16,000")):
        n = at.size(batch, batch // 256)
        name = f"`{graph}`, MNIST network, bfloat16, batch {n}"
        yield Row(name, seen, "≥ 40,000", 15, functools.partial(images, "unet", n, graph))
    yield Row(f"`train`, MNIST network, float32, batch {some}, over the bare loop", "1.28", "≤ 1.05", 25, loops)
    if at.on_cuda:
        compiled = functools.partial(images, "ddpm", some, "train, compiled")
        yield Row(f"{what}, compiled", "–", "≥ 4,000", 70, compiled)
