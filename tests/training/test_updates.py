"""One step on a device: the host waits for nothing, a compiled pass is one graph, and a recorded update is an update.

No CUDA is needed. On torch's device "meta" tensors have no values, so that whatever would wait for a value raises, and
so does a mixture of devices. A recording is made here of the operations that one update runs; it repeats these and
nothing else, and writes into the tensors of that update, as a CUDA graph does.
"""

import contextlib
import dataclasses
from types import SimpleNamespace

import pytest
import torch
from runs import VECTORS, images, rows, vectors, weights
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from sde_toolkit import MLP, VESDE, VPSDE, FlowMatching, ScoreModel, SubVPSDE, UNet, losses
from sde_toolkit.data import EDMAugmentation, HorizontalFlip
from sde_toolkit.errors import ArgumentError
from sde_toolkit.losses import DenoisingScoreMatching
from sde_toolkit.models.checkpoint import checkpoint_folders
from sde_toolkit.training import TrainingOptions, recorded_update, trainer
from sde_toolkit.training.averages import WeightAverage, exponential_update, power_function_update
from sde_toolkit.training.batches import Portion, Recipe
from sde_toolkit.training.feeding import KeptSamples, fed, kept_samples
from sde_toolkit.training.logbook import Tally, lambda_edges
from sde_toolkit.training.objective import Objective
from sde_toolkit.training.placing import float32_products, place
from sde_toolkit.training.saving import load_state
from sde_toolkit.training.update import Update

SDES = (VPSDE(), VESDE(), SubVPSDE(), FlowMatching())
WEIGHTINGS = [losses.constant, losses.sigma_squared, losses.g_squared, losses.EDMWeighting(), losses.MinSNR()]
WEIGHTINGS += [losses.P2(), losses.SigmoidWeighting(), losses.Converted(losses.constant, "score", "epsilon")]


def points(sde, loss):
    torch.manual_seed(0)
    model = ScoreModel(MLP(event_shape=(2,), width=8, depth=1), sde, "v", event_shape=(2,))
    return Objective(model, loss, losses.Uniform(), sde.likelihood_end)


def pictures(augmentation):
    torch.manual_seed(0)
    more = {"attention_levels": (), "num_classes": 3, "augmentation_width": augmentation.width}
    network = UNet(widths=(8, 16), blocks_per_level=1, **more)
    model = ScoreModel(network, VPSDE(), "edm", event_shape=(1, 8, 8))
    return Objective(model, DenoisingScoreMatching("edm"), losses.Uniform(), 1e-3, augmentation)


def hybrid():
    torch.manual_seed(0)
    network = UNet(widths=(8, 16), blocks_per_level=1, attention_levels=(), out_channels=2, num_classes=3)
    model = ScoreModel(network, VPSDE(), "epsilon", event_shape=(1, 8, 8), learned_variance=True)
    return Objective(model, losses.Hybrid(), losses.Uniform(), 1e-3)


OBJECTIVES = [
    *(pytest.param(lambda sde=sde: points(sde, DenoisingScoreMatching("v")), id=str(sde)) for sde in SDES),
    *(
        pytest.param(lambda w=w: points(VPSDE(), DenoisingScoreMatching("score", w)), id=f"weighting {i}")
        for i, w in enumerate(WEIGHTINGS)
    ),
    pytest.param(lambda: pictures(EDMAugmentation()), id="augmented images"),
    pytest.param(hybrid, id="learned variance"),
]


def read(objective, n=8):
    augmentation, shape = objective.augmentation, objective.model.event_shape
    draws = (0, 0) if augmentation is None else augmentation.draws
    recipe = Recipe(0, n, uniforms=draws[0], normals=draws[1], label_dropout=0.5, no_class=3)
    labels = torch.arange(n) % 3 if objective.model.num_classes else None
    x = torch.randn(n, *shape, generator=torch.Generator().manual_seed(1))
    return recipe.complete(Portion(4, 0, n), x, labels)


class Adam(torch.optim.AdamW):
    """Not the fused one, which is made for devices with values; so it takes no flag for skipped steps."""

    def step(self, closure=None):
        self.found_inf = None
        return super().step(closure)


class NothingFromTheHost(TorchDispatchMode):
    """Raises where a tensor of the host becomes one of the device: a copy that no CUDA graph can hold."""

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        found = function(*arguments, **(named or {}))
        taken, given = (
            {leaf.device.type for leaf in _pytree.tree_leaves(side) if isinstance(leaf, torch.Tensor)}
            for side in ((arguments, named), found)
        )
        assert not ("cpu" in taken and "meta" in given), function
        return found


@pytest.mark.parametrize("make", OBJECTIVES)
def test_a_step_waits_for_no_value_of_the_device(make):
    objective = make().to("meta").train()
    weights = list(objective.parameters())
    alone = SimpleNamespace(scaler=None, distributed_type="NO", device=torch.device("meta"))
    adam = Adam(weights, foreach=True)
    tally = Tally(lambda_edges(-5.0, 5.0), torch.device("meta"))
    update = Update(objective, weights, adam, adam, 2, 1.0, tally, alone)
    averages = [WeightAverage(weights, how) for how in (exponential_update(0.9), power_function_update(0.1))]
    for _ in range(2):
        inputs = [objective.prepared(read(objective), "meta") for _ in range(2)]
        with NothingFromTheHost():
            for part in range(2):
                update.add_pass(inputs[part], last=part == 1)
            update.finish()
            for average in averages:
                average.update()
            tally.clear()


def gradients(objective, inputs):
    mean, each = objective(inputs)
    return mean, each, torch.autograd.grad(mean, list(objective.parameters()))


def test_a_compiled_pass_is_one_graph_with_the_loss_and_gradient_of_the_pass():
    """Everything around a small network: a weighting of another error, labels, and an augmentation."""
    torch.compiler.reset()
    torch.manual_seed(0)
    network = MLP(event_shape=(1, 4, 4), width=8, depth=1, num_classes=3)
    model = ScoreModel(network, VESDE(), "edm", event_shape=(1, 4, 4))
    loss = DenoisingScoreMatching("score", losses.SigmoidWeighting())
    objective = Objective(model, loss, losses.Uniform(), 1e-3, HorizontalFlip())
    inputs = objective.prepared(read(objective), "cpu")
    plain = gradients(objective, inputs)
    objective.compile_passes(backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(gradients(objective, inputs), plain, rtol=1e-4, atol=1e-6)


class Recorder(TorchDispatchMode):
    """Notes every operation with its tensors, as they are."""

    def __init__(self):
        super().__init__()
        self.noted = []

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        found = function(*arguments, **(named or {}))
        self.noted.append(
            (
                function,
                *_pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, (arguments, named or {}, found)),
            )
        )
        return found

    @torch.no_grad()
    def repeat(self):
        for function, arguments, named, found in self.noted:
            again = function(*arguments, **named)
            for old, new in zip(_pytree.tree_leaves(found), _pytree.tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


@pytest.fixture
def recorded(monkeypatch):
    """Recordings of the operations of an update, which stand for CUDA graphs. The list has one entry for each."""
    made = []

    def record_kernels(work, device):
        recorder, ran = Recorder(), []
        with recorder:
            work()  # the first repetition: what is recorded here has run
        made.append(recorder)

        def replay():
            if ran:
                recorder.repeat()
            ran.append(True)

        return replay

    monkeypatch.setattr(recorded_update, "record_kernels", record_kernels)
    monkeypatch.setattr(trainer, "check_recorded", lambda options, accelerator: None)  # the CPU is not refused
    return made


def test_a_recorded_update_is_the_update(tmp_path, recorded):
    """Passes, dropout, labels, flips, clipping, averages and the log, to round-off: the learning rate is a float32."""
    for name, how in (("plain", False), ("recorded", "cuda_graph")):
        images(tmp_path / name, compile=how, workers=0, steps=8, checkpoint_every=8)
    assert len(recorded) == 2  # a pass, and the end of an update
    for kind in ("raw", "ema"):
        one, two = (weights(tmp_path / name, kind) for name in ("plain", "recorded"))
        torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-6)
    for file in ("training.csv", "lambda.csv"):
        plain, recorded = ([*map(numbers, rows(tmp_path / name, file))] for name in ("plain", "recorded"))
        assert recorded == [pytest.approx(row, rel=1e-4) for row in plain]


def numbers(row):
    return {name: float(value or 0) for name, value in row.items() if name != "part"}


def test_a_recorded_run_continues_as_one_that_is_not(tmp_path, recorded):
    """Its checkpoint is that of any run."""
    options = dataclasses.replace(VECTORS, steps=15, snapshots=2)
    vectors(tmp_path / "plain", options=options)
    for until, how in ((5, "cuda_graph"), (7, False), (None, "cuda_graph")):
        vectors(tmp_path / "parts", until, dataclasses.replace(options, compile=how))
    assert len(recorded) == 4
    one, two = (weights(tmp_path / name, "raw") for name in ("plain", "parts"))
    torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-6)
    for name in ("plain", "parts"):
        group = load_state(checkpoint_folders(tmp_path / name)[-1][1])["optimizer"]["param_groups"][0]
        assert (type(group["lr"]), group["capturable"]) == (float, False)


def test_what_cannot_be_recorded_is_named(tmp_path, recorded, monkeypatch):
    def refuses(work, device):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(recorded_update, "record_kernels", refuses)
    with pytest.raises(ArgumentError, match=r"compile='cuda_graph'.*not permitted when stream is capturing"):
        images(tmp_path, compile="cuda_graph", workers=0)


def test_a_recording_without_a_device_for_it_is_refused(tmp_path):
    with pytest.raises(ArgumentError, match="compile='cuda_graph': it needs a CUDA device"):
        images(tmp_path / "run", compile="cuda_graph")
    assert not (tmp_path / "run").exists()


class Part:
    """Stands for a tensor of a CUDA device."""

    def __init__(self, noted, number):
        self.noted, self.number = noted, number

    def record_stream(self, stream):
        self.noted.append(f"hold {self.number}")


def test_a_batch_is_prepared_before_the_pass_before_it(monkeypatch):
    """It is waited for on the device, and the host is at most a few passes ahead of the device."""
    noted, events = [], iter(range(1000))

    class Stream:
        def __init__(self, name):
            self.name = name

        def record_event(self):
            name = f"{self.name} {next(events)}"
            return SimpleNamespace(name=name, synchronize=lambda: noted.append(f"host waits for {name}"))

        def wait_event(self, event):
            noted.append(f"device waits for {event.name}")

    here = Stream("here")
    for name, fake in {
        "Stream": lambda device: Stream("aside"),
        "stream": lambda stream: contextlib.nullcontext(),
        "current_stream": lambda device=None: here,
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    closed = []

    def read():
        try:
            yield from range(20)
        finally:
            closed.append(True)

    def prepared(number):
        noted.append(f"prepare {number}")
        return [Part(noted, number), None]

    passes = fed(read(), prepared, torch.device("cuda"), ahead=True)
    for number in range(15):
        assert next(passes)[0].number == number
        noted.append(f"pass {number}")
    passes.close()
    assert closed
    place = noted.index
    for number in range(14):
        assert place(f"prepare {number}") < place(f"prepare {number + 1}") < place(f"pass {number}")
        assert place(f"hold {number}") < place(f"pass {number}")
        assert noted[place(f"hold {number}") - 1].startswith("device waits for aside")
    passes_begun = waited_for = 0
    for what in noted:
        passes_begun += what.startswith("pass")
        waited_for += what.startswith("host waits")
        assert passes_begun - waited_for <= 10  # their memory is held
        assert not what.startswith("host waits") or passes_begun - waited_for >= 4  # the device has enough to do
    assert waited_for


def test_samples_that_are_read_when_needed_are_not_kept():
    source = SimpleNamespace(train=object(), stream=None, name="files")
    assert kept_samples(source, torch.device("cpu"), None) is None
    with pytest.raises(ArgumentError, match="data_on_device=True: the samples of files are read when"):
        kept_samples(source, torch.device("cpu"), True)


@pytest.mark.parametrize("tf32", [True, False])
def test_the_products_of_float32_are_chosen_for_the_run_alone(tf32):
    """The flags can be set without a device."""

    def flags():
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    before = flags()
    with contextlib.suppress(ZeroDivisionError), float32_products(tf32, torch.device("cuda")):
        found = flags()
        raise ZeroDivisionError
    assert found == (tf32, tf32)
    assert flags() == before
    with float32_products(not before[0], torch.device("cpu")):
        assert flags() == before


@pytest.mark.parametrize(("wanted", "last"), [(True, True), (False, False), (None, False)])
def test_convolutions_are_laid_out_as_told(wanted, last):
    """On the CPU they stay as they are, unless it is asked for."""
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Linear(8, 8))
    place(ScoreModel(network, VPSDE(), "v"), TrainingOptions(channels_last=wanted), torch.device("cpu"))
    weight = network[0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def test_samples_kept_on_a_device_are_the_samples(tmp_path):
    """uint8 stays uint8, and a run is bit for bit the same."""
    values = torch.arange(60, dtype=torch.uint8).reshape(20, 3)
    index = torch.tensor([7, 0, 19, 7])
    kept = KeptSamples(values, torch.device("cpu"))
    assert torch.equal(kept[index], values[index])
    assert (len(kept), kept[index].dtype) == (20, torch.uint8)
    options = TrainingOptions(steps=3, batch_size=600, evaluate_every=3, held_out=8)
    for name, kept in (("read", False), ("kept", True)):
        vectors(tmp_path / name, options=dataclasses.replace(options, data_on_device=kept))
    one, two = (weights(tmp_path / name, "raw") for name in ("read", "kept"))
    assert all(torch.equal(one[key], two[key]) for key in one)
