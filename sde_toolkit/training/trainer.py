"""The training loop: Adam, warm-up, clipping, a moving average of the weights, and a held-out loss.

Every random draw comes from one generator seeded by ``seed``; the held-out loss uses the same times and
noise each time, so that its curve shows the network and not the dice.
"""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sde_toolkit import checkpoint
from sde_toolkit.checking import is_count, is_number
from sde_toolkit.data import Dataset
from sde_toolkit.errors import ArgumentError, DataError, NonFiniteError
from sde_toolkit.losses import DenoisingScoreMatching, stratified_times
from sde_toolkit.progress import progress_bar
from sde_toolkit.score_model import ScoreModel

__all__ = ["TrainingOptions", "train"]

LOG = "training.csv"


@dataclass(frozen=True)
class TrainingOptions:
    """How to train. ``t_min``: None takes the SDE's ``likelihood_end``. ``cosine_decay`` lets the learning
    rate fall to zero over the run. ``precision`` is that of the network; the loss is float32.

    Raises:
        ArgumentError: naming the option that cannot be used.
    """

    steps: int = 5000
    batch_size: int = 128
    learning_rate: float = 1e-3
    warmup_steps: int = 200
    cosine_decay: bool = True
    max_gradient_norm: float = 1.0
    ema_decay: float = 0.999
    t_min: float | None = None
    held_out: int = 1000
    log_every: int = 50
    evaluate_every: int = 500
    precision: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "evaluate_every"):
            self._require(name, is_count(getattr(self, name)), "must be a whole number, at least 1")
        for name in ("warmup_steps", "held_out", "seed"):
            self._require(name, is_count(getattr(self, name), least=0), "must be a whole number, at least 0")
        for name in ("learning_rate", "max_gradient_norm"):
            value = getattr(self, name)
            self._require(name, is_number(value) and value > 0, "must be positive and finite")
        t_min, decay = self.t_min, self.ema_decay
        self._require("t_min", t_min is None or (is_number(t_min) and 0 <= t_min < 1), "must lie in [0, 1)")
        self._require("ema_decay", is_number(decay) and 0 <= decay < 1, "must lie in [0, 1)")
        self._require("precision", self.precision in ("float32", "bfloat16"), "must be float32 or bfloat16")

    def _require(self, name: str, holds: bool, problem: str) -> None:
        if not holds:
            raise ArgumentError(name, getattr(self, name), problem, "Correct this training option.")


def train(
    model: ScoreModel,
    dataset: Dataset,
    directory: str | Path,
    options: TrainingOptions | None = None,
    *,
    loss: DenoisingScoreMatching | None = None,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> ScoreModel:
    """Train ``model`` in place and return its moving average, as a model in evaluation mode.

    The folder receives a checkpoint (raw and EMA weights) at every evaluation and ``training.csv``: step,
    images, seconds, learning_rate, loss (mean since the last row), gradient_norm, held_out_loss (EMA).

    Raises:
        DataError: before the first step, if the data hold NaN or infinity or labels are missing.
        NonFiniteError: if the loss stops being finite; the last checkpoint stays.
    """
    options = options or TrainingOptions()
    loss = loss or DenoisingScoreMatching()
    _check_data(model, dataset)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    model.to(device).train()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(options.ema_decay), use_buffers=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=options.learning_rate)
    schedule = LambdaLR(optimizer, lambda step: _learning_rate_factor(step, options))
    run = _Run(model, dataset, loss, options, torch.device(device))
    batches = run.batches()
    log = _Log(directory / LOG)
    bar = progress_bar(options.steps, "training", enabled=progress)
    ema = cast(ScoreModel, average.module)
    held_out = run.held_out_loss(ema)
    for step in range(1, options.steps + 1):
        x_0, labels = next(batches)
        value = run.loss(model, x_0, labels, run.generator)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), options.max_gradient_norm)
        optimizer.step()
        schedule.step()
        average.update_parameters(model)
        log.add(value.detach(), norm)
        bar.update(1)
        evaluate = step % options.evaluate_every == 0 or step == options.steps
        if evaluate or step % options.log_every == 0:
            if evaluate:
                held_out = run.held_out_loss(ema)
            row = log.write(
                step, step * options.batch_size, optimizer.param_groups[0]["lr"], held_out if evaluate else None
            )
            if not (math.isfinite(row["loss"]) and math.isfinite(row["gradient_norm"])):
                raise NonFiniteError(
                    f"the loss or its gradient stopped being finite in the last {options.log_every} steps,",
                    step=step,
                    remedy="Lower learning_rate or max_gradient_norm; the last checkpoint is untouched.",
                )
            bar.set_postfix_str(f"loss {row['loss']:.4f}, held out {held_out:.4f}")
        if evaluate:
            weights = {"raw": model.state_dict(), "ema": ema.state_dict()}
            checkpoint.save(directory, model.description(), weights)
    bar.close()
    model.eval()
    return ema.eval()


def _learning_rate_factor(step: int, options: TrainingOptions) -> float:
    """Linear warm-up, then constant or a half cosine down to zero at the last step."""
    warm = min(1.0, (step + 1) / max(1, options.warmup_steps))
    decay = 0.5 * (1 + math.cos(math.pi * min(1.0, step / options.steps))) if options.cosine_decay else 1.0
    return warm * decay


@dataclass
class _Run:
    """The random draws and the loss of one training run."""

    model: ScoreModel
    dataset: Dataset
    objective: DenoisingScoreMatching
    options: TrainingOptions
    device: torch.device

    def __post_init__(self) -> None:
        self.t_min = self.model.sde.likelihood_end if self.options.t_min is None else self.options.t_min
        self.generator = torch.Generator().manual_seed(self.options.seed)

    def batches(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Endless shuffled batches of (x_0 in model space, labels)."""
        generator = self.generator
        data, labels = self.dataset.train, self._labels(self.dataset.train_labels)
        while True:
            order = torch.randperm(len(data), generator=generator)
            while len(order) < self.options.batch_size:  # fewer samples than a batch: draw them again
                order = torch.cat([order, torch.randperm(len(data), generator=generator)])
            for start in range(0, len(order) - self.options.batch_size + 1, self.options.batch_size):
                picked = order[start : start + self.options.batch_size]
                yield self._prepare(data[picked], None if labels is None else labels[picked])

    def loss(self, model: ScoreModel, x_0: Tensor, labels: Tensor | None, generator: torch.Generator) -> Tensor:
        """The mean loss of a batch under the run's precision."""
        t = stratified_times(len(x_0), self.t_min, generator=generator).to(self.device)
        noise = torch.randn(x_0.shape, generator=generator).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.precision == "bfloat16"):
            return self.objective(model, x_0, t, noise, labels).mean()

    @torch.no_grad()
    def held_out_loss(self, model: ScoreModel) -> float:
        """The loss on the first ``held_out`` test samples, with the same times and noise at every call."""
        n = min(self.options.held_out, len(self.dataset.test))
        if n == 0:
            return math.nan
        generator = torch.Generator().manual_seed(self.options.seed + 1)
        labels = self._labels(self.dataset.test_labels)
        total = 0.0
        training = model.training
        model.eval()
        for start in range(0, n, self.options.batch_size):
            part = slice(start, min(n, start + self.options.batch_size))
            batch = self._prepare(self.dataset.test[part], None if labels is None else labels[part])
            total += self.loss(model, *batch, generator).item() * (part.stop - part.start)
        model.train(training)
        return total / n

    def _labels(self, labels: Tensor | None) -> Tensor | None:
        return labels if _number_of_classes(self.model) else None

    def _prepare(self, x: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        x_0 = self.model.transform.forward(x).to(self.device, torch.float32)
        return x_0, None if labels is None else labels.to(self.device)


def _number_of_classes(model: ScoreModel) -> int | None:
    return getattr(model.network, "hyperparameters", {}).get("num_classes")


def _check_data(model: ScoreModel, dataset: Dataset) -> None:
    if len(dataset.train) == 0:
        raise DataError("dataset", dataset.name, "it has no training samples", "Use one that has.")
    for name, part in (("train", dataset.train), ("test", dataset.test)):
        if part.is_floating_point() and not bool(part.isfinite().all()):
            raise DataError(f"dataset.{name}", dataset.name, "it holds NaN or infinity", "Clean the data first.")
    if _number_of_classes(model) and dataset.train_labels is None:
        raise DataError(
            "dataset.train_labels",
            None,
            "the network is class-conditional",
            "Give labels, or num_classes=None.",
        )


class _Log:
    """``training.csv``, one row at a time; losses stay on the device until a row is written."""

    columns = ("step", "images", "seconds", "learning_rate", "loss", "gradient_norm", "held_out_loss")

    def __init__(self, path: Path) -> None:
        self.path = path
        self.start = time.perf_counter()
        self.losses: list[Tensor] = []
        self.norms: list[Tensor] = []
        with path.open("w", newline="") as file:
            csv.writer(file).writerow(self.columns)

    def add(self, loss: Tensor, norm: Tensor) -> None:
        self.losses.append(loss)
        self.norms.append(norm)

    def write(self, step: int, images: int, learning_rate: float, held_out: float | None) -> dict[str, float]:
        loss, norm = torch.stack(self.losses).mean().item(), torch.stack(self.norms).mean().item()
        self.losses, self.norms = [], []
        seconds = time.perf_counter() - self.start
        shown = "" if held_out is None else f"{held_out:.6g}"
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerow(
                [step, images, f"{seconds:.1f}", f"{learning_rate:.4g}", f"{loss:.6g}", f"{norm:.4g}", shown]
            )
        return {"loss": loss, "gradient_norm": norm}
