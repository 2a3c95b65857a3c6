"""A recorded step gives the bits of the step as it is, and is launched without anything beside it.

No CUDA is needed: the recording of this file notes the operations of a step, and repeats them on the same tensors, as a
CUDA graph does. What it does not show is which kernels CUDA can record.
"""

import gc
import weakref

import pytest
import torch
from catalogue import FIXED_STEP_WITH_ETA, RandomNetwork, model_of, name
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from sde_toolkit import VPSDE, Solver, ddim, ddpm, dpmpp_2m, grids, sample, unipc
from sde_toolkit.errors import ArgumentError, NonFiniteError
from sde_toolkit.sampling import arguments, captured

SDE = VPSDE()
tapes = []


def tensors(structure):
    return [leaf for leaf in _pytree.tree_flatten(structure)[0] if isinstance(leaf, torch.Tensor)]


class Tape(TorchDispatchMode):
    """The operations of a function, with the tensors that they were given and that they wrote."""

    def __init__(self):
        super().__init__()
        self.calls, self.launches = [], 0

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        if function is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        found = function(*arguments, **(named or {}))
        self.calls.append((function, arguments, named or {}, found))
        return found

    def launch(self):
        """All operations once more: Python's part of the step does not run, and every tensor is where it was."""
        self.launches += 1
        for function, arguments_, named, found in self.calls:
            given = {tensor.untyped_storage().data_ptr() for tensor in tensors((arguments_, named))}
            for old, new in zip(tensors(found), tensors(function(*arguments_, **named)), strict=True):
                if old.untyped_storage().data_ptr() not in given:  # neither a view nor written in place
                    old.copy_(new)


def record(step, device):
    """Recording runs the step, before and during it, on tensors whose values then count for nothing."""
    tape = Tape()
    try:
        with tape:
            step()
    except RuntimeError:  # as torch does: the context manager of a recording ends it, and cannot
        raise RuntimeError("operation failed due to a previous error during capture")  # noqa: B904
    tapes.append(tape)
    return tape.launch


@pytest.fixture(autouse=True)
def _recorded_here(monkeypatch):
    tapes.clear()
    monkeypatch.setattr(captured, "record_kernels", record)
    monkeypatch.setattr(arguments, "check_recording", lambda device, differentiable: None)  # a CPU is not refused


def run(model, solver, how, **told):
    grid = grids.uniform(SDE, told.pop("steps", 9), end=0.1)
    return sample(model, solver, grid, **{"dtype": torch.float64, "compile": how, **told})


def both(model, solver, **told):
    return (run(model, solver, how, **told) for how in (False, "cuda_graph"))


@pytest.mark.parametrize(("integrator", "eta"), FIXED_STEP_WITH_ETA, ids=name)
def test_the_same_bits_from_one_recording(integrator, eta):
    model, solver = model_of(RandomNetwork(), SDE), Solver("", eta, integrator)
    eager, recorded = both(model, solver, shape=(4, 2), trajectory=True)
    assert torch.equal(recorded.trajectory, eager.trajectory)
    assert (recorded.nfe, len(tapes)) == (eager.nfe, 1)
    for steps in (2, 5):  # nothing is kept on the way; and recording runs more steps than a short grid has
        eager, recorded = both(model, solver, shape=(4, 2), tweedie=True, steps=steps)
        assert torch.equal(recorded.x, eager.x)


def test_batches_and_their_conditions():
    def network(x, time, condition):
        return x * condition["scale"][:, None] + condition["all"]

    model = model_of(network, SDE)
    condition = {"scale": torch.linspace(0, 1, 12, dtype=torch.float64), "all": torch.tensor(0.1)}
    told = {"shape": (12, 2), "condition": condition, "batch_size": 4}
    for solver in (ddpm(), unipc()):
        tapes.clear()
        eager, recorded = both(model, solver, **told)
        assert torch.equal(recorded.x, eager.x)
        assert len(tapes) == 1  # of three batches


@pytest.mark.parametrize("edited", [(3, 4), (0, 8), (1,)])
def test_a_callback_may_replace_the_state(edited):
    """Also at the second step, so that the step which is recorded stands in the table of a shorter grid."""
    model = model_of(RandomNetwork(), SDE)
    for solver in (ddim(), dpmpp_2m()):
        kept = []

        def callback(step, kept=kept):
            kept.append(step.x)
            return 0.5 * step.x if step.index in edited and step.first == 0 else None

        eager, recorded = both(model, solver, shape=(8, 2), batch_size=4, callback=callback)
        assert torch.equal(recorded.x, eager.x)
        assert torch.equal(torch.stack(kept[:18]), torch.stack(kept[18:]))  # the callback may keep what it is shown


class Beside(TorchDispatchMode):
    """Counts what a device would be given to do outside of recordings: views and allocations are nothing."""

    VIEWS = ("detach", "expand", "view", "select", "unbind", "slice", "alias", "unsqueeze", "_local_scalar_dense")

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        self.count += function.__name__.partition(".")[0] not in self.VIEWS
        return function(*arguments, **(named or {}))


@pytest.mark.parametrize(("solver", "each"), [(ddim(), 0), (dpmpp_2m(), 0), (unipc(), 0), (ddpm(), 3)], ids=name)
def test_a_step_is_one_launch_and_nothing_else(monkeypatch, solver, each):
    """With noise: the draw, its copy into the recording, and the sum that watches over the state.

    Every sixteenth step the watch looks at the state, and keeps it.
    """
    model = model_of(RandomNetwork(), SDE)
    hidden = Tape.launch

    def launch(self):
        with torch._C._DisableTorchDispatch():
            hidden(self)

    monkeypatch.setattr(Tape, "launch", launch)

    def beside(steps):
        generator = torch.Generator().manual_seed(0)
        with Beside() as counted:
            run(model, solver, "cuda_graph", steps=steps, shape=(4, 2), generator=generator)
        return counted.count, tapes[-1].launches

    (few, launched), (many, launched_more) = beside(32), beside(160)
    assert launched_more - launched == 128
    kept = {ddim(): 1, dpmpp_2m(): 2, unipc(): 4, ddpm(): 0}[solver]  # tensors of x and state
    assert many - few <= 128 * each + 8 * (1 + kept)


@pytest.mark.parametrize("solver", [ddim(), ddpm()], ids=name)
def test_the_first_step_at_fault_is_named(solver):
    """A watch that keeps what the next step writes over would blame another step."""

    def network(x, time):
        return torch.where(time[:, None] < 0.3, torch.nan, x)

    said = []
    for how in (False, "cuda_graph"):
        with pytest.raises(NonFiniteError) as caught:
            run(model_of(network, SDE), solver, how, steps=60, shape=(4, 2))
        said.append((caught.value.step, str(caught.value)))
    assert said[0] == said[1]


def test_recordings_end_with_the_run():
    model = model_of(RandomNetwork(), SDE)
    gc.collect()
    gc.disable()
    try:
        run(model, unipc(), "cuda_graph", shape=(4, 2))
        alive = weakref.ref(tapes.pop())
        assert alive() is None
    finally:
        gc.enable()


def test_what_cannot_be_recorded_is_said():
    """A network that reads the device."""

    def network(x, time):
        return x * time.mean().item()

    with pytest.raises(ArgumentError, match=r"compile.*not permitted when stream is capturing"):
        run(model_of(network, SDE), ddim(), "cuda_graph", shape=(4, 2))
