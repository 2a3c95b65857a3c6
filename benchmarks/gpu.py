"""What this package does on a GPU, in one run: the table of figures and a JSON file with card, versions and clocks.

    python benchmarks/gpu.py                          # on a CUDA device, at most eight minutes
    python benchmarks/gpu.py --device cpu --tiny      # that the program runs; its figures mean nothing

Nothing but the package is needed. Where diffusers and azula are installed, their networks are timed beside ours. Times
are medians after a warm-up, with the device synchronised before and after. A part that fails is a row that says why,
and the others go on. Parts that would begin after ``--minutes`` are left out; a row names them.
"""

from __future__ import annotations

import csv
import functools
import importlib.util
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from networks_against_peers import NETWORKS
from report import Report, parser
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from training import bare, image_model, noise_images

from sde_toolkit import VPSDE, ScoreModel, ddim, ddpm, dpmpp_2m, grids, log_likelihood, sample, unipc
from sde_toolkit.likelihood import ExactTrace, HutchPlusPlus
from sde_toolkit.losses import DenoisingScoreMatching
from sde_toolkit.noise.streams import per_sample_noise, shared_noise
from sde_toolkit.training import TrainingOptions, train

CUDA_GRAPH = "cuda_graph"


class Figure(NamedTuple):
    """A row of the table: what was measured, the value in its unit, and what is wanted."""

    what: str
    value: float
    unit: str
    wanted: str = ""


class Setting(NamedTuple):
    """Where and how large: ``tiny`` replaces all sizes by small ones."""

    device: str
    tiny: bool

    def size(self, usual: int, tiny: int = 2) -> int:
        return tiny if self.tiny else usual


def wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def seconds(call: Callable[[], object], at: Setting, repeats: int = 7) -> float:
    """Median seconds of a call, after two that do not count."""
    repeats = at.size(repeats, 1)
    found = []
    for repeat in range(repeats + at.size(2, 1)):
        wait(at.device)
        began = time.perf_counter()
        call()
        wait(at.device)
        if repeat >= at.size(2, 1):
            found.append(time.perf_counter() - began)
    return statistics.median(found)


def noise(at: Setting) -> Iterator[Figure]:
    """Per-sample streams over one generator for the batch."""
    for shape in ((256, 3, 32, 32), (16, 3, 256, 256)):
        shape = tuple(at.size(length) for length in shape)
        streams = per_sample_noise(0, 0, shape, device=at.device)
        generator = torch.Generator(at.device).manual_seed(0)
        together = shared_noise(generator, shape, device=at.device)
        own, one = seconds(streams, at), seconds(together, at)
        name = f"noise {'×'.join(map(str, shape))}"
        yield Figure(f"{name}, per-sample streams", 1e3 * own, "ms")
        yield Figure(f"{name}, over one generator", own / one, "×", "≤ 2")


def steps(at: Setting) -> Iterator[Figure]:
    """The cost of a step beside a network that returns its input."""
    count, shape = at.size(200, 4), (at.size(16), 3, 32, 32)
    model = ScoreModel(lambda x, t: x, VPSDE(), "epsilon")
    x, grid = torch.randn(shape, device=at.device), grids.uniform(model.sde, count)
    other, factors = torch.randn_like(x), torch.rand(count, device=at.device).unbind()

    def loop(terms: int) -> None:
        """As many fused multiply-adds per step as a method has terms."""
        state = x
        for factor in factors:
            state = factor * state
            for _ in range(terms - 1):
                state = torch.addcmul(state, factor, other)

    for name, solver, terms in (("ddim", ddim(), 2), ("dpmpp_2m", dpmpp_2m(), 3), ("unipc", unipc(), 8)):
        floor = seconds(functools.partial(loop, terms), at)
        for how in (False, CUDA_GRAPH) if at.device.startswith("cuda") else (False,):
            took = seconds(functools.partial(sample, model, solver, grid, x_start=x, compile=how), at)
            label = f"step of {name}{', CUDA graph' if how else ''}"
            yield Figure(label, 1e6 * took / count, "µs")
            yield Figure(f"{label}, over a bare loop of its operations", took / floor, "×", "≤ 1.5")


def mnist(at: Setting) -> Iterator[Figure]:
    """Sampling with the embedded MNIST network."""
    model = ScoreModel.from_pretrained("mnist").to(at.device)
    event, count = model.event_shape or (), at.size(50, 3)
    modes = [("eager", False), ("inductor", True), ("CUDA graph", CUDA_GRAPH)]
    for name, how in modes if at.device.startswith("cuda") else modes[:1]:
        run = functools.partial(sample, model, dpmpp_2m(), steps=count, shape=(at.size(64), *event), compile=how)
        began = time.perf_counter()
        run()
        wait(at.device)
        first = time.perf_counter() - began
        label = f"MNIST, batch {at.size(64)}, {count} steps of dpmpp_2m, {name}"
        yield Figure(label, 1e3 * seconds(run, at, 3), "ms", "≤ 100" if how == CUDA_GRAPH else "")
        yield Figure(f"{label}, first call", first, "s", "≤ 10" if how == CUDA_GRAPH else "")
    n = at.size(512)
    x, inputs = torch.randn(n, *event, device=at.device), model.network_inputs(torch.tensor(0.5, dtype=torch.float64))
    inputs = tuple(part.to(at.device, x.dtype) for part in inputs)

    @torch.no_grad()
    def alone() -> None:
        for _ in range(count):
            model.output(x, inputs)

    grid = grids.uniform(model.sde, count)
    whole = seconds(lambda: sample(model, ddpm(), grid, shape=(n, *event)), at, 3)
    yield Figure(f"MNIST, batch {n}, ddpm over its network alone", whole / seconds(alone, at, 3), "×", "≤ 1.05")


def trunks(at: Setting) -> Iterator[Figure]:
    """Our U-Nets and those of azula and diffusers, channels last."""
    batch = at.size(256)
    for own, peer, wanted in (("UNet", "azula", "≤ 0.95"), ("DDPM", "diffusers", "≤ 0.8")):
        names = [own, peer] if importlib.util.find_spec(peer) else [own]
        for mode in ("float32", "bfloat16", "compiled bfloat16")[: 1 if at.tiny else 3]:
            for backward in (False, True):
                label = f"{mode}, {'forward and backward' if backward else 'forward'}, batch {batch}"
                took = {name: one_network(at, name, mode, batch, backward) for name in names}
                yield Figure(f"{own}, {label}", 1e3 * took[own], "ms")
                if peer in took:
                    yield Figure(f"{own} over {peer}, {label}", took[own] / took[peer], "×", wanted)


def one_network(at: Setting, name: str, mode: str, batch: int, backward: bool) -> float:
    """Seconds of an evaluation."""
    call, _ = network_call(at, name, mode, batch, backward)
    return seconds(call, at, 5)


def network_call(
    at: Setting, name: str, mode: str, batch: int, backward: bool
) -> tuple[Callable[[], None], Callable[[], None]]:
    """An evaluation of a network, as its mode says, and the same one without compilation."""
    torch.manual_seed(0)
    network: Any = NETWORKS[name]().to(at.device, memory_format=torch.channels_last).train(backward)
    x = torch.randn(batch, 3, 32, 32, device=at.device).to(memory_format=torch.channels_last)
    t = torch.linspace(0, 999, batch, device=at.device).round()
    if mode.endswith("bfloat16"):
        network, x = network.bfloat16(), x.bfloat16()
    called = torch.compile(network) if mode.startswith("compiled") else network

    def run(called: Any) -> None:
        with torch.set_grad_enabled(backward):
            y = called(x, t)
            y = y if isinstance(y, Tensor) else y.sample
        if backward:
            network.zero_grad()
            y.float().square().mean().backward()

    return functools.partial(run, called), functools.partial(run, network)


def rate(at: Setting) -> Iterator[Figure]:
    """The share of the card's rate of bfloat16 products that the DDPM network reaches."""
    n = at.size(8192, 64)
    a = torch.randn(n, n, device=at.device, dtype=torch.bfloat16)
    best = 2 * n**3 / seconds(lambda: a @ a, at, 15)
    yield Figure(f"bfloat16 products of {n}×{n} matrices", best / 1e12, "TFLOP/s")
    for backward, wanted in ((False, "≥ 0.35"), (True, "≥ 0.21")):
        mode = "bfloat16" if at.tiny else "compiled bfloat16"
        call, plain = network_call(at, "DDPM", mode, at.size(256), backward)
        with FlopCounterMode(display=False) as counter:
            plain()
        share = counter.get_total_flops() / seconds(call, at, 5) / best
        label = "training" if backward else "forward"
        yield Figure(f"DDPM network, {mode}, {label}: share of that rate", share, "", wanted)


def training(at: Setting) -> Iterator[Figure]:
    """Images a second of `train`, and of its network alone."""
    ddpm_batch = at.size(128)
    alone = ddpm_batch / one_network(at, "DDPM", "bfloat16", ddpm_batch, True)
    yield Figure(f"DDPM network alone, bfloat16, batch {ddpm_batch}, eager", alone, "images/s")
    for compiled in (False,) if at.tiny else (False, True):
        found = trained(at, "ddpm", "bfloat16", ddpm_batch, compiled)
        label = f"train, DDPM network, bfloat16, batch {ddpm_batch}{', compiled' * compiled}"
        yield Figure(label, found, "images/s", "≥ 4000" if compiled else f"≥ {0.9 * alone:.0f}")
    for batch in (at.size(512), at.size(1024, 3)):
        found = trained(at, "unet", "bfloat16", batch, not at.tiny)
        label = f"train, MNIST network, bfloat16, batch {batch}{', compiled' * (not at.tiny)}"
        yield Figure(label, found, "images/s", "≥ 40000")
    batch, count = at.size(128), at.size(150, 2)
    ours = batch / trained(at, "unet", "float32", batch, False)
    theirs = bare(image_model("unet")[0], noise_images((1, 28, 28)), count, batch, at.device)
    yield Figure(f"train, MNIST network, float32, batch {batch}, over the bare loop", ours / theirs, "×", "≤ 1.05")


def trained(at: Setting, network: str, precision: str, batch: int, compiled: bool) -> float:
    """Images a second in the second half of a run, by its own log: compilation falls into the first half."""
    model, shape = image_model(network)
    count = at.size(300, 2)
    options = TrainingOptions(
        steps=count, batch_size=batch, log_every=count // 2, evaluate_every=count, checkpoint_every=count,
        held_out=0, precision=precision, compile=compiled,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        loss = DenoisingScoreMatching(model.prediction)
        train(model, noise_images(shape), folder, options, loss=loss, device=at.device)
        with (Path(folder) / "training.csv").open() as file:
            return float(list(csv.DictReader(file))[-1]["images_per_second"])


def agreement(at: Setting) -> Iterator[Figure]:
    """The device against the CPU."""
    model = ScoreModel.from_pretrained("digits")
    shape = (at.size(16), *(model.event_shape or ()))
    run = {"steps": 10, "shape": shape, "dtype": torch.float64}
    here = [sample(model.double(), solver, **run).x for solver in (ddim(), ddpm(), unipc())]
    model = model.to(at.device)
    there = [sample(model, solver, **run).x.cpu() for solver in (ddim(), ddpm(), unipc())]
    largest = max((a - b).abs().max().item() for a, b in zip(here, there, strict=True))
    yield Figure("ddim, ddpm, unipc in float64, against the CPU: largest difference", largest, "", "≤ 1e-6")
    for name, divergence in (("Hutch++", HutchPlusPlus(4, 4)), ("exact trace", ExactTrace())):
        found = []
        for device in ("cpu", at.device):
            model = ScoreModel.from_pretrained("digits").to(device)
            data = model.transform.inverse(here[0].float()).clamp(0, 16).to(device)
            found.append(log_likelihood(model, data, divergence=divergence, nfe=24).nats.cpu())
        difference = (found[0] - found[1]).abs().max().item()
        yield Figure(f"log p in float32, {name}, against the CPU", difference, "nats", "≤ 1e-3")


PARTS = (agreement, noise, steps, mnist, rate, trunks, training)


def circumstances(device: str) -> dict[str, Any]:
    """Card, versions, clocks."""
    found: dict[str, Any] = {"torch": torch.__version__, "device": device}
    found |= {
        "TF32 products": torch.backends.cuda.matmul.allow_tf32,
        "TF32 convolutions": torch.backends.cudnn.allow_tf32,
    }
    if device.startswith("cuda"):
        found |= {"card": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
        asked = "clocks.sm,clocks.mem,clocks.max.sm,driver_version,power.limit"
        command = ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader"]
        try:
            answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
        except (OSError, subprocess.SubprocessError) as error:
            answer = f"unknown: {type(error).__name__}"
        found["clocks"] = dict(zip(asked.split(","), answer.strip().splitlines()[0].split(", "), strict=False))
    return found


def main() -> None:
    words = parser(__doc__)
    words.add_argument("--device", default="cuda")
    words.add_argument("--minutes", type=float, default=8.0)
    words.add_argument("--parts", nargs="+", choices=[part.__name__ for part in PARTS])
    words.add_argument("--tiny", action="store_true", help="sizes that any machine does in seconds")
    given = words.parse_args()
    if given.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("There is no CUDA device. To see that the program runs: --device cpu --tiny")
    at, began = Setting(given.device, given.tiny), time.monotonic()
    about = circumstances(given.device)
    report = Report(given.results, "gpu", "On a GPU")
    report.line(", ".join(f"{name} {value}" for name, value in about.items()))
    report.table("what", "found", "wanted")
    figures: list[dict[str, Any]] = []
    for part in PARTS:
        if given.parts and part.__name__ not in given.parts:
            continue
        if time.monotonic() - began > 60 * given.minutes:
            report.row(part.__name__, "left out: the time was over", "")
            continue
        try:
            for figure in part(at):
                figures.append(figure._asdict())
                report.row(figure.what, f"{figure.value:.4g} {figure.unit}".strip(), figure.wanted)
        except Exception as error:  # a card without memory for a part, or without a compiler
            report.row(part.__name__, f"failed: {type(error).__name__}: {str(error).splitlines()[0]}", "")
    report.save()
    (given.results / "gpu.json").write_text(json.dumps({**about, "figures": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
