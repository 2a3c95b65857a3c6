"""How fast samples come from disk, and whether training waits for data larger than memory.

    python benchmarks/data_loading.py read      # images/s of every reader: two minutes
    python benchmarks/data_loading.py train     # from a file larger than memory: two minutes

``read``: a folder of PNG images, tar shards of them, parquet files of them, and an ``.npy`` larger than the memory
that the reading process may add (a limit on its data segment, ``RLIMIT_DATA``), in random or shuffled batches by 0, 1
and 2 worker processes. Files were just written, so that the operating system may hold them in its cache: these are
rates of decoding and copying, not of the disk. The last row is the rate at which the embedded MNIST network trains on
one thread.

``train``: ``train`` with the architecture of the embedded MNIST network on images in memory, on the ``.npy`` under
the same limit (loading it whole is seen to fail), and on the ``.npy`` after the operating system was told to forget
it, in turns. Images/s are those of the run's own log, its second half. Ratios are of one turn. On a machine with
other work, ratios of processor time are steadier, but do not see any waiting for the disk.
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
from report import Report, parser
from torch import Tensor
from torch.utils.data import DataLoader

from sde_toolkit.data import (
    Dataset,
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


def training(report: Report, folder: Path, given: argparse.Namespace) -> None:
    """Rates from memory, from a file beyond the limit, and from the same file off the disk."""
    file = folder / "digits.npy"
    block = np.stack([picture(k)[None, :28, :28, 0] for k in range(256)])
    n = write_array(file, given.megabytes, block)
    memory = torch.from_numpy(block).repeat(min(n, 20_000) // len(block) + 1, 1, 1, 1)
    packed = pickle.dumps(memory_map(file, test_fraction=0))  # unpacked, it has no file open yet
    in_memory = dataclasses.replace(pickle.loads(packed), train=memory)
    rates: dict[str, list[tuple[float, float]]] = {"memory": [], "file, cached": [], "file, off the disk": []}
    trained_rates(in_memory, given)  # imports, and what else happens once
    with limited(given.cap):
        said = "it does not load" if refuses_to_load(file) else "it would load"
        report.line(
            f"A file of {given.megabytes} MB, {n} images, in a process with {given.cap} MB to spare: "
            f"{said}. Batch {given.batch}, {given.rounds} rounds of {2 * given.steps} steps, one thread."
        )
        for _ in range(given.rounds):
            for name, found in rates.items():
                if name == "file, off the disk":
                    forget(file)
                found.append(trained_rates(in_memory if name == "memory" else pickle.loads(packed), given))
    report.table("images from", "images/s", "over memory, by the clock", "over memory, by processor time")
    for name, found in rates.items():
        cells = [middle([a[k] / b[k] for a, b in zip(found, rates["memory"], strict=True)]) for k in (0, 1)]
        report.row(name, f"{statistics.median(wall for wall, _ in found):.0f}", *cells)
    forget(file)
    rows = pickle.loads(packed).train
    off_disk = batch_seconds(rows, given.batch)
    np.load(file, mmap_mode="r").max()  # all of it into the cache
    cached = batch_seconds(rows, given.batch)
    report.line(f"Reading a batch takes {1e3 * off_disk:.2f} ms off the disk and {1e3 * cached:.2f} ms from the cache.")


def middle(ratios: list[float]) -> str:
    """Median and middle half."""
    ordered, quarter = sorted(ratios), len(ratios) // 4
    return f"{statistics.median(ordered):.2f} ({ordered[quarter]:.2f} to {ordered[-1 - quarter]:.2f})"


def reading(report: Report, folder: Path, given: argparse.Namespace) -> None:
    """A row of rates for each reader."""
    write_images(folder, given.images)
    images = image_folder(folder / "images", test_fraction=0)
    n = write_array(folder / "rows.npy", given.megabytes, np.stack([picture(k).transpose(2, 0, 1) for k in range(256)]))
    rows = memory_map(folder / "rows.npy", test_fraction=0).train
    readers: dict[str, Callable[[int], Iterator[Tensor]]] = {
        "PNG in folders": lambda w: source_batches(images.train, w),
        "PNG in tar shards, streamed": lambda w: stream_batches(webdataset(folder / "shards").stream, w),
        "PNG, Hugging Face, streamed": lambda w: stream_batches(hugging_face_stream(str(folder / "parquet")).stream, w),
    }
    report.line(
        f"Batches of {BATCH} of 3×32×32; {given.images} PNG files; "
        f"an .npy of {given.megabytes} MB ({n} rows) in a process with {given.cap} MB to spare."
    )
    report.table("images/s from", *(f"{workers} workers" for workers in given.workers))

    def measured(read: Callable[[int], Iterator[Tensor]]) -> list[str]:
        return [f"{rate(read(workers), given.seconds):,.0f}" for workers in given.workers]

    for name, read in readers.items():
        report.row(name, *measured(read))
    with limited(given.cap):
        report.row("an .npy larger than memory", *measured(lambda w: source_batches(rows, w)))
    digits = Dataset("noise", train=torch.rand(512, 1, 28, 28), test=torch.rand(0, 1, 28, 28))
    trained = trained_rates(digits, given)[0]
    report.row("for comparison: the network trains", f"{trained:,.0f}", *([""] * (len(given.workers) - 1)))


def main() -> None:
    """Write, read, report."""
    words = parser(__doc__)
    words.add_argument("what", choices=["read", "train"])
    words.add_argument("--images", type=int, default=5_000)
    words.add_argument("--megabytes", type=int, default=2048, help="size of the .npy")
    words.add_argument("--cap", type=int, default=512, help="megabytes that reading may add to the data segment")
    words.add_argument("--seconds", type=float, default=3.0, help="for each rate of read")
    words.add_argument("--workers", type=int, nargs="*", default=[0, 1, 2])
    words.add_argument("--steps", type=int, default=4, help="of half a run")
    words.add_argument("--batch", type=int, default=64, help="of the network")
    words.add_argument("--rounds", type=int, default=7, help="of train")
    given = words.parse_args()
    torch.set_num_threads(1)
    report = Report(
        given.results, f"data-{given.what}", {"read": "Reading images", "train": "Training from disk"}[given.what]
    )
    folder = Path(tempfile.mkdtemp())
    try:
        (reading if given.what == "read" else training)(report, folder, given)
    finally:
        shutil.rmtree(folder)
    report.save()


if __name__ == "__main__":
    main()
