"""Our solvers in the pipelines of diffusers.

    pipeline.scheduler = to_diffusers(dpmpp_2m(), like=pipeline.scheduler)

The scheduler steps with the solver. Its path, its parameterisation and what its timesteps mean are those of the
scheduler that the pipeline had.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sde_toolkit.errors import ArgumentError
from sde_toolkit.interop.diffusers_configs import scheduler_from
from sde_toolkit.interop.diffusers_training import training_of
from sde_toolkit.interop.scheduler_config import not_here
from sde_toolkit.models.descriptions import plain_data
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.models.wrapper import Wrapper
from sde_toolkit.sampling.arguments import check_parts
from sde_toolkit.solvers import Solver

__all__ = ["to_diffusers"]

# Of the config of the scheduler before: what is no longer so, and what has another meaning in ours.
_NOT_KEPT = ("steps_offset", "clip_sample", "thresholding", "solver", "model", "grid", "tweedie", "looked_up")


def to_diffusers(solver: Solver, grid: Tensor | None = None, *, like: Any = None, tweedie: bool | None = None) -> Any:
    """A scheduler of diffusers that steps as ``sample(model, solver, grid)`` does.

    Args:
        solver: any solver of fixed steps, a calibrated one too.
        grid: the times to step through. None: the usual grid of the solver, with as many steps as the pipeline asks
            for. :func:`~sde_toolkit.interop.diffusers_grid` gives those of a scheduler of diffusers.
        like: what says how the pipeline's network was trained, and what it is told of the time. A scheduler of
            diffusers, that of the pipeline; its config, or a folder of it. Or a score model of the network, if the
            pipeline tells the network its timesteps as they are. None: ``DDPMScheduler()``, which is ε under β from
            1e-4 to 0.02 in 1000 steps.
        tweedie: whether a last evaluation denoises, as in ``sample``. By default it does on usual grids that leave
            noise, and not on a grid of your own.

    Raises:
        ArgumentError: for a solver that chooses its own steps, or adds noise before its first evaluation; for a model
            that is not a network alone, or a scheduler that :func:`~sde_toolkit.interop.from_diffusers` cannot read.
        GridError: if the solver cannot run on the grid.
        MissingDependencyError: if diffusers is not installed.
    """
    from sde_toolkit.interop.diffusers_scheduler import SolverScheduler

    if isinstance(like, Wrapper):
        problem = "it changes what the network says, and a pipeline evaluates the network alone"
        raise ArgumentError("like", type(like).__name__, problem, "Pass the model inside, .network.")
    if isinstance(like, ScoreModel):
        check_parts(like, solver)
        return SolverScheduler(solver, like, grid, tweedie)
    theirs = scheduler_from({"_class_name": "DDPMScheduler"} if like is None else like)
    training = training_of(theirs)
    model = ScoreModel(
        not_here,
        training.sde,
        training.prediction,
        time_input=training.time_input,
        sigma_data=training.sigma_data or 1.0,
        learned_variance=training.learned_variance,
        sign=training.sign,
    )
    check_parts(model, solver)
    kept = {key: value for key, value in theirs.config.items() if key[:1] != "_" and key not in _NOT_KEPT}
    return SolverScheduler(solver, model, grid, tweedie, plain_data(kept, "like.config"))
