"""What no machine can hold is refused by a typed error, before any of it is taken."""

import time

import pytest
import torch

from sde_toolkit import MLP, VPSDE, ScoreModel, ddim, encode, grids, log_likelihood, sample
from sde_toolkit.calibration import calibrate
from sde_toolkit.checks import MOST, check_amount
from sde_toolkit.data import checkerboard, two_moons, waves
from sde_toolkit.errors import ArgumentError
from sde_toolkit.evaluation import compare_solvers
from sde_toolkit.evaluation.drawing import draw_samples
from sde_toolkit.evaluation.local_error import local_errors
from sde_toolkit.evaluation.planned_run import SolverRun
from sde_toolkit.noise.streams import per_sample_noise
from sde_toolkit.sampling.automatic import auto
from sde_toolkit.sde import beta_schedules
from sde_toolkit.training import TrainingOptions, train

TRILLION = 10**12
MODEL = ScoreModel(MLP(event_shape=(2,), width=8, depth=1), VPSDE(), event_shape=(2,)).eval()
FREE = ScoreModel(lambda x, time: x, VPSDE())
GRID = grids.uniform(MODEL.sde, 4)
RUN = SolverRun(name="ddim", grid_name="uniform", budget=4, solver=ddim(), grid=GRID, denoises=False)

REFUSED = {
    "samples": lambda: sample(MODEL, ddim(), GRID, shape=(TRILLION, 2)),
    "samples in batches": lambda: sample(MODEL, ddim(), GRID, shape=(TRILLION, 2), batch_size=10),
    "one large event": lambda: sample(FREE, ddim(), GRID, shape=(1, TRILLION)),
    "a shape beyond 64 bits": lambda: sample(FREE, ddim(), GRID, shape=(TRILLION, TRILLION)),
    "evaluations of auto": lambda: sample(MODEL, "auto", nfe=TRILLION, shape=(2, 2)),
    "auto": lambda: auto(MODEL, TRILLION),
    "streams": lambda: per_sample_noise(0, 0, (TRILLION, 2)),
    "the prior": lambda: MODEL.sde.prior_sampling((TRILLION, 2)),
    "drawn samples": lambda: draw_samples(MODEL, RUN, TRILLION),
    "compared samples": lambda: compare_solvers(MODEL, {"ddim": ddim()}, [5], n=TRILLION),
    "compared evaluations": lambda: compare_solvers(MODEL, {"ddim": ddim()}, [5, TRILLION], n=8),
    "calibrated evaluations": lambda: calibrate(MODEL, nfe=TRILLION),
    "calibrated noises": lambda: calibrate(MODEL, nfe=5, n=TRILLION),
    "a likelihood": lambda: log_likelihood(MODEL, torch.zeros(2, 2), nfe=TRILLION),
    "local errors": lambda: local_errors(MODEL, ddim(), GRID, n=TRILLION),
    "refinements": lambda: local_errors(MODEL, ddim(), GRID, n=2, refine=TRILLION),
    "encoding": lambda: encode(MODEL, torch.zeros(2, 2), ddim(), grids.uniform(MODEL.sde, TRILLION)),
    "a batch": lambda: train(MODEL, checkerboard(n=9), "none", TrainingOptions(steps=1, batch_size=TRILLION)),
    **{f"grids.{name}": lambda name=name: getattr(grids, name)(MODEL.sde, TRILLION, end=0.01)
       for name in ("uniform", "quadratic", "uniform_lambda", "karras", "sech")},
    "grids.discrete": lambda: grids.discrete(TRILLION),
    **{f"beta_schedules.{name}": lambda name=name: getattr(beta_schedules, name)(TRILLION)
       for name in ("linear_betas", "scaled_linear_betas", "sigmoid_betas", "cosine_betas")},
    **{toy.__name__: lambda toy=toy: toy(n=TRILLION) for toy in (checkerboard, two_moons, waves)},
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_trillion_of_anything_is_refused_soon(name):
    began = time.process_time()
    with pytest.raises(ArgumentError, match=r"cannot be planned|GiB"):
        REFUSED[name]()
    assert time.process_time() - began < 60


def test_the_limits_are_where_they_are_said_to_be():
    assert len(grids.uniform(MODEL.sde, 1000)) == 1001
    with pytest.raises(ArgumentError, match=f"steps={MOST + 1}"):
        grids.uniform(MODEL.sde, MOST + 1)
    check_amount("n", 10**6, 10**6)
    torch.empty(10**6)  # what is let through can be had
    with pytest.raises(ArgumentError, match="n=1: its 1 numbers need"):
        check_amount("n", 1, 1, bytes_each=2**60)
