"""Evaluate a set of samples: features are extracted once for all metrics, and the record holds the conditions.

Processes share the extraction; the main process computes the metrics. The record is a :class:`.records.Quality`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.checks import check_count
from sde_toolkit.errors import ArgumentError, DataError
from sde_toolkit.jobs.team import Team
from sde_toolkit.metrics.distances import Plausible
from sde_toolkit.metrics.extractors import Extractor, check_levels
from sde_toolkit.metrics.features import Extraction, Reference, extract_features
from sde_toolkit.metrics.fid import FID, KID
from sde_toolkit.metrics.kernels import KernelDistance
from sde_toolkit.metrics.manifolds import Precision, Recall
from sde_toolkit.metrics.metric import Against, Metric, SampleSet, check_metrics
from sde_toolkit.metrics.records import Quality, check_alike
from sde_toolkit.metrics.sliced import SlicedWasserstein
from sde_toolkit.metrics.splits import RealParts
from sde_toolkit.sampling.arguments import check_batches

__all__ = ["check_evaluation", "evaluate_samples", "metrics_with_floor", "published_metrics", "usual_metrics"]

_CONFIDENCE = 0.9  # probability of a digit's class from which it is plausible, as in comparisons
_SPLITS = 8


def published_metrics(seed: int = 0) -> tuple[Metric, ...]:
    """FID, KID, precision and recall, against all real data; ``seed``: of KID's subsets."""
    return (FID(), KID(seed=seed), Precision(), Recall())


def metrics_with_floor(extractor: Extractor, seed: int = 0) -> tuple[Metric, ...]:
    """Sliced Wasserstein and kernel distance, as in comparisons, and the share of plausible samples if the extractor
    can tell. ``seed``: of the sliced distance's directions."""
    distances = (SlicedWasserstein(seed=seed), KernelDistance())
    if not hasattr(extractor.module, "clear"):
        return distances
    return (*distances, Plausible(f"p ≥ {_CONFIDENCE:g}", "share of samples with a clear class"))


def usual_metrics(event_shape: tuple[int, ...], extractor: Extractor, seed: int = 0) -> tuple[Metric, ...]:
    """The published metrics for colour images; for digits, points and signals those with a floor."""
    colour = len(event_shape) == 3 and event_shape[0] == 3
    return published_metrics(seed) if colour else metrics_with_floor(extractor, seed)


@dataclass(frozen=True, eq=False)
class _Evaluation:
    """Samples, real data and how they are compared. All of it has been checked."""

    samples: Tensor
    reference: Reference
    extractor: Extractor
    metrics: tuple[Metric, ...]
    levels: int | None
    seed: int
    conditions: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        n, N, reference = len(self.samples), len(self.reference), self.reference
        only = {} if reference.classes is None else {"classes": list(reference.classes)}
        of_metrics = {
            metric.name: {
                **metric.conditions(n, N),
                **({"splits": _SPLITS} if metric.against is Against.PARTS else {}),
            }
            for metric in self.metrics
        }
        conditions = {
            "extractor": self.extractor.description(),
            "preparation": {"levels": self.levels, "rounded": self.levels is not None},
            "samples": {"count": n, "event_shape": list(self.samples.shape[1:])},
            "reference": {"name": reference.name, "split": reference.split, "count": N, **only},
            "metrics": of_metrics,
        }
        object.__setattr__(self, "conditions", conditions)


def evaluate_samples(
    samples: Tensor,
    reference: Reference | Tensor,
    extractor: Extractor,
    *,
    metrics: Sequence[Metric] | None = None,
    levels: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
    source: str = "",
    against: Quality | None = None,
    device: torch.device | str = "cpu",
    team: Team | None = None,
    directory: str | Path | None = None,
    progress: bool = False,
    say: Callable[[str], None] = print,
) -> Quality | None:
    """Measure generated samples (n, *event), in data space, against real ones; None in all processes but the main one.

    Args:
        reference: the real samples.
        extractor: what turns samples into features, see :mod:`.extractors`.
        metrics: what is measured; FID, KID, precision and recall by default. A metric against parts of the real data
            needs at least 2n real samples.
        levels: data are whole numbers 0..levels−1, and the samples are rounded to them; None: continuous data.
        seed: of the real data's random parts, and of KID's subsets where ``metrics`` is not given.
        batch_size: samples that go through the extractor together.
        source: where the samples are from, for the record.
        against: a record that the result will be compared with. Conditions that differ are refused before the
            extraction, if they are known then.
        team, directory: processes that share the extraction, and the folder for finished batches that they need.

    Raises:
        ArgumentError, DataError: before the extraction, for arguments that do not fit together.
        MissingDependencyError: for a package that a metric needs, such as torchmetrics for FID and KID.
    """
    began, team = time.perf_counter(), team or Team()
    reference = reference if isinstance(reference, Reference) else Reference(reference)
    metrics = published_metrics(seed) if metrics is None else metrics
    shape = _shape_of(samples)
    chosen = check_evaluation(shape, reference, metrics, levels=levels, seed=seed, batch_size=batch_size)
    _check_finite(samples)
    evaluation = _Evaluation(samples, reference, extractor, chosen, levels, seed)
    conditions = evaluation.conditions
    if against is not None:
        known = {**against.conditions, "reference": {**against.conditions.get("reference", {})}}
        known["reference"].pop("sha256", None)
        check_alike(known, conditions)
    found = extract_features(
        samples,
        reference,
        extractor.to(device),
        conditions,
        levels=levels,
        batch_size=batch_size,
        device=device,
        team=team,
        directory=directory,
        progress=progress,
        say=say,
    )
    if found is None:
        return None
    conditions["reference"]["sha256"] = found.hashes["reference"]
    if against is not None:
        check_alike(against.conditions, conditions)
    values, errors, floors = _measure(evaluation, found)
    dimension = found.reference.shape[1]
    notes = [metric.note(len(samples), len(reference), dimension) for metric in chosen]
    about = {
        "source": source,
        "samples_sha256": found.hashes["samples"],
        "seed": seed,
        "notes": [note for note in notes if note],
        "processes": team.size,
        "seconds": time.perf_counter() - began,
    }
    if found.store is not None:
        found.store.clear()
    return Quality(values, errors, floors, conditions, about)


def _shape_of(samples: Any) -> tuple[int, ...]:
    """The shape of a tensor of samples.

    Raises:
        DataError: for anything else.
    """
    if not isinstance(samples, Tensor) or samples.ndim == 0:
        shape = tuple(samples.shape) if isinstance(samples, Tensor) else type(samples).__name__
        raise DataError("samples", shape, "at least two samples are needed", "Pass a tensor (n, *event).")
    return tuple(samples.shape)


def _check_finite(samples: Tensor) -> None:
    if samples.is_floating_point() and not bool(samples.isfinite().all()):
        raise DataError("samples", tuple(samples.shape), "they hold NaN or infinity", "Look for where they diverged.")


def check_evaluation(
    shape: tuple[int, ...],
    reference: Reference,
    metrics: Sequence[Metric],
    *,
    levels: int | None,
    seed: int,
    batch_size: int,
) -> tuple[Metric, ...]:
    """Check an evaluation of samples of this shape (n, *event), and return the metrics.

    Raises:
        ArgumentError, DataError: naming what does not fit.
        MissingDependencyError: for a package that a metric needs.
    """
    n, N = shape[0], len(reference)
    if n < 2:
        raise DataError("samples", shape, "at least two samples are needed", "Give more of them.")
    if N < 2:
        raise DataError("reference", N, "at least two real samples are needed", "Give more.")
    shapes = (shape[1:], tuple(reference.rows(0, 1).shape[1:]))
    if shapes[0] != shapes[1]:
        problem = f"the reference has events of shape {shapes[1]}"
        raise DataError("samples", shapes[0], problem, "Compare like with like.")
    chosen = check_metrics(metrics)
    check_count("seed", seed, "Use seed=3.", least=0)
    for metric in chosen:
        if metric.against is Against.FLOW:
            problem = "it compares a solver's samples with the exact flow, and these samples come without a solver"
            raise ArgumentError("metrics", metric.name, problem, "Pass it to compare_solvers instead.")
        metric.check(n, N)
        if metric.against is Against.PARTS and max(2 * n, 4) > N:
            problem = f"{metric.heading} of n={n} samples needs at least 2n real ones, and there are {N}"
            raise DataError("reference", N, problem, f"Evaluate at most {N // 2} samples.")
    check_levels(levels)
    check_batches(batch_size, torch.float32)
    return chosen


def _measure(
    evaluation: _Evaluation, found: Extraction
) -> tuple[dict[str, float | None], dict[str, float | None], dict[str, list[float | None]]]:
    """Values, errors and floors by name."""
    generated, whole = (
        SampleSet(data, features.numpy(), _clear(evaluation.extractor, features))
        for data, features in ((evaluation.samples, found.samples), (evaluation.reference, found.reference))
    )
    real = RealParts(whole, len(generated), _SPLITS, evaluation.seed)
    values: dict[str, float | None] = {}
    errors: dict[str, float | None] = {}
    floors: dict[str, list[float | None]] = {}
    for metric in evaluation.metrics:
        estimate, floor = real.measure(metric, generated), real.floor(metric)
        values |= {name: _finite(value) for name, value in ((metric.name, estimate.value), *estimate.also)}
        if not math.isnan(estimate.error) or floor is not None:
            errors[metric.name] = _finite(estimate.error)
        if floor is not None:
            floors[metric.name] = [_finite(floor.value), _finite(floor.error)]
    return values, errors, floors


def _clear(extractor: Extractor, features: Tensor) -> np.ndarray | None:
    """Whether each sample has a clear class; None if the extractor cannot tell."""
    clear = getattr(extractor.module, "clear", None)
    if clear is None:
        return None
    device = next(extractor.module.parameters()).device  # type: ignore[attr-defined]
    answers: np.ndarray = clear(features.float().to(device), _CONFIDENCE).cpu().numpy()
    return answers


def _finite(value: float) -> float | None:
    """JSON knows no NaN."""
    return value if math.isfinite(value) else None
