"""How good a set of samples is: FID, KID, precision and recall, and the feature-space distance of the solver reports.

    fid                fréchet distance of Gaussians with the features' moments (Heusel et al. 2017), by torchmetrics
    kid                unbiased MMD² with (x·y/d + 1)³ over random subsets (Binkowski et al. 2018), by torchmetrics
    precision_recall   shares within the other set's manifold (Kynkäänniemi et al. 2019), :mod:`.metrics`
    distance           sliced Wasserstein and kernel distance beside what real samples would get, :mod:`.judging`

All from one extraction of features, which processes share; the main process computes the metrics. The result is a
record that knows its conditions (:mod:`.records`).
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sde_toolkit.checks import check_count
from sde_toolkit.errors import ArgumentError, DataError, MissingDependencyError
from sde_toolkit.jobs.provenance import toolkit_version
from sde_toolkit.jobs.team import Team
from sde_toolkit.metrics.distances import Estimate, cubic, precision_recall, require_transport
from sde_toolkit.metrics.extractors import Extractor, check_levels, failing_package
from sde_toolkit.metrics.features import Reference, extract_features
from sde_toolkit.metrics.judge import Features, Judge, Plausible
from sde_toolkit.metrics.records import Quality, check_alike
from sde_toolkit.noise.streams import Once, generator_for
from sde_toolkit.sampling.arguments import check_batches

__all__ = ["METRICS", "check_evaluation", "evaluate_samples", "usual_metrics"]

METRICS = ("fid", "kid", "precision_recall", "distance")
_CONFIDENCE = 0.9  # of a plausible digit, as in solver reports


def usual_metrics(event_shape: tuple[int, ...]) -> tuple[str, ...]:
    """FID, KID, precision and recall for colour images; for digits, points and signals the distance with its floor."""
    colour = len(event_shape) == 3 and event_shape[0] == 3
    return ("fid", "kid", "precision_recall") if colour else ("distance",)


def evaluate_samples(
    samples: Tensor,
    reference: Reference | Tensor,
    extractor: Extractor,
    *,
    metrics: Sequence[str] = ("fid", "kid", "precision_recall"),
    levels: int | None = None,
    kid_subsets: int = 100,
    kid_subset_size: int = 1000,
    neighbours: int = 3,
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
        metrics: some of ``fid``, ``kid``, ``precision_recall``, ``distance``.
        levels: data are whole numbers 0..levels−1, and the samples are rounded to them; None: continuous data.
        kid_subsets, kid_subset_size: KID is the mean over random subsets, of the smaller set's size at most.
        neighbours: k of precision and recall.
        seed: of KID's subsets, and of the distance's splits and directions.
        batch_size: samples that go through the extractor together.
        source: where the samples are from, for the record.
        against: a record that the result is to be compared with: what differs is refused before the extraction, as far
            as it is known then.
        team, directory: processes that share the extraction, and the folder for finished batches that they need.

    Raises:
        ArgumentError, DataError: before the extraction, for whatever does not fit together.
        MissingDependencyError: without torchmetrics, for FID and KID.
    """
    began, team = time.perf_counter(), team or Team()
    reference = reference if isinstance(reference, Reference) else Reference(reference)
    if not isinstance(samples, Tensor) or samples.ndim == 0:
        shape = tuple(samples.shape) if isinstance(samples, Tensor) else type(samples).__name__
        raise DataError("samples", shape, "at least two samples are needed", "Pass a tensor (n, *event).")
    check_evaluation(
        tuple(samples.shape),
        reference,
        metrics,
        levels=levels,
        kid_subsets=kid_subsets,
        kid_subset_size=kid_subset_size,
        neighbours=neighbours,
        seed=seed,
        batch_size=batch_size,
    )
    if samples.is_floating_point() and not bool(samples.isfinite().all()):
        raise DataError("samples", tuple(samples.shape), "they hold NaN or infinity", "Look for where they diverged.")
    n, N = len(samples), len(reference)
    size, ours = min(kid_subset_size, n, N), f"sde_toolkit {toolkit_version()}"
    settings: dict[str, dict[str, Any]] = {
        "fid": {"library": _torchmetrics(metrics), "covariance": "unbiased"},
        "kid": {
            "library": _torchmetrics(metrics),
            "subsets": kid_subsets,
            "subset_size": size,
            "degree": 3,
            "coef": 1.0,
        },
        "precision_recall": {"library": ours, "neighbours": neighbours},
        "distance": {
            "library": f"{ours}, POT {_installed('POT')}",
            "splits": 8,
            "projections": 128,
        },
    }
    only = {} if reference.classes is None else {"classes": list(reference.classes)}
    conditions: dict[str, Any] = {
        "extractor": extractor.description(),
        "preparation": {"levels": levels, "rounded": levels is not None},
        "samples": {"count": n, "event_shape": list(samples.shape[1:])},
        "reference": {"name": reference.name, "split": reference.split, "count": N, **only},
        "metrics": {name: settings[name] for name in metrics},
    }
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
    generated, real, hashes, store = found
    conditions["reference"]["sha256"] = hashes["reference"]
    if against is not None:
        check_alike(against.conditions, conditions)
    values: dict[str, float | None] = {}
    errors: dict[str, float | None] = {}
    floors: dict[str, list[float | None]] = {}
    notes: list[str] = []
    if "fid" in metrics:
        values["fid"] = _fid(generated, real)
        least, d = min(n, N), real.shape[1]
        if least <= d:
            notes.append(f"FID of {least} samples in {d} dimensions: the covariance is singular and the bias large.")
    if "kid" in metrics:
        values["kid"], values["kid_std"] = _kid(generated, real, kid_subsets, size, seed)
    if "precision_recall" in metrics:
        precision, recall = precision_recall(generated.numpy(), real.numpy(), neighbours)
        for name, share in (("precision", precision), ("recall", recall)):
            values[name], errors[name] = share.value, share.error
    if "distance" in metrics:
        for name, own, floor in _distance(generated, real, extractor, seed):
            values[name], errors[name] = own.value, _finite(own.error)
            floors[name] = [floor.value, _finite(floor.error)]
    about = {
        "source": source,
        "samples_sha256": hashes["samples"],
        "seed": seed,
        "notes": notes,
        "processes": team.size,
        "seconds": time.perf_counter() - began,
    }
    if store is not None:
        store.clear()
    return Quality({name: _finite(value) for name, value in values.items()}, errors, floors, conditions, about)


def check_evaluation(
    shape: tuple[int, ...],
    reference: Reference,
    metrics: Sequence[str],
    *,
    levels: int | None,
    kid_subsets: int,
    kid_subset_size: int,
    neighbours: int,
    seed: int,
    batch_size: int,
) -> None:
    """Everything about an evaluation of samples of this shape (n, *event) that can be refused before they are there.

    Raises:
        ArgumentError, DataError: naming what does not fit.
        MissingDependencyError: for a package that a metric needs.
    """
    if shape[0] < 2:
        raise DataError("samples", shape, "at least two samples are needed", "Give more of them.")
    if len(reference) < 2:
        raise DataError("reference", len(reference), "at least two real samples are needed", "Give more.")
    shapes = (shape[1:], tuple(reference.rows(0, 1).shape[1:]))
    if shapes[0] != shapes[1]:
        raise DataError(
            "samples", shapes[0], f"the reference has events of shape {shapes[1]}", "Compare like with like."
        )
    known = not isinstance(metrics, str) and all(name in METRICS for name in metrics)
    if not known or not metrics or len(set(metrics)) < len(metrics):
        problem = f"metrics are some of {', '.join(METRICS)}"
        raise ArgumentError("metrics", metrics, problem, "Use [fid,kid,precision_recall].")
    least = {
        "neighbours": (neighbours, 1),
        "kid_subsets": (kid_subsets, 1),
        "kid_subset_size": (kid_subset_size, 2),
        "seed": (seed, 0),
    }
    for name, (value, low) in least.items():
        check_count(name, value, f"Use {name}={max(low, 3)}.", least=low)
    if "precision_recall" in metrics and min(shape[0], len(reference)) <= neighbours:
        problem = f"a point has no {neighbours} neighbours among {min(shape[0], len(reference))} samples"
        raise ArgumentError("neighbours", neighbours, problem, "Give more samples, or leave precision_recall out.")
    if "distance" in metrics and len(reference) < 2 * shape[0]:
        problem = (
            f"the distance compares n samples with 2n real ones and more, and there are {len(reference)} real ones"
        )
        raise DataError("reference", len(reference), problem, f"Evaluate at most {len(reference) // 2} samples.")
    check_levels(levels)
    check_batches(batch_size, torch.float32)
    _torchmetrics(metrics)
    if "distance" in metrics:
        require_transport()


class _Same(nn.Module):
    """Features in, features out: what the metrics of torchmetrics take for an extractor.

    (The main process has all features: ``sync_on_compute`` would wait for the others, who are done.)
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, x: Tensor) -> Tensor:
        return x


def _fid(generated: Tensor, real: Tensor) -> float:
    from torchmetrics.image.fid import FrechetInceptionDistance

    centre = real.mean(0)  # moments are summed in one pass, which loses digits far from the origin
    metric = FrechetInceptionDistance(feature=_Same(real.shape[1]), sync_on_compute=False).set_dtype(torch.float64)
    metric.update(real - centre, real=True)
    metric.update(generated - centre, real=False)
    return float(metric.compute())


def _kid(generated: Tensor, real: Tensor, subsets: int, size: int, seed: int) -> tuple[float, float]:
    from torchmetrics.image.kid import KernelInceptionDistance

    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance` will save")
        torch.manual_seed(generator_for(seed, Once.KID_SUBSETS).initial_seed())
        metric = KernelInceptionDistance(
            feature=_Same(real.shape[1]), subsets=subsets, subset_size=size, sync_on_compute=False
        )
        metric.update(real, real=True)
        metric.update(generated, real=False)
        mean, std = metric.compute()
    return float(mean), float(std)


def _distance(generated: Tensor, real: Tensor, extractor: Extractor, seed: int) -> list[tuple[str, Estimate, Estimate]]:
    """The judge's scores of the features, each beside the floor that real samples set."""
    clear = getattr(extractor.module, "clear", None)

    def extract(features: Tensor) -> tuple[np.ndarray, np.ndarray | None]:
        answers = None
        if clear is not None:
            device = next(extractor.module.parameters()).device  # type: ignore[attr-defined]
            answers = clear(features.float().to(device), _CONFIDENCE).cpu().numpy()
        return features.numpy(), answers

    plausible = None if clear is None else Plausible(f"p ≥ {_CONFIDENCE:g}", "share of samples with a clear class")
    features = Features(extractor.name, extract, cubic, "(x·y/d + 1)³", plausible)
    judge = Judge(real, len(generated), features, seed=seed)
    scores = judge(generated)
    names = ("sliced_wasserstein", "kernel_distance", *(("plausible",) if clear is not None else ()))
    return [(name, getattr(scores, name), getattr(judge.floor, name)) for name in names]


def _finite(value: float | None) -> float | None:
    """JSON knows no NaN."""
    return value if value is not None and math.isfinite(value) else None


def _torchmetrics(metrics: Sequence[str]) -> str | None:
    """Its version.

    Raises:
        MissingDependencyError: if it is needed and not there.
    """
    if not {"fid", "kid"} & set(metrics):
        return None
    try:
        import torchmetrics.image.fid
        import torchmetrics.image.kid  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:  # the last two: a torchvision of another torch
        raise MissingDependencyError(failing_package(error, "torchmetrics"), "FID and KID", "fid", error) from None
    return f"torchmetrics {_installed('torchmetrics')}"


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
