"""Averages of any width, computed after training from the snapshots of two power-function averages (EDM2).

output/averages/sigma_rel-0.05/step-000000500.safetensors        one file for each width and snapshot
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from sde_toolkit.errors import ArgumentError, CheckpointError
from sde_toolkit.models import checkpoint
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.training.averages import gamma_of, posthoc_weights
from sde_toolkit.training.folder import AVERAGES, snapshots
from sde_toolkit.training.saving import writing

__all__ = ["posthoc_average", "save_snapshot"]


def save_snapshot(directory: Path, run: str, sigma_rel: float, step: int, weights: Mapping[str, Tensor]) -> None:
    """Write the average of width ``sigma_rel`` at ``step``. ``run``: the digest of the run, which the file keeps."""
    folder = directory / AVERAGES / f"sigma_rel-{sigma_rel:g}"
    with writing(directory):
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint.save_tensors(folder / f"step-{step:09d}.safetensors", weights, {"run": run})


def posthoc_average(directory: str | Path, sigma_rel: float, step: int | None = None) -> ScoreModel:
    """The model whose weights are the power-function average of width ``sigma_rel`` at ``step``.

    θ(σ_rel, step) ≈ Σ x_i θ̂_i over the snapshots up to ``step``, with x by least squares between the profiles (Karras
    et al. 2024, section 3.2). Two widths with 16 snapshots each reproduce all widths between the two closely, and some
    outside.

    Args:
        directory: the folder of a run with ``power_averages``.
        sigma_rel: relative width, in (0, 0.28). 0.05 is short, 0.15 is long.
        step: None for the step of the last snapshot.

    Raises:
        CheckpointError: if the folder has no snapshots.
        ArgumentError: if ``sigma_rel`` is out of range, or ``step`` before the first or after the last snapshot.
    """
    gamma_of(sigma_rel)
    found = snapshots(directory)
    if not found:
        raise CheckpointError(directory, "it has no snapshots of averages", "Train with power_averages=(0.05, 0.1).")
    last = max(row[1] for row in found)
    step = last if step is None else step
    if not found[0][1] <= step <= last:
        problem = f"the snapshots span steps {found[0][1]} to {last}"
        raise ArgumentError("step", step, problem, "Pass a step in this range.")
    used = [row for row in found if row[1] <= step]
    coefficients = posthoc_weights([(width, at) for width, at, _ in used], sigma_rel, step)
    model = ScoreModel.from_pretrained(directory, weights="raw")
    total: dict[str, Tensor] = {}
    for factor, (_, _, file) in zip(coefficients.tolist(), used, strict=True):
        for name, value in checkpoint.load_tensors(file).items():
            part = factor * value.double() if value.is_floating_point() else value
            total[name] = total[name] + part if name in total and value.is_floating_point() else part
    own = model.state_dict()
    with torch.no_grad():
        model.load_state_dict({name: value.to(own[name].dtype) for name, value in total.items()})
    return model.eval()
