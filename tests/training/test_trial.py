"""What a part does tells it from another of the same name; what cannot be written is found before the first step."""

import dataclasses
import functools

import numpy as np
import pytest
import torch
from runs import weights
from test_saving import SHORT, contents

from sde_toolkit import MLP, SDE, VPSDE, DenoisingScoreMatching, ScoreModel
from sde_toolkit.data import Dataset, ShuffledStream, checkerboard, eight_bit
from sde_toolkit.errors import ArgumentError, CheckpointError, DataError, MissingDependencyError
from sde_toolkit.training import SampleSheet, train
from sde_toolkit.transforms import Identity


class Standardise:
    def __init__(self, scale):
        self.scale = scale

    def forward(self, x):
        return x / self.scale

    def inverse(self, y):
        return y * self.scale

    def log_abs_det(self, event_shape):
        return -len(event_shape) * float(np.log(self.scale))


class Clock:
    def __init__(self, scale):
        self.scale = scale

    def __call__(self, sde, t):
        return self.scale * t


class Path(SDE):
    """An SDE of one's own, whose numbers nobody can read off."""

    def __init__(self, scale):
        self.scale = scale

    def alpha(self, t):
        return torch.exp(-4 * self.scale * torch.as_tensor(t, dtype=torch.float64) ** 2)

    def sigma(self, t):
        return torch.sqrt(-torch.expm1(-8 * self.scale * torch.as_tensor(t, dtype=torch.float64) ** 2))


class Late:
    def __init__(self, scale):
        self.scale = scale

    def __call__(self, sde, u, t_min):
        return t_min + (1 - t_min) * u**self.scale, torch.ones_like(u)


class Weighted:
    def __init__(self, scale):
        self.scale, self.plain = scale, DenoisingScoreMatching("edm")

    def __call__(self, model, x_0, t, noise, condition=None):
        return self.scale * self.plain(model, x_0, t, noise, condition)


class Shrinking(torch.nn.Module):
    """A network whose weights do not hold all of its numbers."""

    def __init__(self, scale):
        super().__init__()
        torch.manual_seed(0)
        self.scale, self.body = scale, MLP(event_shape=(2,), width=8, depth=1)

    def forward(self, x, time):
        return self.body(x, time) * self.scale


class Stretched:
    """An augmentation of one's own."""

    width = 0

    def __init__(self, scale):
        from sde_toolkit.data.augmentation import Draws

        self.scale, self.draws = scale, Draws(uniforms=1, normals=1)

    def __call__(self, x, uniform, normal):
        return x * (1 + self.scale * uniform[:, :1]), None


PARTS = {
    "transform": Standardise,
    "time_input": Clock,
    "sde": Path,
    "times": Late,
    "loss": Weighted,
    "network": Shrinking,
    "augmentation": Stretched,
}
SAID = {"loss": r"held.loss.scale='1\.0', now"}
OPTIONS = dataclasses.replace(SHORT, steps=10)


def go(folder, until, options=OPTIONS, data=None, **parts):
    torch.manual_seed(0)
    network = parts.pop("network", None) or MLP(event_shape=(2,), width=8, depth=1)
    sde = parts.pop("sde", VPSDE())
    own = {name: parts.pop(name) for name in ("transform", "time_input") if name in parts}
    model = ScoreModel(network, sde, "edm", event_shape=(2,), **own)
    data = data or dataclasses.replace(checkerboard(n=200), transform=Identity())
    return train(model, data, folder, options, until=until, **parts)


@pytest.mark.parametrize("part", PARTS)
def test_a_part_of_the_same_name_with_other_numbers_is_refused(tmp_path, part):
    """And with the same numbers, in an object of its own, the run goes on as if never stopped."""
    go(tmp_path / "run", 5, **{part: PARTS[part](1.0)})
    before = contents(tmp_path / "run")
    for other in (0.9, 1.1, 100.0):
        with pytest.raises(CheckpointError, match=SAID.get(part, f"its {part} has the same name")):
            go(tmp_path / "run", 10, **{part: PARTS[part](other)})
        assert contents(tmp_path / "run") == before
    go(tmp_path / "run", 10, **{part: PARTS[part](1.0)})
    go(tmp_path / "whole", 10, **{part: PARTS[part](1.0)})
    one, two = weights(tmp_path / "run", "raw"), weights(tmp_path / "whole", "raw")
    assert all(torch.equal(one[key], two[key]) for key in one)


def closure(scale):
    return lambda *arguments: scale * Weighted(1.0)(*arguments)


def default(scale):
    def loss(*arguments, factor=scale):
        return factor * Weighted(1.0)(*arguments)

    return loss


LOSSES = {
    "closure": closure,
    "default": default,
    "partial": lambda scale: functools.partial(lambda factor, *a: factor * Weighted(1.0)(*a), scale),
    "method": lambda scale: Weighted(scale).__call__,
    "function in a function": lambda scale: (lambda inner: lambda *a: inner(*a))(closure(scale)),
    "tensor": lambda scale: Weighted(torch.tensor(scale)),
    "list": lambda scale: (lambda scales: lambda *a: scales[1] * Weighted(1.0)(*a))([1.0, scale]),
}


@pytest.mark.parametrize("kind", LOSSES)
def test_a_loss_is_known_by_the_numbers_that_it_holds(tmp_path, kind):
    """However it holds them. It is not called for this."""
    go(tmp_path, 5, loss=LOSSES[kind](1.0))
    with pytest.raises(CheckpointError, match=r"held\.loss"):
        go(tmp_path, 10, loss=LOSSES[kind](1.1))
    go(tmp_path, 10, loss=LOSSES[kind](1.0))


def test_a_loss_that_holds_a_network_nan_or_itself_goes_on(tmp_path):
    """What changes from call to call is no number of its own."""

    class Strange(Weighted):
        def __init__(self):
            super().__init__(1.0)
            self.teacher, self.limit, self.itself = torch.nn.Linear(2, 2), float("nan"), self

    go(tmp_path, 5, loss=Strange())
    go(tmp_path, 10, loss=Strange())


def test_small_differences_of_a_part_that_can_be_read_off_are_refused(tmp_path):
    go(tmp_path, 5, transform=Standardise(1.0))
    with pytest.raises(CheckpointError, match="transform"):
        go(tmp_path, 10, transform=Standardise(1.001))


def test_a_part_that_learns_is_known_by_its_weights(tmp_path):
    """Its answers change from step to step, and the run goes on all the same, to the bit."""

    class Learned(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rate = torch.nn.Parameter(torch.ones((), dtype=torch.float64))

        def forward(self, sde, t):
            return self.rate * t

    go(tmp_path / "run", 5, time_input=Learned())
    go(tmp_path / "run", 10, time_input=Learned())
    go(tmp_path / "whole", 10, time_input=Learned())
    one, two = weights(tmp_path / "run", "raw"), weights(tmp_path / "whole", "raw")
    assert one["time_input.rate"] != 1
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_network_that_cannot_be_tried_stops_nothing(tmp_path):
    """One that draws random numbers in every mode, and one that takes whole batches only."""

    class Random(Shrinking):
        def forward(self, x, time):
            return super().forward(x, time) * (1 + torch.rand(()))

    class Whole(Shrinking):
        def forward(self, x, time):
            if len(x) != 64:
                raise RuntimeError("whole batches only")
            return super().forward(x, time)

    options = dataclasses.replace(OPTIONS, held_out=0)
    for kind in (Random, Whole):
        folder = tmp_path / kind.__name__
        go(folder / "run", 5, options, network=kind(1.0))
        go(folder / "run", 10, options, network=kind(1.0))
        go(folder / "whole", 10, options, network=kind(1.0))
        one, two = weights(folder / "run", "raw"), weights(folder / "whole", "raw")
        assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_run_that_said_nothing_of_its_parts_goes_on(tmp_path):
    """One of before they were tried."""
    import yaml

    go(tmp_path, 5)
    folder = tmp_path / "checkpoints/step-000000005"
    record = yaml.safe_load((folder / "run.yaml").read_text())
    del record["behaviour"], record["held"]
    (folder / "run.yaml").write_text(yaml.safe_dump(record))
    state = torch.load(folder / "training.pt", weights_only=True)
    del state["trial"]
    torch.save(state, folder / "training.pt")
    go(tmp_path, 10)


# -- before the first step -------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Odd(VPSDE):
    extra: object = None


class Numbers(MLP):
    """A network that says of itself what is no plain data."""

    def __init__(self):
        super().__init__(event_shape=(2,), width=8, depth=1)
        self.hyperparameters = {"size": object()}


class Sparse(MLP):
    def __init__(self):
        super().__init__(event_shape=(2,), width=8, depth=1)
        self.register_buffer("table", torch.eye(3).to_sparse())


class Endless:
    event_shape, dtype, labelled = (2,), torch.float32, False

    def __len__(self):
        return 1

    def records(self, shard, start):
        yield from torch.zeros(300, 2)[start:]

    def decode(self, record):
        return record, None


class Forgetful(ShuffledStream):
    def state_dict(self):
        return {**super().state_dict(), "reader": Endless()}


UNSAVABLE = {
    "sde.extra": {"sde": Odd(extra=object())},
    "network.size": {"network": Numbers()},
    "network.table": {"network": Sparse()},
    "dataset.stream": {
        "data": Dataset("d", torch.zeros(0, 2), torch.zeros(9, 2), stream=Forgetful(Endless(), buffer=50)),
    },
}


@pytest.mark.parametrize("name", UNSAVABLE)
def test_what_no_checkpoint_can_hold_is_found_before_the_first_step(tmp_path, name):
    calls = []

    class Counting(Weighted):
        def __call__(self, *arguments):
            calls.append(1)
            return super().__call__(*arguments)

    with pytest.raises(ArgumentError, match=name):
        go(tmp_path / "run", None, loss=Counting(1.0), **UNSAVABLE[name])
    assert not calls
    assert not (tmp_path / "run").exists()


def test_a_watcher_that_could_not_draw_is_found_before_the_first_step(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match="matplotlib"):
        go(tmp_path / "run", None, watchers=[SampleSheet()])
    with pytest.raises(ArgumentError, match=r"watchers\[0\]"):
        go(tmp_path / "run", None, watchers=[print])
    assert not (tmp_path / "run").exists()


def test_other_data_sets_and_models_are_named(tmp_path):
    data = torch.utils.data.TensorDataset(torch.zeros(9, 2))
    with pytest.raises(DataError, match=r"dataset=.*Dataset\("):
        go(tmp_path / "run", None, data=data)
    model = ScoreModel(lambda x, time: x, VPSDE(), event_shape=(2,))
    with pytest.raises(ArgumentError, match="no parameters to train"):
        train(model, checkerboard(n=20), tmp_path / "run", SHORT)
    with pytest.raises(ArgumentError, match="not a ScoreModel"):
        train(MLP(event_shape=(2,)), checkerboard(n=20), tmp_path / "run", SHORT)
    assert not (tmp_path / "run").exists()


def grey(low, high):
    return low + (high - low) * torch.rand(64, 2, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("x", "transform", "recommended", "said"),
    [
        (grey(-1, 1), eight_bit(), None, DataError),
        (grey(0, 1), eight_bit(), None, UserWarning),
        ((255 * grey(0, 1)).to(torch.uint8), None, None, UserWarning),
        ((255 * grey(0, 1)).to(torch.uint8), None, eight_bit(), UserWarning),
        ((255 * grey(0, 1)).to(torch.uint8), eight_bit(), eight_bit(), None),
        (255 * grey(0, 1), eight_bit(), None, None),
        (grey(-1, 1), None, None, None),
    ],
)
@pytest.mark.parametrize("part", ["train", "test"])
def test_data_of_another_range_than_the_transform_names_are_refused_or_warned_of(
    tmp_path, recwarn, x, transform, recommended, said, part
):
    """In the part where they are; data as they should be make no noise."""
    good = recommended.inverse(grey(-1, 1)).to(x.dtype) if recommended else x
    given = {} if recommended is None else {"transform": recommended}
    if said and part == "test" and transform:
        good = (255 * grey(0, 1)).to(x.dtype)
    data = Dataset("d", good if part == "test" else x, x if part == "test" else good, **given)
    own = {} if transform is None else {"transform": transform}
    if said is DataError:
        with pytest.raises(DataError, match=rf"dataset\.{part}.*range"):
            go(tmp_path / "run", 1, data=data, **own)
        assert not (tmp_path / "run").exists()
        return
    go(tmp_path / "run", 1, data=data, **own)
    heard = [str(w.message) for w in recwarn if "range" in str(w.message)]
    assert any(text.startswith(f"dataset.{part}") for text in heard) == (said is UserWarning)
