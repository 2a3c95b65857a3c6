"""What a model is made of is written as plain data and read back equal, or refused before anything is done."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from sde_toolkit import MLP, SDE, VPSDE, FlowMatching, ScoreModel, networks, sde, transforms
from sde_toolkit.data import checkerboard
from sde_toolkit.errors import ArgumentError, CheckpointError, SDEToolkitError
from sde_toolkit.models import time_inputs
from sde_toolkit.models.checkpoint import check_plain
from sde_toolkit.models.descriptions import plain_data
from sde_toolkit.models.time_inputs import DiscreteIndex, NoiseLevel, ScaledTime
from sde_toolkit.sde import DiscreteVPSDE, Knots, LogSNRSDE
from sde_toolkit.training import TrainingOptions, train
from sde_toolkit.transforms import Affine

BETAS = np.linspace(1e-4, 0.05, 20)


def small(**changes):
    given = {"network": MLP(event_shape=(2,), width=8, depth=1), "sde": VPSDE(), "prediction": "v", "event_shape": (2,)}
    return ScoreModel(**{**given, **changes})


def there_and_back(model, folder, **own):
    model.save_pretrained(folder)
    return ScoreModel.from_pretrained(folder, **own)


PARTS = {
    "an array": {"sde": VPSDE.from_betas(BETAS)},
    "an array given as it is": {"sde": DiscreteVPSDE(BETAS)},
    "a tensor": {"sde": DiscreteVPSDE(torch.tensor(BETAS))},
    "single precision": {"sde": DiscreteVPSDE(torch.tensor(BETAS, dtype=torch.float32))},
    "scalars of numpy": {"sde": VPSDE(np.float64(0.2), np.float32(15))},
    "whole numbers of numpy": {"time_input": DiscreteIndex(np.int64(7))},
    "a scalar tensor": {"time_input": ScaledTime(torch.tensor(999.0))},
    "a scalar array": {"time_input": NoiseLevel(np.array(0.5))},
    "a transform": {"transform": Affine(np.float32(0.5), np.float64(2), low=np.int64(0), high=np.int16(1))},
    "a part of a part": {"sde": LogSNRSDE(Knots(np.linspace(0, 1, 5), torch.linspace(5, -5, 5)))},
    "an event shape": {"event_shape": torch.tensor([2], device="cpu").numpy().tolist(), "sigma_data": np.float32(0.5)},
    "a shape of numpy": {"event_shape": tuple(np.array([2], dtype=np.int32))},
    "a network": {"network": MLP(event_shape=tuple(np.array([2])), width=np.int64(8), depth=np.int32(1))},
}


@pytest.mark.parametrize("name", PARTS)
def test_numbers_of_numpy_and_torch_come_back(tmp_path, name):
    model = small(**PARTS[name])
    loaded = there_and_back(model, tmp_path)
    t = torch.linspace(0.05, 0.95, 7, dtype=torch.float64)
    assert (loaded.sde, loaded.time_input, loaded.transform) == (model.sde, model.time_input, model.transform)
    assert torch.equal(loaded.network_inputs(t)[0], model.network_inputs(t)[0])
    assert torch.equal(loaded.sde.sigma(t), model.sde.sigma(t))
    assert loaded.event_shape == model.event_shape == (2,)
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded.network(x, x[:, 0]), model.network(x, x[:, 0]))
    assert loaded.description() == model.description()


@dataclasses.dataclass(frozen=True)
class Inner:
    values: object


@dataclasses.dataclass(frozen=True)
class OwnPath(SDE):
    """A path of one's own, with a field for anything."""

    content: object = None

    def alpha(self, t):
        return 1 - t

    def sigma(self, t):
        return t


TEXTS = ["yes", "1e3", "null", "", "ü☃", "a: b\n- c"]
PLAIN = {
    "nested": ({"a": [(1, 2.5), {"b": None}], 3: "x"}, {"a": [[1, 2.5], {"b": None}], 3: "x"}),
    "arrays inside": ([np.arange(3), (torch.eye(2, dtype=torch.float64),)], [[0, 1, 2], [[[1.0, 0.0], [0.0, 1.0]]]]),
    "learned": (torch.nn.Parameter(torch.ones(2)), [1.0, 1.0]),
    "half": (torch.tensor([0.5], dtype=torch.bfloat16), [0.5]),
    "booleans": (np.array([True, False]), [True, False]),
    "texts": (TEXTS, TEXTS),
    "a text of numpy": (np.str_("a"), "a"),
    "infinite": ([float("inf"), -np.inf], [float("inf"), -float("inf")]),
    "keys of numpy": ({np.int64(1): np.float32(2)}, {1: 2.0}),
    "a shape": (torch.Size([1, 2]), [1, 2]),
    "nothing": ([(), {}, None], [[], {}, None]),
}  # fmt: skip


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("place", ["sde", "inside a dataclass", "network"])
def test_what_parts_of_ones_own_hold_is_written_as_plain_data(tmp_path, name, place):
    given, wanted = PLAIN[name]
    network = OwnNetwork()
    if place == "network":
        network.hyperparameters = {"content": given}
    content = {"sde": given, "inside a dataclass": Inner(given), "network": None}[place]
    small(sde=OwnPath(content), network=network).save_pretrained(tmp_path)
    found = yaml.safe_load((tmp_path / "model.yaml").read_text())
    written = found["network"]["content"] if place == "network" else found["sde"]["content"]
    assert (written["values"] if place == "inside a dataclass" else written) == wanted


class OwnNetwork(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)

    def forward(self, x, time):
        return self.layer(x)


def inside_itself():
    endless: list = []
    endless.append(endless)
    return endless


UNWRITABLE = {
    "an object": object(),
    "a set": {1, 2},
    "a complex number": 1j,
    "complex numbers": torch.ones(2, dtype=torch.complex64),
    "dates": np.array(["2001-01-01"], dtype="datetime64[D]"),
    "itself": inside_itself(),
    "an object in a list": [1, [SimpleNamespace()]],
    "a key": {(1, 2): 3},
    "a number of many digits": 10**5000,
    "half a character": "\ud800",
    "no values": torch.ones(2, device="meta"),
    "sparse": torch.eye(2).to_sparse(),
    "an iterator": iter([1]),
}


@pytest.mark.parametrize("name", UNWRITABLE)
@pytest.mark.parametrize("place", ["sde", "time_input", "transform", "network", "inside a dataclass"])
def test_what_cannot_be_written_is_refused_before_the_first_step_and_before_the_folder(tmp_path, name, place):
    content = UNWRITABLE[name]
    network = OwnNetwork()
    parts = {
        "sde": lambda: small(sde=OwnPath(content)),
        "inside a dataclass": lambda: small(sde=OwnPath([Inner(content)])),
        "time_input": lambda: small(time_input=OwnTime(content)),
        "transform": lambda: small(transform=OwnTransform(content)),
        "network": lambda: small(network=network),
    }
    network.hyperparameters = {"content": content}
    model = parts[place]()
    folder = tmp_path / "run"
    options = TrainingOptions(steps=2, batch_size=4, held_out=4)
    where = "sde" if place == "inside a dataclass" else place
    for act in (
        model.check_savable,
        lambda: model.save_pretrained(folder),
        lambda: train(model, checkerboard(n=20), folder, options),
    ):
        with pytest.raises(ArgumentError, match=rf"^{where}\.") as caught:
            act()
        assert len(str(caught.value)) < 1000
        assert not folder.exists()


@dataclasses.dataclass(frozen=True)
class OwnTime:
    content: object = None

    def __call__(self, sde, t):
        return t


@dataclasses.dataclass(frozen=True)
class OwnTransform(transforms.Identity):
    content: object = None


def test_states_that_no_file_can_hold_are_refused(tmp_path):
    lazy, sparse = OwnNetwork(), OwnNetwork()
    lazy.other = torch.nn.LazyLinear(2)
    sparse.register_buffer("table", torch.eye(2).to_sparse())
    for network in (lazy, sparse, WithExtraState()):
        with pytest.raises(ArgumentError, match=r"network\."):
            small(network=network).save_pretrained(tmp_path / "model")
        options = TrainingOptions(steps=1, batch_size=4)
        with pytest.raises(ArgumentError, match=r"network\."):
            train(small(network=network), checkerboard(n=20), tmp_path / "model", options)
        assert not (tmp_path / "model").exists()


class WithExtraState(OwnNetwork):
    def get_extra_state(self):
        return {"step": 1}

    def set_extra_state(self, state):
        pass


def test_tensors_that_share_memory_are_written(tmp_path):
    tied = OwnNetwork()
    tied.again = torch.nn.Linear(2, 2)
    tied.again.weight = tied.layer.weight
    tied.register_buffer("view", tied.layer.weight.detach()[0])
    fresh = OwnNetwork()
    fresh.again = torch.nn.Linear(2, 2)
    fresh.register_buffer("view", torch.zeros(2))
    loaded = there_and_back(small(network=tied), tmp_path, network=fresh)
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), tied.state_dict().values(), strict=True))


def test_a_list_that_stands_twice_is_written_twice(tmp_path):
    network, twice = OwnNetwork(), [1, 2]
    network.hyperparameters = {"a": twice, "b": twice}
    small(network=network).save_pretrained(tmp_path)
    assert "*" not in (tmp_path / "model.yaml").read_text()


# -- identity ---------------------------------------------------------------------------------------------------------


def named(name, kind):
    kind.__name__ = kind.__qualname__ = name
    return kind


def impostors():
    """Parts of one's own under every public name of every room: fresh classes, subclasses of ours, functions."""
    rooms = {"sde": (sde, OwnPath), "time_input": (time_inputs, OwnTime), "transform": (transforms, OwnTransform)}
    for role, (room, base) in rooms.items():
        for name in room.__all__:
            yield role, name, named(name, type(name, (base,), {}))()
            ours = getattr(room, name)
            if isinstance(ours, type) and name not in ("SDE", "Knots", "Time", "Transform"):
                yield role, name, named(name, type(name, (ours,), {}))()
    for name in networks.__all__:
        yield "network", name, named(name, type(name, (OwnNetwork,), {}))()
        yield "network", name, named(name, lambda x, time, condition=None: x)
    yield "network", "MLP", named("MLP", type("MLP", (MLP,), {}))(event_shape=(2,), width=8, depth=1)
    yield "time_input", "ScaledTime", named("ScaledTime", lambda sde, t: t)


@pytest.mark.parametrize(("role", "name", "part"), list(impostors()), ids=lambda v: v if isinstance(v, str) else "")
def test_a_part_of_ones_own_is_never_rebuilt_as_ours(tmp_path, role, name, part):
    """Whatever it is called: it has to be passed, and what was passed is what the model has."""
    model = small(**{role: part})
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=rf"its {role} is your own, '{name}'.*{role}=\.\.\."):
        ScoreModel.from_pretrained(tmp_path)
    assert getattr(ScoreModel.from_pretrained(tmp_path, **{role: part}), role) is part


def test_a_name_written_by_hyperparameters_is_refused(tmp_path):
    network = OwnNetwork()
    for key in ("class", "own class", "own function"):
        network.hyperparameters = {key: "MLP", "width": 8}
        with pytest.raises(ArgumentError, match=r"network\.hyperparameters"):
            small(network=network).save_pretrained(tmp_path)


def test_a_curve_of_ones_own_inside_a_path_of_ours_has_to_be_passed(tmp_path):
    def Knots(t):  # noqa: N802 - the name of ours, on purpose
        return 5 - 10 * t

    model = small(sde=LogSNRSDE(Knots))
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"sde=\.\.\."):
        ScoreModel.from_pretrained(tmp_path)
    assert ScoreModel.from_pretrained(tmp_path, sde=model.sde).sde is model.sde


def test_notes_of_earlier_versions_are_still_read(tmp_path):
    """They named parts of one's own by their bare names."""
    small(sde=OwnPath()).save_pretrained(tmp_path)
    text = (tmp_path / "model.yaml").read_text()
    (tmp_path / "model.yaml").write_text(text.replace("own class: OwnPath", "class: OwnPath"))
    with pytest.raises(CheckpointError, match=r"sde is 'OwnPath', which is not a class of sde_toolkit"):
        ScoreModel.from_pretrained(tmp_path)
    assert ScoreModel.from_pretrained(tmp_path, sde=OwnPath()).sde == OwnPath()


# -- compiled and parallel networks -----------------------------------------------------------------------------------


def compiled(network):
    return torch.compile(network, backend="eager")


WRAPPERS = {
    "compiled": compiled,
    "parallel": torch.nn.DataParallel,
    "compiled, parallel": lambda n: torch.nn.DataParallel(compiled(n)),
    "parallel, compiled": lambda n: compiled(torch.nn.DataParallel(n)),
    "parallel twice": lambda n: torch.nn.DataParallel(torch.nn.DataParallel(n)),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrapped_networks_are_saved_as_the_network_inside(tmp_path, name):
    network = MLP(event_shape=(2,), width=8, depth=1, num_classes=3, out_channels=4, augmentation_width=2)
    plain, wrapped = (small(network=n, learned_variance=True) for n in (network, WRAPPERS[name](network)))
    assert wrapped.num_classes == 3
    assert wrapped.description() == plain.description()
    loaded = there_and_back(wrapped, tmp_path)
    assert load_file(tmp_path / "ema.safetensors").keys() == plain.state_dict().keys()
    assert type(loaded.network) is MLP
    for key, value in plain.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)
    again = ScoreModel.from_pretrained(tmp_path, network=WRAPPERS[name](MLP(**network.hyperparameters)))
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), network.parameters(), strict=True))


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_layer_may_be_wrapped_too(tmp_path, name):
    network = OwnNetwork()
    plain = {f"network.{k}": v for k, v in network.state_dict().items()}
    network.layer = WRAPPERS[name](network.layer)
    loaded = there_and_back(small(network=network), tmp_path, network=OwnNetwork())
    assert loaded.state_dict().keys() == plain.keys()
    assert all(torch.equal(loaded.state_dict()[k], v) for k, v in plain.items())


@pytest.mark.parametrize("outside", ["_orig_mod.", "module.", "module._orig_mod."])
@pytest.mark.parametrize("inside", ["", "_orig_mod.", "module.", "_orig_mod.module."])
def test_names_that_were_written_elsewhere_are_read(tmp_path, outside, inside):
    model = small()
    model.save_pretrained(tmp_path)
    there = load_file(tmp_path / "ema.safetensors")
    renamed = {f"{outside}{k.replace('network.', f'network.{inside}')}": v for k, v in there.items()}
    save_file(renamed, tmp_path / "ema.safetensors")
    loaded = ScoreModel.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in model.state_dict().items())


def test_a_layer_that_is_called_module_keeps_its_name(tmp_path):
    class Own(OwnNetwork):
        def __init__(self):
            super().__init__()
            self.module = torch.nn.Linear(2, 2)
            self.layer.module = torch.nn.Linear(2, 2)

    model = small(network=Own())
    loaded = there_and_back(model, tmp_path, network=Own())
    assert all(torch.equal(loaded.state_dict()[k], v) for k, v in model.state_dict().items())
    assert "network.module.weight" in loaded.state_dict()


def test_a_compiled_network_is_trained_saved_and_read(tmp_path):
    model = small(network=compiled(MLP(event_shape=(2,), width=8, depth=1)))
    options = TrainingOptions(steps=4, batch_size=8, held_out=8)
    trained = train(model, checkerboard(n=50), tmp_path, options)
    loaded = ScoreModel.from_pretrained(tmp_path)
    pairs = zip(trained.parameters(), loaded.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert train(model, checkerboard(n=50), tmp_path, options) is not None  # and it goes on from there


@pytest.mark.parametrize("text", [{"a": float("nan")}, {"a": [1, {"b": "\x00\x85"}]}, {"a": 10**400}, {"a": "0x1"}])
def test_yaml_gives_back_what_it_was_given(text):
    found = yaml.safe_load(check_plain("content", text))
    assert repr(found) == repr(text)


def test_plain_data_is_what_yaml_makes_of_it():
    for given, wanted in PLAIN.values():
        assert plain_data(given) == wanted
        assert yaml.safe_load(check_plain("content", {"x": plain_data(given)})) == {"x": wanted}
    with pytest.raises(SDEToolkitError):
        check_plain("content", {"x": FlowMatching()})
