"""Samples drawn by one process or many, in batches that are the same for all of them.

Sample i has the noise stream (seed, i). Batches do not depend on the number of processes, so sample i always goes
through the network beside the same others. Samples are therefore bit for bit the same for any number of processes that
compute alike (one kind of device, equal numbers of threads). On the CPU this holds for a U-Net, too.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.checks import check_amount, check_count
from sde_toolkit.errors import ArgumentError
from sde_toolkit.evaluation.planned_run import BatchRequest, PlannedRun
from sde_toolkit.jobs.fingerprints import behaviour, fingerprint_data, model_fingerprint
from sde_toolkit.jobs.sharing import Part, cut, do_parts
from sde_toolkit.jobs.store import Arrays, PartStore
from sde_toolkit.jobs.team import Team
from sde_toolkit.models.conditions import check_condition
from sde_toolkit.models.evaluation_mode import check_evaluation_mode
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.noise.streams import check_stream
from sde_toolkit.progress import progress_bar
from sde_toolkit.sampling.arguments import check_batches, check_model
from sde_toolkit.sampling.loop import rows_of

__all__ = ["Drawn", "draw_samples"]


@dataclass(frozen=True, eq=False)
class Drawn:
    """``x`` (n, *event) in model space, on the CPU, and how it was drawn.

    ``nfe``: evaluations that each sample went through, counted. ``computing_seconds``, ``network_seconds``: of all
    processes together; ``seconds``: what the main process waited for. ``found``: batches that were there already.
    """

    x: Tensor
    nfe: int
    seconds: float
    computing_seconds: float
    network_seconds: float
    processes: int
    found: int
    store: PartStore | None


def draw_samples(
    model: ScoreModel,
    run: PlannedRun,
    n: int,
    *,
    seed: int = 0,
    first_index: int = 0,
    batch_size: int | None = None,
    condition: Any = None,
    team: Team | None = None,
    directory: str | Path | None = None,
    device: torch.device | str = "cpu",
    progress: bool = False,
    say: Callable[[str], None] = print,
) -> Drawn | None:
    """Draw n samples with a planned solver; None in all processes but the main one.

    Args:
        model: in evaluation mode, with an ``event_shape``, on ``device``.
        run: solver and grid, from :func:`~sde_toolkit.evaluation.planning.plan_run`.
        seed, first_index: sample i has the stream (seed, first_index + i).
        batch_size: samples that go through the network together, and are stored together; None: all.
        condition: handed to the network; tensors in it have one row per sample.
        team: the processes that share the work; alone by default.
        directory: the folder of finished batches, kept until ``Drawn.store.clear()``. An interrupted call continues
            from them; without a condition n may differ then. Several processes need it, and must all see it.
        say: gets messages about batches that were found or damaged.

    Raises:
        ArgumentError: for arguments that do not fit together, and for a directory with parts of other work.
        NonFiniteError, MaxEvaluationsError, ForeignSolverError: from the solver.
    """
    began, team = time.perf_counter(), team or Team()
    _check_drawing(model, n, batch_size, condition)
    check_stream(seed, first_index)
    asked = {"seed": seed, "first_index": first_index, "batch_size": batch_size, "condition": condition}
    store = None if directory is None else PartStore(Path(directory), _fingerprint(model, run, asked), "output")
    bar: Any = None

    def begin(own: Sequence[Part]) -> None:
        nonlocal bar
        bar = progress_bar(run.cost * len(own), run.name, enabled=progress and team.main)

    def compute(part: Part) -> Arrays:
        batch = BatchRequest(
            first=first_index + part.first,
            last=first_index + part.last,
            seed=seed,
            condition=rows_of(condition, part.first, part.last),
            device=device,
            callback=bar.update,
        )
        return run.draw(model, batch).arrays()

    parts = [Part(k, first, last, None, last - first) for k, (first, last) in enumerate(cut(n, batch_size))]
    done = do_parts(parts, compute, store=store, team=team, begin=begin, say=say)
    bar.close()
    if done is None:
        return None
    arrays = done.of(None)
    return Drawn(
        x=torch.cat([torch.from_numpy(part["x"]) for part in arrays]),
        nfe=max(int(part["nfe"]) for part in arrays),
        seconds=time.perf_counter() - began,
        computing_seconds=sum(float(part["seconds"]) for part in arrays),
        network_seconds=sum(float(part["network_seconds"]) for part in arrays),
        processes=team.size,
        found=done.found,
        store=store,
    )


def _fingerprint(model: ScoreModel, run: PlannedRun, asked: dict[str, Any]) -> dict[str, Any]:
    """What the finished batches depend on."""
    settings = {**asked, **run.settings()}
    answers = behaviour(model, model.event_shape or ())
    return {
        "work": "samples/2",
        "model": model_fingerprint(model),
        "behaviour": answers,
        "settings": fingerprint_data(settings),
    }


def _check_drawing(model: ScoreModel, n: int, batch_size: int | None, condition: Any) -> None:
    """Check that a model can draw n samples.

    Raises:
        ArgumentError: for arguments that do not fit together.
    """
    check_model(model)
    if model.event_shape is None:
        raise ArgumentError("model", type(model).__name__, "it has no event_shape", "Build it with event_shape=...")
    check_count("n", n, "64 is usual.")
    check_amount("n", n, n * math.prod(model.event_shape))
    check_evaluation_mode(model)
    check_batches(batch_size, torch.float32)
    check_condition(condition, n)
