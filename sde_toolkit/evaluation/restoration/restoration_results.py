"""What a restoration found: each method's samples after each measurement, and the exact posterior where it is known."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.evaluation.restoration.restoration_request import RestorationRequest
from sde_toolkit.evaluation.restoration.restoration_scores import (
    DISTANCE,
    ExactSamples,
    Scores,
    case_records,
    mean_of,
    misfit_of_truth,
    scores_of,
)
from sde_toolkit.jobs.store import PartStore
from sde_toolkit.metrics.metric import Estimate
from sde_toolkit.noise.streams import Once, generator_for

__all__ = ["EXACT", "Exact", "Restoration", "Restored", "exact_side"]

EXACT = "exact posterior"
_REFERENCE = 1000  # exact samples after each measurement that others are compared with, at least
_FLOORS = 8  # exact sets of n samples, of which the floor is the mean


@dataclass(frozen=True, eq=False)
class Restored:
    """Samples x (k, n, *event) of one method, in model space on the CPU, and what each of them took.

    ``nfe``, ``products``: the largest numbers. ``seconds``, ``network_seconds``: wall time of all measurements, one
    after the other. ``failure``: why there are no samples, or "". ``notes``: what the method has warned of.
    """

    name: str
    x: Tensor
    nfe: int
    products: int
    seconds: float
    network_seconds: float
    failure: str = ""
    notes: tuple[str, ...] = ()

    @property
    def cost(self) -> int:
        """Evaluations and products together."""
        return self.nfe + self.products


@dataclass(frozen=True, eq=False)
class Exact:
    """The exact posterior: x (k, n, *event), in model space, and more samples as ``reference``, one set a measurement.

    ``floor``: the distance of n exact samples to the reference, and the standard deviation of such a distance.
    """

    x: Tensor
    reference: tuple[ExactSamples, ...]
    floor: Estimate

    def distance(self, x: Tensor) -> Estimate:
        """The mean over the measurements of the distances of samples (k, n, *event)."""
        return mean_of([exact.distance(part) for exact, part in zip(self.reference, x, strict=True)])


@dataclass(frozen=True, eq=False)
class Restoration:
    """All methods' samples, and what they are compared with."""

    request: RestorationRequest
    restored: tuple[Restored, ...]
    seconds: float
    processes: int = 1
    store: PartStore | None = None

    @functools.cached_property
    def exact(self) -> Exact | None:
        """The exact posterior, where the model knows it."""
        return exact_side(self.request)

    @functools.cached_property
    def peak(self) -> float | None:
        """The width of the range of the data, which the transform names; None if it does not."""
        low, high = (getattr(self.request.model.transform, name, None) for name in ("low", "high"))
        return None if low is None or high is None else float(high - low)

    @functools.cached_property
    def truth_in_model_space(self) -> Tensor:
        """(k, *event)."""
        return self.request.model.transform.forward(self.request.truth).float().cpu()

    def data(self, x: Tensor) -> Tensor:
        """Samples (k, n, *event) in data space."""
        return self.request.model.transform.inverse(x.flatten(0, 1)).reshape(x.shape)

    @functools.cached_property
    def scores(self) -> dict[str, Scores]:
        """By the methods' names; the exact posterior's too, if it is known. Not of methods that failed."""
        found = {done.name: self._scores(done.x) for done in self.restored if not done.failure}
        if self.exact is not None:
            found[EXACT] = self._scores(self.exact.x, self.exact.floor)
        return found

    def _scores(self, x: Tensor, distance: Estimate | None = None) -> Scores:
        if distance is None and self.exact is not None:
            distance = self.exact.distance(x)
        request = self.request
        return scores_of(x, self.data(x), request.truth, request.measurements, self.peak, distance)

    @functools.cached_property
    def misfit_of_truth(self) -> Estimate:
        """Of the truth itself: 1 but for the chance of the noise."""
        return misfit_of_truth(self.truth_in_model_space, self.request.measurements)

    def nearer(self, name: str, other: str) -> bool:
        """Whether the mean of one method is measurably nearer to the truth than another's: over the measurements the
        difference of their mean square errors is more than three standard errors."""
        squares = []
        for done in self.restored:
            if done.name in (name, other):
                error = self.data(done.x).double().mean(1) - self.request.truth.cpu().double()
                squares.append((error**2).flatten(1).mean(1) * (1 if done.name == other else -1))
        gain = squares[0] + squares[1]
        return len(gain) > 1 and gain.mean().item() > 3 * gain.std().item() / math.sqrt(len(gain))

    def at_floor(self, name: str) -> bool | None:
        """Whether a method's samples cannot be told from exact ones; None where the exact posterior is not known."""
        found = self.scores[name].distance
        return None if self.exact is None or found is None else DISTANCE.reaches(found, self.exact.floor)

    def records(self) -> list[dict[str, Any]]:
        """One flat dictionary for each method: what JSON is made of."""
        found = []
        for done in self.restored:
            record: dict[str, Any] = {
                "method": done.name,
                "nfe": done.nfe,
                "products": done.products,
                "cost": done.cost,
                "seconds": done.seconds,
                "network_seconds": done.network_seconds,
                "failure": done.failure,
                "notes": list(done.notes),
            }
            if not done.failure:
                record |= self.scores[done.name].record()
                if self.exact is not None:
                    record["distance_at_floor"] = self.at_floor(done.name)
            found.append(record)
        return found

    def cases(self) -> list[dict[str, Any]]:
        """One flat dictionary for each measurement and method: what the CSV is made of."""
        sets = [(done.name, done.x) for done in self.restored if not done.failure]
        if self.exact is not None:
            sets.append((EXACT, self.exact.x))
        request, found = self.request, []
        for name, x in sets:
            each = case_records(x, self.data(x), request.truth, request.measurements, self.peak)
            found += [{"measurement": i + 1, "method": name, **record} for i, record in enumerate(each)]
        return found

    def arrays(self) -> dict[str, np.ndarray]:
        """Truth, measurements and all samples: what ``samples.npz`` holds. Samples are in data space."""
        found = {
            "truth": self.request.truth.cpu().numpy(),
            "y": np.stack([m.measured(self.truth_in_model_space[:1]).cpu().numpy() for m in self.request.measurements]),
        }
        found |= {f"samples_{done.name}": self.data(done.x).numpy() for done in self.restored if not done.failure}
        if self.exact is not None:
            found["samples_exact"] = self.data(self.exact.x).numpy()
        return found

    def forget_parts(self) -> None:
        """Delete the finished parts, which an interrupted restoration continues from. Its report is there now."""
        if self.store is not None:
            self.store.clear()


def exact_side(request: RestorationRequest) -> Exact | None:
    """The exact posterior after every measurement, of models that know it; None for all others."""
    if not hasattr(request.model, "posterior") or request.condition is not None:
        return None
    model: Any = request.model
    many = max(_REFERENCE, request.n)
    sets: list[Tensor] = []
    references: list[ExactSamples] = []
    floors: list[Estimate] = []
    for i, measurement in enumerate(request.measurements):
        y = measurement.measured(torch.zeros(1, *request.truth.shape[1:], dtype=torch.float64))
        law = model.posterior(measurement.A, y, float(request.noise_std))
        drawn = law.draw((1 + _FLOORS) * request.n + many, generator=generator_for(request.seed, Once.EXACT_SAMPLES, i))
        own, floor_sets, reference = drawn.split([request.n, _FLOORS * request.n, many])
        sets.append(own)
        references.append(ExactSamples.of(reference))
        values = [references[-1].distance_alone(part) for part in floor_sets.split(request.n)]
        floors.append(Estimate(float(np.mean(values)), float(np.std(values, ddof=1))))
    return Exact(torch.stack(sets), tuple(references), mean_of(floors))
