"""A Source is indexed as the tensor of its samples would be; image folders and memory maps are Sources."""

import contextlib
import gc
import math
import mmap
import os
import pickle
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from sde_toolkit.data import Dataset, PerProcess, Source, array, image_folder, memory_map
from sde_toolkit.data.decoding import ImageShape, decode
from sde_toolkit.data.memory import MappedRows
from sde_toolkit.errors import ArgumentError, DataError


class Rows(Source):
    """A tensor that pretends to be far away."""

    def __init__(self, values):
        super().__init__(len(values), values.shape[1:], values.dtype)
        self.values = values

    def read(self, index):
        return self.values[index].clone()


def pixels(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path, values, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, **options)
    return path


@pytest.fixture
def folder(tmp_path):
    """Six images of two classes, and files that are no images."""
    for i in range(6):
        save(tmp_path / "set" / "ba"[i % 2] / f"{i}.png", pixels((5, 7, 3), i))
    (tmp_path / "set" / "a" / "notes.txt").write_text("x")
    (tmp_path / "set" / ".DS_Store").write_text("x")
    return tmp_path / "set"


# --- a source is a tensor to those who index it


@given(st.data())
def test_indexing_is_that_of_a_tensor(data):
    values = torch.arange(2 * 7).reshape(7, 2)
    source = Rows(values)
    whole = st.integers(-7, 6)
    index = data.draw(
        st.one_of(
            whole,
            st.slices(7).filter(lambda s: (s.step or 1) > 0),
            st.lists(whole, min_size=1),
            st.lists(whole, min_size=1).map(torch.tensor),
            st.lists(st.booleans(), min_size=7, max_size=7).map(torch.tensor),
        )
    )
    assert torch.equal(source[index], values[index])
    part = source.subset([6, 0, 0, 3])
    assert torch.equal(part[:], values[[6, 0, 0, 3]])
    assert torch.equal(part.subset([3, 1])[:], values[[3, 0]])


def test_it_looks_like_a_tensor():
    values = torch.randn(7, 2, 3, dtype=torch.float64)
    source = Rows(values)
    for name in ("shape", "ndim", "dtype"):
        assert getattr(source, name) == getattr(values, name)
    assert len(source) == 7
    assert source.is_floating_point()
    assert source[7:].shape == source[[]].shape == (0, 2, 3)
    assert torch.equal(torch.stack(list(source)), values)
    assert source.subset([]).shape == (0, 2, 3)


@pytest.mark.parametrize("index", [7, -8, [0, 7], torch.tensor([7]), 1.0, "a", None, (0, 1, "x"), [[0, 1]]])
def test_what_is_no_index(index):
    with pytest.raises(IndexError):
        Rows(torch.zeros(7, 2))[index]


def test_what_read_returns_is_checked():
    class Wrong(Rows):
        def read(self, index):
            return (torch.zeros(3), torch.zeros(2, dtype=torch.uint8))[index]

    for i in (0, 1):
        with pytest.raises(DataError, match=r"sample \d.*read"):
            Wrong(torch.zeros(2, 2))[i]
    values = torch.zeros(7, 2)
    values[5, 1] = float("nan")
    assert Rows(values)[:5].shape == (5, 2)
    with pytest.raises(DataError, match="sample 5"):
        Rows(values)[3:]
    with pytest.raises(DataError, match="sample 5"):
        Rows(values).subset([1, 5])[:]


@pytest.mark.parametrize(
    ("arguments", "name"),
    [((-1, (2,), torch.float32), "length"), ((2, (0,), torch.float32), "event_shape"), ((2, (2,), "f"), "dtype")],
)
def test_a_source_says_what_it_is(arguments, name):
    class Plain(Source):
        def read(self, index):
            return torch.zeros(2)

    with pytest.raises(ArgumentError, match=name):
        Plain(*arguments)
    with pytest.raises(ArgumentError, match="indices"):
        Rows(torch.zeros(3, 2)).subset([3])


def test_a_data_set_of_sources():
    train, test = Rows(torch.arange(20.0).reshape(10, 2)), Rows(torch.zeros(3, 2))
    data = Dataset("d", train, test, train_labels=torch.zeros(10, dtype=torch.int64))
    assert data.event_shape == (2,)
    assert data.labelled
    assert torch.equal(data.sample(5)[:, 0], torch.arange(0.0, 20.0, 4.0))
    assert len(data.sample(100)) == 10
    with pytest.raises(DataError, match="event shape"):
        Dataset("d", train, Rows(torch.zeros(3, 3)))
    with pytest.raises(DataError, match="Source"):
        Dataset("d", [1, 2], test)
    with pytest.raises(DataError, match="train_labels"):
        Dataset("d", train, test, train_labels=torch.zeros(3))


def test_handles_are_opened_once_per_process_and_never_pickled():
    opened = []
    handle = PerProcess(lambda: opened.append(os.getpid()) or object())
    assert handle() is handle()
    assert len(opened) == 1
    child = os.fork()
    if child == 0:
        handle()
        os._exit(0 if opened[-1] == os.getpid() and len(opened) == 2 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    real = PerProcess(os.getpid)
    real()
    assert pickle.loads(pickle.dumps(real))._held is None


def test_reading_from_worker_processes(folder, tmp_path):
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32))
    for source in (image_folder(folder, test_fraction=0).train, memory_map(tmp_path / "rows.npy").train):
        batches = [[i, (7 * i + 1) % len(source)] for i in range(len(source))]
        source[0]  # opened here first
        assert torch.equal(pickle.loads(pickle.dumps(source))[:], source[:])  # as spawned workers get it
        loader = DataLoader(source, sampler=batches, batch_size=None, num_workers=2)
        for batch, wanted in zip(loader, batches, strict=True):
            assert torch.equal(batch, source[wanted])
        plain = DataLoader(source, batch_size=4, num_workers=1)
        assert torch.equal(next(iter(plain)), source[:4])


# --- image folders


def test_a_folder_of_classes(folder):
    data = image_folder(folder, test_fraction=0)
    assert data.event_shape == (3, 5, 7)
    assert data.train.dtype == torch.uint8
    assert data.classes == ("a", "b")
    assert data.train_labels.tolist() == [0, 0, 0, 1, 1, 1]
    wanted = [torch.from_numpy(pixels((5, 7, 3), i)).permute(2, 0, 1) for i in (1, 3, 5, 0, 2, 4)]
    assert torch.equal(data.train[:], torch.stack(wanted))
    assert "2 files that are not images ignored" in data.notes
    assert ".txt" in data.notes
    assert data.levels == 256
    assert data.transform.forward(data.train[:]).abs().max() <= 1


def test_the_split_is_a_partition_with_its_labels(folder):
    data = image_folder(folder, test_fraction=0.3)
    again = image_folder(str(folder), test_fraction=0.3)
    whole = image_folder(folder, test_fraction=0)
    assert (len(data.train), len(data.test)) == (4, 2)
    assert torch.equal(data.train[:], again.train[:])
    for x, labels in ((data.train, data.train_labels), (data.test, data.test_labels)):
        for image, label in zip(x, labels, strict=True):
            place = [torch.equal(image, other) for other in whole.train].index(True)
            assert whole.train_labels[place] == label
    everything = torch.cat([data.train[:], data.test[:]]).flatten(1).tolist()
    assert sorted(everything) == sorted(whole.train[:].flatten(1).tolist())


def test_a_folder_for_the_test_part(folder, tmp_path):
    save(tmp_path / "other" / "b" / "x.png", pixels((5, 7, 3), 9))
    data = image_folder(folder, test_path=tmp_path / "other")
    assert (len(data.train), len(data.test)) == (6, 1)
    assert data.test_labels.tolist() == [1]
    save(tmp_path / "other" / "c" / "x.png", pixels((5, 7, 3), 9))
    with pytest.raises(DataError, match=r"'c'.*training"):
        image_folder(folder, test_path=tmp_path / "other")
    save(tmp_path / "third" / "y.png", pixels((5, 7, 3), 9))
    with pytest.raises(DataError, match="class"):
        image_folder(folder, test_path=tmp_path / "third")


@pytest.mark.parametrize("ending", ["png", "PNG", "bmp", "tif", "webp", "ppm"])
def test_lossless_formats_are_read_exactly(tmp_path, ending):
    values = pixels((6, 4, 3))
    save(tmp_path / f"x.{ending}", values, **({"lossless": True} if ending == "webp" else {}))
    assert np.array_equal(image_folder(tmp_path, labels=None).train[0].permute(1, 2, 0).numpy(), values)


def test_grey_palette_and_bilevel_images(tmp_path):
    grey = pixels((6, 4))
    save(tmp_path / "grey" / "x.png", grey)
    assert np.array_equal(image_folder(tmp_path / "grey", labels=None).train[0][0].numpy(), grey)
    palette = Image.fromarray(pixels((6, 4, 3))).quantize(8)
    (tmp_path / "palette").mkdir()
    palette.save(tmp_path / "palette" / "x.png")
    wanted = np.asarray(palette.convert("RGB"))
    assert np.array_equal(image_folder(tmp_path / "palette", labels=None).train[0].permute(1, 2, 0).numpy(), wanted)
    save(tmp_path / "bits" / "x.png", grey > 127)
    assert set(image_folder(tmp_path / "bits", labels=None).train[0].unique().tolist()) <= {0, 255}


@pytest.mark.parametrize(
    ("mode", "channels", "remedy"),
    [("RGBA", 4, "channels=4"), ("LA", 1, "channels=4"), ("CMYK", 3, "channels=3"), ("PA", 3, "channels=3")],
)
def test_what_must_be_converted_is_refused_until_asked_for(tmp_path, mode, channels, remedy):
    picture = Image.fromarray(pixels((6, 4, 4)), "CMYK" if mode == "CMYK" else "RGBA")
    name = "x.tif" if mode == "CMYK" else "x.png"
    if mode == "PA":
        picture = Image.fromarray(pixels((6, 4, 3))).quantize(8)
        picture.info["transparency"] = 0
    elif mode == "LA":
        picture = picture.convert("LA")
    picture.save(tmp_path / name)
    with pytest.raises(DataError, match=remedy) as caught:
        image_folder(tmp_path, labels=None)
    assert name in str(caught.value)
    assert image_folder(tmp_path, labels=None, channels=channels).train[0].shape == (channels, 6, 4)


def test_mixed_channels_name_two_files(folder):
    save(folder / "a" / "grey.png", pixels((5, 7)))
    with pytest.raises(DataError) as caught:
        image_folder(folder)
    for word in ("1.png is RGB", "grey.png L", "channels=3"):
        assert word in str(caught.value)
    assert image_folder(folder, channels=3).event_shape == (3, 5, 7)
    assert image_folder(folder, channels=1).event_shape == (1, 5, 7)


def test_mixed_sizes_name_two_files(folder):
    save(folder / "b" / "large.png", pixels((9, 7, 3)))
    with pytest.raises(DataError) as caught:
        image_folder(folder)
    for word in ("1.png has 7x5", "large.png 7x9", "size="):
        assert word in str(caught.value)
    data = image_folder(folder, size=(4, 6))
    assert data.train[:].shape[1:] == (3, 4, 6)
    assert "Lanczos" in data.notes


def test_sixteen_bits_are_not_squeezed_into_eight(tmp_path):
    save(tmp_path / "deep.png", pixels((6, 4)).astype(np.uint16) * 257)
    for channels in (None, 1):
        with pytest.raises(DataError, match=r"deep\.png.*memory_map"):
            image_folder(tmp_path, labels=None, channels=channels)


def test_size_cuts_out_the_centre_and_keeps_what_fits(tmp_path):
    values = pixels((8, 8, 3))
    save(tmp_path / "exact" / "x.png", values)
    same = image_folder(tmp_path / "exact", labels=None, size=8).train[0]
    assert np.array_equal(same.permute(1, 2, 0).numpy(), values)
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200  # the centre, of the ratio asked for
    save(tmp_path / "wide" / "x.png", wide)
    assert (image_folder(tmp_path / "wide", labels=None, size=5).train[0][:, :, 1:4] == 200).all()
    assert (image_folder(tmp_path / "wide", labels=None, size=(10, 10)).train[0] == 200).all()
    tall = image_folder(tmp_path / "wide", labels=None, size=(10, 30)).train[0]
    assert np.array_equal(tall.permute(1, 2, 0).numpy(), wide)


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"no image"])
def test_a_damaged_header_is_found_when_the_set_is_built(folder, content):
    (folder / "a" / "bad.png").write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.png.*readable"):
        image_folder(folder)


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_damaged_pixels_are_found_when_they_are_read(tmp_path, ending):
    for i in range(3):
        save(tmp_path / f"{i}.{ending}", pixels((40, 40, 3), i))
    bad = tmp_path / f"1.{ending}"
    content = bad.read_bytes()
    data = image_folder(tmp_path, labels=None, test_fraction=0)
    bad.write_bytes(content[: len(content) // 2])
    assert data.train[[0, 2]].shape == (2, 3, 40, 40)
    with pytest.raises(DataError, match=rf"1\.{ending}"):
        data.train[:]
    bad.unlink()
    with pytest.raises(DataError, match=rf"1\.{ending}.*no longer there"):
        data.train[1]
    save(bad, pixels((40, 41, 3)))
    with pytest.raises(DataError, match="41x40"):
        data.train[1]


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@given(st.binary(max_size=60), st.integers(0, 400), st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"]))
def test_whatever_the_bytes_an_image_or_a_typed_error(noise, place, kind):
    import io

    buffer = io.BytesIO()
    Image.fromarray(pixels((8, 8, 3))).save(buffer, kind)
    content = bytearray(buffer.getvalue())
    content[place : place + len(noise)] = noise
    with contextlib.suppress(DataError):
        assert decode(bytes(content), "fuzzed", ImageShape(8, 8, 3, False)).shape == (3, 8, 8)


def test_folders_without_images(tmp_path):
    with pytest.raises(DataError, match=r"no images in it\. Give.*png"):
        image_folder(tmp_path)
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(DataError, match="1 files of other kinds"):
        image_folder(tmp_path)
    for path in (tmp_path / "absent", tmp_path / "x.txt"):
        with pytest.raises(DataError, match="no such folder"):
            image_folder(path)
    save(tmp_path / "flat.png", pixels((4, 4)))
    with pytest.raises(DataError, match="labels=None"):
        image_folder(tmp_path)


def test_links_to_folders_are_followed_once(folder):
    (folder / "a" / "again").symlink_to(folder)
    assert len(image_folder(folder, test_fraction=0).train) == 6


@pytest.mark.parametrize(
    "arguments",
    [
        {"labels": "names"},
        {"test_fraction": 1},
        {"test_fraction": "x"},
        {"size": 0},
        {"size": (1, 2, 3)},
        {"size": "32"},
        {"size": 2.5},
        {"channels": 2},
    ],
)
def test_arguments_of_a_folder(folder, arguments):
    with pytest.raises(ArgumentError) as caught:
        image_folder(folder, **arguments)
    assert caught.value.argument in arguments


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="no users")
def test_files_that_may_not_be_read():
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        root.chmod(0o755)
        secret = save(root / "set" / "a" / "x.png", pixels((4, 4)))
        np.save(root / "rows.npy", np.zeros((3, 2)))
        (root / "rows.npy").chmod(0)
        secret.chmod(0)
        user = os.geteuid()
        try:
            if user == 0:
                os.seteuid(65534)
            with pytest.raises(DataError, match=r"x\.png.*permissions"):
                image_folder(root / "set")
            with pytest.raises(DataError, match=r"rows\.npy.*permissions"):
                memory_map(root / "rows.npy")
            os.seteuid(user)
            (root / "set" / "a").chmod(0)
            if user == 0:
                os.seteuid(65534)
            with pytest.raises(DataError, match=r"a'.*permissions"):
                image_folder(root / "set")
        finally:
            os.seteuid(user)
            (root / "set" / "a").chmod(0o755)


# --- memory maps


@pytest.mark.parametrize("dtype", ["f8", "f4", "f2", ">f4", "u1", "i4", "?"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 4, 4)])
def test_mapped_rows_are_the_rows_of_the_array(tmp_path, dtype, shape):
    values = np.random.default_rng(0).integers(0, 2, (50, *shape)).astype(dtype)
    np.save(tmp_path / "x.npy", values)
    mapped, loaded = memory_map(tmp_path / "x.npy"), array(tmp_path / "x.npy")
    for part in ("train", "test"):
        assert torch.equal(getattr(mapped, part)[:], getattr(loaded, part))
        assert getattr(mapped, part).dtype == getattr(loaded, part).dtype
    if dtype != "u1":
        assert mapped.transform == loaded.transform


def test_eight_bit_arrays_are_images(tmp_path):
    np.save(tmp_path / "x.npy", pixels((20, 1, 4, 4)))
    np.save(tmp_path / "y.npy", np.arange(20) % 3)
    data = memory_map(tmp_path / "x.npy", tmp_path / "y.npy", test_fraction=0.25)
    assert data.levels == 256
    assert data.transform.forward(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1, 1]
    assert torch.equal(data.train_labels[:3], torch.from_numpy(np.arange(20) % 3)[data.train.indices[:3]])
    assert len(data.test_labels) == 5


def test_the_transform_comes_from_a_stated_sample(tmp_path):
    values = np.random.default_rng(0).normal(5, 3, (4000, 2))
    np.save(tmp_path / "x.npy", values)
    data = memory_map(tmp_path / "x.npy", sample=500)
    assert "500 random rows" in data.notes
    assert all(f"{v:.6g}" in data.notes for v in data.transform.shift)
    y = data.transform.forward(data.train[:])
    assert abs(y.mean()) < 5 / 500**0.5
    assert abs(y.std() - 1) < 5 / 500**0.5
    assert memory_map(tmp_path / "x.npy", sample=500).transform == data.transform
    assert memory_map(tmp_path / "x.npy", shift=1, scale=2).transform.scale == 2
    with pytest.raises(DataError, match=r"0\.\.3"):
        memory_map(tmp_path / "x.npy", levels=4)


def test_nan_is_found_where_it_is_read(tmp_path):
    values = np.zeros((30, 2), np.float32)
    values[::2] = 1
    values[17, 1] = np.nan
    np.save(tmp_path / "x.npy", values)
    data = memory_map(tmp_path / "x.npy", shift=0, scale=1, sample=1, test_fraction=0)
    assert data.train[:17].shape == (17, 2)
    with pytest.raises(DataError, match=r"row 17 of .*x\.npy"):
        data.train[:]


def bad_file(tmp_path, values, name="bad.npy"):
    (np.save if name.endswith("npy") else np.savez)(tmp_path / name, values)
    return tmp_path / name


@pytest.mark.parametrize(
    ("values", "name", "word"),
    [
        (np.zeros((0, 3)), "bad.npy", "no samples"),
        (np.array(1.0), "bad.npy", "no samples"),
        (np.ones(3, complex), "bad.npy", "complex"),
        (np.array(["a"]), "bad.npy", "dtype"),
        (np.array([None]), "bad.npy", "readable"),
        (np.asfortranarray(np.zeros((4, 3, 2))), "bad.npy", "ascontiguousarray"),
        (np.zeros((4, 3)), "bad.npz", "npz"),
        (np.zeros((4, 3)), "bad.npy", "standard deviation 0"),
    ],
)
def test_unusable_arrays(tmp_path, values, name, word):
    path = bad_file(tmp_path, values, name)
    with pytest.raises(DataError, match=word) as caught:
        memory_map(path)
    assert name in str(caught.value)


def test_truncated_and_changed_files(tmp_path):
    path = bad_file(tmp_path, np.random.default_rng(0).normal(size=(100, 4)))
    content = path.read_bytes()
    for n in (0, 5, 100, 128, len(content) - 1):
        path.write_bytes(content[:n])
        with pytest.raises(DataError, match=r"bad\.npy"):
            memory_map(path)
    path.write_bytes(content)
    data = memory_map(path)
    np.save(path, np.zeros((50, 4)))
    with pytest.raises(DataError, match=r"bad\.npy.*before"):
        pickle.loads(pickle.dumps(data.train))[0]
    with pytest.raises(DataError, match="no such file"):
        memory_map(tmp_path / "absent.npy")


@pytest.mark.filterwarnings("ignore:invalid escape sequence")  # from numpy, which parses the header as Python
@given(st.binary(min_size=1, max_size=4), st.integers(0, 127))
@example(b" ", 127)  # in place of the line's end, which numpy does not need
@example(b"2", 23)  # f8 becomes f2
def test_a_garbled_header_is_mapped_as_numpy_reads_it_or_refused(noise, place):
    with tempfile.TemporaryDirectory() as folder:
        path = bad_file(Path(folder), np.arange(20.0))
        content = bytearray(path.read_bytes())
        content[place : place + len(noise)] = noise
        path.write_bytes(content)
        try:
            found = memory_map(path, shift=0.0, scale=1.0, test_fraction=0.0).train[:].numpy()
        except DataError:
            return
        np.testing.assert_array_equal(found, np.load(path, allow_pickle=False))


@pytest.mark.parametrize("labels", [np.zeros(7, int), np.zeros(8), -np.ones(8, int), np.zeros((8, 1), int)])
def test_unusable_labels(tmp_path, labels):
    np.save(tmp_path / "x.npy", pixels((8, 2)))
    np.save(tmp_path / "y.npy", labels)
    with pytest.raises(DataError, match=r"labels_path.*y\.npy"):
        memory_map(tmp_path / "x.npy", tmp_path / "y.npy")
    np.savez(tmp_path / "y.npz", np.zeros(8, int), np.zeros(8, int))
    with pytest.raises(DataError, match="labels_path"):
        memory_map(tmp_path / "x.npy", tmp_path / "y.npz")


def read_from_disk():
    """Bytes that storage had to deliver to this process so far (Linux)."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


@pytest.mark.parametrize("shape", [(28, 28), (300, 500)], ids=["rows below a page", "rows of many pages"])
def test_of_a_mapped_file_little_more_than_the_rows_is_read(tmp_path, shape):
    """Where a file is larger than memory, what is read ahead for nothing is read again at every step."""
    if not (hasattr(os, "posix_fadvise") and os.access("/proc/self/io", os.R_OK)):
        pytest.skip("nobody here says what is read from disk")
    n = 2**25 // math.prod(shape)
    rows = np.lib.format.open_memmap(tmp_path / "x.npy", mode="w+", dtype=np.uint8, shape=(n, *shape))
    rows[:] = (np.arange(n) % 251).astype(np.uint8)[:, None, None]
    rows.flush()
    source = pickle.loads(pickle.dumps(MappedRows(tmp_path / "x.npy")))  # which has no file open yet
    del rows
    gc.collect()
    with (tmp_path / "x.npy").open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    wanted = torch.arange(0, n, n // 16)
    before, waits = read_from_disk(), resource.getrusage(resource.RUSAGE_SELF).ru_majflt
    found = source[wanted]
    read, waits = read_from_disk() - before, resource.getrusage(resource.RUSAGE_SELF).ru_majflt - waits
    if read == 0:
        pytest.skip("this file system forgets nothing")
    assert torch.equal(found.long(), (wanted % 251)[:, None, None].expand(-1, *shape))
    assert read <= len(wanted) * (math.prod(shape) + 2 * 4096) + 2**17, f"{read} bytes for {found.numel()}"
    pages = len(wanted) * math.prod(shape) / mmap.PAGESIZE
    assert waits < len(wanted) + pages / 4, "asked for together, not one page after the other"


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(5000,), (5000, 3), (40, 300, 17), (2, 300_000)])
def test_rows_of_a_mapped_file_are_those_of_the_array(tmp_path, dtype, shape):
    """In any order, repeated, as a run, the first and the last; wherever pages begin."""
    x = np.random.default_rng(0).integers(0, 256, shape).astype(dtype)
    np.save(tmp_path / "x.npy", x)
    source = MappedRows(tmp_path / "x.npy")
    n = len(x)
    for chosen in ([0], [n - 1], [n - 1, 0, 0, 1], list(range(n)), list(range(n - 1, -1, -1)), []):
        assert np.array_equal(source[chosen].numpy(), x[chosen])
    assert np.array_equal(source[1:].numpy(), x[1:])


def test_a_file_larger_than_the_memory_allowed(tmp_path):
    """256 MiB are read under a limit of 192 MiB above what the interpreter has: no copy of the whole is ever made."""
    path = tmp_path / "large.npy"
    n = 256 * 2**20 // 3072
    rows = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(n, 3, 32, 32))
    rows[::1000] = 7
    rows.flush()
    del rows
    code = f"""
import resource, torch
from sde_toolkit.data import array, memory_map
used = int(next(line for line in open("/proc/self/status") if line.startswith("VmData")).split()[1]) * 1024
torch.zeros(1024, 3072).eq(7).sum()  # whatever torch sets up at its first operation
resource.setrlimit(resource.RLIMIT_DATA, (used + 192 * 2**20,) * 2)
data = memory_map({str(path)!r}, test_fraction=0)
print(sum(int((data.train[i : i + 1024] == 7).sum()) for i in range(0, {n}, 1024)))
try:
    array({str(path)!r})
except Exception as error:
    print(type(error).__name__)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == [str(len(range(0, n, 1000)) * 3072), "DataError"]
