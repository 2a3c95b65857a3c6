"""The suite's work: every solver at every budget on every truth, in parts that processes share and a store keeps."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.checks import MOST, check_count, is_count
from sde_toolkit.errors import ArgumentError, SDEToolkitError
from sde_toolkit.evaluation.candidates import Candidate, named_solvers
from sde_toolkit.evaluation.planned_run import BatchRequest
from sde_toolkit.evaluation.planning import plan_all
from sde_toolkit.jobs.fingerprints import fingerprint_data
from sde_toolkit.jobs.sharing import Part, Parts, do_parts
from sde_toolkit.jobs.store import Arrays, PartStore
from sde_toolkit.jobs.team import Team
from sde_toolkit.metrics.metric import Estimate
from sde_toolkit.progress import progress_bar
from sde_toolkit.solvers import Solver
from sde_toolkit.suite.exact_flow import ExactFlow
from sde_toolkit.suite.kept_flows import keep_flow
from sde_toolkit.suite.listing import named_truths
from sde_toolkit.suite.suite_results import Cell, SolverResults, TruthFacts, code_facts
from sde_toolkit.suite.truth import Truth

__all__ = ["SUITE_BUDGETS", "SUITE_SOLVERS", "SuiteRequest", "measure_suite"]

SUITE_SOLVERS = ("auto", "dpmpp_2m", "unipc", "heun", "ddim", "deis", "ddpm", "euler_maruyama")
SUITE_BUDGETS = (5, 7, 10, 13, 20, 50)
_REFERENCE_COST = {True: 1000, False: 900}  # evaluations of a reference, about: exact scores, networks


@dataclass(frozen=True, eq=False)
class SuiteRequest:
    """What a run of the suite computes: checked when it is built, before any evaluation.

    Args:
        solvers: as :func:`sde_toolkit.compare_solvers` takes them: names of presets, solvers, planners, plans, foreign
            solvers; a list, or a mapping from the names of the rows. By default eight.
        truths: names of truths of the package and truths, a list or a mapping; by default all of the package.
        budgets: evaluations of the network per sample.
        progress: show a bar.

    Raises:
        ArgumentError: for anything else, and for a solver that chooses its own steps.
    """

    solvers: Any = None
    truths: Any = None
    budgets: Sequence[int] = SUITE_BUDGETS
    progress: bool = False
    candidates: Mapping[str, Candidate] = field(init=False)
    problems: Mapping[str, Truth] = field(init=False)

    def __post_init__(self) -> None:
        candidates = named_solvers(list(SUITE_SOLVERS) if self.solvers is None else self.solvers)
        if not candidates:
            raise ArgumentError("solvers", self.solvers, "there is no solver", 'Pass ["ddim"], for example.')
        for name, given in candidates.items():
            if isinstance(given, Solver) and given.integrator.evals_per_step is None:
                problem = "it chooses its own steps, and the suite ranks solvers at equal budgets"
                raise ArgumentError(f"solvers[{name!r}]", given.name, problem, "Leave it out.")
        object.__setattr__(self, "budgets", _checked_budgets(self.budgets))
        object.__setattr__(self, "candidates", candidates)
        object.__setattr__(self, "problems", named_truths(self.truths))


def _checked_budgets(given: Any) -> tuple[int, ...]:
    remedy = "Use [5, 10, 20], for example."
    several = (given,) if is_count(given) else given
    if isinstance(several, str) or not isinstance(several, Sequence) or not several:
        raise ArgumentError("budgets", given, "not a list of numbers of evaluations", remedy)
    for budget in several:
        check_count("budgets", budget, remedy, most=MOST)
    if len(set(several)) < len(several):
        raise ArgumentError("budgets", list(several), "a budget stands there twice", remedy)
    return tuple(sorted(several))


def measure_suite(
    request: SuiteRequest, team: Team | None = None, store_in: str | Path | None = None
) -> tuple[list[SolverResults], PartStore | None] | None:
    """All cells of the request, shared by the processes of ``team``; None in all but the main one.

    Parts do not depend on the number of processes, so neither does the result, except for the seconds. ``store_in``:
    the folder of finished parts, from which an interrupted run continues. The second value is that store.
    """
    work = _SuiteParts(request)
    store = None if store_in is None else PartStore(Path(store_in), work.fingerprint(), "output")
    team = team or Team()
    parts = do_parts(
        work.parts(), work.compute, store=store, team=team, begin=lambda own: work.begin(own, request.progress)
    )
    work.bar.close()
    return None if parts is None else (_results(request, parts), store)


@dataclass(eq=False)
class _SuiteParts:
    """The parts: chunks of the exact flows, and one part for each solver at each budget on each truth."""

    request: SuiteRequest
    bar: Any = None

    def fingerprint(self) -> dict[str, Any]:
        """What the parts depend on."""
        request = self.request
        return {
            "work": "suite/2",
            "truths": {name: truth.digest for name, truth in request.problems.items()},
            "solvers": fingerprint_data(dict(request.candidates)),
            "budgets": list(request.budgets),
            "code": code_facts()["source"],
        }

    def parts(self) -> list[Part]:
        """Chunks of the references, then the cells. ``what``: (truth,), or (truth, solver, budget)."""
        parts: list[Part] = []
        for name, truth in self.request.problems.items():
            for first, last in truth.chunks():
                # counted where it is kept, too: all processes have to share the parts out alike
                cost = (last - first) * truth.cost * _REFERENCE_COST[truth.is_exact]
                parts.append(Part(len(parts), first, last, (name,), cost))
        for name, truth in self.request.problems.items():
            for solver in self.request.candidates:
                for budget in self.request.budgets:
                    what = (name, solver, budget)
                    parts.append(Part(len(parts), 0, truth.n, what, truth.n * truth.cost * budget))
        return parts

    def begin(self, own: Sequence[Part], progress: bool) -> None:
        self.bar = progress_bar(len(own), "the suite", enabled=progress)

    def compute(self, part: Part) -> Arrays:
        self.bar.set_postfix_str(", ".join(map(str, part.what)))
        truth = self.request.problems[part.what[0]]
        arrays = _chunk(truth, part) if len(part.what) == 1 else self._cell(truth, *part.what[1:])
        self.bar.update()
        return arrays

    def _cell(self, truth: Truth, solver: str, budget: int) -> Arrays:
        """Samples of a solver and their distance to real ones, or the reason why there are none."""
        began, given = time.perf_counter(), self.request.candidates[solver]
        try:
            (run,) = plan_all({"": truth.model}, {solver: given}, [budget], None)
            if run.nfe > budget:
                return {"failure": np.array(f"it takes {run.nfe} evaluations")}
            drawn = run.draw(truth.model, BatchRequest(0, truth.n, truth.seed))
            distance = truth.resampled_distance(drawn.x)
        except SDEToolkitError as error:
            return {"failure": np.array(str(error))}
        except Exception as error:  # of a user's function: the other cells are measured all the same
            if isinstance(given, Solver):
                raise
            return {"failure": np.array(f"{type(error).__name__}: {error}")}
        return {
            "x": drawn.x.detach().cpu().numpy(),
            "nfe": np.array(drawn.nfe),
            "deterministic": np.array(run.deterministic),
            "distance": np.array(distance.value),
            "distance_error": np.array(distance.error),
            "distance_parts": np.array(json.dumps([_rounded(distance.generated), _rounded(distance.reference)])),
            "seconds": np.array(time.perf_counter() - began),
        }


def _chunk(truth: Truth, part: Part) -> Arrays:
    """A part of the exact flow: from where it is kept, or solved now."""
    kept = truth.kept_flow()
    flow = truth.solve(part.first, part.last) if kept is None else kept.part(part.first, part.last)
    return {"x": flow.x.numpy(), "own": flow.own.numpy()}


def _results(request: SuiteRequest, parts: Parts) -> list[SolverResults]:
    """Errors of all cells, by solver."""
    facts = {}
    for name, truth in request.problems.items():
        if truth.kept_flow() is None:
            chunks = [ExactFlow(torch.from_numpy(a["x"]), torch.from_numpy(a["own"])) for a in parts.of((name,))]
            keep_flow(truth.digest, ExactFlow.joined(chunks))
        facts[name] = TruthFacts.of(truth)
    return [
        SolverResults(
            solver,
            tuple(
                _judged(truth, budget, parts.of((name, solver, budget))[0])
                for name, truth in request.problems.items()
                for budget in request.budgets
            ),
            facts,
            code_facts(),
        )
        for solver in request.candidates
    ]


def _judged(truth: Truth, budget: int, arrays: Arrays) -> Cell:
    known: dict[str, Any] = {"truth": truth.name, "budget": budget}
    if "failure" in arrays:
        return Cell(**known, failure=str(arrays["failure"]))
    x: Tensor = torch.from_numpy(arrays["x"])
    deterministic = bool(arrays["deterministic"])
    generated, reference = json.loads(str(arrays["distance_parts"]))  # a part's arrays are of samples, or single
    return Cell(
        **known,
        nfe=int(arrays["nfe"]),
        deterministic=deterministic,
        each=_rounded(truth.error(x).each.tolist()) if deterministic else (),
        distance=Estimate(float(arrays["distance"]), float(arrays["distance_error"])),
        distance_parts=(tuple(generated), tuple(reference)),
        seconds=float(arrays["seconds"]),
    )


def _rounded(numbers: Iterable[float]) -> tuple[float, ...]:
    """To four digits: files are read by people, too."""
    return tuple(float(f"{number:.4g}") for number in numbers)
