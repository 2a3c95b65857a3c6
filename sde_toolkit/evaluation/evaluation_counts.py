"""How many evaluations of the network a comparison makes, counted before the first of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

from sde_toolkit.evaluation.comparison_batches import ComparisonBatches, OfFlow, OfPicture, OfRow, warm_up, warm_up_size
from sde_toolkit.evaluation.comparison_request import ComparisonRequest
from sde_toolkit.evaluation.error_parts import rounded_samples
from sde_toolkit.evaluation.references import ReferencePlan

__all__ = ["PlannedEvaluations", "planned_evaluations"]


@dataclass(frozen=True)
class PlannedEvaluations:
    """Evaluations of networks, each of one sample.

    ``measuring``: what planners made to choose their plans, once for each model. ``rows``: of all seeds, with one step
    to warm up. ``pictures``: further points of panels. ``endpoints``: the exact flow of deterministic rows, with its
    check. ``references``: flows and SDEs that are not kept from before. ``rounding``: rows drawn again in float64.

    ``about``: a solver chooses its own steps, as that of exact scores does. The check of the model's declaration is not
    counted: it makes at most 1,500 unless it finds something.
    """

    measuring: int = 0
    rows: int = 0
    pictures: int = 0
    endpoints: int = 0
    references: int = 0
    rounding: int = 0
    about: bool = False

    @property
    def total(self) -> int:
        return sum(getattr(self, each.name) for each in fields(self) if each.name != "about")

    def __str__(self) -> str:
        titles = {
            "measuring": "measuring for auto",
            "rows": "rows",
            "pictures": "points of pictures",
            "endpoints": "exact flow",
            "references": "references, kept for the next time",
            "rounding": "rounding",
        }
        parts = [f"{title} {getattr(self, name):,}" for name, title in titles.items() if getattr(self, name)]
        about = "about " if self.about else ""
        return f"{about}{self.total:,} evaluations of the network for single samples: {', '.join(parts)}"


def planned_evaluations(request: ComparisonRequest, references: ReferencePlan | None = None) -> PlannedEvaluations:
    """The evaluations of a comparison. ``references``: its plan of them; None counts none."""
    _, first = warm_up(request)
    parts = ComparisonBatches(request).parts()

    def of(kind: type) -> int:
        return round(sum(part.cost for part in parts if isinstance(part.what, kind)))

    known = references is not None and bool(references.keys)
    return PlannedEvaluations(
        measuring=sum(_of_models(request)),
        rows=of(OfRow) + warm_up_size(request) * first.nfe,
        pictures=of(OfPicture),
        endpoints=of(OfFlow),
        references=references.evaluations(request) if references is not None else 0,
        rounding=rounded_samples(request) * sum(_in_double(request)) if known else 0,
        about=any(run.budget is None for run in request.runs) or _solved_adaptively(request),
    )


def _solved_adaptively(request: ComparisonRequest) -> bool:
    return any(request.all_models[name].has_exact_score for name in request.endpoints)


def _of_models(request: ComparisonRequest) -> Iterable[int]:
    """What was measured of each model: once, whatever the number of its runs."""
    for name in {run.model_name for run in request.runs}:
        yield max(run.measuring for run in request.runs if run.model_name == name)


def _in_double(request: ComparisonRequest) -> Iterable[int]:
    for run in request.runs:
        again = run.in_double()
        if again is not None and run.model_name in request.all_models:
            yield again.cost
