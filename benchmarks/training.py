"""Training: what the loop costs beside its network, and weak scaling over processes.

    python benchmarks/training.py loop        # a step of `train` over the same step in a bare loop: one minute
    python benchmarks/training.py rates       # images/s of `train` and of its network alone, in every mode
    python benchmarks/training.py scaling     # images/s of 1 and 2 processes, a fixed batch for each: one minute

The network is that of the embedded MNIST model. On a GPU: rates --device cuda --precision bfloat16 --steps 200
--batch 512, and --network ddpm --batch 128; loop --device cuda --batch 128 --steps 150 [--compile | --graph].
"""

import csv
import dataclasses
import multiprocessing
import os
import socket
import statistics
import tempfile
import time
from pathlib import Path

import torch
from report import Report, parser

from sde_toolkit import VPSDE, DenoisingScoreMatching, ScoreModel, UNet
from sde_toolkit.data import Dataset
from sde_toolkit.networks import ddpm_cifar10
from sde_toolkit.training import TrainingOptions, train


def image_model(name):
    """(model, event shape): the U-Net of the embedded digits or MNIST model, or DDPM's on CIFAR-10."""
    torch.manual_seed(0)
    if name == "digits":
        model = ScoreModel.from_pretrained("digits")
        return model, model.event_shape
    shape = (1, 28, 28) if name == "unet" else (3, 32, 32)
    network = UNet() if name == "unet" else ddpm_cifar10()
    return ScoreModel(network, VPSDE(), "edm" if name == "unet" else "epsilon", event_shape=shape), shape


def noise_images(shape, n=512):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(n, *shape, generator=generator) * 2 - 1
    return Dataset("noise", train=x, test=x[:0])


@dataclasses.dataclass(frozen=True)
class Way:
    """How a run computes."""

    device: str = "cpu"
    precision: str = "float32"
    compile: bool | str = False
    workers: int = 0

    def options(self, steps, batch, log_every=None):
        quiet = {"log_every": log_every or steps, "evaluate_every": steps, "checkpoint_every": steps, "held_out": 0}
        how = {"precision": self.precision, "compile": self.compile, "workers": self.workers}
        return TrainingOptions(steps=steps, batch_size=batch, **quiet, **how)


def wait(device):
    if device != "cpu":
        torch.cuda.synchronize()


def bare(model, data, steps, batch, device):
    """Seconds per step of the fewest operations of the same training.

    They are: loss, backward, clipping, fused Adam, fused average.
    """
    from torch.optim.swa_utils import get_ema_multi_avg_fn

    model.to(device).train()
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0, fused=True)
    average, update = [p.detach().clone() for p in parameters], get_ema_multi_avg_fn(0.999)
    loss, x = DenoisingScoreMatching(model.prediction), data.train
    began = time.perf_counter()
    for step in range(steps):
        x_0 = x[torch.arange(step * batch, (step + 1) * batch) % len(x)].to(device)
        value = loss(model, x_0, torch.rand(batch, device=device) * 0.99 + 0.01, torch.randn_like(x_0)).mean()
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        update(average, [p.detach() for p in parameters], None)
    wait(device)
    return (time.perf_counter() - began) / steps


def alone(model, shape, batch, steps, way):
    """Seconds of a forward and a backward pass of the network, in its precision as a whole, without anything around."""
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[way.precision]
    network = model.network.to(way.device, dtype, memory_format=torch.channels_last).train()
    x = torch.randn(batch, *shape, device=way.device, dtype=dtype).to(memory_format=torch.channels_last)
    t = torch.rand(batch, device=way.device)
    call = torch.compile(network) if way.compile else network
    for step in range(steps + 3):
        if step == 3:
            wait(way.device)
            began = time.perf_counter()
        call(x, t).float().square().mean().backward()
        network.zero_grad()
    wait(way.device)
    return (time.perf_counter() - began) / steps


def timed(model, data, way, steps, batch, folder=None, log_every=None):
    """Seconds per step of `train`, from the last row of its own log; None in a process that writes none."""
    with tempfile.TemporaryDirectory() as own:
        place = Path(folder or own)
        loss = DenoisingScoreMatching(model.prediction)
        train(model, data, place, way.options(steps, batch, log_every), loss=loss, device=way.device)
        if os.environ.get("RANK", "0") != "0":
            return None
        with (place / "training.csv").open() as file:
            rate = float(list(csv.DictReader(file))[-1]["images_per_second"])
    return batch / rate


MODES = ("alone", "alone, compiled", "train", "train, compiled", "train, CUDA graph")


def training_rates(network, precision, batch, device, modes=MODES, steps=100):
    """Images a second in each mode, in turn, as a generator of (mode, rate).

    ``network``: "unet", "ddpm". ``steps``: of which the second half counts, so that compilation and the steps before a
    recording do not. "alone" is the network with a square as its loss, forward and backward, whole in ``precision``.
    """
    for mode in modes:
        model, shape = image_model(network)
        compile = {"compiled": True, "CUDA graph": "cuda_graph"}.get(mode.partition(", ")[2], False)
        way = Way(device, precision, compile)
        if mode.startswith("alone"):
            seconds = alone(model, shape, batch, max(1, steps // 2), way)
        else:
            seconds = timed(model, noise_images(shape), way, steps, batch, log_every=max(1, steps // 2))
        yield mode, batch / seconds


def over_bare(network, batch, steps, repeats, way):
    """(ratios of a step of `train` to one of the bare loop, seconds of the first), of rounds in turn."""
    ratios, seconds = [], []
    for _ in range(repeats):
        model, shape = image_model(network)
        data = noise_images(shape)
        ours = timed(model, data, way, 2 * steps, batch, log_every=steps)
        theirs = bare(image_model(network)[0], data, steps, batch, way.device)
        ratios.append(ours / theirs)
        seconds.append(ours)
    return ratios, seconds


def rates(given):
    """A table of images/s in every mode that the device has."""
    modes = MODES if given.device.startswith("cuda") else MODES[::2][:2]
    title = f"Training: images/s of {given.network}, {given.precision}, batch {given.batch}, {given.device}"
    report = Report(given.results, f"training-rates-{given.network}-{given.precision}", title)
    report.table("mode", "images/s", "over the network alone")
    first = None
    for mode, rate in training_rates(given.network, given.precision, given.batch, given.device, modes, given.steps):
        first = first or rate
        report.row(mode, f"{rate:.0f}", f"{rate / first:.2f}")
    report.save()


def loop(given):
    ratios, seconds = over_bare(given.network, given.batch, given.steps, given.repeats, way_of(given))
    report = Report(
        given.results, "training-loop", "Training: a step of `train` over a bare loop of the same operations"
    )
    report.line(
        f"{given.network}, batch {given.batch}, {given.steps} steps in each of {given.repeats} rounds in turn. "
        "The bare loop has loss, backward, clipping, fused Adam and a fused average."
    )
    report.table("ms/step", "images/s", "over the bare loop", "smallest", "largest")
    middle = statistics.median(seconds)
    figures = [f"{ratio:.3f}" for ratio in (statistics.median(ratios), min(ratios), max(ratios))]
    report.row(f"{1000 * middle:.1f}", f"{given.batch / middle:.0f}", *figures)
    report.save()


def scaling(given):
    """Each process has a core of its own and ``batch`` samples per step."""
    report = Report(given.results, "training-scaling", "Training: images/s of two processes over one")
    found = {1: [], 2: []}
    for _ in range(given.repeats):
        for processes, rates in found.items():
            rates.append(together(given, processes))
    one, two = (statistics.median(found[n]) for n in (1, 2))
    report.line(f"{given.batch} images per step and process, one thread each, gloo; median of {given.repeats} rounds.")
    report.table("images/s, 1 process", "images/s, 2 processes", "ratio")
    report.row(f"{one:.0f}", f"{two:.0f}", f"{two / one:.2f}")
    report.save()


def together(given, processes):
    """Images/s of so many processes that train together."""
    context = multiprocessing.get_context("fork")  # they have imported everything
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    rate = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        given_to_all = (processes, port, given, folder, rate)
        group = [context.Process(target=worker, args=(rank, *given_to_all)) for rank in range(processes)]
        for process in group:
            process.start()
        for process in group:
            process.join()
    if any(process.exitcode for process in group):
        raise SystemExit(f"a process failed: {[process.exitcode for process in group]}")
    return rate.get()


def worker(rank, processes, port, given, folder, rate):
    """One of them, with a core of its own."""
    group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    group |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in group.items()} if processes > 1 else {})
    torch.set_num_threads(1)
    model, shape = image_model(given.network)
    batch = given.batch * processes
    seconds = timed(model, noise_images(shape), way_of(given), given.steps, batch, folder)
    if seconds is not None:
        rate.put(batch / seconds)


def way_of(given):
    return Way(given.device, given.precision, "cuda_graph" if given.graph else given.compile, given.workers)


def main():
    words = parser(__doc__)
    words.add_argument("what", choices=("loop", "rates", "scaling"))
    words.add_argument("--network", choices=("digits", "unet", "ddpm"), default="unet")
    words.add_argument("--batch", type=int, default=32)
    words.add_argument("--steps", type=int, default=12)
    words.add_argument("--repeats", type=int, default=3)
    words.add_argument("--device", default="cpu")
    words.add_argument("--precision", default="float32")
    words.add_argument("--workers", type=int, default=0)
    words.add_argument("--compile", action="store_true")
    words.add_argument("--graph", action="store_true", help="record the update in CUDA graphs")
    given = words.parse_args()
    {"loop": loop, "rates": rates, "scaling": scaling}[given.what](given)


if __name__ == "__main__":
    main()
