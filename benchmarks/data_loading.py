"""How fast samples come from disk, beside the rate at which a network uses them up: images a second.

    python benchmarks/data_loading.py
    python benchmarks/data_loading.py train      # does training wait for data larger than memory?

A folder of PNG images, tar shards of them, parquet files of them, and an ``.npy`` larger than the memory that the
reading process may add (a limit on its data segment, ``RLIMIT_DATA``), each read in random or shuffled batches by
0, 1 and 2 worker processes, with what a step needs besides: nothing but the batch. ``--network`` measures the training
rate of a small U-Net on this machine (forward, backward, Adam). EDM's augmentation is measured apart. Files were just
written: the operating system may hold them in its cache, so these are rates of decoding and copying, not of the disk.

``train``: `train` with the architecture of the embedded MNIST model on images in memory, on the ``.npy`` under the same
limit (which is seen to refuse loading it), and on the ``.npy`` after the operating system was told to forget it, in
turns. Images a second are those of the run's own log, its second half; ratios are of one turn. On a machine with other
work those of processor time are steadier, and know nothing of waiting for the disk.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import gc
import io
import itertools
import os
import pickle
import resource
import shutil
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from sde_toolkit.data import (
    Dataset,
    EDMAugmentation,
    ParallelStream,
    Source,
    Stream,
    hugging_face_stream,
    image_folder,
    memory_map,
    webdataset,
)

BATCH = 128


def picture(k: int) -> np.ndarray:
    """A smooth 32×32 colour image with some noise, so that PNG has something to do."""
    rng = np.random.default_rng(k)
    coarse = np.kron(rng.integers(0, 200, (4, 4, 3)), np.ones((8, 8, 1)))
    return (coarse + rng.integers(0, 40, (32, 32, 3))).astype(np.uint8)


def encoded(k: int) -> bytes:
    """The same as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(picture(k)).save(buffer, "PNG")
    return buffer.getvalue()


def write_images(folder: Path, n: int) -> None:
    """``images/CLASS/*.png``, ``shards/*.tar`` and ``parquet/*.parquet`` of the same n images."""
    import datasets

    datasets.disable_progress_bars()
    files = [encoded(k) for k in range(n)]
    for label in range(10):
        (folder / "images" / str(label)).mkdir(parents=True)
    for name in ("shards", "parquet"):
        (folder / name).mkdir()
    for k, content in enumerate(files):
        (folder / "images" / str(k % 10) / f"{k:06}.png").write_bytes(content)
    per_shard = -(-n // 8)
    for s in range(8):
        chosen = range(s * per_shard, min(n, (s + 1) * per_shard))
        with tarfile.open(folder / "shards" / f"{s}.tar", "w") as archive:
            for k in chosen:
                for ending, body in (("png", files[k]), ("cls", str(k % 10).encode())):
                    member = tarfile.TarInfo(f"{k:06}.{ending}")
                    member.size = len(body)
                    archive.addfile(member, io.BytesIO(body))
        columns = {"image": [{"bytes": files[k]} for k in chosen], "label": [k % 10 for k in chosen]}
        features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
        datasets.Dataset.from_dict(columns, features).to_parquet(folder / "parquet" / f"train-{s}.parquet")


def write_array(path: Path, megabytes: int, block: np.ndarray) -> int:
    """uint8 (N, *event) of so many megabytes, the block (256, *event) again and again; its N."""
    n = megabytes * 2**20 // block[0].nbytes
    rows = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(n, *block.shape[1:]))
    for start in range(0, n, len(block)):
        rows[start : start + len(block)] = block[: n - start]
    rows.flush()
    return n


def source_batches(source: Source, workers: int) -> Iterator[Tensor]:
    """Random batches through torch's DataLoader, one index list a batch."""
    generator = torch.Generator().manual_seed(0)
    batches = (torch.randint(len(source), (BATCH,), generator=generator).tolist() for _ in itertools.count())
    return iter(DataLoader(source, sampler=batches, batch_size=None, num_workers=workers))  # type: ignore[arg-type]


def stream_batches(stream: Stream, workers: int) -> Iterator[Tensor]:
    """Batches of a stream, in this process or read ahead by others."""
    endless = ParallelStream(stream, workers) if workers else stream
    while True:
        yield endless.next_batch(BATCH)[0]


def rate(batches: Iterator[Tensor], seconds: float) -> float:
    """Images a second over about ``seconds``, after the first batch has come."""
    next(batches)
    images, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        images += len(next(batches))
    return images / (time.perf_counter() - start)


def training_rate(seconds: float) -> float:
    """Images a second of training the embedded MNIST network's architecture on 1×28×28."""
    from sde_toolkit import ScoreModel
    from sde_toolkit.losses import DenoisingScoreMatching

    model = ScoreModel.from_pretrained("mnist").train()
    adam, loss = torch.optim.Adam(model.parameters(), 1e-4), DenoisingScoreMatching()

    def steps() -> Iterator[Tensor]:
        while True:
            x = torch.randn(16, 1, 28, 28)
            loss(model, x, torch.rand(16).double() * 0.9 + 0.05, torch.randn_like(x)).mean().backward()
            adam.step()
            adam.zero_grad()
            yield x

    return rate(steps(), seconds)


def data_segment() -> int:
    """Bytes of this process's private writable mappings (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData"))


@contextlib.contextmanager
def limited(megabytes: int) -> Iterator[None]:
    """No more than so much memory of its own beyond what the process has now; mapped files do not count."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (data_segment() + megabytes * 2**20, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def report(name: str, read: Callable[[int], Iterator[Tensor]], options: argparse.Namespace) -> None:
    """One line of rates."""
    rates = [f"{w} workers {rate(read(w), options.seconds):.0f}" for w in options.workers]
    print(f"{name}: images/s with {', '.join(rates)}", flush=True)


def forget(file: Path) -> None:
    """Take a file out of the operating system's cache; nobody may have it mapped."""
    gc.collect()  # what is left of earlier readers
    descriptor = os.open(file, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def refuses_to_load(file: Path) -> bool:
    """Whether this process has too little memory for the whole file."""
    try:
        np.load(file)
    except MemoryError:
        return True
    return False


def trained_rates(data: Dataset, options: argparse.Namespace) -> tuple[float, float]:
    """Images a second: of the second half of a short run, and of processor time in all of it."""
    from sde_toolkit import ScoreModel
    from sde_toolkit.training import TrainingOptions, train

    model, k = ScoreModel.from_pretrained("mnist").train(), options.steps
    how = TrainingOptions(steps=2 * k, batch_size=options.batch, log_every=k, evaluate_every=2 * k, held_out=0)
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        train(model, data, folder, how)
        used = time.process_time() - began
        with (Path(folder) / "training.csv").open() as file:
            return float(list(csv.DictReader(file))[-1]["images_per_second"]), 2 * k * options.batch / used


def batch_seconds(rows: Any, batch: int) -> float:
    """Median time to read a random batch."""
    generator, found = torch.Generator().manual_seed(0), []
    for _ in range(50):
        index = torch.randint(len(rows), (batch,), generator=generator)
        began = time.perf_counter()
        rows[index]
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def training(folder: Path, options: argparse.Namespace) -> None:
    """Rates from memory, from a file beyond the limit, and from the same file off the disk."""
    file = folder / "digits.npy"
    block = np.stack([picture(k)[None, :28, :28, 0] for k in range(256)])
    n = write_array(file, options.megabytes, block)
    memory = torch.from_numpy(block).repeat(min(n, 20_000) // len(block) + 1, 1, 1, 1)
    packed = pickle.dumps(memory_map(file, test_fraction=0))  # unpacked, it has no file open yet
    in_memory = dataclasses.replace(pickle.loads(packed), train=memory)
    rates: dict[str, list[tuple[float, float]]] = {"memory": [], ".npy": [], ".npy off the disk": []}
    trained_rates(in_memory, options)  # imports, and what else happens once
    with limited(options.cap):
        said = "does not fit" if refuses_to_load(file) else "would fit"
        print(f"{options.megabytes} MB of {n} images; loaded whole into {options.cap} MB to spare, it {said}")
        for _ in range(options.rounds):
            for name, found in rates.items():
                if name == ".npy off the disk":
                    forget(file)
                found.append(trained_rates(in_memory if name == "memory" else pickle.loads(packed), options))
    for name, found in rates.items():
        line = f"{name}: {statistics.median(wall for wall, _ in found):.1f} images/s"
        if name != "memory":
            for which, of in enumerate(("", ", of processor time")):
                ratios = sorted(a[which] / b[which] for a, b in zip(found, rates["memory"], strict=True))
                quarter = len(ratios) // 4
                line += f"{of or f', {name} / memory'} {statistics.median(ratios):.3f}"
                line += f" (middle half {ratios[quarter]:.3f} to {ratios[-1 - quarter]:.3f})"
        print(line)
    forget(file)
    rows = pickle.loads(packed).train
    off_disk = batch_seconds(rows, options.batch)
    np.load(file, mmap_mode="r").max()  # all of it into the cache
    cached = batch_seconds(rows, options.batch)
    print(f"reading a batch of {options.batch}: off the disk {1e3 * off_disk:.2f} ms, cached {1e3 * cached:.2f} ms")


def main() -> None:
    """Write, read, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["read", "train"], default="read")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--megabytes", type=int, default=2048, help="size of the .npy")
    parser.add_argument("--cap", type=int, default=512, help="megabytes that reading may add to the data segment")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--network", action="store_true")
    parser.add_argument("--steps", type=int, default=8, help="of half a run")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp())
    try:
        if options.what == "train":
            training(folder, options)
            return
        write_images(folder, options.images)
        start = time.perf_counter()
        images = image_folder(folder / "images", test_fraction=0)
        print(f"headers of {options.images} PNG checked at {options.images / (time.perf_counter() - start):.0f}/s")
        colours = np.stack([picture(k) for k in range(256)]).transpose(0, 3, 1, 2)
        n = write_array(folder / "rows.npy", options.megabytes, colours)
        rows = memory_map(folder / "rows.npy", test_fraction=0).train
        readers: dict[str, Callable[[int], Iterator[Tensor]]] = {
            "image_folder, PNG": lambda w: source_batches(images.train, w),
            "webdataset, PNG": lambda w: stream_batches(webdataset(folder / "shards").stream, w),
            "hugging_face_stream, PNG": lambda w: stream_batches(
                hugging_face_stream(str(folder / "parquet")).stream, w
            ),
        }
        for name, read in readers.items():
            report(name, read, options)
        with limited(options.cap):
            name = f"memory_map, {n} rows, {options.megabytes} MB with {options.cap} MB to spare"
            report(name, lambda w: source_batches(rows, w), options)
        edm = EDMAugmentation()
        x, u, z = torch.randn(BATCH, 3, 32, 32), torch.rand(BATCH, 8, dtype=torch.float64), torch.randn(BATCH, 4)

        def augmented() -> Iterator[Tensor]:
            while True:
                yield edm(x, u, z)[0]

        print(f"EDMAugmentation(0.12), 3x32x32, one thread: {rate(augmented(), options.seconds):.0f} images/s")
        if options.network:
            print(f"training the embedded MNIST network, one thread: {training_rate(options.seconds):.0f} images/s")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
