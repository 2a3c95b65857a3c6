"""A metric is one object with a name, a way to compute it, and a better direction.

A metric is added with one file, see docs/add-a-metric.md. Comparisons, evaluations, tables, CSV, JSON and figures go
through a list of metrics and know none of them by name.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from enum import Enum
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sde_toolkit.errors import ArgumentError
from sde_toolkit.jobs.fingerprints import fingerprint_data
from sde_toolkit.jobs.provenance import toolkit_version
from sde_toolkit.metrics.estimates import Array, Estimate
from sde_toolkit.metrics.jackknife import Resampled, leave_blocks_out

if TYPE_CHECKING:
    from sde_toolkit.metrics.splits import Prepared, RealParts

__all__ = ["Against", "Array", "Axis", "Estimate", "Metric", "SampleSet", "check_metrics", "library"]


class Against(Enum):
    """What generated samples are compared with."""

    PARTS = "random parts of the real data; the floor is what as many real samples get"
    ALL = "all real data, as published; there is no floor"
    FLOW = "the exact endpoints of the probability flow from the same initial noise, in model space"
    NOTHING = "nothing: the samples are judged by themselves, and so are the real data, for the floor"


class Axis(Enum):
    """How values are drawn."""

    LINEAR = "linear"
    LOG = "values are positive"
    SIGNED = "estimates of zero fall on either side of it"
    SHARE = "values are proportions, and shown in percent"


class SampleSet:
    """Samples that a metric looks at.

    Args:
        data: (n, *event) in data space, a tensor or what is indexed like one; for ``Against.FLOW`` in model space.
        features: (n, d), by the extractor of the evaluation; None where nothing was extracted.
        plausible: (n,) truth values, the answers to the question that some extractors ask of each sample.
        places: which of ``data`` they are; all by default.
    """

    def __init__(
        self,
        data: Any,
        features: Array | None = None,
        plausible: NDArray[np.bool_] | None = None,
        *,
        places: Any = None,
    ) -> None:
        self._all = data
        self._places = slice(0, len(data)) if places is None else places
        self._features = features
        self.plausible = plausible

    def __len__(self) -> int:
        return len(self._all) if isinstance(self._places, slice) else len(self._places)

    @property
    def data(self) -> Tensor:
        """The samples (n, *event); read here, and not before."""
        return self._all[self._places]

    @property
    def features(self) -> Array:
        """Features (n, d).

        Raises:
            ArgumentError: if nothing was extracted.
        """
        if self._features is None:
            problem = "a metric needs features, and nothing extracts them"
            raise ArgumentError("metrics", None, problem, "Pass a judge, or use the samples' data.")
        return self._features

    def at(self, places: NDArray[np.int64]) -> SampleSet:
        """The samples at these places."""
        features = None if self._features is None else self._features[places]
        plausible = None if self.plausible is None else self.plausible[places]
        own = torch.from_numpy(places)
        own = own if isinstance(self._places, slice) else self._places[own]
        return SampleSet(self._all, features, plausible, places=own)


class Metric(ABC):
    """A number that says how good a set of samples is. Subclasses set the attributes and write :meth:`compute`.

    Attributes:
        name: of the value in CSV, JSON and records.
        heading: of the column in tables; ``title``: of the figure, the heading by default.
        meaning: what it is, half a sentence; ``explanation``: how it is measured, the meaning by default.
        lower_is_better: True or False; None where neither is.
        against: what samples are compared with.
        axis: how values are drawn.
        unbiased: whether two sets of one distribution have value zero on average, whatever their sizes.
    """

    name: str
    heading: str
    title: str = ""
    meaning: str = ""
    explanation: str = ""
    lower_is_better: bool | None = True
    against: Against = Against.PARTS
    axis: Axis = Axis.LINEAR
    unbiased: bool = False

    @abstractmethod
    def compute(self, generated: SampleSet, reference: SampleSet) -> Estimate:
        """The value of generated samples against the reference, which is empty for ``Against.NOTHING``.

        For ``Against.FLOW`` sample i of both sets started from the same noise.
        """

    def value(self, generated: SampleSet, reference: SampleSet) -> float:
        """The value alone; override it where the error takes most of the time."""
        return self.compute(generated, reference).value

    def resample(self, generated: SampleSet, reference: SampleSet) -> Resampled:
        """The value, and how it changes without some of the samples; override it where that is known faster.

        Sets of one size are left without the same blocks, so that their differences can be taken
        (:mod:`sde_toolkit.metrics.jackknife`). For ``Against.FLOW`` a sample leaves with its endpoint.
        """
        if self.against is Against.FLOW:

            def without(places: NDArray[np.int64]) -> float:
                return self.value(generated.at(places), reference.at(places))

            return Resampled.of(self.value(generated, reference), leave_blocks_out(without, len(generated)), [])
        return Resampled.of(
            self.value(generated, reference),
            leave_blocks_out(lambda places: self.value(generated.at(places), reference), len(generated)),
            leave_blocks_out(lambda places: self.value(generated, reference.at(places)), len(reference)),
        )

    def between_pairs(self, one: SampleSet, other: SampleSet) -> Resampled:
        """The distance of two sets whose samples i belong together, such as two ends of the same noise.

        A pair leaves as a whole.
        """

        def between(places: NDArray[np.int64]) -> float:
            return self.value(one.at(places), other.at(places))

        return Resampled.of(self.value(one, other), leave_blocks_out(between, len(one)), [])

    def prepare(self, real: RealParts) -> Prepared | None:
        """An object that measures many sets against the same real data with shared work; None: no work is shared."""
        return None

    def check(self, n: int, n_real: int) -> None:  # noqa: B027
        """Refuse before the work if n samples and n_real real ones cannot be measured.

        Raises:
            SDEToolkitError: naming what does not fit, or a package that is missing.
        """

    def conditions(self, n: int, n_real: int) -> dict[str, Any]:
        """Settings and library as plain data. Two values are compared only if these are equal."""
        kind: Any = type(self)
        fields: Any = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()
        settings = {f.name: fingerprint_data(getattr(self, f.name)) for f in fields}
        return {"library": f"{kind.__module__}.{kind.__qualname__}", **settings}

    def note(self, n: int, n_real: int, dimension: int) -> str:
        """A caution for the record, on n samples and n_real real ones with features of this dimension, or ""."""
        return ""

    def reaches(self, found: Estimate, floor: Estimate) -> bool:
        """Whether a value is as good as the floor, within two standard errors of their difference."""
        short = found.value - floor.value
        within = 2 * math.hypot(found.error, floor.error)
        return abs(short) < within if self.lower_is_better is None else self.loss(short) < within

    def loss(self, value: float) -> float:
        """A number that is smaller for better values."""
        return -value if self.lower_is_better is False else value

    def label(self) -> str:
        """The title, or the heading."""
        return self.title or self.heading


def library(package: str | None = None) -> str:
    """This package and another one with their versions, for a record."""
    own = f"sde_toolkit {toolkit_version()}"
    return own if package is None else f"{own}, {package} {version_of(package)}"


def version_of(package: str) -> str | None:
    """The version of an installed package; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def check_metrics(metrics: Any, taken: Sequence[str] = ()) -> tuple[Metric, ...]:
    """Metrics as a tuple: of a list, of one metric, or of ``{name: f}`` with functions f(generated, real).

    ``taken``: names that the report has given to other columns.

    Raises:
        ArgumentError: for anything but metrics with different names.
    """
    if isinstance(metrics, Mapping):
        from sde_toolkit.metrics.function_metric import metrics_of_functions

        metrics = metrics_of_functions(metrics)
    several = (metrics,) if isinstance(metrics, Metric) else metrics
    if isinstance(several, str) or not isinstance(several, Sequence):
        raise ArgumentError("metrics", metrics, "not a list of metrics", "Pass [FID(), KID()], for example.")
    for metric in several:
        if not isinstance(metric, Metric):
            problem = "not a metric" if not isinstance(metric, type) else "a class, not a metric"
            raise ArgumentError("metrics", metric, problem, "Pass instances of Metric, such as [FID(), KID()].")
        for attribute in ("name", "heading"):
            if not isinstance(getattr(metric, attribute, None), str) or not getattr(metric, attribute):
                problem = f"it has no {attribute}"
                raise ArgumentError("metrics", metric, problem, f"Set {attribute} in its class.")
    names = [metric.name for metric in several]
    for name in names:
        if names.count(name) > 1 or name in taken:
            problem = "two columns of the report have this name"
            raise ArgumentError("metrics", name, problem, "Give each metric a name of its own.")
    if not several:
        raise ArgumentError("metrics", metrics, "there is nothing to measure", "Name at least one metric.")
    return tuple(several)
