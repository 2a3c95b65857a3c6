"""The state of a run on one process: weights, averages, optimizer, sums, place in a stream, and number of the step.

A step depends on these and on nothing else, since the key of every draw contains the step (:mod:`.draws`). So a
checkpoint of them is a checkpoint of the run.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from sde_toolkit.data import Dataset
from sde_toolkit.models import checkpoint
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.sampling.cuda_graphs import CUDA_GRAPH
from sde_toolkit.training.averages import WeightAverage, exponential_update, power_function_update
from sde_toolkit.training.batches import (
    Portion,
    Recipe,
    held_out_inputs,
    inputs_from_data,
    inputs_from_stream,
    share_of_stream,
)
from sde_toolkit.training.draws import seed_torch, step_seed
from sde_toolkit.training.feeding import PassInputs, fed, kept_samples
from sde_toolkit.training.logbook import Tally, lambda_edges
from sde_toolkit.training.objective import Objective
from sde_toolkit.training.options import TrainingOptions
from sde_toolkit.training.posthoc import save_snapshot
from sde_toolkit.training.processes import (
    full_optimizer,
    full_weights,
    gather_objects,
    load_full_optimizer,
    load_full_weights,
    split_batch,
)
from sde_toolkit.training.recorded_update import RecordedUpdate
from sde_toolkit.training.saving import load_state, mark_best, prune, restoring, save_checkpoint
from sde_toolkit.training.trial import check_trial, try_network
from sde_toolkit.training.update import Update

__all__ = ["TrainingState", "learning_rate_factor"]


def learning_rate_factor(step: int, options: TrainingOptions) -> float:
    """Linear warm-up, times 1 or, with ``cosine_decay``, a half cosine that falls to zero at the last step."""
    warm = min(1.0, (step + 1) / max(1, options.warmup_steps))
    decay = 0.5 * (1 + math.cos(math.pi * min(1.0, step / options.steps))) if options.cosine_decay else 1.0
    return warm * decay


class TrainingState:
    """What a checkpoint holds, and how one step changes it."""

    def __init__(self, objective: Objective, dataset: Dataset, options: TrainingOptions, accelerator: Any) -> None:
        self.model, self.dataset, self.options, self.accelerator = objective.model, dataset, options, accelerator
        self.passes, self.pass_size = split_batch(options, accelerator.num_processes)
        if options.compile is True:
            objective.compile_passes()
        optimizer = torch.optim.AdamW(
            self._weights(),
            lr=options.learning_rate,
            betas=options.betas,
            eps=options.epsilon,
            weight_decay=options.weight_decay,
            fused=True,
        )
        self.objective, self.optimizer = accelerator.prepare(objective, optimizer)
        self.inner: Objective = accelerator.unwrap_model(self.objective)
        self.adam: torch.optim.Optimizer = self.optimizer.optimizer
        self.objective.train()
        self.schedule = LambdaLR(self.adam, lambda step: learning_rate_factor(step, options))
        weights = self._weights()  # once more: sharding makes new parameters
        self.ema = WeightAverage(weights, exponential_update(options.ema_decay, options.ema_warmup))
        self.powers = {width: WeightAverage(weights, power_function_update(width)) for width in options.power_averages}
        at_noise, at_data = (float(self.model.sde.half_log_snr(t)) for t in (1.0, objective.t_min))
        self.tally = Tally(lambda_edges(at_noise, at_data), accelerator.device)
        self.update = (RecordedUpdate if options.compile == CUDA_GRAPH else Update)(
            self.objective,
            weights,
            self.adam,
            self.optimizer,
            self.passes,
            options.max_gradient_norm,
            self.tally,
            accelerator,
        )
        self.stream = share_of_stream(dataset.stream, options.workers, accelerator)
        self.step, self.seconds = 0, 0.0
        self.best = (math.inf, 0)  # held-out loss, step

    def _weights(self) -> list[Tensor]:
        return [p for p in self.model.parameters() if p.requires_grad]

    # -- a step --------------------------------------------------------------------------------------------------

    def inputs(self, last: int) -> Generator[PassInputs, None, None]:
        """This process's passes of the steps from here to ``last``, on its device."""
        options, rank, device = self.options, self.accelerator.process_index, self.accelerator.device
        augmentation, classes = self.inner.augmentation, self.model.num_classes
        recipe = Recipe(
            options.seed,
            options.batch_size,
            options.low_discrepancy,
            uniforms=0 if augmentation is None else augmentation.draws.uniforms,
            normals=0 if augmentation is None else augmentation.draws.normals,
            label_dropout=options.label_dropout if classes else 0.0,
            no_class=classes,
        )
        first = rank * self.passes * self.pass_size
        portions = (
            Portion(step, first + part * self.pass_size, self.pass_size)
            for step in range(self.step, last)
            for part in range(self.passes)
        )
        kept = kept_samples(self.dataset, device, options.data_on_device)
        if self.stream is not None:
            read = inputs_from_stream(self.stream, recipe, portions, classes=classes)
        else:
            labelled, pin = bool(classes), device.type == "cuda"
            read = inputs_from_data(
                self.dataset, recipe, portions, use_labels=labelled, workers=options.workers, pin=pin, kept=kept
            )
        ahead = self.stream is None  # a checkpoint holds the place of a stream, which must not run ahead of the step
        return fed(read, partial(self.inner.prepared, device=device), device, ahead=ahead)

    def advance(self, inputs: Iterator[PassInputs]) -> None:
        """Take one step. If the gradient is not finite, weights and optimizer stay as they are.

        The host does not wait for the device. The model is in training mode.
        """
        for part in range(self.passes):
            drawn = next(inputs)
            seed = step_seed(self.options.seed, self.step, self.accelerator.process_index, part)
            seed_torch(seed, self.accelerator.device)
            self.update.add_pass(drawn, last=part == self.passes - 1)
        self.update.finish()
        self.schedule.step()
        self.step += 1
        for average in (self.ema, *self.powers.values()):
            average.update()

    # -- looking -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def held_out(self) -> tuple[float, Tally]:
        """The mean loss on the first test samples, and its sums by λ. Every call uses the same draws."""
        options, accelerator = self.options, self.accelerator
        tally = Tally(self.tally.edges, accelerator.device)
        total = torch.zeros((), dtype=torch.float64, device=accelerator.device)
        count = min(options.held_out, len(self.dataset.test))
        if count == 0:
            return math.nan, tally
        recipe = Recipe(options.seed + 1, count)
        place = accelerator.process_index, accelerator.num_processes
        labelled = bool(self.model.num_classes)
        self.inner.eval()
        for read in held_out_inputs(self.dataset, recipe, count, self.pass_size, *place, use_labels=labelled):
            drawn = self.inner.prepared(read, accelerator.device)
            with accelerator.autocast():
                _, losses = self.inner(drawn)
            total += losses.double().sum()
            tally.add_losses(losses, drawn.lambdas)
        self.inner.train()
        tally.sums, tally.counts, total = (accelerator.reduce(x, "sum") for x in (tally.sums, tally.counts, total))
        return total.item() / count, tally

    def averaged(self, average: WeightAverage) -> dict[str, Tensor]:
        """The whole state dict with the values of an average, in the main process. All processes have to call it."""
        with average.in_place():
            return full_weights(self.model)

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def save(self, directory: Path, record: dict[str, Any], best: bool) -> None:
        """Write a checkpoint, let the file ``best`` name it if ``best``, and remove those that are not kept."""
        weights = {"raw": full_weights(self.model), "ema": self.averaged(self.ema)}
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "best": self.best,
            "processes": self.accelerator.num_processes,
            "optimizer": full_optimizer(self.model, self.adam),
            "schedule": self.schedule.state_dict(),
            "scaler": None if self.accelerator.scaler is None else self.accelerator.scaler.state_dict(),
            "averages": {width: self.averaged(average) for width, average in self.powers.items()},
            "trial": self._trial(),
            "tally": self.tally.state(self.accelerator),
            "streams": None if self.stream is None else gather_objects(self.stream.state_dict(), self.accelerator),
        }
        if self.accelerator.is_main_process:
            folder = save_checkpoint(directory, self.step, self.model.description(), record, weights, state)
            if best:
                mark_best(directory, folder)
            prune(directory, self.options.keep)
        self.accelerator.wait_for_everyone()

    def save_snapshots(self, directory: Path, run: str) -> None:
        """Write the power-function averages of this step, with the digest of the run."""
        for width, average in self.powers.items():
            weights = self.averaged(average)
            if self.accelerator.is_main_process:
                save_snapshot(directory, run, width, self.step, weights)

    def _trial(self) -> list[float] | None:
        return try_network(self.model, self.dataset, self.accelerator.device)

    def restore(self, folder: Path) -> None:
        """Load the state of a checkpoint.

        Raises:
            CheckpointError: if it is damaged, does not fit the run, or the network gives other answers than when it was
                made.
        """
        with restoring(folder):
            self._load(folder, load_state(folder))

    def _load(self, folder: Path, state: dict[str, Any]) -> None:
        for width, average in self.powers.items():
            load_full_weights(self.model, state["averages"][width])
            average.set_to_weights(state["step"])
        for name in ("ema", "raw"):
            load_full_weights(self.model, checkpoint.checked_tensors(folder, name))
            if name == "ema":
                self.ema.set_to_weights(state["step"])
        check_trial(folder, state.get("trial"), self._trial())
        load_full_optimizer(self.model, self.adam, state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.tally.load(state["tally"], self.accelerator.is_main_process)
        if self.stream is not None:
            places = state["streams"]
            self.stream.load_state_dict(places[self.accelerator.process_index % len(places)])
        self.step, self.seconds, self.best = state["step"], state["seconds"], tuple(state["best"])

    def result(self) -> ScoreModel:
        """A copy of the model with the averaged weights, in evaluation mode."""
        with self.ema.in_place():
            return copy.deepcopy(self.model).eval()
