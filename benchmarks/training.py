"""Training: what the loop costs beside its network, and weak scaling over processes.

    python benchmarks/training.py loop        # a step of `train` over the same step in a bare loop: one minute
    python benchmarks/training.py scaling     # images/s of 1 and 2 processes, a fixed batch for each: one minute

The network is that of the embedded MNIST model. On a GPU: --device cuda --network ddpm --precision bfloat16
--compile.
"""

import csv
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
    """(model, event shape): the U-Net of the embedded MNIST model, or DDPM's on CIFAR-10."""
    torch.manual_seed(0)
    shape = (1, 28, 28) if name == "unet" else (3, 32, 32)
    network = UNet() if name == "unet" else ddpm_cifar10()
    return ScoreModel(network, VPSDE(), "edm" if name == "unet" else "epsilon", event_shape=shape), shape


def noise_images(shape, n=512):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(n, *shape, generator=generator) * 2 - 1
    return Dataset("noise", train=x, test=x[:0])


def options(given, steps, batch):
    return TrainingOptions(
        steps=steps,
        batch_size=batch,
        log_every=steps,
        evaluate_every=steps,
        held_out=0,
        precision=given.precision,
        compile=given.compile,
        workers=given.workers,
    )


def bare(model, data, steps, batch, device):
    """The fewest operations of the same training: loss, backward, clipping, fused Adam, fused average."""
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
    if device != "cpu":
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / steps


def timed(model, data, given, steps, batch, folder=None):
    """Seconds per step of `train`, from its own log; None in a process that writes none."""
    with tempfile.TemporaryDirectory() as own:
        place = Path(folder or own)
        loss = DenoisingScoreMatching(model.prediction)
        train(model, data, place, options(given, steps, batch), loss=loss, device=given.device)
        if os.environ.get("RANK", "0") != "0":
            return None
        with (place / "training.csv").open() as file:
            rate = float(list(csv.DictReader(file))[-1]["images_per_second"])
    return batch / rate


def loop(given):
    ratios, seconds = [], []
    _, shape = image_model(given.network)
    data = noise_images(shape)
    for _ in range(given.repeats):
        ours = timed(image_model(given.network)[0], data, given, given.steps, given.batch)
        theirs = bare(image_model(given.network)[0], data, given.steps, given.batch, given.device)
        ratios.append(ours / theirs)
        seconds.append(ours)
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
    seconds = timed(model, noise_images(shape), given, given.steps, batch, folder)
    if seconds is not None:
        rate.put(batch / seconds)


def main():
    words = parser(__doc__)
    words.add_argument("what", choices=("loop", "scaling"))
    words.add_argument("--network", choices=("unet", "ddpm"), default="unet")
    words.add_argument("--batch", type=int, default=32)
    words.add_argument("--steps", type=int, default=12)
    words.add_argument("--repeats", type=int, default=3)
    words.add_argument("--device", default="cpu")
    words.add_argument("--precision", default="float32")
    words.add_argument("--workers", type=int, default=0)
    words.add_argument("--compile", action="store_true")
    given = words.parse_args()
    {"loop": loop, "scaling": scaling}[given.what](given)


if __name__ == "__main__":
    main()
