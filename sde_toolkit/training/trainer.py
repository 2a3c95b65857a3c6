"""The training loop, on accelerate, for one process or many. A killed run continues from its last checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sde_toolkit.checks import check_amount
from sde_toolkit.data import Augmentation, Dataset
from sde_toolkit.errors import ArgumentError, CheckpointError, NonFiniteError, warn_caller
from sde_toolkit.files.claims import claimed
from sde_toolkit.losses import DenoisingScoreMatching, Uniform
from sde_toolkit.models.checkpoint import check_plain, checkpoint_folders
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.progress import progress_bar
from sde_toolkit.training.folder import check_folder, remove_leftovers, run_digest
from sde_toolkit.training.logbook import Logbook
from sde_toolkit.training.objective import Loss, Objective, Times, check_augmentation, check_training_data, modes_kept
from sde_toolkit.training.options import TrainingOptions
from sde_toolkit.training.placing import float32_products, place
from sde_toolkit.training.processes import make_accelerator, newest_for_all
from sde_toolkit.training.record import describe_run, free_keys
from sde_toolkit.training.recorded_update import check_recorded
from sde_toolkit.training.saving import check_run, check_stream_state, mark_missed_best, writing
from sde_toolkit.training.state import TrainingState
from sde_toolkit.training.stopping import Interrupted, StopRequest
from sde_toolkit.training.watchers import Scene, Watcher, check_watchers

__all__ = ["train"]


def train(
    model: ScoreModel,
    dataset: Dataset,
    directory: str | Path,
    options: TrainingOptions | None = None,
    *,
    loss: Loss | None = None,
    times: Times | None = None,
    augmentation: Augmentation | None = None,
    watchers: Sequence[Watcher] = (),
    trackers: Sequence[str] = (),
    resume: bool = True,
    until: int | None = None,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> ScoreModel:
    """Train ``model`` in place, and return a copy with the averaged weights, in evaluation mode.

    ``model`` is in training mode in the steps, and in evaluation mode for the held-out loss and the watchers. At the
    end each of its modules is in the mode that it had before.

    The folder receives checkpoints (:mod:`.saving`) with raw and averaged weights, ``training.csv`` and ``lambda.csv``
    (:mod:`.logbook`). If it holds checkpoints of the same run, training continues from the last one. On the CPU the
    weights, averages and curves are then, bit for bit, those of a run without a stop.

    Under ``accelerate launch`` or ``torchrun`` every process calls this function; ``batch_size`` counts the samples of
    all processes together.

    Args:
        model: a new run starts from its weights.
        dataset: data in data space; ``model.transform`` maps them to model space.
        directory: folder of the run.
        options: how to train.
        loss: a function (model, x_0, t, noise, condition) -> (B,); by default the regression in ε, L_simple.
        times: a distribution of training times; by default uniform.
        augmentation: of the training samples, in model space.
        watchers: called with the averaged model at fixed intervals: sample sheets, likelihood, your own.
        trackers: names that accelerate knows, such as "tensorboard".
        resume: False refuses a folder that holds checkpoints.
        until: stop after this step, with a checkpoint. The same call without it continues.
        device: of this process, unless a launcher chooses it.
        progress: whether to show a progress bar.

    Raises:
        DataError: before the first step, if the data hold NaN or infinity, labels are missing, or shapes differ.
        CheckpointError: if the folder holds another run (the first difference is named) or foreign files with the names
            of a run's, if the processes do not see the same folder, or if a checkpoint is damaged or cannot be written.
        FolderInUseError: if another process works in the folder.
        Interrupted: after Ctrl-C or SIGTERM, once the step is finished and saved. (Only in the main thread, and only
            if the caller has set no handler for the signal. A second signal ends the process at once.)
        NonFiniteError: after ``patience`` steps in a row without a finite gradient. None of them changed the weights.
    """
    options, directory = options or TrainingOptions(), Path(directory)
    objective = _checked_objective(model, dataset, options, loss, times, augmentation)
    check_watchers(watchers, model)
    if until is not None and not 0 < until <= options.steps:
        raise ArgumentError("until", until, f"the run has steps 1 to {options.steps}", "Pass one of these.")
    record, free = describe_run(objective, dataset, options), free_keys(dataset, options)
    check_plain("run", record)
    _check_checkpoints(directory, record, free, resume)
    accelerator = make_accelerator(options, device, trackers, directory)
    check_recorded(options, accelerator)
    with ExitStack() as held:
        if accelerator.is_main_process:
            with writing(directory):
                held.enter_context(claimed(directory, "training"))
            check_folder(directory, run_digest(record, free))
            remove_leftovers(directory)
        accelerator.wait_for_everyone()
        last = newest_for_all(directory, accelerator)
        held.enter_context(modes_kept(model))
        held.enter_context(float32_products(options.tf32, accelerator.device))
        place(model, options, accelerator.device)
        model.train()
        state = TrainingState(objective, dataset, options, accelerator)
        if last is not None:
            check_run(last, record, free)
            state.restore(last)
        if accelerator.is_main_process:
            mark_missed_best(directory, state.best[1])
        held.enter_context(torch.random.fork_rng([accelerator.device] if accelerator.device.type == "cuda" else []))
        loop = _Loop(state, directory, record, run_digest(record, free), list(watchers))
        loop.until(options.steps if until is None else until, progress)
        return state.result()


def _checked_objective(
    model: ScoreModel,
    dataset: Dataset,
    options: TrainingOptions,
    loss: Loss | None,
    times: Times | None,
    augmentation: Augmentation | None,
) -> Objective:
    """The objective of a run, after every check that needs no folder."""
    check_training_data(model, dataset)
    check_augmentation(model, augmentation)
    check_amount("batch_size", options.batch_size, options.batch_size * (8 + math.prod(dataset.event_shape)))
    _warn_of_first_weights(options)
    t_min = model.sde.likelihood_end if options.t_min is None else options.t_min
    model.check_savable()  # a model that cannot be saved is refused before the first step
    check_stream_state(dataset.stream)
    return Objective(model, loss or DenoisingScoreMatching(), times or Uniform(), t_min, augmentation)


def _check_checkpoints(directory: Path, record: Mapping[str, Any], free: Set[str], resume: bool) -> None:
    """Refuse a folder with checkpoints if they are of another run, or if ``resume`` is False."""
    found = checkpoint_folders(directory)
    if found and not resume:
        raise CheckpointError(directory, "it holds checkpoints of a run", "Choose another folder, or resume=True.")
    if found:
        check_run(found[-1][1], record, free)


def _warn_of_first_weights(options: TrainingOptions) -> None:
    if not options.ema_warmup and options.steps < options.average_from:
        warn_caller(
            f"with ema_decay={options.ema_decay} and no warm-up, the averaged weights still contain much of the first "
            f"weights after steps={options.steps}: they are worth using from step {options.average_from} on. "
            "Set ema_warmup=True, or a smaller ema_decay.",
        )


@dataclass
class _Loop:
    """The loop over steps, and the tasks that are due after some of them: log, evaluate, save, watch."""

    state: TrainingState
    directory: Path
    record: dict[str, Any]
    digest: str
    watchers: list[Watcher]

    def until(self, last: int, progress: bool) -> None:
        """Take steps until step ``last``."""
        state = self.state
        if state.step >= last:
            return
        accelerator = state.accelerator
        accelerator.init_trackers("sde_toolkit")
        self.log = Logbook(self.directory, accelerator, state.step)
        self.read_at, self.clock, self.aside = state.step, time.perf_counter(), 0.0
        self.row_at, self.held_out = state.seconds, math.nan
        bar = progress_bar(state.options.steps, "training", enabled=progress and accelerator.is_main_process)
        bar.update(state.step)
        inputs = state.inputs(last)
        with ExitStack() as cleanup:
            cleanup.callback(_close_trackers, accelerator)
            cleanup.callback(bar.close)
            cleanup.callback(inputs.close)  # this also ends the reading processes
            stop = cleanup.enter_context(StopRequest(accelerator.num_processes))
            while state.step < last:
                state.advance(inputs)
                bar.update(1)
                self._report(bar)
                if self._due(-(-state.options.steps // state.options.snapshots), state.options.steps):
                    with self._beside():
                        state.save_snapshots(self.directory, self.digest)
                number = stop.agreed(state.step, accelerator)
                best = state.best[1] == state.step
                due = self._due(state.options.checkpoint_every or state.options.evaluate_every, last)
                if best or due or number is not None:
                    self._count_time()
                    with self._beside():
                        state.save(self.directory, self.record, best)
                if number is not None and state.step < last:
                    raise self._interrupted(number)
                self._watch(state.options.steps)
            if stop.number is not None:
                raise self._interrupted(stop.number)

    def _interrupted(self, number: int) -> Interrupted:
        step, steps = self.state.step, self.state.options.steps
        message = f"stopped at step {step} of {steps}, saved in {self.directory}; the same call continues from there"
        return Interrupted(message, step, number)

    def _due(self, every: int, last: int) -> bool:
        return self.state.step % every == 0 or self.state.step == last

    def _count_time(self) -> None:
        now = time.perf_counter()
        self.state.seconds, self.clock = self.state.seconds + now - self.clock, now

    @contextmanager
    def _beside(self) -> Iterator[None]:
        """The time spent inside does not count for images per second."""
        began = time.perf_counter()
        yield
        self.aside += time.perf_counter() - began

    def _report(self, bar: Any) -> None:
        """Write a row of the log if it is due, with the held-out loss if that is due."""
        state, options = self.state, self.state.options
        evaluate = self._due(options.evaluate_every, options.steps)
        if not (evaluate or self._due(options.log_every, options.steps)):
            return
        row = self._row()
        if evaluate:
            with self._beside(), state.ema.in_place():
                held_out, tally = state.held_out()
            row["held_out_loss"] = held_out
            if held_out < state.best[0]:
                state.best = (held_out, state.step)
            self.log.by_lambda(state.step, "held_out", tally.edges, tally.sums, tally.counts)
            self.held_out = held_out
        self.log.row(row)
        bar.set_postfix_str(_shown(row, self.held_out))

    def _row(self) -> dict[str, float | int | None]:
        """The values of a row, from the sums over the steps since the last row. The sums then start at zero."""
        state, tally = self.state, self.state.tally
        loss, sums, counts = tally.shared(state.accelerator)
        norm, good, skipped, longest = (x.item() for x in (tally.norm, tally.steps, tally.skipped, tally.longest))
        if longest >= state.options.patience:
            raise NonFiniteError(
                f"the gradient was not finite in {int(longest)} steps in a row (all of them were skipped),",
                step=state.step,
                remedy="Lower learning_rate, or check the loss and the data; the last checkpoint is complete.",
            )
        before = self.row_at
        self._count_time()
        self.row_at = state.seconds
        images, self.read_at = (state.step - self.read_at) * state.options.batch_size, state.step
        stepping, self.aside = state.seconds - before - self.aside, 0.0
        self.log.by_lambda(state.step, "train", tally.edges, sums, counts)
        tally.clear()
        return {
            "step": state.step,
            "images": state.step * state.options.batch_size,
            "seconds": state.seconds,
            "learning_rate": state.adam.param_groups[0]["lr"],
            "loss": loss / max(good, 1),
            "gradient_norm": norm / max(good, 1),
            "skipped": int(skipped),
            "images_per_second": images / max(stepping, 1e-9),
            "held_out_loss": None,
        }

    def _watch(self, last: int) -> None:
        due = [watcher for watcher in self.watchers if self._due(watcher.every, last)]
        if not due:
            return
        state = self.state
        with self._beside(), state.ema.in_place():
            state.model.eval()
            for watcher in due:
                watcher(Scene(state.step, state.model, state.dataset, self.log, state.accelerator.device))
            state.model.train()


def _close_trackers(accelerator: Any) -> None:
    """Close the trackers. (accelerate's ``end_training`` would also end the group of processes.)"""
    for tracker in accelerator.trackers:
        tracker.finish()


def _shown(row: dict[str, float | int | None], held_out: float) -> str:
    shown = f"loss {row['loss']:.4f}, |g| {row['gradient_norm']:.2g}, {row['images_per_second']:.0f} images/s"
    if math.isfinite(held_out):
        shown += f", held out {held_out:.4f}"
    return shown + (f", {row['skipped']} skipped" if row["skipped"] else "")
