"""From the finished batches of a comparison to its rows: samples put together, measured, and timed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.evaluation.comparison_batches import OfFlow, OfPicture, OfRow
from sde_toolkit.evaluation.comparison_request import ComparisonRequest
from sde_toolkit.evaluation.endpoint import Endpoint
from sde_toolkit.evaluation.rows import Row, Timing
from sde_toolkit.jobs.sharing import Parts
from sde_toolkit.metrics.metric import Against, Estimate, SampleSet
from sde_toolkit.metrics.splits import NO_SAMPLES

__all__ = ["endpoints_of", "judged_row", "mean_over_seeds", "points_of"]


def endpoints_of(request: ComparisonRequest, parts: Parts) -> dict[str, tuple[Endpoint, ...]]:
    """The endpoints of each model, for each seed."""
    found: dict[str, tuple[Endpoint, ...]] = {}
    for name in request.endpoints:
        for seed in range(request.seed, request.seed + request.seeds):
            usual, (finer,) = parts.of(OfFlow(name, seed)), parts.of(OfFlow(name, seed, finer=True))
            ends = Endpoint.of(request.all_models[name], request.endpoint_steps, usual, finer)
            found[name] = (*found.get(name, ()), ends)
    return found


Judged = tuple[Row, Tensor, tuple[Tensor, ...], tuple[SampleSet, ...]]


def judged_row(request: ComparisonRequest, parts: Parts, k: int, endpoints: Sequence[Endpoint], bar: Any) -> Judged:
    """The row of run ``k``; its samples of the first seed in data space; of all seeds in model space, and as sets."""
    run = request.runs[k]
    batches = [parts.of(OfRow(k, seed)) for seed in range(request.seed, request.seed + request.seeds)]
    own = [arrays for several in batches for arrays in several]
    known: dict[str, Any] = {
        "solver": run.name,
        "grid": run.grid_name,
        "grid_set": run.grid_set,
        "model": run.model_name,
        "budget": run.budget,
        "times": run.times,
        "tweedie": run.tweedie,
        "eta": run.eta,
        "integrator": run.integrator,
        "samples_the_model": run.samples_the_model,
    }
    failures = [str(arrays["failure"]) for arrays in own if "failure" in arrays]
    if failures:  # the first one is of a batch that was drawn; later batches may have been left out
        bar.update(request.seeds)
        none: dict[str, Any] = {"measured": {}, "seconds": 0.0, "network_seconds": 0.0}
        row = Row(**known, nfe=run.nfe, **none, failure=failures[0])
        return row, torch.empty(0, *request.event_shape), (), ()
    draws = tuple(torch.cat([torch.from_numpy(arrays["x"]) for arrays in several]) for several in batches)
    inverse, judge = request.model_of(run).transform.inverse, request.judge
    data = [inverse(x.to(request.device)).cpu() for x in draws]
    sets = tuple(SampleSet(values) if judge is None else judge.sample_set(values) for values in data)
    measured = []
    for j, (x, of_seed) in enumerate(zip(draws, sets, strict=True)):
        measured.append(_values(request, x, of_seed, endpoints[j] if run.deterministic and endpoints else None))
        bar.update(1)
    seconds, network_seconds = ([float(arrays[name]) for arrays in own] for name in ("seconds", "network_seconds"))
    row = Row(
        **known,
        nfe=max(int(arrays["nfe"]) for arrays in own),
        products=max(int(arrays["products"]) for arrays in own),
        measured={name: mean_over_seeds([found[name] for found in measured]) for name in measured[0]},
        seconds=sum(seconds),
        network_seconds=sum(network_seconds),
        timing=Timing.of([len(arrays["x"]) for arrays in own], seconds, network_seconds),
    )
    return row, data[0], draws, sets


def points_of(request: ComparisonRequest, parts: Parts, k: int) -> Tensor:
    """Further samples of run k for its picture, in data space; none if it failed, or none are missing."""
    found = parts.of(OfPicture(k, request.seed))
    if not found or "x" not in found[0]:
        return torch.empty(0, *request.event_shape)
    x = torch.from_numpy(found[0]["x"])
    return request.model_of(request.runs[k]).transform.inverse(x.to(request.device)).cpu()


def mean_over_seeds(found: Sequence[Estimate]) -> Estimate:
    """The mean of the values of several seeds.

    Its error is that of independent values whose variance is the one between the seeds, or the one that they state,
    whichever is larger: few seeds may lie close together by chance.
    """
    if len(found) == 1:
        return found[0]
    values = [estimate.value for estimate in found]
    stated = float(np.mean([estimate.error**2 for estimate in found]))
    between = float(np.var(values, ddof=1))
    variance = between if math.isnan(stated) else max(between, stated)
    return Estimate(float(np.mean(values)), math.sqrt(variance / len(found)), found[0].also)


def _values(
    request: ComparisonRequest, x: Tensor, samples: SampleSet, endpoint: Endpoint | None
) -> dict[str, Estimate]:
    """Every metric that can be measured, by its name. ``x``: all samples in model space; ``samples``: the judged."""
    found: dict[str, Estimate] = {}
    for metric in request.measured:
        if metric.against is Against.FLOW:
            if endpoint is not None:
                reached = SampleSet(x[: endpoint.n])
                found[metric.name] = metric.compute(reached, SampleSet(endpoint.x.cpu()))
        elif request.judge is not None:
            found[metric.name] = request.judge.parts.measure(metric, samples)
        else:
            found[metric.name] = metric.compute(samples, NO_SAMPLES)
    return found
