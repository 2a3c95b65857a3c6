"""Checkpoints of flow_matching and torchcfm: the caller's network with the weights of the file, and their solvers."""

from __future__ import annotations

import argparse
import copy
import os
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

from sde_toolkit import ScoreModel, ddim, interop, probability_flow, sample
from sde_toolkit.cli.main import main
from sde_toolkit.errors import ArgumentError, CheckpointError
from sde_toolkit.integrators import RecordedStep
from sde_toolkit.interop.flow_matching_files import TimeFirst

SHAPES = [(2, 2, 5, 4), (1, 2, 3, 7), (3, 2, 2, 2)]


class Velocity(nn.Module):
    """A network as flow_matching's: labels in ``extra``; a frozen parameter, which no average has, and a buffer."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 6, 3, padding=1)
        self.frequencies = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]), requires_grad=False)
        self.told = nn.Linear(3, 6)
        self.register_buffer("scale", torch.tensor(1.5))
        self.labels = nn.Embedding(3, 6)
        self.last = nn.Conv2d(6, 2, 3, padding=1)

    def forward(self, x, timesteps, extra):
        told = self.told(torch.cos(timesteps[:, None] * self.frequencies))
        if "label" in extra:
            told = told + self.labels(extra["label"])
        return self.scale * self.last(torch.tanh(self.first(x) + told[:, :, None, None]))


class Averaging(nn.Module):
    """What flow_matching's example wraps its network in: the names of its state are all that matters here."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.register_buffer("num_updates", torch.tensor(7))
        averaged = [nn.Parameter(2 * p.detach(), requires_grad=False) for p in model.parameters() if p.requires_grad]
        self.shadow_params = nn.ParameterList(averaged)

    def averaged(self):
        copied = copy.deepcopy(self.model)
        for p, shadow in zip((p for p in copied.parameters() if p.requires_grad), self.shadow_params, strict=True):
            p.data.copy_(shadow)
        return copied


def trained(seed=0):
    torch.manual_seed(seed)
    return Averaging(Velocity())


def written(folder, wrapper, **changes):
    optimizer = torch.optim.AdamW(wrapper.parameters())
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    content = {
        "model": wrapper.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_schedule": schedule.state_dict(),
        "epoch": 3,
        "scaler": {},
        "args": argparse.Namespace(dataset="cifar10", ode_options={"step_size": 0.01}, lr=1e-4),
    }
    torch.save({**content, **changes}, folder / "checkpoint.pth")
    return folder / "checkpoint.pth"


@dataclass(frozen=True)
class Midpoint(RecordedStep):
    """x + h u(x + h/2 u(x, t), t + h/2), as in docs/add-a-solver.md."""

    order: ClassVar[int] = 2
    evals_per_step: ClassVar[int] = 2

    def trace(self, trace, target):
        x, t = trace.start, trace.begin.time
        h = target.time - t
        middle = x + 0.5 * h * trace.evaluate(x, t).view("velocity")
        return x + h * trace.evaluate(middle, t + 0.5 * h).view("velocity")


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_predictions_are_those_of_the_network(tmp_path, weights):
    """x_1 of the straight path from x at time t with velocity u is x + (1 − t) u. With and without labels."""
    wrapper = trained()
    path, fresh = written(tmp_path, wrapper), Velocity()
    model = interop.load(path, network=fresh, weights=weights)
    network = wrapper.averaged() if weights == "ema" else wrapper.model
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in network.parameters())
    for shape in SHAPES:
        x, label = torch.randn(shape), torch.arange(shape[0]) % 3
        for time in torch.linspace(0, 0.999, 20):
            for extra in ({}, {"label": label}):
                expected = x + (1 - time) * network(x, time.expand(shape[0]), extra)
                found = model(x, 1 - time.double(), extra).x_0
                assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize(("method", "solver"), [("euler", ddim()), ("midpoint", probability_flow(Midpoint()))])
def test_trajectories_are_those_of_their_solver(tmp_path, method, solver):
    """flow_matching's ``ODESolver`` calls torchdiffeq's fixed-step methods."""
    odeint = pytest.importorskip("torchdiffeq").odeint
    wrapper = trained()
    model, network = interop.load(written(tmp_path, wrapper), network=Velocity()), wrapper.averaged()
    x = torch.randn(2, 2, 5, 4)

    def velocity(t, x):
        return network(x, t.expand(len(x)), {})

    with torch.no_grad():
        theirs = odeint(velocity, x, torch.tensor([0.0, 1.0]), method=method, options={"step_size": 0.1})[-1]
    grid = torch.linspace(1, 0, 11, dtype=torch.float64)
    torch.testing.assert_close(sample(model, solver, grid, x_start=x, condition={}).x, theirs, atol=1e-4, rtol=0)


def test_the_package_itself_agrees(tmp_path):
    pytest.importorskip("flow_matching")
    from flow_matching.path import CondOTProbPath
    from flow_matching.solver import ODESolver

    wrapper = trained()
    model, network = interop.load(written(tmp_path, wrapper), network=Velocity()), wrapper.averaged()
    x, path = torch.randn(2, 2, 5, 4), CondOTProbPath()

    def velocity(x, t):
        return network(x, t.expand(len(x)), {})

    with torch.no_grad():
        for time in torch.linspace(0, 0.999, 20):
            expected = path.velocity_to_target(velocity(x, time), x, time)
            torch.testing.assert_close(model(x, 1 - time.double(), {}).x_0, expected, rtol=1e-5, atol=1e-5)
        for method, solver in (("euler", ddim()), ("midpoint", probability_flow(Midpoint()))):
            theirs = ODESolver(velocity).sample(x, step_size=0.1, method=method)
            grid = torch.linspace(1, 0, 11, dtype=torch.float64)
            ours = sample(model, solver, grid, x_start=x, condition={}).x
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


class TorchCFM(nn.Module):
    """torchcfm's order of arguments."""

    def __init__(self):
        super().__init__()
        self.inside = Velocity()

    def forward(self, t, x, y=None):
        return self.inside(x, t, {} if y is None else {"label": y})


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_torchcfm_has_two_networks_in_a_file_and_time_first(tmp_path, weights):
    torch.manual_seed(0)
    raw, ema = TorchCFM(), TorchCFM()
    path = tmp_path / "cifar10_weights_step_1.pt"
    parallel = {f"module.{name}": value for name, value in ema.state_dict().items()}
    torch.save({"net_model": raw.state_dict(), "ema_model": parallel, "sched": {}, "optim": {}, "step": 1}, path)
    model = interop.load(path, network=TorchCFM(), weights=weights)
    network = ema if weights == "ema" else raw
    x, label = torch.randn(2, 2, 5, 4), torch.tensor([0, 2])
    u = network(torch.full((2,), 0.75), x, label)
    torch.testing.assert_close(model(x, 0.25, label).x_0, x + 0.25 * u)
    torch.testing.assert_close(model(x, 0.25).velocity, -network(torch.full((2,), 0.75), x))


def test_a_model_is_saved_and_read_with_the_network_given(tmp_path):
    model = interop.load(written(tmp_path, trained()), network=Velocity())
    model.save_pretrained(tmp_path / "ours")
    again = ScoreModel.from_pretrained(tmp_path / "ours", network=Velocity())
    x = torch.randn(2, 2, 3, 3)
    assert torch.equal(again(x, 0.5, {}).x_0, model(x, 0.5, {}).x_0)


def test_what_is_missing_is_asked_for(tmp_path):
    wrapper = trained()
    with pytest.raises(ArgumentError, match="network=None"):
        interop.load(written(tmp_path, wrapper))
    bare = written(tmp_path, wrapper, model=wrapper.model.state_dict())  # use_ema=False
    with pytest.raises(CheckpointError, match=r'without a moving average.*weights="raw"'):
        interop.load(bare, network=Velocity())
    model = interop.load(bare, network=Velocity(), weights="raw")
    assert torch.equal(model.network.first.weight, wrapper.model.first.weight)


def test_the_command_line_asks_for_a_function_that_builds_the_network(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["sample", f"model={written(tmp_path, trained())}", "n=2", "nfe=2", "progress=false"])
    assert "model=my_file.py:my_function" in capsys.readouterr().err


def test_a_network_that_does_not_fit_is_left_as_it_was(tmp_path):
    wrapper = trained()
    path, other = written(tmp_path, wrapper), Velocity()
    other.last = nn.Conv2d(6, 3, 3)
    before = copy.deepcopy(other.state_dict())
    for weights in ("ema", "raw"):
        with pytest.raises(ArgumentError, match=r"network=.*'last.weight' is"):
            interop.load(path, network=other, weights=weights)
    assert all(torch.equal(before[name], value) for name, value in other.state_dict().items())
    other.more = nn.Linear(1, 1)
    with pytest.raises(ArgumentError, match=r"it has 9 parameters, the moving average in checkpoint.pth 7"):
        interop.load(path, network=other)


class Trap:
    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return os.mkdir, (self.place,)


def test_no_code_of_a_file_runs(tmp_path):
    trap = Trap(str(tmp_path / "trapped"))
    for changes in ({"args": argparse.Namespace(inside=trap)}, {"model": trap}):
        with pytest.raises(CheckpointError):
            interop.load(written(tmp_path, trained(), **changes), network=Velocity())
    assert not (tmp_path / "trapped").exists()
    assert TimeFirst(TorchCFM())(torch.zeros(1, 2, 3, 3), torch.zeros(1)).shape == (1, 2, 3, 3)
