"""DPS, DDRM, RePaint and DAPS are the exponential step at their neutral settings, and exact where they claim to be."""

import math

import pytest
import torch
from catalogue import SDES, RandomNetwork, kinds_of, model_of, name, relative_error

from sde_toolkit import VESDE, VPSDE, Affine, FlowMatching, ScoreModel, Solver, gaussian, grids, sample
from sde_toolkit.errors import ArgumentError
from sde_toolkit.guidance import (
    DAPS,
    DDRM,
    DPS,
    Mask,
    Matrix,
    Measurement,
    RePaint,
    StepOperator,
    daps,
    ddrm,
    dps,
    repaint,
)
from sde_toolkit.integrators import Exponential

DOUBLE = {"dtype": torch.float64}
EYE = torch.eye(2, dtype=torch.float64)


class Plain(StepOperator):
    def move(self, step):
        return step.exponential(step.estimate())


def doubles(*values):
    return torch.tensor(values, dtype=torch.float64)


NOTHING = RePaint(None, torch.zeros(2), repeats=1)


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_neutral_settings_are_the_exponential_step(sde):
    model, grid = model_of(RandomNetwork(), sde, kinds_of(sde)[0]), doubles(0.9, 0.6, 0.3, 0.0)
    for eta in (0.6, 1.0):
        options = {"shape": (3, 2), "seed": 2, **DOUBLE}
        plain = sample(model, Solver("", eta, Plain()), grid, **options)
        for operator in (DPS(Matrix(EYE), doubles(1, 2), 0.0), RePaint(doubles(1, 2), torch.zeros(2), repeats=1)):
            found = sample(model, Solver("", eta, operator), grid, **options)
            assert torch.equal(found.x, plain.x)
        finer = torch.cat([grids_between(sde, grid[:-1], 3), grid[-1:]])
        halves = RePaint(doubles(1, 2), torch.zeros(2), repeats=1, jump=3)
        inner = sample(model, Solver("", eta, Exponential()), finer, **options)
        found = sample(model, Solver("", eta, halves), grid[:-1], **options)
        assert relative_error(found.x, sample(model, Solver("", eta, Exponential()), finer[:-1], **options).x) < 1e-9
        assert inner.nfe == found.nfe + 1


def grids_between(sde, grid, parts):
    """Times between those of a grid, equal in λ."""
    lam = sde.half_log_snr(grid)
    steps = [lam[:-1] + k / parts * lam.diff() for k in range(parts)]
    inner = sde.inverse_half_log_snr(torch.stack(steps, 1).flatten())
    return torch.cat([inner, grid[-1:]])
