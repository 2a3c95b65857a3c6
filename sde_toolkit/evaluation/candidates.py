"""What a comparison can be given, solvers, planners, plans and grids, each with its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from sde_toolkit import solvers as presets
from sde_toolkit.checks import required_arguments, takes_arguments
from sde_toolkit.errors import ArgumentError
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.sampling.automatic import Plan, auto_for_run
from sde_toolkit.sampling.foreign_solver import ForeignSolver, is_run_function
from sde_toolkit.solvers import GridBuilder, Solver

__all__ = ["USUAL_SOLVERS", "Candidate", "Planner", "grid_title", "named_grids", "named_solvers"]

Planner = Callable[[ScoreModel, int], Plan]
"""(model, budget) to solver and grid together, such as :func:`sde_toolkit.auto`."""

Candidate: TypeAlias = Solver | ForeignSolver | Planner | Plan
"""What can be compared: solvers and planners at every budget, a plan as it is."""

USUAL_SOLVERS = ("auto", "dpmpp_2m", "unipc", "heun", "ddim", "ddpm", "euler_maruyama", "probability_flow")
"""The rows of a comparison that names no solvers."""


def named_solvers(solvers: Any = None) -> dict[str, Candidate]:
    """Solvers by name: the keys of a mapping, or the solvers' own names; by default the usual ones.

    A text is the name of a preset, such as "ddim", or "auto", the planner. A function of four arguments,
    ``run(denoise, sigmas, x, rng)``, is someone else's solver; one of two, ``(model, nfe)``, is a planner.

    Raises:
        ArgumentError: for two solvers of one name, for a name that no preset has, and for anything but solvers.
    """
    if solvers is None:
        solvers = list(USUAL_SOLVERS)
    if isinstance(solvers, Mapping):
        return {str(name): _candidate(name, given) for name, given in solvers.items()}
    several = list(solvers) if isinstance(solvers, list | tuple | set | frozenset) else [solvers]
    found: dict[str, Candidate] = {}
    for given in several:
        solver = _candidate(len(found), given)
        name = given if isinstance(given, str) else _name_of(solver)
        if name in found:
            remedy = 'Name them yourself: {"coarse": ddim(), ...}.'
            raise ArgumentError("solvers", several, f"two of them are called {name!r}", remedy)
        found[name] = solver
    return found


def _name_of(solver: Candidate) -> str:
    return str(getattr(solver, "name", None) or getattr(solver, "__name__", "plan"))


def _candidate(name: Any, given: Any) -> Candidate:
    if isinstance(given, str):
        return _preset(name, given)
    if isinstance(given, type) or not (isinstance(given, Solver | Plan | ForeignSolver) or callable(given)):
        remedy = "Use sde_toolkit.ddim(), for example, or a function run(denoise, sigmas, x, rng)."
        raise ArgumentError(f"solvers[{name!r}]", given, "not a Solver", remedy)
    if is_run_function(given):
        return ForeignSolver(name if isinstance(name, str) else str(getattr(given, "__name__", name)), given)
    if isinstance(given, Solver | Plan | ForeignSolver):
        return given
    if getattr(given, "__module__", "") == Solver.__module__:
        problem = "the function that makes a solver, not a solver"
        raise ArgumentError(f"solvers[{name!r}]", given, problem, f"Call it: {given.__name__}().")
    if not takes_arguments(given, 2):
        told = ", ".join(required_arguments(given) or ())
        problem = f"its arguments are ({told}), those of neither a solver nor a planner"
        remedy = "A solver is run(denoise, sigmas, x, rng), a planner plan(model, nfe)."
        raise ArgumentError(f"solvers[{name!r}]", given, problem, remedy)
    return given


def _preset(name: Any, given: str) -> Candidate:
    """The preset of a name, with its default arguments."""
    if given == "auto":
        return auto_for_run
    known = [preset for preset in presets.__all__ if preset != Solver.__name__]
    if given not in known:
        remedy = f"Choose auto, {', '.join(known)}, or pass a Solver."
        raise ArgumentError(f"solvers[{name!r}]", given, "no solver has this name", remedy)
    solver: Solver = getattr(presets, given)()
    return solver


def named_grids(grids: Any) -> dict[str, GridBuilder] | None:
    """Grid builders by name: the keys of a mapping, or the functions' own names; None for every solver's usual grid.

    Raises:
        ArgumentError: for anything but a builder, such as a grid of times.
    """
    if grids is None:
        return None
    if not isinstance(grids, Mapping):
        several = list(grids) if isinstance(grids, list | tuple) else [grids]
        grids = {grid_title(build) or str(k): build for k, build in enumerate(several)}
    for name, build in grids.items():
        if not callable(build):
            problem = "not a function of the SDE and a number of steps, which every budget needs"
            raise ArgumentError(f"grids[{name!r}]", build, problem, 'Pass {"karras": grids.karras}, for example.')
    if not grids:
        problem, remedy = "there is no grid", 'Pass {"karras": grids.karras}, or None for every solver\'s usual grid.'
        raise ArgumentError("grids", grids, problem, remedy)
    return {str(name): build for name, build in grids.items()}


def grid_title(build: Any) -> str:
    """The name of a grid builder: of its function, or "" if it has none."""
    return str(getattr(getattr(build, "func", build), "__name__", ""))
