"""Steps that CUDA records give the samples of the steps as they are (tests/laws/test_captured.py: laws for a CPU)."""

import gc

import pytest
import torch
from both_places import F64, SDE, network_model
from test_device_sampling import SOLVERS, named
from torch import nn

from sde_toolkit import ScoreModel, ddim, ddpm, dpmpp_2m, sample, unipc
from sde_toolkit.errors import ArgumentError, NonFiniteError


@pytest.fixture
def card(device):
    if device.type != "cuda":
        pytest.skip("there are CUDA graphs on CUDA devices alone")
    return device


def assert_recorded_is_eager(model, solver, tolerance=1e-6, **told):
    told = {"steps": 7, "shape": (4, 2), "seed": 3, **told}
    eager, recorded = (sample(model, solver, **told, compile=how) for how in (False, "cuda_graph"))
    found, wanted = ((run.x if run.trajectory is None else run.trajectory) for run in (recorded, eager))
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)
    assert recorded.nfe == eager.nfe


@pytest.mark.parametrize("solver", [solver for solver in SOLVERS if solver.integrator.evals_per_step], ids=named)
def test_every_solver(solver, card):
    assert_recorded_is_eager(network_model(card), solver, **F64)
    assert_recorded_is_eager(network_model(card), solver, **F64, trajectory=True, batch_size=3)


@pytest.mark.parametrize(
    "options",
    [
        {"callback": lambda step: 0.5 * step.x if step.index == 3 else None},
        {"condition": torch.arange(8) % 4, "batch_size": 4},
        {"tweedie": True, "check_finite": False},
        {"progress": True},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options(options, card):
    told = {key: value.to(card) if isinstance(value, torch.Tensor) else value for key, value in options.items()}
    for solver in (unipc(), ddpm()):
        assert_recorded_is_eager(network_model(card), solver, shape=(8, 2), **F64, **told)


def test_one_generator_for_the_batch(card):
    ends = []
    for how in (False, "cuda_graph"):
        generator = torch.Generator(card).manual_seed(5)
        ends.append(sample(network_model(card), ddpm(), steps=9, shape=(4, 2), generator=generator, compile=how).x)
    torch.testing.assert_close(*ends)


def test_networks_under_autocast_and_compiled_ones(card):
    model = ScoreModel.from_pretrained("digits").to(card)
    shape = {"shape": (4, 1, 8, 8)}
    with torch.autocast("cuda", torch.bfloat16):
        assert_recorded_is_eager(model, dpmpp_2m(), 1e-5, **shape)
    assert_recorded_is_eager(model, dpmpp_2m(), 1e-5, **shape)  # what autocast kept is gone
    model.network.compile()
    assert_recorded_is_eager(model, dpmpp_2m(), 1e-5, **shape)


class Asks(nn.Module):
    """A network that reads the device."""

    def forward(self, x, time):
        return x * time.mean().item()


def test_a_network_that_reads_the_device_is_refused_and_the_next_run_is_well(card):
    stream = torch.cuda.current_stream(card)
    with pytest.raises(ArgumentError, match="compile"):
        sample(ScoreModel(Asks(), SDE), ddim(), steps=5, shape=(4, 2), device=card, compile="cuda_graph")
    assert torch.cuda.current_stream(card) == stream
    assert_recorded_is_eager(network_model(card), ddim(), **F64)


def test_the_first_step_at_fault_is_named(card):
    def network(x, time):
        return torch.where(time[:, None] < 0.3, torch.nan, x)

    said = []
    for how in (False, "cuda_graph"):
        for solver in (ddim(), ddpm()):
            with pytest.raises(NonFiniteError) as caught:
                sample(ScoreModel(network, SDE), solver, steps=50, shape=(4, 2), device=card, compile=how)
            said.append(caught.value.step)
    assert said[:2] == said[2:]


def test_the_memory_of_a_recording_is_given_back(card):
    model = ScoreModel.from_pretrained("digits").to(card)

    def run():
        sample(model, unipc(), steps=6, shape=(64, 1, 8, 8), compile="cuda_graph")
        gc.collect()
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated(card)

    run()
    assert run() == run()
