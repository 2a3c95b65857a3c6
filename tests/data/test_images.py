"""MNIST is read from both of its formats; what is wrong with a file is said; embedded sets are complete."""

import gzip
import struct

import numpy as np
import pytest
import torch

from sde_toolkit.data import digits, mnist, mnist_test_images
from sde_toolkit.errors import DataError

KEYS = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return {
        "x_train": rng.integers(0, 256, (12, 28, 28), dtype=np.uint8),
        "y_train": rng.integers(0, 10, 12, dtype=np.uint8),
        "x_test": rng.integers(0, 256, (5, 28, 28), dtype=np.uint8),
        "y_test": rng.integers(0, 10, 5, dtype=np.uint8),
    }


def idx(values):
    header = bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape)
    return header + values.tobytes()


def write_idx(folder, arrays, rename=str):
    folder.mkdir(exist_ok=True)
    for key, name in KEYS.items():
        name = rename(name)
        content = idx(arrays[key])
        (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return folder


def same(data, arrays):
    assert data.train.dtype == data.test.dtype == torch.uint8
    assert data.train_labels.dtype == data.test_labels.dtype == torch.int64
    assert np.array_equal(data.train.numpy(), arrays["x_train"][:, None])
    assert np.array_equal(data.test.numpy(), arrays["x_test"][:, None])
    assert np.array_equal(data.train_labels.numpy(), arrays["y_train"])
    assert np.array_equal(data.test_labels.numpy(), arrays["y_test"])
    assert data.event_shape == (1, 28, 28)
    assert data.levels == 256


def test_npz_is_read_unscaled(tmp_path, arrays):
    np.savez(tmp_path / "mnist.npz", **arrays)
    same(mnist(tmp_path / "mnist.npz"), arrays)
    same(mnist(path=str(tmp_path / "mnist.npz")), arrays)


@pytest.mark.parametrize(
    "rename",
    [str, lambda name: name + ".gz", lambda name: name.replace("-idx", ".idx")],
    ids=["plain", "gz", "dotted"],
)
def test_idx_folder_is_read(tmp_path, arrays, rename):
    same(mnist(write_idx(tmp_path / "raw", arrays, rename)), arrays)


def refused(path, *words):
    with pytest.raises(DataError) as caught:
        mnist(path)
    message = str(caught.value)
    for word in (*words, caught.value.argument):
        assert word in message
    return message


def test_missing_files(tmp_path, arrays):
    refused(tmp_path / "absent.npz", "absent.npz", "no such file", "x_train", "IDX")
    folder = write_idx(tmp_path / "raw", arrays)
    (folder / KEYS["y_test"]).unlink()
    refused(folder, "raw", "t10k-labels-idx1-ubyte", "torchvision")


def test_missing_keys_are_listed(tmp_path, arrays):
    del arrays["y_train"], arrays["x_test"]
    np.savez(tmp_path / "part.npz", **arrays)
    refused(tmp_path / "part.npz", "part.npz", "lacks y_train, x_test")


@pytest.mark.parametrize(
    ("key", "change", "word"),
    [
        ("x_train", lambda a: a.astype(np.float32) / 255, "float32"),
        ("x_train", lambda a: a.reshape(12, 784), "(12, 784)"),
        ("x_test", lambda a: a[:, :27], "(5, 27, 28)"),
        ("x_test", lambda a: a[:0], "no images"),
        ("y_test", lambda a: a[:4], "(4,)"),
        ("y_test", lambda a: a.astype(np.float64), "float64"),
        ("y_train", lambda a: a + 10, "not 0..9"),
        ("y_train", lambda a: a.astype(np.int64) - 10, "not 0..9"),
    ],
)
def test_wrong_dtype_shape_or_range(tmp_path, arrays, key, change, word):
    arrays[key] = change(arrays[key])
    np.savez(tmp_path / "odd.npz", **arrays)
    refused(tmp_path / "odd.npz", "odd.npz", key[2:], word)


def test_damaged_npz_is_refused_wherever_it_is_cut(tmp_path, arrays):
    np.savez_compressed(tmp_path / "whole.npz", **arrays)
    content = (tmp_path / "whole.npz").read_bytes()
    cut = tmp_path / "cut.npz"
    for length in (0, 3, 50, len(content) // 2, len(content) - 1):
        cut.write_bytes(content[:length])
        refused(cut, "cut.npz", "fetch it again")
    flipped = bytearray(content)
    flipped[len(content) // 3] ^= 0xFF
    cut.write_bytes(flipped)
    refused(cut, "cut.npz")


def test_pickles_are_not_loaded(tmp_path, arrays):
    np.savez(tmp_path / "objects.npz", **{**arrays, "x_train": np.array([{"a": 1}, None], dtype=object)})
    refused(tmp_path / "objects.npz", "objects.npz", "pickle")


def test_wrong_magic_and_exchanged_files(tmp_path, arrays):
    folder = write_idx(tmp_path / "raw", arrays)
    images = folder / KEYS["x_train"]
    whole = images.read_bytes()
    images.write_bytes(b"\x00\x00\x0d\x03" + whole[4:])
    refused(folder, KEYS["x_train"], "00000d03", "00000803")
    images.write_bytes((folder / KEYS["y_train"]).read_bytes())
    refused(folder, KEYS["x_train"], "exchanged")
    images.write_bytes(b"")
    refused(folder, KEYS["x_train"], "not an IDX file")


def test_truncated_idx(tmp_path, arrays):
    folder = write_idx(tmp_path / "raw", arrays)
    images = folder / KEYS["x_test"]
    whole = images.read_bytes()
    for content in (whole[:7], whole[:-1], whole + b"x", gzip.compress(whole)[:-20]):
        images.write_bytes(content)
        refused(folder, KEYS["x_test"], "Fetch the file again")


def test_embedded_mnist_test_images():
    data = mnist_test_images()
    assert data.test.shape == (2000, 1, 28, 28)
    assert data.test.dtype == torch.uint8
    assert data.train.shape == (0, 1, 28, 28)
    assert data.test_labels.shape == (2000,)
    assert data.test_labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]  # how the MNIST test set begins
    assert data.test_labels.unique().tolist() == list(range(10))
    assert (int(data.test.min()), int(data.test.max())) == (0, 255)
    assert "CC BY-SA" in data.licence


def test_embedded_digits():
    data = digits()
    assert data.train.shape == (1500, 1, 8, 8)
    assert data.test.shape == (297, 1, 8, 8)
    assert data.event_shape == (1, 8, 8)
    assert data.levels == 17
    for images, labels in ((data.train, data.train_labels), (data.test, data.test_labels)):
        assert images.dtype == torch.uint8
        assert (int(images.min()), int(images.max())) == (0, 16)
        assert labels.unique().tolist() == list(range(10))
    assert torch.equal(data.train, digits().train)
    ends = data.transform.forward(torch.tensor([0, 16], dtype=torch.uint8))
    assert ends.tolist() == [-1.0, 1.0]


def test_split_parts_of_digits_are_disjoint_and_complete():
    from sde_toolkit.data.dataset import split_indices

    train, test = split_indices(1797, 297)
    assert sorted([*train, *test]) == list(range(1797))


def test_licences_travel_with_the_files():
    from importlib import resources

    text = (resources.files("sde_toolkit.data") / "files" / "LICENSES.md").read_text("utf-8")
    for word in ("LeCun", "Cortes", "Burges", "CC BY-SA 3.0", "Alpaydin", "Kaynak", "CC BY 4.0"):
        assert word in text
