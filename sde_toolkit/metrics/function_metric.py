"""A function of generated and real samples as a metric."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor

from sde_toolkit.checks import required_arguments, takes_arguments
from sde_toolkit.errors import ArgumentError
from sde_toolkit.jobs.fingerprints import fingerprint_data
from sde_toolkit.metrics.estimates import Estimate
from sde_toolkit.metrics.jackknife import Resampled
from sde_toolkit.metrics.metric import Metric, SampleSet
from sde_toolkit.metrics.splits import OnParts, Prepared, RealParts
from sde_toolkit.showing import shown

__all__ = ["FunctionMetric", "metrics_of_functions"]


@dataclass(frozen=True)
class FunctionMetric(Metric):
    """``function(generated, real)`` as a metric, with an error by leaving out blocks of either set.

    Args:
        name: of the column.
        function: maps generated (n, *event) and real samples (m, *event), tensors in data space, to a number. It is
            called about 50 times for each row. It must not depend on the order of either set.
        lower_is_better: True or False; None where neither is.
    """

    name: str
    function: Callable[[Tensor, Tensor], Any]
    lower_is_better: bool | None = True

    @property
    def heading(self) -> str:  # type: ignore[override]
        return self.name

    @property
    def meaning(self) -> str:  # type: ignore[override]
        return f"the function {fingerprint_data(self.function)} of generated and real samples"

    @property
    def explanation(self) -> str:  # type: ignore[override]
        return f"{self.meaning[0].upper()}{self.meaning[1:]}. Its error is a delete-block jackknife, 20 blocks a set."

    def compute(self, generated: SampleSet, reference: SampleSet) -> Estimate:
        return self.resample(generated, reference).estimate

    def value(self, generated: SampleSet, reference: SampleSet) -> float:
        found = self.function(generated.data, reference.data)
        try:
            return float(found)
        except (TypeError, ValueError, RuntimeError):
            problem = f"the function returned {shown(found)}, which is not one number"
            remedy = "Return one float for the whole set."
            raise ArgumentError(f"metrics[{self.name!r}]", found, problem, remedy) from None

    def prepare(self, real: RealParts) -> Prepared:
        return _Jackknifed(self, real)

    def conditions(self, n: int, n_real: int) -> dict[str, Any]:
        return {"library": "the user's own", "function": fingerprint_data(self.function)}


class _Jackknifed(OnParts):
    """The value and its error come from the same calls, which are made once for each set."""

    def __init__(self, metric: Metric, real: RealParts) -> None:
        super().__init__(metric, real)
        self._known: WeakKeyDictionary[SampleSet, Resampled] = WeakKeyDictionary()

    def measure(self, generated: SampleSet) -> Estimate:
        return self.resample(generated).estimate

    def resample(self, generated: SampleSet) -> Resampled:
        if generated not in self._known:
            self._known[generated] = super().resample(generated)
        return self._known[generated]


def metrics_of_functions(given: Mapping[Any, Any]) -> list[Metric]:
    """``{name: f}`` as metrics; a value that is a metric already stays as it is.

    Raises:
        ArgumentError: for a name that is no text, and for a value that cannot be called with two arguments.
    """
    found: list[Metric] = []
    for name, each in given.items():
        if isinstance(each, Metric):
            found.append(each)
            continue
        if not isinstance(name, str) or not name:
            raise ArgumentError("metrics", name, "the name of a metric is a text", 'Pass {"energy": f}, for example.')
        if not callable(each) or isinstance(each, type):
            problem = "not a function of generated and real samples"
            raise ArgumentError(f"metrics[{name!r}]", each, problem, "Pass f(generated, real) -> float, or a Metric.")
        if not takes_arguments(each, 2):
            told = ", ".join(required_arguments(each) or ())
            problem = f"its arguments are ({told}), and a metric gets two: generated and real samples"
            raise ArgumentError(f"metrics[{name!r}]", each, problem, "Pass f(generated, real) -> float.")
        found.append(FunctionMetric(name, each))
    return found
