"""A recorded step gives the bits of the step as it is.

No CUDA is needed: the recording of this file repeats the function itself and writes into the tensors of the first run,
as a CUDA graph does. What it does not show is which kernels CUDA can record.
"""

import pytest
import torch
from catalogue import FIXED_STEP_WITH_ETA, RandomNetwork, model_of, name
from torch.utils import _pytree

from sde_toolkit import VPSDE, Solver, ddim, ddpm, grids, sample
from sde_toolkit.errors import ArgumentError
from sde_toolkit.sampling import arguments, captured

SDE = VPSDE()
recordings = []


def record(step):
    """A recording as a CUDA graph makes it: outputs stand at fixed addresses, and every repetition writes them anew."""
    end = step()
    outputs = _pytree.tree_flatten(end)[0]

    def again():
        for output, value in zip(outputs, _pytree.tree_flatten(step())[0], strict=True):
            if isinstance(output, torch.Tensor):
                output.copy_(value)

    recordings.append(step)
    return again, end


@pytest.fixture(autouse=True)
def _recorded_here(monkeypatch):
    recordings.clear()
    monkeypatch.setattr(captured, "record_cuda_graph", record)
    monkeypatch.setattr(arguments, "check_recording", lambda device, differentiable: None)  # a CPU is not refused


def run(model, solver, how, **told):
    return sample(model, solver, grids.uniform(SDE, 9, end=0.1), dtype=torch.float64, compile=how, **told)


@pytest.mark.parametrize(("integrator", "eta"), FIXED_STEP_WITH_ETA, ids=name)
def test_the_same_bits_from_one_recording(integrator, eta):
    model, solver = model_of(RandomNetwork(), SDE), Solver("", eta, integrator)
    eager, recorded = (run(model, solver, how, shape=(4, 2), trajectory=True) for how in (False, "cuda_graph"))
    assert torch.equal(recorded.trajectory, eager.trajectory)
    assert (recorded.nfe, len(recordings)) == (eager.nfe, 1)


def test_batches_and_their_conditions():
    def network(x, time, condition):
        return x * condition["scale"][:, None] + condition["all"]

    model = model_of(network, SDE)
    condition = {"scale": torch.linspace(0, 1, 12, dtype=torch.float64), "all": torch.tensor(0.1)}
    told = {"shape": (12, 2), "condition": condition, "batch_size": 4}
    eager, recorded = (run(model, ddpm(), how, **told) for how in (False, "cuda_graph"))
    assert torch.equal(recorded.x, eager.x)
    assert len(recordings) == 1  # of three batches


def test_a_callback_may_replace_the_state():
    told = {"shape": (4, 2), "callback": lambda step: 0.5 * step.x if step.index in (3, 4) else None}
    model = model_of(RandomNetwork(), SDE)
    ends = [run(model, ddim(), how, **told).x for how in (False, "cuda_graph")]
    assert torch.equal(*ends)


def test_what_cannot_be_recorded_is_said(monkeypatch):
    def refuses(step):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(captured, "record_cuda_graph", refuses)
    with pytest.raises(ArgumentError, match="not permitted when stream is capturing"):
        run(model_of(RandomNetwork(), SDE), ddim(), "cuda_graph", shape=(4, 2))
