"""What a comparison can be given, solvers, planners, plans and grids, each with its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from sde_toolkit import grids as grid_builders
from sde_toolkit.errors import ArgumentError
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.sampling.automatic import Plan, auto
from sde_toolkit.solvers import GridBuilder, Solver

__all__ = ["Candidate", "Planner", "named_grids", "named_solvers"]

Planner = Callable[[ScoreModel, int], Plan]
"""(model, budget) to solver and grid together, such as :func:`sde_toolkit.auto`."""

Candidate: TypeAlias = Solver | Planner | Plan
"""What can be compared: a solver on every grid at every budget, a planner at every budget, a plan as it is."""


def named_solvers(solvers: Any) -> dict[str, Candidate]:
    """Solvers by name: the keys of a mapping, or the solvers' own names. "auto" is the planner.

    Raises:
        ArgumentError: for two solvers of one name, and for anything but solvers.
    """
    if isinstance(solvers, Mapping):
        return {str(name): _candidate(name, given) for name, given in solvers.items()}
    several = list(solvers) if isinstance(solvers, list | tuple | set | frozenset) else [solvers]
    found: dict[str, Candidate] = {}
    for given in several:
        solver = _candidate(len(found), given)
        name = str(getattr(solver, "name", None) or getattr(solver, "__name__", "plan"))
        if name in found:
            remedy = 'Name them yourself: {"coarse": ddim(), ...}.'
            raise ArgumentError("solvers", several, f"two of them are called {name!r}", remedy)
        found[name] = solver
    return found


def _candidate(name: Any, given: Any) -> Candidate:
    if isinstance(given, str) and given == "auto":
        return auto
    if isinstance(given, type) or (not isinstance(given, Solver | Plan) and not callable(given)):
        raise ArgumentError(f"solvers[{name!r}]", given, "not a Solver", "Use sde_toolkit.ddim(), for example.")
    if getattr(given, "__module__", "") == Solver.__module__ and not isinstance(given, Solver):
        problem = "the function that makes a solver, not a solver"
        raise ArgumentError(f"solvers[{name!r}]", given, problem, f"Call it: {given.__name__}().")
    return given


def named_grids(grids: Any) -> dict[str, GridBuilder]:
    """Grid builders by name: the keys of a mapping, or the functions' own names.

    Raises:
        ArgumentError: for anything but a builder, such as a grid of times.
    """
    if grids is None:
        return {"uniform": grid_builders.uniform}
    if not isinstance(grids, Mapping):
        several = list(grids) if isinstance(grids, list | tuple) else [grids]
        grids = {str(getattr(build, "__name__", k)): build for k, build in enumerate(several)}
    for name, build in grids.items():
        if not callable(build):
            problem = "not a function of the SDE and a number of steps, which every budget needs"
            raise ArgumentError(f"grids[{name!r}]", build, problem, 'Pass {"karras": grids.karras}, for example.')
    if not grids:
        raise ArgumentError("grids", grids, "there is no grid", 'Pass {"karras": grids.karras}, or None for uniform.')
    return {str(name): build for name, build in grids.items()}
