"""A compiled step: one graph for any number of steps, without a break, and the numbers of the step as it is."""

import copy
import gc
import math
import shutil
import weakref
from dataclasses import dataclass

import pytest
import torch
from catalogue import FIXED_STEP_WITH_ETA, RandomNetwork, covering, model_of, name
from torch import nn
from torch._dynamo.utils import counters

from sde_toolkit import (
    VESDE,
    VPSDE,
    Solver,
    UNet,
    clip_x0,
    ddim,
    ddpm,
    dynamic_threshold,
    encode,
    grids,
    probability_flow,
    reschedule,
    sample,
)
from sde_toolkit.errors import ArgumentError
from sde_toolkit.integrators import Euler, Exponential, Heun, Multistep, PerSample
from sde_toolkit.models.prediction import KINDS

BACKEND = "aot_eager"  # graphs as inductor gets them, run without a C++ compiler
SDE = VPSDE()


class Layers(nn.Module):
    """A small network with parameters."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(3, 16, dtype=torch.float64), nn.Linear(16, 2, dtype=torch.float64)

    def forward(self, x, time, condition=None):
        y = self.two(torch.tanh(self.one(torch.cat([x, time[:, None]], 1))))
        return y if condition is None else y * condition[:, None]


def grid(steps, sde=SDE):
    return grids.uniform(sde, steps, end=0.1)


def graphs():
    return counters["stats"]["unique_graphs"]


@pytest.fixture(autouse=True)
def _counted_from_zero():
    torch.manual_seed(0)
    counters.clear()


@pytest.mark.parametrize(("integrator", "eta"), FIXED_STEP_WITH_ETA, ids=name)
def test_one_graph_whatever_the_number_of_steps(integrator, eta):
    model, solver = model_of(RandomNetwork(), SDE), Solver("", eta, integrator)
    for steps in (8, 24):
        run = {"shape": (4, 2), "dtype": torch.float64, "trajectory": True}
        eager = sample(model, solver, grid(steps), **run)
        compiled = sample(model, solver, grid(steps), compile=BACKEND, **run)
        assert graphs() == 1
        torch.testing.assert_close(compiled.trajectory, eager.trajectory, rtol=1e-12, atol=1e-12)
        assert compiled.nfe == eager.nfe
    assert not counters["graph_break"]


@pytest.mark.parametrize(("kind", "sde"), covering(KINDS, [VPSDE(), VESDE()]), ids=name)
def test_every_parameterisation_compiles(kind, sde):
    model = model_of(RandomNetwork(), sde, kind)
    ends = [
        sample(model, probability_flow(Multistep()), grid(6, sde), shape=(4, 2), dtype=torch.float64, compile=how).x
        for how in (False, BACKEND)
    ]
    torch.testing.assert_close(*ends, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "wrap",
    [clip_x0, dynamic_threshold, lambda model: reschedule(model, VPSDE(0.1, 15.0))],
    ids=["clip", "dynamic", "re"],
)
def test_wrapped_models_compile(wrap):
    model = wrap(model_of(RandomNetwork(), SDE))
    ends = [
        sample(model, ddim(), grid(6, model.sde), shape=(4, 2), dtype=torch.float64, compile=how).x
        for how in (False, BACKEND)
    ]
    torch.testing.assert_close(*ends, rtol=1e-12, atol=1e-12)
    assert graphs() == 1


def test_the_unet_compiles_and_keeps_its_labels():
    network = UNet(1, (8, 16), blocks_per_level=1, attention_levels=(1,), num_classes=3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    model = model_of(network.eval(), SDE)
    run = {"shape": (5, 1, 7, 7), "condition": torch.tensor([0, 1, 2, 3, 0])}
    eager, compiled = (sample(model, ddim(), grid(6), compile=how, **run).x for how in (False, BACKEND))
    torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-5)
    assert graphs() == 1
    assert not counters["graph_break"]


@pytest.mark.parametrize("solver", [ddpm(), Solver("", 1.0, Multistep())], ids=["ddpm", "2M"])
def test_batches_of_one_shape_share_a_graph_and_a_second_run_makes_none(solver):
    model = model_of(Layers(), SDE)
    condition = torch.linspace(0, 1, 12, dtype=torch.float64)
    run = {"shape": (12, 2), "condition": condition, "dtype": torch.float64, "batch_size": 4}
    eager = sample(model, solver, grid(6), **run)
    for _ in range(2):
        compiled = sample(model, solver, grid(6), compile=BACKEND, **run)
        torch.testing.assert_close(compiled.x, eager.x, rtol=1e-12, atol=1e-12)
        assert compiled.nfe == 6
        assert graphs() == 1
    sample(model, solver, grid(6), compile=BACKEND, **{**run, "batch_size": 5})  # 5, 5, 2
    assert graphs() == 3


def test_many_shapes_never_reach_the_limit_of_recompilation():
    model = model_of(Layers(), SDE)
    with torch._dynamo.config.patch(cache_size_limit=2):
        for n in range(1, 6):
            sample(model, ddim(), grid(3), shape=(n, 2), dtype=torch.float64, compile=BACKEND)
    assert graphs() == 5


def test_numbers_of_the_network_may_change_from_run_to_run():
    """More values than torch compiles one function for; every run is that of the step as it is."""

    class Guided(Layers):
        scale = 1.0

        def forward(self, x, time, condition=None):
            return self.scale * super().forward(x, time)

    network = Guided()
    model, run = model_of(network, SDE, "v"), {"shape": (4, 2), "dtype": torch.float64}
    with torch._dynamo.config.patch(cache_size_limit=2):
        for scale in (0.0, 0.5, 1.0, 1.5, 2.0, 0.5):
            network.scale = scale
            eager, compiled = (sample(model, ddim(), grid(4), compile=how, **run).x for how in (False, BACKEND))
            torch.testing.assert_close(compiled, eager, rtol=1e-12, atol=1e-12)


def test_noise_is_the_same_bits_and_a_generator_moves_on_alike():
    model = model_of(RandomNetwork(), SDE)
    states = []
    for how in (False, BACKEND):
        generator = torch.Generator().manual_seed(3)
        sample(model, ddpm(), grid(9), shape=(4, 2), generator=generator, dtype=torch.float64, compile=how)
        states.append(generator.get_state())
    assert torch.equal(*states)


def test_encoding_compiles():
    model, x = model_of(RandomNetwork(), SDE), torch.ones(4, 2, dtype=torch.float64)
    codes = [encode(model, ddim(), grid(9), x, dtype=torch.float64, compile=how).x for how in (False, BACKEND)]
    torch.testing.assert_close(*codes, rtol=1e-12, atol=1e-12)
    assert graphs() == 1


def test_graphs_see_the_weights_of_today():
    """They are kept from run to run, the weights are not part of them."""
    model = model_of(Layers(), SDE)
    run = {"shape": (4, 2), "dtype": torch.float64}
    before = sample(model, ddim(), grid(6), compile=BACKEND, **run).x
    model.load_state_dict({key: 1.5 * value for key, value in model.state_dict().items()})
    eager, compiled = (sample(model, ddim(), grid(6), compile=how, **run).x for how in (False, BACKEND))
    torch.testing.assert_close(compiled, eager, rtol=1e-12, atol=1e-12)
    assert (compiled - before).abs().max() > 1e-3
    other = copy.deepcopy(model)  # no graph hangs on the model
    torch.testing.assert_close(sample(other, ddim(), grid(6), compile=BACKEND, **run).x, eager, rtol=1e-12, atol=1e-12)


def test_graphs_do_not_keep_a_model_alive():
    model = model_of(Layers(), SDE)
    sample(model, ddim(), grid(4), shape=(4, 2), dtype=torch.float64, compile=BACKEND)
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None


def test_evaluations_are_counted_and_the_networks_time_is_not_made_up():
    model, asked = model_of(RandomNetwork(), SDE), []
    told = sample(model, probability_flow(Heun()), grid(7), shape=(4, 2), compile=BACKEND, tweedie=True,
                  dtype=torch.float64, callback=asked.append)  # fmt: skip
    assert told.nfe == 2 * 7 + 1
    assert len(asked) == 7
    assert math.isnan(told.network_seconds)


@pytest.mark.parametrize("integrator", [Exponential(), Heun(), Multistep(3)], ids=name)
def test_graphs_hold_as_many_evaluations_as_are_counted_for_them(integrator):
    """Counted inside: every call adds one to a number that is part of the state of the network."""

    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

        def forward(self, x, time):
            self.calls.add_(1)
            return 0.5 * torch.tanh(x)

    network = Counts()
    found = sample(model_of(network, SDE), probability_flow(integrator), grid(9), shape=(4, 2), compile=BACKEND)
    assert found.nfe == network.calls.item() == 9 * integrator.evals_per_step


@dataclass(frozen=True)
class Undecided(Euler):
    """Its step asks the data what to do."""

    def step(self, equation, x, row, state, noise):
        x, state = super().step(equation, x, row, state, noise)
        return (x if x.sum() > 0 else x + 0), state


def test_a_step_that_is_no_graph_is_refused_with_the_reason():
    with pytest.raises(ArgumentError, match="did not become one graph"):
        sample(model_of(RandomNetwork(), SDE), probability_flow(Undecided()), grid(4), shape=(4, 2),
               dtype=torch.float64, compile=BACKEND)  # fmt: skip


@pytest.mark.parametrize(
    ("solver", "how", "said"),
    [
        (probability_flow(PerSample()), True, "on the host"),
        (ddim(), "no such thing", "backend"),
        (ddim(), 1, "backend"),
    ],
)
def test_what_cannot_be_compiled_is_refused_before_any_evaluation(solver, how, said):
    def network(x, time):
        raise AssertionError

    with pytest.raises(ArgumentError, match=said):
        sample(model_of(network, SDE), solver, grid(4), shape=(4, 2), compile=how)


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="inductor needs a C++ compiler")
def test_inductor_agrees_to_round_off():
    model, run = model_of(Layers(), SDE), {"shape": (4, 2), "dtype": torch.float64}
    solver = Solver("", 1.0, Multistep())
    eager, compiled = (sample(model, solver, grid(20), compile=how, **run).x for how in (False, True))
    torch.testing.assert_close(compiled, eager, rtol=1e-12, atol=1e-12)
    assert graphs() == 1


@pytest.mark.parametrize(
    ("told", "words"),
    [({}, "on a CUDA device"), ({"device": "meta", "compile": "cudagraph"}, "cuda_graph")],
    ids=["cpu", "misspelt"],
)
def test_a_cuda_graph_needs_a_cuda_device(told, words):
    with pytest.raises(ArgumentError, match=words):
        sample(model_of(Layers(), SDE), ddim(), grid(4), **{"shape": (4, 2), "compile": "cuda_graph", **told})
