"""Whatever a file of a stranger holds, it is loaded or refused by a typed error, soon and in little memory."""

import json
import os
import re
import struct
import time
import zipfile
from contextlib import contextmanager

import pytest
import torch
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from sde_toolkit import MLP, VPSDE, ScoreModel, UNet, sde
from sde_toolkit.calibration import Calibration, Measured, load_calibration
from sde_toolkit.calibration.calibration_files import model_digest, sde_fingerprint
from sde_toolkit.checks import is_count, is_number
from sde_toolkit.errors import ArgumentError, CheckpointError, DataError, SDEToolkitError
from sde_toolkit.files.plain import UnreadableFileError, read_json, read_yaml
from sde_toolkit.files.tensors import load_torch_file
from sde_toolkit.grids import uniform
from sde_toolkit.jobs.store import PartStore
from sde_toolkit.metrics.records import Quality, compare_records
from sde_toolkit.networks import ddpm_cifar10, ddpmpp_cifar10, ncsnpp_cifar10
from sde_toolkit.solvers import ddim, dpmpp_2m

ONE_FOLDER = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@contextmanager
def soon(seconds=60.0):
    """The processor time of the block is bounded. What is guarded against takes hours; a busy machine takes seconds."""
    began = time.process_time()
    yield
    assert time.process_time() - began < seconds


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A checkpoint, and its description as data."""
    folder = tmp_path_factory.mktemp("model")
    ScoreModel(MLP(event_shape=(2,), width=8, depth=1), VPSDE(), "v", event_shape=(2,)).save_pretrained(folder)
    text = (folder / "model.yaml").read_text()
    return folder, text, yaml.safe_load(text)


@pytest.fixture(scope="module", autouse=True)
def weights(written):
    return (written[0] / "ema.safetensors").read_bytes()


@pytest.fixture
def folder(written, weights):
    """The checkpoint as it was written, for every test anew, whatever the tests before have done to it."""
    place, text, _ = written

    def restore():
        for name, content in (("model.yaml", text.encode()), ("ema.safetensors", weights)):
            (place / name).unlink(missing_ok=True)
            (place / name).write_bytes(content)

    restore()
    yield place
    restore()


def loads_or_refuses(call, kind=SDEToolkitError):
    """What was loaded, or None."""
    try:
        return call()
    except kind as error:
        refused = error
    assert len(str(refused)) < 2000
    return None


# -- any bytes, any tree ----------------------------------------------------------------------------------------------

NUMBERS = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from([0, -1, 10**9, 10**12, 10**30, 10**400, -(10**400), 1e308, float("nan"), float("inf"), True]),
)
LEAVES = st.one_of(st.none(), NUMBERS, st.text(max_size=8), st.sampled_from(["class", "own class", "VPSDE", "Knots"]))
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.one_of(st.text(max_size=6), st.sampled_from(["class", "function", "own class"])),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=8,
)


def leaves(tree, path=()):
    """The paths to everything in a tree."""
    yield path
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield from leaves(value, (*path, key))


def changed(tree, path, value):
    """The tree with another value at one place."""
    if not path:
        return value
    copied = dict(tree) if isinstance(tree, dict) else list(tree)
    copied[path[0]] = changed(tree[path[0]], path[1:], value)
    return copied


@ONE_FOLDER
@given(st.data())
def test_any_change_of_a_description_loads_or_is_refused(written, data):
    place, _, description = written
    path = data.draw(st.sampled_from([p for p in leaves(description) if p]))
    (place / "model.yaml").write_text(yaml.safe_dump(changed(description, path, data.draw(TREES)), allow_unicode=True))
    with soon():
        model = loads_or_refuses(lambda: ScoreModel.from_pretrained(place))
    if model is not None:
        assert all(p.isfinite().all() for p in model.parameters())


@ONE_FOLDER
@given(st.one_of(st.binary(max_size=300), st.text(max_size=200).map(lambda s: s.encode("utf-8", "replace"))))
@example(b"[" * 100_000)
@example(b"? " * 20_000)
@example(b"- " * 20_000)
@example(b"a: " + b"9" * 10_000_000)
@example(b"a: 1" + b":01" * 1_000_000)
@example(b"a: 0x" + b"f" * 1_000_000)
@example(b"a: &a [*a]")
@example(b"a: &a {b: *a}")
@example(b"a: 2001-99-99")
@example(b"a: !!bool maybe")
@example(b"a: !!int ''")
@example(b"a: !!timestamp x")
@example(b"!!set {a, b}")
@example(b"a: !!python/object/apply:os.system [true]")
@example(b"\xff\xfe\x00")
@example(b"%YAML 9.9\n---\n")
@example(b"a: 1\n---\nb: 2")
@example(b"<<: [{a: 1}, 3]")
@example(b"? [1, 2]\n: 3")
@example(b"? {a: 1}\n: 3")
def test_any_bytes_are_yaml_or_are_not(tmp_path_factory, content):
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_bytes(content)
    with soon():
        loads_or_refuses(lambda: read_yaml(file), UnreadableFileError)


@ONE_FOLDER
@given(st.one_of(st.binary(max_size=300), st.text(max_size=200).map(lambda s: s.encode("utf-8", "replace"))))
@example(b"[" * 100_000)
@example(b'{"a":' * 100_000)
@example(b"[" * 500 + b"]" * 500)
@example(b"9" * 10_000_000)
def test_any_bytes_are_json_or_are_not(tmp_path_factory, content):
    file = tmp_path_factory.getbasetemp() / "any.json"
    file.write_bytes(content)
    with soon():
        loads_or_refuses(lambda: read_json(file), UnreadableFileError)


@pytest.fixture(scope="module")
def calibration(tmp_path_factory):
    """A calibration file, its content, and the model it is for."""
    model = ScoreModel(MLP(event_shape=(2,), width=8, depth=1), VPSDE(), "v", event_shape=(2,)).eval()
    record = {"sde": sde_fingerprint(model.sde), "model": {"sha256": model_digest(model)}}
    error = Measured(0.5, 0.1)
    made = Calibration(dpmpp_2m(), uniform(model.sde, 4, end=0.01), True, 5, error, error, False, "none", record)
    file = tmp_path_factory.mktemp("calibration") / "c.json"
    made.save(file)
    return file, json.loads(file.read_text()), model


@ONE_FOLDER
@given(st.data())
def test_any_change_of_a_calibration_loads_and_samples_or_is_refused(calibration, data):
    file, content, model = calibration
    path = data.draw(st.sampled_from(list(leaves(content))))
    target = file.with_name("changed.json")
    target.write_text(json.dumps(changed(content, path, data.draw(TREES))))
    loaded = loads_or_refuses(lambda: load_calibration(target), CheckpointError)
    if loaded is not None:
        loads_or_refuses(lambda: loaded.check(model))
        assert isinstance(str(loaded), str)


@ONE_FOLDER
@given(st.data())
def test_any_change_of_a_quality_record_compares_or_is_refused(tmp_path_factory, data):
    file = tmp_path_factory.getbasetemp() / "quality.json"
    whole = Quality({"fid": 1.5}, {"fid": 0.1}, {"fid": [1.0, None]}, {"metrics": {"fid": {"n": 3}}, "n": 5}, {})
    whole.save(file)
    content = json.loads(file.read_text())
    file.write_text(json.dumps(changed(content, data.draw(st.sampled_from(list(leaves(content)))), data.draw(TREES))))
    loads_or_refuses(lambda: compare_records(whole, file))


@ONE_FOLDER
@given(TREES)
def test_any_request_of_a_store_is_read_or_refused(tmp_path_factory, tree):
    folder = tmp_path_factory.getbasetemp() / "store"
    (folder / "parts").mkdir(parents=True, exist_ok=True)
    (folder / "parts" / "00000.npz").write_bytes(b"")
    (folder / "request.json").write_text(json.dumps(tree))
    loads_or_refuses(lambda: PartStore(folder, {"a": 1}).claim(dict), ArgumentError)


# -- declared sizes ---------------------------------------------------------------------------------------------------


def describe(folder, **changes):
    """The checkpoint with some values of its network replaced."""
    found = yaml.safe_load((folder / "model.yaml").read_text())
    found["network"].update(changes)
    (folder / "model.yaml").write_text(yaml.safe_dump(found))


@pytest.mark.parametrize("size", [2_000_000, 10**9, 10**12, 10**30, 10**400])
@pytest.mark.parametrize("name", ["width", "depth", "num_classes", "out_channels", "augmentation_width"])
def test_a_network_far_larger_than_its_weights_is_refused_before_it_is_made(folder, name, size):
    describe(folder, **{name: size})
    with soon(), pytest.raises(CheckpointError, match=r"does not fit|cannot be rebuilt"):
        ScoreModel.from_pretrained(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"embedding": "fourier", "width": 10**12},
        {"embedding": "fourier", "width": 2**31},
        {"class": "PublishedUNet", "embedding": "fourier", "embedding_width": 10**12},
        {"class": "PublishedUNet", "taps": [1.0] * 10_000},
        {"event_shape": [10**6, 10**6]},
        {"event_shape": [10**12] * 10},
        {"class": "UNet", "widths": [2**40]},
        {"class": "UNet", "widths": [16] * 1000},
        {"class": "UNet", "blocks_per_level": 10**9},
        {"class": "UNet", "dims": 10**9},
        {"class": "UNet", "in_channels": 10**15},
        {"class": "PublishedUNet", "blocks_per_level": 10**9},
    ],
    ids=lambda changes: str(changes)[:60],
)
def test_declared_shapes_and_counts_are_refused_before_they_are_made(folder, changes):
    found = yaml.safe_load((folder / "model.yaml").read_text())
    found["network"] = {"class": "MLP", **changes}
    (folder / "model.yaml").write_text(yaml.safe_dump(found))
    with soon(), pytest.raises(CheckpointError, match=r"does not fit|cannot be rebuilt"):
        ScoreModel.from_pretrained(folder)


SMALL = {"widths": (8, 16), "blocks_per_level": 1, "attention_levels": (1,), "groups": 4}
PUBLISHED = {
    "MLP": lambda: MLP(event_shape=(2,), width=8, depth=1, num_classes=2, augmentation_width=3, embedding="fourier"),
    "UNet": lambda: UNet(widths=(8, 16), blocks_per_level=1, attention_levels=(1,), num_classes=2),
    "ddpm": lambda: ddpm_cifar10(**SMALL),
    "ddpmpp": lambda: ddpmpp_cifar10(**SMALL),
    "ncsnpp": lambda: ncsnpp_cifar10(**SMALL),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_networks_are_compared_without_memory_and_come_back(tmp_path, name):
    """Tables that are no weights (kernels, frequencies) are as they were, too."""
    network = PUBLISHED[name]()
    ScoreModel(network, VPSDE(), "v").save_pretrained(tmp_path)
    loaded = ScoreModel.from_pretrained(tmp_path).network
    assert type(loaded) is type(network)
    for kind in ("named_parameters", "named_buffers"):
        one, two = dict(getattr(network, kind)()), dict(getattr(loaded, kind)())
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_table_that_dwarfs_the_weights_is_refused(tmp_path):
    """A filter's kernel is computed, not stored: the weights fit, and the file is still refused."""
    network = ncsnpp_cifar10(**SMALL)
    ScoreModel(network, VPSDE(), "v").save_pretrained(tmp_path)
    found = yaml.safe_load((tmp_path / "model.yaml").read_text())
    found["network"]["taps"] = [1.0] * 3000
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(found))
    with soon(), pytest.raises(CheckpointError, match="far more memory than its weights"):
        ScoreModel.from_pretrained(tmp_path)


def test_random_numbers_are_drawn_as_if_no_sketch_were_made(folder):
    torch.manual_seed(0)
    ScoreModel.from_pretrained(folder)
    after = torch.get_rng_state()
    torch.manual_seed(0)
    MLP(event_shape=(2,), width=8, depth=1)
    assert torch.equal(torch.get_rng_state(), after)


def test_aliases_count_as_often_as_they_stand(folder):
    lines = ["x0: &x0 [a,a,a,a,a,a,a,a,a,a]"]
    lines += [f"x{i}: &x{i} [{','.join([f'*x{i - 1}'] * 10)}]" for i in range(1, 20)]
    text = (folder / "model.yaml").read_text()
    for extra in (text.replace("format: sde_toolkit/1", "format: *x19"), f"{text}\nmore: *x19"):
        (folder / "model.yaml").write_text("\n".join([*lines, extra]))
        with soon(), pytest.raises(CheckpointError, match="more than 1000000 values"):
            ScoreModel.from_pretrained(folder)


def test_a_few_aliases_are_read(folder):
    text = (folder / "model.yaml").read_text()
    (folder / "model.yaml").write_text(
        "shape: &shape [2]\n" + re.sub(r"event_shape: \[2\]", "event_shape: *shape", text)
    )
    assert ScoreModel.from_pretrained(folder).event_shape == (2,)


# -- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64], ids=str)
def test_weights_of_another_kind_are_refused(folder, dtype):
    tensors = load_file(folder / "ema.safetensors")
    save_file({k: v.to(dtype) for k, v in tensors.items()}, folder / "ema.safetensors")
    with pytest.raises(CheckpointError, match=r"ema\.safetensors does not fit"):
        ScoreModel.from_pretrained(folder)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_weights_in_another_precision_are_rounded(folder, dtype):
    tensors = {k: v.to(dtype) for k, v in load_file(folder / "ema.safetensors").items()}
    save_file(tensors, folder / "ema.safetensors")
    loaded = ScoreModel.from_pretrained(folder).state_dict()
    assert all(torch.equal(loaded[k], v.to(torch.float32)) for k, v in tensors.items())


def test_numbers_beyond_the_networks_precision_are_refused(folder):
    tensors = {k: v.double() for k, v in load_file(folder / "ema.safetensors").items()}
    next(iter(tensors.values())).fill_(1e300)
    save_file(tensors, folder / "ema.safetensors")
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        ScoreModel.from_pretrained(folder)


@ONE_FOLDER
@given(st.data())
def test_any_damage_of_weights_loads_or_is_refused(written, data):
    place, text, _ = written
    (place / "model.yaml").write_text(text)
    target = place / "raw.safetensors"
    content = bytearray((place / "ema.safetensors").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, min(len(content) - 1, 900)))] = data.draw(st.integers(0, 255))
    target.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    loads_or_refuses(lambda: ScoreModel.from_pretrained(place, weights="raw"), CheckpointError)


def test_a_header_of_terabytes_is_refused(folder):
    header = json.dumps({"network.enter.weight": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}})
    (folder / "ema.safetensors").write_bytes(struct.pack("<Q", len(header)) + header.encode())
    with soon(), pytest.raises(CheckpointError, match="not a safetensors file"):
        ScoreModel.from_pretrained(folder)


# -- pipes and devices ------------------------------------------------------------------------------------------------

SPECIAL = {
    "a pipe": lambda file: os.mkfifo(file),
    "a device": lambda file: file.symlink_to("/dev/zero"),
    "a folder": lambda file: file.mkdir(),
    "a link to itself": lambda file: file.symlink_to(file.name),
    "a link to nothing": lambda file: file.symlink_to("nowhere"),
}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes")
@pytest.mark.parametrize("special", SPECIAL)
@pytest.mark.parametrize("name", ["model.yaml", "ema.safetensors", "training.pt", "run.yaml", "c.json", "request.json"])
def test_pipes_devices_and_folders_are_not_waited_for(written, tmp_path, special, name):
    from sde_toolkit.training.saving import check_run, load_state

    for file in written[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.yaml").write_text(written[1])
    (tmp_path / name).unlink(missing_ok=True)
    SPECIAL[special](tmp_path / name)
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "00000.npz").write_bytes(b"")
    act = {
        "training.pt": lambda: load_state(tmp_path),
        "run.yaml": lambda: check_run(tmp_path, {}, set()),
        "c.json": lambda: load_calibration(tmp_path / name),
        "request.json": lambda: PartStore(tmp_path, {}).claim(dict),
    }.get(name, lambda: ScoreModel.from_pretrained(tmp_path))
    with soon(), pytest.raises(SDEToolkitError):
        act()
    if name == "c.json":
        with pytest.raises(DataError):
            Quality.load(tmp_path / name)


def test_a_state_that_would_grow_is_refused(tmp_path):
    """torch.save compresses nothing; a small file of zeros could stand for gigabytes."""
    torch.save({"step": 1, "x": torch.zeros(2**20)}, tmp_path / "whole.pt")
    with (
        zipfile.ZipFile(tmp_path / "whole.pt") as whole,
        zipfile.ZipFile(tmp_path / "small.pt", "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for name in whole.namelist():
            small.writestr(name, whole.read(name))
    assert load_torch_file(tmp_path / "whole.pt")["step"] == 1
    assert (tmp_path / "small.pt").stat().st_size < 2**16
    with pytest.raises(CheckpointError, match="compressed"):
        load_torch_file(tmp_path / "small.pt")


# -- numbers ----------------------------------------------------------------------------------------------------------


@given(NUMBERS)
def test_every_number_is_one_or_is_not(value):
    assert is_number(value) in (True, False)
    assert is_count(value) in (True, False)
    if is_number(value):
        float(value)


@pytest.mark.parametrize("name", sorted(n for n in sde.__all__ if n.endswith(("SDE", "Matching")) and n != "SDE"))
def test_numbers_that_no_float_can_hold_are_refused_by_every_path(folder, name):
    found = yaml.safe_load((folder / "model.yaml").read_text())
    fields = getattr(sde, name).__dataclass_fields__
    for field in fields:
        for value in (10**400, float("nan"), "x", [1], {"a": 1}):
            found["sde"] = {"class": name, field: value}
            (folder / "model.yaml").write_text(yaml.safe_dump(found))
            loads_or_refuses(lambda: ScoreModel.from_pretrained(folder))


def test_a_calibration_of_an_integrator_of_ones_own_is_not_written(tmp_path, calibration):
    """Whatever it is called: it would come back as ours."""
    import dataclasses

    from sde_toolkit import Solver, integrators

    _, _, model = calibration
    kind = type("Exponential", (integrators.Exponential,), {})
    kind.__qualname__ = "Exponential"
    record = {"sde": sde_fingerprint(model.sde), "model": {"sha256": model_digest(model)}}
    error = Measured(0.5, 0.1)
    made = Calibration(ddim(), uniform(model.sde, 4), True, 5, error, error, False, "none", record)
    own = dataclasses.replace(made, solver=Solver("ddim", 0.0, kind()))
    with pytest.raises(ArgumentError, match="not a public part"):
        own.save(tmp_path / "own.json")
    assert not (tmp_path / "own.json").exists()
