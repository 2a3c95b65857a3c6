"""A network is asked in its own precision, may not touch what it is handed, and answers with one tensor."""

import types

import pytest
import torch
from torch import nn

from sde_toolkit import (
    MLP,
    VPSDE,
    DenoisingScoreMatching,
    ScoreModel,
    clip_x0,
    ddim,
    encode,
    grids,
    log_likelihood,
    probability_flow,
    reschedule,
    sample,
)
from sde_toolkit.errors import ArgumentError
from sde_toolkit.integrators import PerSample

SDE = VPSDE()
GRID = grids.uniform(SDE, 3)
HALVES = [torch.bfloat16, torch.float16]
DTYPES = [*HALVES, torch.float32, torch.float64]


class Heard(nn.Module):
    """Remembers in which dtypes it was asked; its layer on the time takes no dtype but its own."""

    def __init__(self, layer_on_time=True):
        super().__init__()
        torch.manual_seed(0)
        self.x, self.t, self.layer_on_time, self.heard = nn.Linear(2, 2), nn.Linear(1, 2), layer_on_time, []

    def forward(self, x, time):
        own = self.x.weight.dtype
        self.heard.append((x.dtype, time.dtype, time.clone()))
        told = time[:, None] if self.layer_on_time else torch.sin(1000 * time[:, None]).to(own)
        return self.x(x) + self.t(told)


WAYS = {
    "module": lambda network: network,
    "function": lambda network: lambda x, time: network(x, time),
    "method": lambda network: network.forward,
    "attribute": lambda network: (lambda held: lambda x, time: held.network(x, time))(
        types.SimpleNamespace(network=network)
    ),
}


@pytest.mark.parametrize("state", [torch.float32, torch.float64])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_x_and_time_come_in_the_dtype_of_a_network_whose_layers_want_it_so(dtype, way, state):
    network = Heard().to(dtype)
    found = sample(ScoreModel(WAYS[way](network), SDE), ddim(), GRID, shape=(4, 2), dtype=state)
    assert found.x.dtype == state
    assert {heard[:2] for heard in network.heard[1:]} == {(dtype, dtype)}
    assert found.nfe == 3


@pytest.mark.parametrize("dtype", HALVES)
def test_time_keeps_its_digits_for_a_network_that_embeds_it(dtype):
    """In half precision sin(1000 t) would be that of another time."""
    network = Heard(layer_on_time=False).to(dtype)
    sample(ScoreModel(network, SDE), ddim(), GRID, shape=(4, 2))
    assert [heard[0] for heard in network.heard] == [dtype] * 3
    for heard, t in zip(network.heard, GRID, strict=False):
        assert torch.equal(heard[2], t.float().expand(4))


def test_errors_of_a_half_network_are_its_own():
    class Fails(nn.Linear):
        def forward(self, x, time):
            raise RuntimeError("of my own")

    with pytest.raises(RuntimeError, match="of my own"):
        sample(ScoreModel(Fails(2, 2).half(), SDE), ddim(), GRID, shape=(4, 2))


def test_the_dtype_is_that_of_the_parameters_of_today():
    model = ScoreModel(Heard(), SDE)
    for change in (
        lambda: None,
        lambda: setattr(model, "network", Heard().double()),
        lambda: model.to(torch.bfloat16),
        lambda: setattr(model.network, "x", nn.Linear(2, 2)) or setattr(model.network, "t", nn.Linear(1, 2)),
        lambda: model.network.double(),
    ):
        change()
        model.network.heard.clear()
        sample(model, ddim(), GRID, shape=(4, 2))
        assert {heard[0] for heard in model.network.heard} == {model.network.x.weight.dtype}
        with torch.no_grad():
            model.score(torch.zeros(4, 2), 0.5)


def test_what_was_learned_of_a_network_is_forgotten_with_it():
    model = ScoreModel(Heard().bfloat16(), SDE)
    sample(model, ddim(), GRID, shape=(4, 2))
    model.network = Heard(layer_on_time=False).bfloat16()
    sample(model, ddim(), GRID, shape=(4, 2))
    assert {heard[1] for heard in model.network.heard} == {torch.float32}


@pytest.mark.parametrize("dtype", HALVES)
def test_half_networks_compile(dtype):
    model = ScoreModel(Heard().to(dtype), SDE, "v")
    grid = grids.uniform(SDE, 6)
    eager, compiled = (sample(model, ddim(), grid, shape=(4, 2), compile=how).x for how in (False, "aot_eager"))
    torch.testing.assert_close(compiled, eager, rtol=2e-2, atol=2e-2)


class InPlace(nn.Module):
    """Works in place on one of its arguments, after ``quiet`` evaluations that do not."""

    def __init__(self, which, quiet=0):
        super().__init__()
        torch.manual_seed(0)
        self.which, self.quiet, self.body = which, quiet, nn.Linear(2, 2)

    def forward(self, x, time, condition=None):
        self.quiet -= 1
        if self.quiet < 0:
            {
                "x": lambda: nn.functional.relu(x, inplace=True),
                "time": lambda: time.mul_(1000),
                "condition": lambda: condition["added"][0].add_(1),
            }[self.which]()
        return self.body(x)


def in_place_runs(model, x, condition):
    return {
        "sample": lambda: sample(model, ddim(), GRID, x_start=x, condition=condition),
        "batches": lambda: sample(model, ddim(), GRID, x_start=x, condition=condition, batch_size=1),
        "adaptive": lambda: sample(model, probability_flow(PerSample()), GRID, x_start=x, condition=condition),
        "compiled": lambda: sample(model, ddim(), GRID, x_start=x, condition=condition, compile="aot_eager"),
        "encode": lambda: encode(model, ddim(), GRID, x, condition=condition),
        "likelihood": lambda: log_likelihood(model, x, nfe=6, condition=condition),
        "loss": lambda: DenoisingScoreMatching()(model, x, torch.full((len(x),), 0.5), x.clone(), condition),
        "score": lambda: model.score(x.clone(), 0.5, condition),
    }


@pytest.mark.parametrize("wrap", [lambda model: model, clip_x0], ids=["bare", "clip"])
@pytest.mark.parametrize("run", in_place_runs(None, None, None))
@pytest.mark.parametrize("which", ["x", "time", "condition"])
def test_a_network_that_works_in_place_is_refused_and_the_callers_tensors_stay(which, run, wrap):
    """Not the condition's: it is handed over as it is."""
    if (which, run) == ("time", "likelihood"):
        pytest.skip("two rows share one time there, and torch itself refuses to write to it")
    x = torch.tensor([[1.0, -1.0]])
    before, rows = x.clone(), torch.zeros(1)
    condition = {"added": [rows]} if which == "condition" else None
    model = wrap(ScoreModel(InPlace(which), SDE, "v"))
    with pytest.raises(ArgumentError, match=r"network.*in.place"):
        in_place_runs(model, x, condition)[run]()
    assert torch.equal(x, before)


@pytest.mark.parametrize("quiet", [1, 2])
def test_it_is_noticed_at_any_evaluation(quiet):
    with pytest.raises(ArgumentError, match="in place"):
        sample(ScoreModel(InPlace("x", quiet), SDE, "v"), ddim(), GRID, shape=(3, 2))


def test_working_in_place_on_a_copy_is_no_fault():
    """EDM's network sees c_in x, which is nobody else's; so does one of another dtype. Inference mode copies."""

    class Twice(nn.Module):
        def __init__(self, inplace):
            super().__init__()
            torch.manual_seed(0)
            self.first, self.body = nn.ReLU(inplace=inplace), nn.Linear(2, 2)

        def forward(self, x, time):
            return self.body(self.first(x))

    grid, x = grids.uniform(SDE, 4), torch.tensor([[1.0, -1.0]])
    for make in (
        lambda n: ScoreModel(n, SDE, "edm"),
        lambda n: reschedule(ScoreModel(n.double(), SDE), VPSDE(0.1, 15.0)),
    ):
        ends = [sample(make(Twice(inplace)), ddim(), grid, x_start=x).x for inplace in (False, True)]
        assert torch.equal(*ends)
    with torch.inference_mode():
        ends = [sample(ScoreModel(Twice(inplace), SDE), ddim(), grid, x_start=x).x for inplace in (False, True)]
        assert torch.equal(*ends)
    assert torch.equal(x, torch.tensor([[1.0, -1.0]]))


class Output:
    """What most libraries' networks answer with."""

    def __init__(self, sample):
        self.sample = sample


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda x: None, "None"),
        (lambda x: ("x", x), "a tuple of 2"),
        (lambda x: [], "a list of 0"),
        (lambda x: {"sample": x}, "a dict of 1"),
        (lambda x: Output(None), r"a Output.*object with \.sample"),
        (lambda x: x.numpy(), "a ndarray"),
        (lambda x: x.long(), "int64"),
        (lambda x: torch.complex(x, x), "complex64"),
        (lambda x: x[:, :1], r"\(3, 1\)"),
    ],
)
def test_an_answer_that_is_no_tensor_of_the_shape_of_x_is_named(answer, said):
    model = ScoreModel(lambda x, time: answer(x), SDE)
    for run in (
        lambda: sample(model, ddim(), GRID, shape=(3, 2)),
        lambda: encode(model, ddim(), GRID, torch.zeros(3, 2)),
        lambda: model.score(torch.zeros(3, 2), 0.5),
    ):
        with pytest.raises(ArgumentError, match=rf"network.*{said}"):
            run()


@pytest.mark.parametrize("labels", [[0, 1], (0, 1), 1, {"label": torch.zeros(2).long()}, "cat", torch.zeros(2)])
def test_labels_that_are_no_tensor_are_refused_with_the_way(labels):
    model = ScoreModel(MLP(event_shape=(2,), num_classes=4), SDE)
    with pytest.raises(ArgumentError, match=r"condition.*(torch\.tensor\(|torch\.long)"):
        sample(model, ddim(), GRID, shape=(2, 2), condition=labels)
    with pytest.raises(ArgumentError, match=r"condition.*(torch\.tensor\(|torch\.long)"):
        model.score(torch.zeros(2, 2), 0.5, labels)
