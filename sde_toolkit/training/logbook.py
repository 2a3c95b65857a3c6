"""The log of a run: two CSV files, pictures, and the trackers of accelerate (TensorBoard and others).

    training.csv   step, images, seconds, learning_rate, loss, gradient_norm, skipped, images_per_second, held_out_loss
    lambda.csv     step, part (train, held_out), low, high, count, loss: the mean loss by half log-SNR λ

A run that continues removes the rows after its checkpoint and writes them again. Their numbers are the same, except
``seconds`` and ``images_per_second``.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.files.whole import write_atomically
from sde_toolkit.losses import lambda_histogram
from sde_toolkit.training.folder import LOGS
from sde_toolkit.training.saving import writing

__all__ = ["LAMBDAS", "LOG", "Logbook", "Tally", "lambda_edges"]

LOG, LAMBDAS = LOGS
COLUMNS = LOGS[LOG]


class Tally:
    """Sums over steps. They stay in their tensors on the device, so that no step waits for them.

    ``skipped`` counts all steps without a finite gradient, ``streak`` the latest ones in a row, and ``longest`` is the
    largest ``streak`` of the interval.
    """

    names = ("loss", "norm", "steps", "skipped", "streak", "longest", "sums", "counts")

    def __init__(self, edges: Tensor, device: torch.device) -> None:
        self.edges = edges.to(device)
        self.loss, self.norm, self.steps = (torch.zeros((), dtype=torch.float64, device=device) for _ in range(3))
        self.skipped, self.streak, self.longest = (torch.zeros((), device=device) for _ in range(3))
        self.sums = torch.zeros(len(self.edges) - 1, dtype=torch.float64, device=device)
        self.counts = torch.zeros_like(self.sums)

    def clear(self) -> None:
        """Start the next interval. ``skipped`` and ``streak`` keep their values."""
        torch._foreach_zero_([self.loss, self.norm, self.steps, self.sums, self.counts])
        self.longest.copy_(self.streak)

    def add_losses(self, losses: Tensor, lambdas: Tensor) -> None:
        """Add the losses (n,) of one pass at their λ (n,). Losses that are not finite count as 0."""
        sums, counts = lambda_histogram(losses.nan_to_num(0.0, 0.0, 0.0), lambdas, self.edges)
        self.sums += sums
        self.counts += counts

    def add_step(self, loss: Tensor, norm: Tensor, bad: Tensor) -> None:
        """Add one step: its mean loss, the norm of its gradient, and whether it was skipped."""
        self.loss += torch.where(bad, 0.0, loss)
        self.norm += torch.where(bad, 0.0, norm)
        self.steps += ~bad
        self.skipped += bad
        self.streak.add_(1).masked_fill_(bad.logical_not(), 0.0)
        torch.maximum(self.longest, self.streak, out=self.longest)

    def shared(self, accelerator: Any) -> tuple[float, Tensor, Tensor]:
        """Over all processes: the sum of the steps' losses, and the sums and counts by λ. All have to call it."""
        loss = accelerator.reduce(self.loss, "mean").item()
        return loss, accelerator.reduce(self.sums, "sum"), accelerator.reduce(self.counts, "sum")

    def state(self, accelerator: Any) -> dict[str, Tensor]:
        """All sums over all processes, for a checkpoint. All have to call it."""
        own = {name: getattr(self, name).cpu() for name in self.names}
        loss, sums, counts = self.shared(accelerator)
        return {**own, "loss": torch.tensor(loss, dtype=torch.float64), "sums": sums.cpu(), "counts": counts.cpu()}

    def load(self, state: Mapping[str, Tensor], main: bool) -> None:
        """The inverse of :meth:`state`. The sums by λ are those of all processes, and only the main one takes them."""
        for name in self.names:
            getattr(self, name).copy_(state[name])
        if not main:
            torch._foreach_zero_([self.sums, self.counts])


class Logbook:
    """The files and trackers of a run. Only the main process writes."""

    def __init__(self, directory: Path, accelerator: Any, step: int) -> None:
        self.directory = directory
        self.accelerator = accelerator
        if accelerator.is_main_process:
            with writing(directory):
                for name, columns in LOGS.items():
                    _truncate(directory / name, columns, step)

    def row(self, values: Mapping[str, float | int | None]) -> None:
        """Append a row to training.csv, and send it to the trackers."""
        if self.accelerator.is_main_process:
            self._append(LOG, [["" if values[c] is None else f"{values[c]:.10g}" for c in COLUMNS]])
        self.scalars(int(values["step"] or 0), {k: v for k, v in values.items() if k != "step"})

    def scalars(self, step: int, values: Mapping[str, float | int | None]) -> None:
        """Send numbers to the trackers."""
        known = {name: value for name, value in values.items() if value is not None}
        self.accelerator.log(known, step=step)

    def by_lambda(self, step: int, part: str, edges: Tensor, sums: Tensor, counts: Tensor) -> None:
        """Append the mean losses by λ to lambda.csv, and send them to the trackers. Empty bins are left out."""
        bounds, totals, numbers = edges.tolist(), sums.tolist(), counts.tolist()
        rows = [
            (low, high, int(n), total / n)
            for low, high, total, n in zip(bounds[:-1], bounds[1:], totals, numbers, strict=True)
            if n
        ]
        if self.accelerator.is_main_process:
            written = [[step, part, f"{a:.6g}", f"{b:.6g}", n, f"{mean:.10g}"] for a, b, n, mean in rows]
            self._append(LAMBDAS, written)
        self.scalars(step, {f"{part}/lambda {a:.2g} to {b:.2g}": mean for a, b, _, mean in rows})

    def _append(self, name: str, rows: list[list[Any]]) -> None:
        with writing(self.directory), (self.directory / name).open("a", newline="") as file:
            csv.writer(file).writerows(rows)

    def picture(self, step: int, name: str, figure: Any) -> None:
        """Save a matplotlib figure as a PNG under ``pictures/``, and send it to every tracker that takes images."""
        if not self.accelerator.is_main_process:
            return
        with writing(self.directory):
            file = self.directory / "pictures" / f"{name}-{step:09d}.png"
            file.parent.mkdir(exist_ok=True)
            figure.savefig(file, dpi=100)
        if self.accelerator.trackers:
            from matplotlib.image import imread

            pixels = (imread(file)[..., :3] * 255).round().astype(np.uint8)
            for tracker in self.accelerator.trackers:
                _show(tracker, step, name, pixels, figure)


def _show(tracker: Any, step: int, name: str, pixels: np.ndarray, figure: Any) -> None:
    """Send an image (H, W, 3) to one of accelerate's trackers. Their ``log_images`` take images in different forms."""
    if tracker.name == "tensorboard":  # one array (n, H, W, 3)
        tracker.log_images({name: pixels[None]}, step=step, dataformats="NHWC")
    elif tracker.name in ("aim", "clearml"):  # one image
        tracker.log_images({name: pixels}, step=step)
    elif hasattr(tracker, "log_images"):  # as documented: a list of images
        tracker.log_images({name: [pixels]}, step=step)
    elif hasattr(tracker, "log_figure"):  # MLflow
        tracker.log_figure(figure=figure, artifact_file=f"pictures/{name}-{step:09d}.png")


def lambda_edges(first: float, last: float, bins: int = 8) -> Tensor:
    """The edges of equally wide bins between two values of λ. Values outside of [−20, 20] are moved to its ends."""
    low, high = sorted(min(max(value, -20.0), 20.0) for value in (first, last))
    return torch.linspace(low, high, bins + 1, dtype=torch.float64)


def _truncate(path: Path, columns: tuple[str, ...], step: int) -> None:
    """Keep the header and the complete rows up to ``step``. A missing file is made, with its header."""
    rows: list[list[str]] = []
    if path.exists() and step:
        with path.open(newline="") as file:
            rows = [row for row in csv.reader(file) if len(row) == len(columns) and row[0].isdigit()]
    text = io.StringIO(newline="")
    csv.writer(text).writerows([columns, *(row for row in rows if int(row[0]) <= step)])
    write_atomically(path, text.getvalue().encode())
