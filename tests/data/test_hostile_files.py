"""Files of strangers: a reader loads them or raises a DataError, soon and in little memory, whatever they hold."""

import contextlib
import gzip
import io
import json
import os
import struct
import tarfile
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from sde_toolkit.data import array, cifar10, image_folder, memory_map, mnist, webdataset
from sde_toolkit.errors import DataError, SDEToolkitError
from sde_toolkit.evaluation.sample_files import read_samples
from sde_toolkit.metrics.records import _PARTS, FORMAT, Quality

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(any PostScript) print\n%%EOF\n"
RNG = np.random.default_rng(0)


def image_bytes(kind, **options):
    stream = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (6, 6, 3), dtype=np.uint8)).save(stream, kind, **options)
    return stream.getvalue()


def tar_bytes(members, mode="w"):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def npy_bytes(values, save=np.save, **arrays):
    stream = io.BytesIO()
    save(stream, *([values] if values is not None else []), **arrays)
    return stream.getvalue()


def idx_bytes(values):
    return bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


# Every reader: from the bytes of one small file in a folder of its own, to the data.


def of_array(folder, content):
    (folder / "x.npy").write_bytes(content)
    array(folder / "x.npy", shift=0.0, scale=1.0)


def of_map(folder, content):
    (folder / "x.npy").write_bytes(content)
    memory_map(folder / "x.npy").train[:]


def of_samples(folder, content):
    (folder / "x.npz").write_bytes(content)
    read_samples(folder / "x.npz")


def of_image_folder(folder, content):
    (folder / "cat.png").write_bytes(content)
    image_folder(folder, labels=None, test_fraction=0.0, channels=3).train[:]


def of_sample_images(folder, content):
    (folder / "cat.png").write_bytes(content)
    read_samples(folder)


def of_shards(folder, content):
    (folder / "x.tar").write_bytes(content)
    data = webdataset(folder, buffer=2, channels=3)
    data.stream.shard(0, 1).next_batch(2)


def of_idx(folder, content):
    for name in ("train-images-idx3", "t10k-images-idx3"):
        (folder / f"{name}-ubyte").write_bytes(idx_bytes(np.zeros((2, 28, 28), np.uint8)))
    for name in ("train-labels-idx1", "t10k-labels-idx1"):
        (folder / f"{name}-ubyte").write_bytes(idx_bytes(np.zeros(2, np.uint8)))
    (folder / "train-images-idx3-ubyte").write_bytes(content)
    mnist(folder)


def of_mnist_npz(folder, content):
    (folder / "mnist.npz").write_bytes(content)
    mnist(folder / "mnist.npz")


def of_cifar_tar(folder, content):
    (folder / "cifar-10-binary.tar.gz").write_bytes(content)
    cifar10(folder / "cifar-10-binary.tar.gz")


def of_cifar_npz(folder, content):
    (folder / "cifar.npz").write_bytes(content)
    cifar10(folder / "cifar.npz")


def of_record(folder, content):
    (folder / "evaluation.json").write_bytes(content)
    Quality.load(folder / "evaluation.json")


def parts(shape):
    return {
        f"{x}_{part}": np.zeros((2, *shape) if x == "x" else 2, np.uint8) for x in "xy" for part in ("train", "test")
    }


BATCHES = {f"b/{name}": bytes(3073) for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")}
IMAGES = np.zeros((2, 28, 28), np.uint8)
SHARD = {"0.png": image_bytes("PNG"), "0.cls": b"1", "1.jpg": image_bytes("JPEG"), "1.cls": b"2"}
FILES = {
    "npy": (of_array, npy_bytes(np.arange(12.0).reshape(4, 3))),
    "mapped": (of_map, npy_bytes(np.arange(12, dtype=np.float32).reshape(4, 3))),
    "npz": (of_samples, npy_bytes(None, np.savez, x=np.ones((2, 3)))),
    "small npz": (of_array, npy_bytes(None, np.savez_compressed, x=np.arange(12.0))),
    "png": (of_image_folder, image_bytes("PNG")),
    "jpg": (of_image_folder, image_bytes("JPEG")),
    "gif": (of_image_folder, image_bytes("GIF")),
    "tif": (of_image_folder, image_bytes("TIFF")),
    "webp": (of_image_folder, image_bytes("WEBP", lossless=True)),
    "bmp": (of_sample_images, image_bytes("BMP")),
    "ppm": (of_sample_images, image_bytes("PPM")),
    "tar": (of_shards, tar_bytes(SHARD)),
    "tar.gz": (of_shards, tar_bytes(SHARD, "w:gz")),
    "tar.xz": (of_shards, tar_bytes(SHARD, "w:xz")),
    "idx": (of_idx, idx_bytes(IMAGES)),
    "idx.gz": (of_idx, gzip.compress(idx_bytes(IMAGES))),
    "mnist.npz": (of_mnist_npz, npy_bytes(None, np.savez_compressed, **parts((28, 28)))),
    "cifar tar": (of_cifar_tar, tar_bytes(BATCHES, "w:gz")),
    "cifar.npz": (of_cifar_npz, npy_bytes(None, np.savez_compressed, **parts((32, 32, 3)))),
    "record": (of_record, json.dumps({"format": FORMAT, **{name: {"a": 1} for name in _PARTS}}).encode()),
}


def mutated(content):
    """A few bytes replaced, most of them near the beginning; a piece removed, doubled, or cut off."""
    n = len(content)
    place = st.one_of(st.integers(0, min(n - 1, 160)), st.integers(max(0, n - 160), n - 1), st.integers(0, n - 1))

    def change(bytes_of, cut, kind):
        found = bytearray(content)
        for where, value in bytes_of:
            found[where] = value
        first, last = sorted(cut)
        if kind == "cut":
            del found[first:]
        elif kind == "remove":
            del found[first:last]
        elif kind == "double":
            found[first:first] = found[first:last]
        return bytes(found)

    kinds = st.sampled_from(["keep", "keep", "cut", "remove", "double"])
    value = st.one_of(st.sampled_from([0, 1, 48, 57, 127, 128, 255]), st.integers(0, 255))
    return st.builds(change, st.lists(st.tuples(place, value), max_size=4), st.tuples(place, place), kinds)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.filterwarnings("ignore")
def test_any_bytes_load_or_are_a_data_error(name, tmp_path_factory):
    read, content = FILES[name]
    folder = tmp_path_factory.mktemp("fuzz")
    read(folder, content)

    @settings(max_examples=60, deadline=20_000, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(mutated(content))
    def law(damaged):
        with contextlib.suppress(DataError):
            read(folder, damaged)

    law()


@pytest.mark.parametrize("read", [of_image_folder, of_sample_images, of_shards], ids=lambda read: read.__name__)
def test_no_program_is_started_for_an_image(tmp_path, monkeypatch, read):
    """PostScript under the name of an image is no image: Pillow would hand it to Ghostscript."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "gs").write_text(f'#!/bin/sh\ntouch "{tmp_path}/called"\n')
    (programs / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    folder = tmp_path / "data"
    folder.mkdir()
    content = tar_bytes({"0.png": POSTSCRIPT, "0.cls": b"1"}) if read is of_shards else POSTSCRIPT
    with pytest.raises(DataError):
        read(folder, content)
    assert not (tmp_path / "called").exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("x.npy", lambda folder: array(folder / "x.npy")),
        ("x.npy", lambda folder: memory_map(folder / "x.npy")),
        ("x.npy", lambda folder: read_samples(folder / "x.npy")),
        ("cat.png", lambda folder: image_folder(folder, labels=None)),
        ("cat.png", read_samples),
        ("x.tar", webdataset),
        ("train-images-idx3-ubyte", mnist),
        ("data_batch_2.bin", cifar10),
        ("e.json", lambda folder: Quality.load(folder / "e.json")),
    ],
)
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_pipes_and_devices_are_refused_and_not_waited_for(tmp_path, name, read, kind):
    if name == "data_batch_2.bin":
        (tmp_path / "data_batch_1.bin").write_bytes(bytes(3073))
    if kind == "pipe":
        os.mkfifo(tmp_path / name)
    else:
        (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(DataError):
        read(tmp_path)


def header_of(shape, dtype="<f8"):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"shape": shape, "fortran_order": False, "descr": dtype})
    return stream.getvalue()


def zipped(content, compress=zipfile.ZIP_DEFLATED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compress) as archive:
        archive.writestr("x.npy", content)
    return stream.getvalue()


def sparse_tar(name, size=2**45, before={}):  # noqa: B006
    member, data = tarfile.TarInfo(name), b"1\n0\n0\n" + b"\0" * 506
    member.size = len(data)
    member.pax_headers = {
        "GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": name, "GNU.sparse.realsize": str(size),
    }  # fmt: skip
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for other, content in before.items():
            whole = tarfile.TarInfo(other)
            whole.size = len(content)
            archive.addfile(whole, io.BytesIO(content))
        archive.addfile(member, io.BytesIO(data))
    return stream.getvalue()


def long_member(name):
    """A tar that declares 1 TiB and has 1 kB."""
    member = tarfile.TarInfo(name)
    member.size = 2**40
    return member.tobuf(tarfile.GNU_FORMAT) + bytes(1024)


def backwards(name):
    """A tar whose second member has −512 bytes: the next one begins where it began."""
    header = bytearray(tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT))
    header[124:136] = (-512).to_bytes(12, "big", signed=True)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    return tarfile.TarInfo("first.txt").tobuf(tarfile.GNU_FORMAT) + bytes(header) + bytes(1024)


BOMB = gzip.compress(bytes(2**20), 9)  # a MiB in a kB; repeated, as many as one likes
LARGE = {
    "npy": (of_array, header_of((2**45,))),
    "npy, product beyond 64 bits": (of_array, header_of((2**40, 2**40))),
    "mapped": (of_map, header_of((2**45,))),
    "mapped, product beyond 64 bits": (of_map, header_of((2**32, 2**32))),
    "npz": (of_samples, zipped(header_of((2**45,)) + bytes(100))),
    "npz, more than is stored": (of_samples, zipped(header_of((10**4,)) + bytes(100))),
    "idx": (of_idx, bytes((0, 0, 8, 3)) + struct.pack(">3I", 2**31, 2**15, 2**15)),
    "idx.gz": (of_idx, gzip.compress(bytes((0, 0, 8, 3)) + struct.pack(">3I", 2**31, 28, 28)) + BOMB),
    "idx.gz, more than it says": (of_idx, gzip.compress(idx_bytes(IMAGES)) + 400 * BOMB),
    "sparse shard": (of_shards, sparse_tar("a.png")),
    "sparse batch": (of_cifar_tar, sparse_tar("data_batch_1.bin")),
    "sparse member of another kind": (of_shards, sparse_tar("a.txt", 4096, SHARD)),
    "member that points backwards": (of_shards, backwards("a.txt")),
    "batch that points backwards": (of_cifar_tar, backwards("a.txt")),
    "long shard": (of_shards, long_member("a.png")),
    "long label": (of_shards, tar_bytes({"a.png": SHARD["0.png"], "a.cls": b"1" * 5000})),
    "label of 65 bits": (of_shards, tar_bytes({"a.png": SHARD["0.png"], "a.cls": b"9" * 21})),
    "long batch": (of_cifar_tar, long_member("data_batch_1.bin")),
    "shard with a long member of another kind": (of_shards, gzip.compress(long_member("a.txt")) + 100 * BOMB),
    "image": (of_image_folder, b"P6\n100000 100000\n255\n" + bytes(100)),
    "image of samples": (of_sample_images, b"P6\n100000 100000\n255\n" + bytes(100)),
    "deep record": (of_record, b"[" * 10**5),
    "long number": (of_record, b'{"a": ' + b"1" * 10**5 + b"}"),
}


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.filterwarnings("ignore")
def test_little_files_that_stand_for_much_are_refused_in_little_memory(tmp_path, name):
    read, content = LARGE[name]
    tracemalloc.start()
    try:
        with pytest.raises(DataError) as caught:
            read(tmp_path, content)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**25 + 4 * len(content)
    assert "MemoryError" not in str(caught.value)


def test_members_of_a_tar_that_are_no_files_are_passed_over(tmp_path):
    """Folders, links, pipes and devices under the names of images."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for k, kind in enumerate(
            [tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
        ):
            other = tarfile.TarInfo(f"other{k}.png")
            other.type, other.linkname = kind, "absent.png"
            archive.addfile(other)
        for name, content in SHARD.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    (tmp_path / "x.tar").write_bytes(stream.getvalue())
    data = webdataset(tmp_path, buffer=1)
    assert data.stream.next_batch(4)[1].tolist() == [1, 2, 1, 2]


def test_a_compressed_array_may_be_much_larger_than_its_file_up_to_a_limit(tmp_path, monkeypatch):
    content = zipped(header_of((10**5,)) + bytes(8 * 10**5))
    (tmp_path / "x.npz").write_bytes(content)
    assert len(read_samples(tmp_path / "x.npz")) == 10**5
    monkeypatch.setattr("sde_toolkit.data.opening._AT_LEAST", 10**5)
    assert len(content) < 8 * 10**5 / 64
    with pytest.raises(SDEToolkitError, match="out of a file"):
        read_samples(tmp_path / "x.npz")
    (tmp_path / "x.npz").write_bytes(zipped(header_of((10**5,)) + RNG.integers(0, 2, 10**5).astype("<f8").tobytes()))
    assert 8 * 10**5 / 64 < (tmp_path / "x.npz").stat().st_size < 10**5 < 8 * 10**5
    assert len(read_samples(tmp_path / "x.npz")) == 10**5  # numbers that compress well, but not absurdly
