"""What this package does on a GPU, in one run: a table of what was seen, wanted and is now, and a JSON file.

    python benchmarks/gpu.py                          # on a CUDA device, at most eight minutes
    python benchmarks/gpu.py --device cpu --tiny      # that the program runs; its figures mean nothing

Nothing but the package is needed. Where diffusers and azula are installed, their networks are timed beside ours. Every
row (gpu_rows.py, gpu_networks.py) has a share of ``--minutes``, and what earlier rows did not use. A row that is not
done by then is ended and named as left out; one that fails says why. The JSON file, with card, versions and clocks, is
written anew after every row.
"""

from __future__ import annotations

import gc
import itertools
import json
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from gpu_networks import training, trunks
from gpu_rows import Row, Setting, agreement, mnist, noise, steps
from report import Report, parser

PARTS = (agreement, noise, steps, mnist, training, trunks)


class OutOfTimeError(Exception):
    """The share of a row is over."""


@contextmanager
def limited(left: float) -> Iterator[None]:
    """End what runs in this context after ``left`` seconds.

    Raises:
        OutOfTimeError: then.
    """
    if left <= 0:
        raise OutOfTimeError

    def end(*_: object) -> None:
        raise OutOfTimeError

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, left)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def measured(row: Row, left: float) -> dict[str, Any]:
    """What a row found in ``left`` seconds, or why it found nothing."""
    began = time.monotonic()
    told: dict[str, Any] = {"what": row.what, "seen": row.seen, "wanted": row.wanted}
    try:
        with limited(left):
            told |= row.measure()._asdict()
    except OutOfTimeError:
        told["left out"] = f"not done in {max(left, 0):.0f} s"
    except Exception as error:  # a card without memory for a row, or without a compiler
        told["failed"] = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    told["seconds"] = round(time.monotonic() - began, 2)
    gc.collect()
    torch._dynamo.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return told


def now(told: dict[str, Any]) -> str:
    """The cell of what was found."""
    for word in ("left out", "failed"):
        if word in told:
            return f"{word}: {told[word]}"
    beside = f" ({told['beside']})" if told["beside"] else ""
    return f"{told['value']:.3g} {told['unit']}".strip() + beside


def circumstances(device: str) -> dict[str, Any]:
    """Card, versions, clocks."""
    found: dict[str, Any] = {"torch": torch.__version__, "device": device}
    found |= {
        "TF32 products": torch.backends.cuda.matmul.allow_tf32,
        "TF32 convolutions": torch.backends.cudnn.allow_tf32,
    }
    if device.startswith("cuda"):
        found |= {"card": torch.cuda.get_device_name(), "cuda": torch.version.cuda, "clocks": clocks()}
    return found


def clocks() -> dict[str, str]:
    """What nvidia-smi says of the first card."""
    asked = "clocks.sm,clocks.mem,clocks.max.sm,temperature.gpu,driver_version,power.limit"
    command = ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return {"unknown": type(error).__name__}
    return dict(zip(asked.split(","), answer.strip().splitlines()[0].split(", "), strict=False))


def main() -> None:
    words = parser(__doc__)
    words.add_argument("--device", default="cuda")
    words.add_argument("--minutes", type=float, default=8.0)
    words.add_argument("--parts", nargs="+", choices=[part.__name__ for part in PARTS])
    words.add_argument("--tiny", action="store_true", help="sizes that any machine does in seconds")
    given = words.parse_args()
    if given.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("There is no CUDA device. To see that the program runs: --device cpu --tiny")
    began, at = time.monotonic(), Setting(given.device, given.tiny)
    rows = [row for part in PARTS if part.__name__ in (given.parts or part.__name__) for row in part(at)]
    ends = list(itertools.accumulate(row.share for row in rows))
    about = circumstances(given.device)
    report = Report(given.results, "gpu", "On a GPU")
    report.line(", ".join(f"{name} {value}" for name, value in about.items()))
    report.table("what", "seen", "wanted", "now")
    figures = []
    for row, end in zip(rows, ends, strict=True):
        left = 60 * given.minutes * end / ends[-1] - (time.monotonic() - began)
        figures.append(measured(row, left))
        report.row(row.what, row.seen, row.wanted, now(figures[-1]))
        write(given.results / "gpu.json", about | {"figures": figures})
    if given.device.startswith("cuda"):
        write(given.results / "gpu.json", about | {"clocks at the end": clocks(), "figures": figures})
    report.save()


def write(file: Path, found: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
