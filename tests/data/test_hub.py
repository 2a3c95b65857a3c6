"""Hugging Face data sets, all made here: by row, streamed, and what is wrong with them; CIFAR-10 in all its forms."""

import io
import os
import pickle
import tarfile

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from sde_toolkit.data import ParallelStream, cifar10, hugging_face, hugging_face_stream
from sde_toolkit.errors import DataError, MissingDependencyError

datasets.disable_progress_bars()


def image(k, shape=(4, 6, 3)):
    return np.random.default_rng(k).integers(0, 256, shape, dtype=np.uint8)


def rows(numbers, shape=(4, 6, 3), **more):
    columns = {
        "image": [Image.fromarray(image(k, shape)) for k in numbers],
        "label": [k % 3 for k in numbers],
        "field": np.stack([np.full((2, 3), k, np.float32) for k in numbers]),
        "number": [k + 1 / 3 for k in numbers],
        **more,
    }
    features = {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=["ant", "bee", "cat"]),
        "field": datasets.Array2D((2, 3), "float32"),
        "number": datasets.Value("float64"),
    }
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features) if not more else None)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("hub") / "disk"
    both = {"train": rows(range(30)), "test": rows(range(100, 107))}
    datasets.DatasetDict(both).save_to_disk(path, num_shards={"train": 3, "test": 1})
    return path


@pytest.fixture(scope="module")
def parquet(tmp_path_factory):
    path = tmp_path_factory.mktemp("hub") / "parquet"
    path.mkdir()
    for k in range(3):
        rows(range(10 * k, 10 * k + 10)).to_parquet(path / f"train-{k}.parquet")
    rows(range(100, 107)).to_parquet(path / "test-0.parquet")
    return path


def check_images(x, labels, numbers):
    """The multiset of images is that of ``numbers``, each with its label."""
    known = {image(k).tobytes(): k for k in numbers}
    found = [known[values.permute(1, 2, 0).numpy().tobytes()] for values in x]
    assert sorted(found) == sorted(numbers)
    assert labels.tolist() == [k % 3 for k in found]


@pytest.mark.parametrize("kind", ["saved", "parquet"])
def test_images_by_row(kind, request, tmp_path):
    data = hugging_face(str(request.getfixturevalue(kind)), test_split="test", cache_dir=str(tmp_path))
    assert data.event_shape == (3, 4, 6)
    assert data.classes == ("ant", "bee", "cat")
    assert data.levels == 256
    check_images(data.train[:], data.train_labels, range(30))
    check_images(data.test[:], data.test_labels, range(100, 107))
    wanted = data.train[[7, 3]]
    assert torch.equal(pickle.loads(pickle.dumps(data.train))[[7, 3]], wanted)
    loader = DataLoader(data.train, sampler=[[7, 3]] * 3, batch_size=None, num_workers=2)
    assert all(torch.equal(batch, wanted) for batch in loader)
    split = hugging_face(str(request.getfixturevalue(kind)), test_fraction=0.2, cache_dir=str(tmp_path))
    assert (len(split.train), len(split.test)) == (24, 6)
    check_images(
        torch.cat([split.train[:], split.test[:]]), torch.cat([split.train_labels, split.test_labels]), range(30)
    )


def test_numbers_by_row(saved):
    data = hugging_face(str(saved), image_column="field", label_column=None, test_fraction=0)
    assert data.train.dtype == torch.float32
    assert data.train_labels is None
    assert torch.equal(data.train[:], torch.arange(30.0)[:, None, None].expand(30, 2, 3))
    y = data.transform.forward(data.train[:].double())
    assert y.mean().item() == pytest.approx(0, abs=1e-6)
    assert y.std(correction=0).item() == pytest.approx(1, abs=1e-6)
    numbers = hugging_face(str(saved), image_column="number", label_column=None, test_fraction=0)
    assert numbers.event_shape == ()
    assert numbers.train[:].tolist() == [k + 1 / 3 for k in range(30)]
    assert numbers.train.dtype == torch.float64


@pytest.mark.parametrize("kind", ["saved", "parquet"])
def test_images_as_a_stream(kind, request):
    data = hugging_face_stream(str(request.getfixturevalue(kind)), test_split="test", test_samples=5, buffer=7)
    assert len(data.train) == 0
    assert len(data.stream.shards) == 3
    check_images(data.test, data.test_labels, range(100, 105))
    check_images(*data.stream.next_batch(30), range(30))
    for start in (0, 4, 10):
        labels = [row["label"] for _, row in data.stream.shards.records(1, start)]
        assert labels == [k % 3 for k in range(10 + start, 20)]
    parts = [data.stream.shard(rank, 3) for rank in range(3)]
    batches = [part.next_batch(10) for part in parts]
    check_images(torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches]), range(30))


def test_a_stream_goes_on_exactly(parquet, tmp_path):
    def made():
        return hugging_face_stream(str(parquet), buffer=7, seed=2).stream

    for make in (made, lambda: ParallelStream(made(), workers=2)):
        first = make()
        for _ in range(5):
            first.next_batch(4)
        torch.save(first.state_dict(), tmp_path / "state.pt")
        second = make()
        second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        for _ in range(12):
            for a, b in zip(first.next_batch(4), second.next_batch(4), strict=True):
                assert torch.equal(a, b)


def test_numbers_as_a_stream(parquet):
    data = hugging_face_stream(str(parquet), image_column="field", label_column=None)
    x, labels = data.stream.next_batch(30)
    assert labels is None
    assert sorted(x[:, 0, 0].tolist()) == list(range(30))
    assert data.transform.shift == pytest.approx(14.5)
    double = hugging_face_stream(str(parquet), image_column="number", label_column=None).stream.next_batch(30)[0]
    assert sorted(double.tolist()) == [k + 1 / 3 for k in range(30)]


def test_what_is_missing_is_named_with_what_there_is(saved, parquet, tmp_path):
    for build in (hugging_face, hugging_face_stream):
        with pytest.raises(DataError, match=r"split='valid'.*train, test"):
            build(str(saved), split="valid")
        with pytest.raises(DataError, match=r"test_split='valid'.*train, test"):
            build(str(saved), test_split="valid")
        with pytest.raises(DataError, match=r"image_column='img'.*image, label, field"):
            build(str(saved), image_column="img")
        with pytest.raises(DataError, match=r"label_column='fine'.*label_column=None"):
            build(str(saved), label_column="fine")
        with pytest.raises(DataError, match=r"label_column='number'.*whole numbers"):
            build(str(saved), label_column="number", test_split="test")
        with pytest.raises(DataError, match="cannot be loaded"):
            build(str(tmp_path / "absent"))
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(DataError, match="cannot be loaded"):
            build(str(tmp_path / "empty"))


@pytest.mark.parametrize("build", [hugging_face, hugging_face_stream])
def test_rows_that_do_not_fit_are_named(tmp_path, build):
    mixed = datasets.Dataset.from_dict({"image": [Image.fromarray(image(0)), Image.fromarray(image(1, (4, 5, 3)))]})
    mixed.save_to_disk(tmp_path / "mixed")
    with pytest.raises(DataError, match=r"row 0 of .* has 6x4 pixels, row 1"):
        build(str(tmp_path / "mixed"), label_column=None)
    assert build(str(tmp_path / "mixed"), label_column=None, size=4).event_shape == (3, 4, 4)
    late = [Image.fromarray(image(k)) for k in range(300)]
    late[77] = Image.fromarray(image(0, (4, 5, 3)))
    datasets.Dataset.from_dict({"image": late}).save_to_disk(tmp_path / "late")
    data = build(str(tmp_path / "late"), label_column=None)
    with pytest.raises(DataError, match=r"row 77 of"):
        data.train[:] if data.stream is None else data.stream.next_batch(300)
    ragged = datasets.Dataset.from_dict({"x": [[1.0, 2.0], [3.0], [4.0, 5.0]], "word": ["a", "b", "c"]})
    ragged.save_to_disk(tmp_path / "ragged")
    with pytest.raises(DataError, match=r"row 1 of .*shape"):
        build(str(tmp_path / "ragged"), image_column="x", label_column=None)
    with pytest.raises(DataError, match="neither images nor numbers"):
        build(str(tmp_path / "ragged"), image_column="word", label_column=None)


def test_labels_that_are_not_given(tmp_path):
    for values in ([-1, 0], [None, 0], [0.5, 1.0], ["a", "b"]):
        data = datasets.Dataset.from_dict({"image": [image(0), image(1)], "label": values})
        data.save_to_disk(tmp_path / "x")
        with pytest.raises(DataError, match=r"label_column='label'"):
            hugging_face(str(tmp_path / "x"))


def test_a_set_without_rows(tmp_path):
    datasets.Dataset.from_dict({"x": []}).save_to_disk(tmp_path / "x")
    with pytest.raises(DataError):
        hugging_face(str(tmp_path / "x"), image_column="x", label_column=None)


# --- CIFAR-10


def records(numbers):
    return b"".join(bytes([k % 10]) + image(k, (3, 32, 32)).tobytes() for k in numbers)


def cifar_parts():
    return {f"data_batch_{b + 1}.bin": records(range(2 * b, 2 * b + 2)) for b in range(5)} | {
        "test_batch.bin": records(range(10, 14))
    }


def write(kind, place):
    planes = np.stack([image(k, (3, 32, 32)) for k in range(14)])
    labels = np.arange(14) % 10
    if kind in ("folder", "outer"):
        folder = place / "cifar-10-batches-bin"
        folder.mkdir()
        for name, content in cifar_parts().items():
            (folder / name).write_bytes(content)
        return folder if kind == "folder" else place
    if kind == "tar":
        with tarfile.open(place / "cifar-10-binary.tar.gz", "w:gz") as archive:
            for name, content in cifar_parts().items():
                member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        return place / "cifar-10-binary.tar.gz"
    if kind in ("last", "first"):
        x = planes.transpose(0, 2, 3, 1) if kind == "last" else planes
        y = labels[:, None]
        np.savez(place / "c.npz", x_train=x[:10], y_train=y[:10], x_test=x[10:], y_test=y[10:])
        return place / "c.npz"
    pictures = [Image.fromarray(x.transpose(1, 2, 0)) for x in planes]
    if kind == "parquet":
        for split, chosen in (("train", range(10)), ("test", range(10, 14))):
            columns = {"img": [pictures[k] for k in chosen], "label": [int(labels[k]) for k in chosen]}
            datasets.Dataset.from_dict(columns).to_parquet(place / f"{split}-00000.parquet")
        return place
    for k, picture in enumerate(pictures):
        folder = place / ("train" if k < 10 else "test") / str(labels[k])
        folder.mkdir(parents=True, exist_ok=True)
        picture.save(folder / f"{k:02}.png")
    return place


@pytest.mark.parametrize("kind", ["folder", "outer", "tar", "last", "first", "images", "parquet"])
def test_cifar10_is_the_same_in_every_form(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "data").mkdir()
    data = cifar10(write(kind, tmp_path / "data"))
    wanted = torch.from_numpy(np.stack([image(k, (3, 32, 32)) for k in range(14)]))
    assert torch.equal(data.train, wanted[:10])
    assert torch.equal(data.test, wanted[10:])
    assert data.train_labels.tolist() == list(range(10))
    assert data.test_labels.tolist() == [0, 1, 2, 3]
    assert data.train.dtype == torch.uint8
    assert data.classes[3] == "cat"
    data.train[0] = 0  # memory of its own


def test_the_python_version_is_not_opened(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "data_batch_1").write_bytes(pickle.dumps(Bomb()))
    for path in (folder, tmp_path):
        with pytest.raises(DataError, match=r"pickles.*binary version"):
            cifar10(path)
    assert not (tmp_path / "exploded").exists()


def test_damaged_cifar10(tmp_path):
    with pytest.raises(DataError, match="no such"):
        cifar10(tmp_path / "absent")
    with pytest.raises(DataError, match="nothing of it"):
        cifar10(tmp_path)
    folder = write("folder", tmp_path)
    (folder / "data_batch_2.bin").write_bytes(b"x" * 3072)
    with pytest.raises(DataError, match=r"data_batch_2\.bin has 3072 bytes"):
        cifar10(folder)
    (folder / "data_batch_2.bin").write_bytes(b"\x0a" + b"x" * 3072)
    with pytest.raises(DataError, match=r"0\.\.10"):
        cifar10(folder)
    (folder / "data_batch_2.bin").unlink()
    with pytest.raises(DataError, match=r"data_batch_2\.bin"):
        cifar10(folder)
    (tmp_path / "bad.tar.gz").write_bytes(b"x" * 100)
    with pytest.raises(DataError, match="not a readable tar file"):
        cifar10(tmp_path / "bad.tar.gz")
    np.savez(tmp_path / "bad.npz", x_train=np.zeros(3))
    with pytest.raises(DataError, match="lacks y_train"):
        cifar10(tmp_path / "bad.npz")


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(any) print\n%%EOF\n"


@pytest.fixture
def called(tmp_path, monkeypatch):
    """Whether Ghostscript was: a stand-in for it comes first in the PATH."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gs").write_text(f'#!/bin/sh\ntouch "{tmp_path}/called"\n')
    (tmp_path / "bin" / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return (tmp_path / "called").exists


@pytest.mark.parametrize("column", ["image", "other", "listed"])
@pytest.mark.parametrize("streaming", [False, True])
def test_no_program_is_started_for_a_picture_in_any_column(tmp_path, called, column, streaming):
    """PostScript under the name of an image is no image, and columns that nobody asked for are not looked at."""
    png = io.BytesIO()
    Image.fromarray(image(0)).save(png, "PNG")
    good, bad = {"bytes": png.getvalue(), "path": "a.png"}, {"bytes": POSTSCRIPT, "path": "b.png"}
    content = {name: [bad if name == column else good] * 4 for name in ("image", "other")}
    content |= {"listed": [[bad]] * 4, "label": [0, 1, 0, 1]}
    kinds = {"image": datasets.Image(), "other": datasets.Image(), "label": datasets.Value("int64")}
    kinds["listed"] = datasets.Sequence(datasets.Image())
    # written with the types of the bytes, then declared to be pictures
    datasets.Dataset.from_dict(content).cast(datasets.Features(kinds)).save_to_disk(tmp_path / "set")
    load = hugging_face_stream if streaming else hugging_face
    options = {"image_column": "listed" if column == "listed" else "image"}
    if column == "other":
        data = load(str(tmp_path / "set"), **options)
        x = data.stream.shard(0, 1).next_batch(2)[0] if streaming else data.train[:]
        assert x.shape[1:] == (3, 4, 6)
    else:
        with pytest.raises(DataError):
            load(str(tmp_path / "set"), **options)
    with pytest.raises(DataError):
        load(str(tmp_path / "set"), label_column="other" if column == "other" else "listed")
    assert not called()


def test_scripts_beside_the_data_are_not_run(monkeypatch, tmp_path):
    """Versions before 4 are told not to; those that cannot be told are refused."""
    seen = []

    def of_version_3(path, name=None, streaming=False, cache_dir=None, trust_remote_code=None):
        seen.append(trust_remote_code)
        raise FileNotFoundError

    monkeypatch.setattr(datasets, "load_dataset", of_version_3)
    monkeypatch.setattr(datasets, "__version__", "3.6.0")
    with pytest.raises(DataError):
        hugging_face(str(tmp_path))
    assert seen == [False]
    monkeypatch.setattr(datasets, "load_dataset", lambda path, name=None, streaming=False, cache_dir=None: seen)
    monkeypatch.setattr(datasets, "__version__", "2.10.0")
    with pytest.raises(MissingDependencyError, match="scripts"):
        hugging_face(str(tmp_path))
