"""One product with the Jacobian of the MNIST network: time and memory in the three modes of the likelihood.

    python benchmarks/jacobian_modes.py --n 8 64

Every mode runs in a process of its own, whose peak memory is read at its end.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from sde_toolkit import ScoreModel
from sde_toolkit.data import mnist_test_images
from sde_toolkit.likelihood import finite_differences, forward, reverse

MODES = {"forward pass": None, "reverse": reverse, "forward": forward, "finite_differences": finite_differences}


def peak_memory() -> float:
    """Of this process so far, in MB; getrusage would count the parent from which it was started. Linux only."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def one(name: str, n: int, repeats: int) -> None:
    """Median seconds, and what the peak grew by after the network was loaded and the images were there."""
    model, mode = ScoreModel.from_pretrained("mnist"), MODES[name]
    x = model.transform.forward(mnist_test_images().test[:n].float())
    before, v = peak_memory(), torch.ones_like(x).unsqueeze(0)
    taken: list[tuple[float, float]] = []

    def field(y: Tensor) -> Tensor:
        return model(y, 0.5).epsilon

    with torch.no_grad():
        for _ in range(repeats + 1):
            began = time.perf_counter(), time.process_time()
            field(x) if mode is None else mode(field, x, False)[1](v)
            taken.append((time.perf_counter() - began[0], time.process_time() - began[1]))
    wall, processor = (1e3 * statistics.median(each) for each in zip(*taken[1:], strict=True))
    print(
        f"batch {n:3d}, {name:<18} {wall:6.0f} ms, {processor:6.0f} ms of processor time, "
        f"peak memory +{peak_memory() - before:.0f} MB",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=list(MODES), default=None, help="in this process")
    a = parser.parse_args()
    for n in a.n:
        if a.only is not None:
            one(a.only, n, a.repeats)
            continue
        for name in MODES:
            words = [sys.executable, __file__, "--only", name, "--n", str(n), "--repeats", str(a.repeats)]
            print(subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout, end="", flush=True)


if __name__ == "__main__":
    main()
