"""Results of the suite as files, one for each solver, so that those of several runs and of several people join.

    solvers/NAME.json    the solver's cells, facts about the truths they were measured on, and about the code

Cells are joined by the names of truths. A truth is known by its digest, and cells of another one of the same name are
left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from sde_toolkit.errors import ArgumentError
from sde_toolkit.evaluation.naming import file_names
from sde_toolkit.evaluation.page import json_data
from sde_toolkit.files.plain import UnreadableFileError, read_json
from sde_toolkit.jobs.fingerprints import digest
from sde_toolkit.jobs.provenance import source_digest, toolkit_version
from sde_toolkit.metrics.metric import Estimate
from sde_toolkit.suite.truth import FlowErrors, Truth

__all__ = ["Cell", "Joined", "SolverResults", "TruthFacts", "code_facts", "join_results", "read_results"]

_FORMAT = "sde_toolkit suite/1"


@dataclass(frozen=True)
class Cell:
    """One solver at one budget on one truth.

    ``nfe``: evaluations of the network, counted. ``each``: the error of every sample against the exact flow, as a part
    of the data's size, to four digits; empty for a stochastic solver. ``distance``: to real samples.
    ``distance_parts``: the parts of its variance by blocks of generated and of real samples, which are the same blocks
    for all solvers; None in older files. ``failure``: why there are no samples, or "".
    """

    truth: str
    budget: int
    nfe: int = 0
    deterministic: bool = True
    each: tuple[float, ...] = ()
    distance: Estimate | None = None
    seconds: float = math.nan
    failure: str = ""
    distance_parts: tuple[tuple[float, ...], tuple[float, ...]] | None = None

    @property
    def flow_errors(self) -> FlowErrors | None:
        """The errors against the exact flow, if it solves the flow."""
        return FlowErrors.of(self.each) if self.each else None

    def record(self) -> dict[str, Any]:
        """Plain data for JSON."""
        errors, distance = self.flow_errors, self.distance
        return {
            "truth": self.truth,
            "budget": self.budget,
            "nfe": self.nfe,
            "deterministic": self.deterministic,
            "error": errors.rmse if errors else None,
            "standard_error": errors.standard_error if errors else None,
            "median": errors.median if errors else None,
            "distance": distance.value if distance else None,
            "distance_error": distance.error if distance else None,
            "distance_parts": None if self.distance_parts is None else [list(part) for part in self.distance_parts],
            "seconds": self.seconds,
            "failure": self.failure,
            "each": list(self.each),
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Cell:
        distance = record["distance"]
        error, parts = record["distance_error"], record.get("distance_parts")
        return cls(
            truth=str(record["truth"]),
            budget=int(record["budget"]),
            nfe=int(record["nfe"]),
            deterministic=bool(record["deterministic"]),
            each=tuple(map(float, record["each"])),
            distance=None
            if distance is None
            else Estimate(float(distance), math.nan if error is None else float(error)),
            seconds=math.nan if record["seconds"] is None else float(record["seconds"]),
            failure=str(record["failure"]),
            distance_parts=None if parts is None else (tuple(map(float, parts[0])), tuple(map(float, parts[1]))),
        )


@dataclass(frozen=True)
class TruthFacts:
    """What a result says of a truth. ``own_error``: of its reference, as a part of the data's size."""

    name: str
    digest: str
    description: str
    reason: str
    n: int
    dimensions: int
    path: str
    exact: bool
    own_error: float
    floor: float
    floor_error: float

    @classmethod
    def of(cls, truth: Truth) -> TruthFacts:
        return cls(
            name=truth.name,
            digest=truth.digest,
            description=truth.description,
            reason=truth.reason,
            n=truth.n,
            dimensions=math.prod(truth.event_shape),
            path=type(truth.model.sde).__name__,
            exact=truth.is_exact,
            own_error=truth.flow().own_error / truth.size,
            floor=truth.floor.value,
            floor_error=truth.floor.error,
        )

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> TruthFacts:
        numbers = {name: _number(record[name]) for name in ("own_error", "floor", "floor_error")}
        return cls(**{**record, **numbers})


@dataclass(frozen=True, eq=False)
class SolverResults:
    """All cells of one solver, facts about their truths and about the code that computed them.

    ``file``: where it was read from.
    """

    solver: str
    cells: tuple[Cell, ...]
    truths: Mapping[str, TruthFacts]
    code: Mapping[str, Any] = field(default_factory=dict)
    file: Path | None = None

    @property
    def file_name(self) -> str:
        """``NAME.json``. A name that is no name of a file gets a digest, so that no two solvers share a file."""
        safe = file_names([self.solver])[self.solver]
        mark = "" if safe == self.solver else f"-{digest({'solver': self.solver})[:6]}"
        return f"{safe}{mark}.json"

    def record(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "format": _FORMAT,
            "solver": self.solver,
            "code": dict(self.code),
            "truths": {name: asdict(facts) for name, facts in self.truths.items()},
            "cells": [cell.record() for cell in self.cells],
        }

    def as_bytes(self) -> bytes:
        """The file. A cell stands on a line of its own."""
        content = json_data(self.record())
        cells = ",\n  ".join(json.dumps(cell, ensure_ascii=False) for cell in content.pop("cells"))
        head = json.dumps(content, indent=1, ensure_ascii=False)[:-2]
        return f'{head},\n "cells": [\n  {cells}\n ]\n}}\n'.encode()

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> SolverResults:
        cells = tuple(map(Cell.from_record, record["cells"]))
        facts = {str(name): TruthFacts.from_record(about) for name, about in record["truths"].items()}
        return cls(str(record["solver"]), cells, facts, dict(record["code"]))


def read_results(folder: str | Path, name: str = "join") -> list[SolverResults]:
    """The results in a folder that the suite has written, by the names of their files.

    Raises:
        ArgumentError: for a folder without any, or a file that is none; ``name``: of the argument.
    """
    place = Path(folder)
    files = sorted((place / "solvers").glob("*.json"))
    if not files:
        problem = "there are no results of the suite in it (solvers/*.json)"
        raise ArgumentError(name, str(folder), problem, "Give a folder that `sde-toolkit bench` wrote.")
    return [_read(file, name) for file in files]


def _read(file: Path, name: str) -> SolverResults:
    try:
        content = read_json(file)
        if content["format"] != _FORMAT:
            raise ValueError(content["format"])
        return replace(SolverResults.from_record(content), file=file)
    except (OSError, UnreadableFileError, ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"it holds no results of the suite that can be read ({type(error).__name__})"
        raise ArgumentError(name, str(file), problem, "Remove the file, or measure that solver again.") from None


@dataclass(frozen=True, eq=False)
class Joined:
    """Results of several solvers on the same truths. ``left_out``: what did not fit, in sentences."""

    solvers: tuple[SolverResults, ...]
    truths: Mapping[str, TruthFacts]
    left_out: tuple[str, ...] = ()

    @property
    def budgets(self) -> list[int]:
        return sorted({cell.budget for results in self.solvers for cell in results.cells})

    def cell(self, solver: str, truth: str, budget: int) -> Cell | None:
        return self._by_key.get((solver, truth, budget))

    @cached_property
    def _by_key(self) -> dict[tuple[str, str, int], Cell]:
        return {(results.solver, cell.truth, cell.budget): cell for results in self.solvers for cell in results.cells}


def join_results(new: Sequence[SolverResults], others: Iterable[SolverResults] = ()) -> Joined:
    """Results of this run and of others, by name. A solver of this run replaces one of its name.

    Cells on another truth of the same name (another digest) are left out.

    Raises:
        ArgumentError: for two different results of one solver among the others.
    """
    found = {results.solver: results for results in new}
    own, left_out = set(found), []
    facts: dict[str, TruthFacts] = {name: about for results in new for name, about in results.truths.items()}
    for results in others:
        if results.solver in own:
            continue
        if results.solver in found:
            if results.record() == found[results.solver].record():
                continue
            problem = "two folders have different results of this solver"
            raise ArgumentError("join", results.solver, problem, "Rename one of them in its file, or leave it out.")
        strange = [
            name for name, about in results.truths.items() if facts.setdefault(name, about).digest != about.digest
        ]
        if strange:
            left_out.append(f"{results.solver} on {', '.join(strange)}: measured on another truth of that name.")
        cells = tuple(cell for cell in results.cells if cell.truth not in strange)
        found[results.solver] = replace(results, cells=cells)
    return Joined(tuple(found[name] for name in sorted(found)), facts, tuple(left_out))


def _number(value: Any) -> float:
    """A number of JSON; its null is NaN."""
    return math.nan if value is None else float(value)


def code_facts() -> dict[str, Any]:
    """Version and source of the package that computes."""
    return {"version": toolkit_version(), "source": source_digest()}
