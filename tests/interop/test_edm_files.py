"""EDM's pickles: what their own code says of the same network (make_edm_fixtures.py), and files that mean harm."""

import io
import lzma
import pickle
import resource
import struct
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from make_edm_fixtures import CASES, LEVELS, SHAPES, inputs

from sde_toolkit import ScoreModel, grids, heun, interop, sample
from sde_toolkit.errors import ArgumentError, CheckpointError
from sde_toolkit.interop import inert_pickle

HERE = Path(__file__).parent / "edm"
WITH_CLASSES = [name for name, (_, options) in CASES.items() if "label_dim" in options]


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """(name, the model that is read from the pickle, what EDM's code says)."""
    file = unpacked(request.param, tmp_path_factory.mktemp("edm"))
    return request.param, interop.load(file), np.load(HERE / f"{request.param}.npz")


def unpacked(name, folder):
    file = folder / f"{name}.pkl"
    file.write_bytes(lzma.decompress((HERE / f"{name}.pkl.xz").read_bytes()))
    return file


def denoised(model, shape, sigmas, classes):
    """x̂_0 of the inputs of the fixtures: EDM's x is x_t/α."""
    x, label = inputs(shape, sigmas)
    t = model.sde.inverse_half_log_snr(-torch.log(torch.as_tensor(sigmas)))
    alpha = model.sde.alpha(t)[:, None, None, None]
    with torch.no_grad():
        return model((alpha * torch.as_tensor(x)).float(), t, torch.as_tensor(label) if classes else None).x_0


def assert_close(ours, theirs, tolerance):
    """Of every sample, the difference is small beside the norm."""
    theirs = torch.as_tensor(theirs, dtype=torch.float64)
    off = (ours - theirs).flatten(1).norm(dim=1) / theirs.flatten(1).norm(dim=1)
    assert off.max() < tolerance, off


def test_denoises_as_the_code_that_wrote_it(case):
    name, model, theirs = case
    for shape in SHAPES:
        ours = denoised(model, shape, theirs["sigmas"], name in WITH_CLASSES)
        assert len(ours) == LEVELS
        assert_close(ours, theirs["x{}x{}".format(*shape)], 1e-5)
    if name in WITH_CLASSES:
        assert_close(denoised(model, SHAPES[0], theirs["sigmas"], False), theirs["without_class"], 1e-5)
        x, t = torch.randn(2, 3, 8, 8), 0.5
        no_class = torch.full((2,), model.num_classes)
        torch.testing.assert_close(model(x, t, no_class).x_0, model(x, t).x_0, rtol=1e-5, atol=1e-6)


def test_has_the_same_parameters_and_takes_grey_levels(case):
    _, model, theirs = case
    assert sum(p.numel() for p in model.parameters()) == theirs["count"]
    assert not model.training
    assert model.event_shape == (3, 8, 8)
    assert model.transform.forward(torch.tensor([0.0, 255.0])).tolist() == [-1.0, 1.0]


def test_heun_follows_edms_sampler(case):
    name, model, theirs = case
    grid = grids.from_sigmas(model.sde, theirs["grid"])
    alpha = model.sde.alpha(grid[0])
    start, label = inputs(SHAPES[0], np.zeros(LEVELS))
    x_start = 2 * torch.as_tensor(start[:2], dtype=torch.float64) * theirs["grid"][0] * alpha
    told = torch.as_tensor(label[:2]) if name in WITH_CLASSES else None
    found = sample(model, heun(), grid, x_start=x_start, condition=told, tweedie=True)
    assert_close(found.x, theirs["end"], 1e-4)


def test_is_written_as_ours_and_read_back(case, tmp_path):
    _, model, _ = case
    model.save_pretrained(tmp_path)
    again = ScoreModel.from_pretrained(tmp_path)
    x = torch.randn(2, *model.event_shape)
    label = None if model.num_classes is None else torch.tensor([0, 1])
    assert torch.equal(again(x, 0.4, label).x_0, model(x, 0.4, label).x_0)
    assert again.sde == model.sde


def test_noise_levels_may_be_told_where_the_file_leaves_them_open(tmp_path):
    file = unpacked("edm_ddpmpp", tmp_path)
    sde = interop.load(file, sigma_min=0.01, sigma_max=50.0).sde
    assert (sde.sigma_min, sde.sigma_max) == (0.01, 50.0)
    with pytest.raises(ArgumentError, match="sigma_max=-1"):
        interop.load(file, sigma_max=-1)
    with pytest.raises(ArgumentError, match=r"sigma_min=0\.1.*schedule"):
        interop.load(unpacked("vp_ddpmpp", tmp_path), sigma_min=0.1)


# Files that mean harm. Each begins like one of EDM's, so that its reader takes it.


class Calls:
    """Pickled as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Writer(pickle._Pickler):
    """Writes names that need not exist."""

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, inert_pickle.Name):
            self.write(b"c" + "\n".join([*obj.text.rsplit(".", 1), ""]).encode())
        elif isinstance(obj, inert_pickle.Built):
            self.save(inert_pickle.Name(obj.name))
            self.save(obj.arguments)
            self.write(pickle.REDUCE)
            if obj.items:
                self._batch_setitems(obj.items.items())
            if obj.state is not None:
                self.save(obj.state)
                self.write(pickle.BUILD)
        else:
            super().save(obj, save_persistent_id)


def written(content, file):
    """``content``, records of inert_pickle in it, as a pickle of EDM's."""
    out = io.BytesIO()
    mark = inert_pickle.Name(inert_pickle.PERSISTENT)
    Writer(out, 4).dump({"made by": mark, **content})
    file.write_bytes(out.getvalue())
    return file


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """The records of a pickle. A test changes its own copy."""
    return pickle.dumps(inert_pickle.read_pickle(unpacked("vp_ddpmpp", tmp_path_factory.mktemp("records"))))


def test_records_are_written_as_they_were_read(content, tmp_path):
    model = interop.load(written(pickle.loads(content), tmp_path / "same.pkl"))
    assert sum(p.numel() for p in model.parameters()) > 10_000


@pytest.mark.parametrize(
    "evil",
    [
        Calls(exec, "raise SystemExit('code of a file was run')"),
        inert_pickle.Built("os.system", ("touch ran",)),
        inert_pickle.Built("builtins.eval", ("1/0",)),
        inert_pickle.Name("training.networks.EDMPrecond"),
        inert_pickle.Built("torch.load", ("elsewhere.pt",)),
        inert_pickle.Built("torch.nn.modules.module.os.system", ("touch ran",)),
    ],
)
def test_a_name_that_no_network_needs_is_refused(evil, content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in ({"first": evil}, {}):
        found = {**place, **pickle.loads(content), **({} if place else {"last": evil})}
        file = written(found, tmp_path / "evil.pkl")
        with pytest.raises(CheckpointError, match=r"evil\.pkl.*nothing of it was run"):
            interop.load(file)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["evil.pkl"]


def test_the_source_code_in_a_file_is_left_alone(content):
    """It would end this process: make_edm_fixtures.py."""
    assert "SystemExit" in inert_pickle._meta(pickle.loads(content)["ema"])["module_src"]


def network_of(found):
    return inert_pickle.state_of(inert_pickle.state_of(found["ema"])["_modules"]["model"])


def first_tensor(found):
    return network_of(found)["_modules"]["map_layer0"].arguments[0]["state"]["_parameters"]["weight"].arguments[0]


def forge_shape(found):
    record = first_tensor(found)
    record.arguments = (record.arguments[0], 0, (10**6, 10**6), (10**6, 1), *record.arguments[4:])


def forge_expansion(found):
    record = first_tensor(found)
    record.arguments = (record.arguments[0], 0, (2**14, 2**14), (0, 0), *record.arguments[4:])


def forge_offset(found):
    record = first_tensor(found)
    record.arguments = (record.arguments[0], 10**9, *record.arguments[2:])


def forge_memory(found):
    """A storage that says that it has 10¹⁵ numbers."""
    storage = first_tensor(found).arguments[0]
    torch_bytes = storage.arguments[0]
    count = len(torch_bytes) - torch_bytes.rindex(b".") - 1 - 8
    little = struct.pack("<q", count // 4)
    storage.arguments = (torch_bytes.replace(little, struct.pack("<q", 10**15)),)


def forge_width(found):
    network_of(found)["_init_kwargs"]["model_channels"] = 10**9


def forge_depth(found):
    network_of(found)["_init_kwargs"]["num_blocks"] = 10**9


def forge_resolution(found):
    network_of(found)["_init_kwargs"]["channel_mult"] = [1] * 10**5


def forge_class(found):
    inert_pickle._meta(found["ema"])["class_name"] = "MyPrecond"


def forge_options(found):
    network_of(found)["_init_kwargs"] = 5


def forge_schedule(found):
    inert_pickle.state_of(found["ema"])["beta_d"] = float("nan")


def add_layer(found):
    network_of(found)["_modules"]["fusion"] = network_of(found)["_modules"]["map_layer0"]


def diverge(found):
    first_tensor(found).arguments[0].arguments = (
        first_tensor(found).arguments[0].arguments[0][:-4] + struct.pack("<f", float("nan")),
    )


def nest(found):
    """Thirty modules, each of which is twice in the one above: 2³⁰ of them when they are spelled out."""
    module = network_of(found)["_modules"]["map_layer0"]
    for _ in range(30):
        module = inert_pickle.Built(inert_pickle.PERSISTENT, ({"state": {"_modules": {"a": module, "b": module}}},))
    network_of(found)["_modules"]["map_layer1"] = module


FORGERIES = [
    forge_shape,
    forge_expansion,
    forge_offset,
    forge_memory,
    forge_width,
    forge_depth,
    forge_resolution,
    forge_class,
    forge_options,
    forge_schedule,
    add_layer,
    diverge,
    nest,
]


@contextmanager
def little_memory():
    """The most memory that this process ever had grows by less than 100 MB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 100 * 1024  # in kB


@pytest.mark.parametrize("forge", FORGERIES, ids=lambda f: f.__name__)
def test_forged_sizes_and_options_are_refused_and_cost_nothing(forge, content, tmp_path):
    found = pickle.loads(content)
    forge(found)
    file = written(found, tmp_path / "forged.pkl")
    with little_memory(), pytest.raises(CheckpointError, match="forged"):
        interop.load(file)


@pytest.mark.parametrize(
    "bomb",
    [
        pickle.BINBYTES8 + struct.pack("<Q", 2**40) + b"x",  # 1 TB of bytes
        pickle.EMPTY_DICT + pickle.LONG_BINPUT + struct.pack("<I", 2**32 - 1),  # a table of 4 billion places
        pickle.BYTEARRAY8 + struct.pack("<Q", 2**40),
        pickle.LONG4 + struct.pack("<i", 2**30),
        pickle.FRAME + struct.pack("<Q", 2**40),
        b"(" * 10**5,
        pickle.EMPTY_DICT + pickle.NONE + pickle.BUILD,
        pickle.EXT1 + b"\x01",
        pickle.BINPERSID,
    ],
    ids=["bytes", "memo", "bytearray", "integer", "frame", "marks", "build", "extension", "persistent"],
)
def test_opcodes_that_ask_for_memory_or_for_objects_are_refused(bomb, tmp_path):
    head = pickle.PROTO + b"\x05" + b"c" + "\n".join([*inert_pickle.PERSISTENT.rsplit(".", 1), ""]).encode()
    file = tmp_path / "bomb.pkl"
    file.write_bytes(head + bomb + pickle.STOP)
    with little_memory(), pytest.raises(CheckpointError, match=r"bomb\.pkl"):
        interop.load(file)


def test_a_truncated_file_is_refused(tmp_path):
    whole = unpacked("vp_ddpmpp", tmp_path).read_bytes()
    for length in (len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.pkl").write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"cut\.pkl"):
            interop.load(tmp_path / "cut.pkl")


def test_without_the_reader_a_bare_network_is_read_too(tmp_path, content):
    found = pickle.loads(content)
    out = io.BytesIO()
    Writer(out, 4).dump(found["ema"])
    (tmp_path / "bare.pkl").write_bytes(out.getvalue())
    assert interop.load(tmp_path / "bare.pkl").event_shape == (3, 8, 8)
