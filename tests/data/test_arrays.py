"""Any numeric array file becomes a data set; any other file is refused with the reason."""

import numpy as np
import pytest
import torch

from sde_toolkit.data import array, memory_map
from sde_toolkit.errors import ArgumentError, DataError


@pytest.fixture
def save(tmp_path):
    def write(values, name="values.npy", **others):
        path = tmp_path / name
        if name.endswith(".npz"):
            np.savez(path, values=values, **others)
        else:
            np.save(path, values)
        return path

    return write


@pytest.mark.parametrize("shape", [(), (2,), (16, 4), (3, 8, 8)])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, np.uint8, np.int32, np.bool_])
def test_any_event_shape_and_dtype(save, shape, dtype):
    values = np.random.default_rng(0).integers(0, 2, (50, *shape)).astype(dtype)
    data = array(save(values), test_fraction=0.2)
    assert data.event_shape == shape
    assert data.train.shape == (40, *shape)
    assert data.test.shape == (10, *shape)
    assert data.train.numpy().dtype == data.test.numpy().dtype == dtype
    joined = np.concatenate([data.train.numpy(), data.test.numpy()]).reshape(50, -1)
    assert sorted(map(tuple, joined)) == sorted(map(tuple, values.reshape(50, -1)))


def test_the_split_is_a_partition_fixed_by_its_seed(save):
    path = save(np.arange(100.0))
    first, again, other = array(path), array(path), array(path, seed=1)
    assert torch.equal(first.train, again.train)
    assert not torch.equal(first.test, other.test)
    assert sorted(first.train.tolist() + first.test.tolist()) == list(range(100))
    assert len(array(path, test_fraction=0.0).test) == 0
    assert len(array(save(np.ones((1, 2))), shift=0.0, scale=1.0).train) == 1


def test_the_global_random_state_is_left_alone(save):
    path = save(np.arange(10.0))
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    array(path)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


def test_auto_standardises_the_train_part_as_a_whole_and_says_so(save):
    data = array(save(np.random.default_rng(0).normal(30.0, 4.0, (500, 3))), per="all")
    y = data.transform.forward(data.train)
    assert y.mean().item() == pytest.approx(0.0, abs=1e-9)
    assert y.std(correction=0).item() == pytest.approx(1.0, abs=1e-9)
    assert f"{data.transform.shift:.6g}" in data.notes
    assert f"{data.transform.scale:.6g}" in data.notes
    assert data.train.mean().item() == pytest.approx(30.0, abs=1.0)  # the data themselves are raw


TABLE = np.array([1000.0, 1e-3, 5.0, 0.0]) + np.array([300.0, 3e-4, 0.0, 0.0]) * np.random.default_rng(0).normal(
    size=(500, 4)
)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("builder", [array, memory_map], ids=["array", "memory_map"])
def test_each_column_of_a_table_has_its_own_mean_and_spread(save, builder, dtype):
    data = builder(save(TABLE.astype(dtype)))
    x = data.train[:]
    y = data.transform.forward(x.double())
    digits = 1e-9 if dtype == np.float64 else 1e-6
    torch.testing.assert_close(y.mean(0), torch.zeros(4).double(), rtol=0, atol=digits)
    torch.testing.assert_close(y[:, :2].std(0, correction=0), torch.ones(2).double(), rtol=digits, atol=0)
    assert not y[:, 2:].any()  # constant columns stay where they are
    assert torch.equal(data.transform.inverse(torch.zeros(1, 4))[0, 2:], torch.tensor([5.0, 0.0]))
    assert "each column" in data.notes
    assert "2 of them constant" in data.notes


@pytest.mark.parametrize("value", [5.0, -5.0, 1e-6, 0.0])
def test_a_constant_column_is_scaled_by_its_size(save, value):
    """So that it has the units of the others, and errors in model space are small beside it."""
    table = np.stack([np.arange(9.0), np.full(9, value)], 1)
    away = torch.tensor([[0.0, 2 * value if value else 1.0]], dtype=torch.float64)
    assert array(save(table)).transform.forward(away)[0, 1].item() == pytest.approx(-1.0 if value < 0 else 1.0)


@pytest.mark.parametrize("n", [2, 7, 25, 26])
def test_the_test_part_is_at_least_the_fraction_and_leaves_something_to_train_on(save, n):
    for fraction in (1e-9, 0.1, 0.5, 0.99):
        data = array(save(np.arange(float(n))), test_fraction=fraction, shift=0.0, scale=1.0)
        assert len(data.train) >= 1
        assert len(data.test) == n - 1 or fraction * n <= len(data.test) < fraction * n + 1


@pytest.mark.parametrize("shape", [(3, 8), (3, 4, 4)])
def test_the_choice_of_what_has_a_spread_of_its_own(save, shape):
    spreads = np.random.default_rng(0).uniform(1.0, 100.0, shape)
    path = save(50.0 + spreads * np.random.default_rng(1).normal(size=(300, *shape)))
    axes = {"all": (0, *range(1, len(shape) + 1)), "channel": (0, *range(2, len(shape) + 1)), "element": (0,)}
    for per, over in axes.items():
        data = array(path, per=per)
        y = data.transform.forward(data.train)
        std = y.var(over, correction=0).sqrt()
        torch.testing.assert_close(y.mean(over), torch.zeros_like(std), rtol=0, atol=1e-9)
        torch.testing.assert_close(std, torch.ones_like(std), rtol=1e-9, atol=0)
    assert array(path).transform == array(path, per="all").transform
    for per in ("column", "row", None):
        with pytest.raises(ArgumentError, match="per"):
            array(path, per=per)


def test_levels_have_one_scale(save):
    """Their width is one number; rare pixels at the border of flat images would be blown up."""
    values = np.random.default_rng(0).integers(0, 17, (40, 4))
    values[:, 0] //= 8
    for data in (array(save(values), levels=17), array(save(values.astype(np.uint8)))):
        assert isinstance(data.transform.scale, float)
    assert len(array(save(values)).transform.scale) == 4


def test_arrays_of_numbers_as_given(save):
    data = array(save(TABLE), shift=[1000, 0, 0, 0], scale=np.array([1.0, 2.0, 3.0, 4.0]))
    assert data.transform.forward(torch.ones(1, 4)).tolist() == [[-999.0, 2.0, 3.0, 4.0]]
    with pytest.raises(ArgumentError, match="shape"):
        array(save(TABLE), scale=[1.0, 2.0])


def test_shift_and_scale_as_given(save):
    path = save(np.arange(10.0))
    assert array(path, shift=2, scale=0.5).transform.forward(torch.tensor(4.0)).item() == 1.0
    half = array(path, scale=0.5)
    assert half.transform.scale == 0.5
    assert half.transform.shift == pytest.approx(half.train.mean().item())
    assert array(save(np.ones((9, 2))), scale=1.0).transform.shift == 1.0


def test_keys_of_an_npz(save):
    one = save(np.arange(10.0), "one.npz")
    assert len(array(one).train) == len(array(one, key="values").train) == 9
    two = save(np.arange(10.0), "two.npz", more=np.zeros(3))
    assert len(array(two, key="values").train) == 9
    for key in (None, "absent"):
        with pytest.raises(DataError, match="more, values"):
            array(two, key=key)
    with pytest.raises(DataError, match="no keys"):
        array(save(np.arange(10.0)), key="values")


def test_other_byte_order(save):
    data = array(save(np.arange(10, dtype=">f4")), test_fraction=0.0)
    assert data.train.tolist() == list(range(10))


def test_levels(save):
    path = save(np.random.default_rng(0).integers(0, 17, (40, 4)).astype(np.uint8))
    assert array(path).levels is None
    assert array(path, levels=17).levels == 17
    with pytest.raises(DataError, match=r"0\.\.15"):
        array(path, levels=16)
    with pytest.raises(DataError, match="whole"):
        array(save(np.array([0.0, 0.5, 1.0])), levels=2)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        (np.array([[1.0, 2.0], [np.nan, 3.0]]), "(1, 0)"),
        (np.array([[1.0, np.inf], [2.0, 3.0]]), "(0, 1)"),
        (np.zeros((0, 3)), "no samples"),
        (np.zeros((3, 0)), "no samples"),
        (np.array(1.0), "no samples"),
        (np.ones(3, dtype=np.complex64), "complex64"),
        (np.array(["a", "b"]), "dtype"),
        (np.array([{"a": 1}, [2]], dtype=object), "pickle"),
        (np.ones((20, 2)), "standard deviation 0"),
        (np.array([1e308, -1e308] * 10), "standard deviation"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_unusable_values(save, values, word):
    for name in ("bad.npy", "bad.npz"):
        with pytest.raises(DataError) as caught:
            array(save(values, name))
        assert word in str(caught.value)
        assert name in str(caught.value)


def test_damaged_foreign_and_missing_files(tmp_path, save):
    content = save(np.arange(100.0)).read_bytes()
    bad = tmp_path / "bad.npy"
    for damaged in (b"", b"1,2\n3,4\n", content[:9], content[:100], content[:-1]):
        bad.write_bytes(damaged)
        with pytest.raises(DataError, match=r"bad\.npy"):
            array(bad)
    for path in (tmp_path / "absent.npy", tmp_path):
        with pytest.raises(DataError, match="no such file"):
            array(path)


def test_other_zip_files_are_no_arrays(tmp_path):
    torch.save({"x": torch.ones(3)}, tmp_path / "model.pt")
    with pytest.raises(DataError, match="no numpy arrays"):
        array(tmp_path / "model.pt")
    np.savez(tmp_path / "empty.npz")
    with pytest.raises(DataError, match="no numpy arrays"):
        array(tmp_path / "empty.npz")


@pytest.mark.filterwarnings("ignore:invalid escape sequence")  # from numpy, which parses the header as Python
def test_a_garbled_header_is_read_as_numpy_reads_it_or_refused(tmp_path, save):
    """Never other numbers than numpy finds in the same bytes; and refused wherever numpy refuses."""
    content = save(np.arange(20.0)).read_bytes()
    bad = tmp_path / "bad.npy"
    rng = np.random.default_rng(0)
    outcomes = {"read": 0, "refused": 0}
    for _ in range(400):
        garbled = bytearray(content)
        for position in rng.integers(0, 128, 2):
            garbled[position] = (
                int(rng.integers(0, 256)) if rng.random() < 0.5 else int(rng.choice(list(content[:128])))
            )
        bad.write_bytes(garbled)
        try:
            found = array(bad, shift=0.0, scale=1.0, test_fraction=0.0).train.numpy()
        except DataError:
            outcomes["refused"] += 1
            continue
        outcomes["read"] += 1
        expected = np.load(bad, allow_pickle=False)
        assert found.dtype == expected.dtype.newbyteorder("=")
        np.testing.assert_array_equal(found, expected)
    assert min(outcomes.values()) > 5, outcomes


@pytest.mark.parametrize(
    "arguments",
    [
        {"test_fraction": 1.0},
        {"test_fraction": -0.1},
        {"test_fraction": float("nan")},
        {"scale": 0.0},
        {"scale": "none"},
        {"shift": "mean"},
        {"shift": float("inf")},
    ],
)
def test_unusable_arguments_are_named(save, arguments):
    with pytest.raises(ArgumentError) as caught:
        array(save(np.arange(10.0)), **arguments)
    assert caught.value.argument in arguments
