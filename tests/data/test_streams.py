"""A stream's samples are a function of its seed: every one once an epoch, and after a resumption the very same ones."""

import contextlib
import io
import os
import tarfile
import tempfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sde_toolkit.data import Dataset, ParallelStream, ShuffledStream, Stream, webdataset
from sde_toolkit.errors import ArgumentError, DataError


class Counting:
    """Sample k is the number k; its label k mod 3. ``sizes`` of the shards."""

    event_shape, dtype, labelled = (2,), torch.float32, True

    def __init__(self, sizes):
        self.sizes, self.decoded = list(sizes), 0

    def __len__(self):
        return len(self.sizes)

    def records(self, shard, start):
        first = sum(self.sizes[:shard])
        yield from range(first + start, first + self.sizes[shard])

    def decode(self, record):
        self.decoded += 1
        return torch.full((2,), float(record)), record % 3


def drawn(stream, n, batch=1):
    """n samples as numbers, in batches."""
    found = []
    while len(found) < n:
        found += stream.next_batch(min(batch, n - len(found)))[0][:, 0].int().tolist()
    return found


sizes = st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(lambda s: sum(s) > 0)


@given(sizes, st.integers(1, 12), st.integers(0, 9))
def test_each_epoch_is_a_permutation(sizes, buffer, seed):
    stream, n = ShuffledStream(Counting(sizes), buffer, seed), sum(sizes)
    for epoch in range(3):
        assert sorted(drawn(stream, n)) == list(range(n))
        assert stream.epoch == epoch


@given(sizes, st.integers(1, 12), st.integers(1, 4), st.integers(1, 3))
def test_the_processes_share_an_epoch(sizes, buffer, size, again):
    n = sum(sizes)
    seen = []
    for rank in range(size):
        for inner in range(again):
            part = ShuffledStream(Counting(sizes), buffer).shard(rank, size).shard(inner, again)
            with contextlib.suppress(DataError):  # more processes than records
                while True:
                    x = part.next_batch(1)[0]
                    if part.epoch > 0:
                        break
                    seen.append(int(x[0, 0]))
    assert sorted(seen) == list(range(n))


@given(sizes, st.integers(1, 12), st.lists(st.integers(1, 7), max_size=5), st.integers(1, 7), st.integers(1, 3))
def test_a_stream_that_goes_on_gives_the_same_samples(sizes, buffer, before, batch, size):
    rank = size - 1
    first = ShuffledStream(Counting([n + size for n in sizes]), buffer, 5).shard(rank, size)
    for n in before:
        first.next_batch(n)
    state = first.state_dict()
    second = ShuffledStream(Counting([n + size for n in sizes]), buffer, 5).shard(rank, size)
    second.load_state_dict(state)
    assert second.state_dict() == state
    for _ in range(12):
        (x, labels), (y, others) = first.next_batch(batch), second.next_batch(batch)
        assert torch.equal(x, y)
        assert torch.equal(labels, others)
        assert first.state_dict() == second.state_dict()


def test_going_on_decodes_nothing_twice():
    shards = Counting([50, 50])
    stream = ShuffledStream(shards, 40)
    drawn(stream, 35)
    shards.decoded = 0
    other = ShuffledStream(shards, 40)
    other.load_state_dict(stream.state_dict())
    drawn(other, 10)
    assert shards.decoded == 10


def test_the_order_is_shuffled_by_seed_and_epoch_and_whole_in_a_buffer():
    one, two = ShuffledStream(Counting([40]), 100, 0), ShuffledStream(Counting([40]), 100, 1)
    first, second, other = drawn(one, 40), drawn(one, 40), drawn(two, 40)
    assert len({tuple(first), tuple(second), tuple(other), tuple(range(40))}) == 4
    assert drawn(ShuffledStream(Counting([40]), 1), 40) == list(range(40))
    places = np.array([drawn(ShuffledStream(Counting([8]), 8, seed), 8).index(0) for seed in range(400)])
    assert (np.bincount(places, minlength=8) > 25).all()  # 50 expected


def test_shards_come_in_another_order_each_epoch():
    stream = ShuffledStream(Counting([1] * 8), 1)
    assert len({tuple(drawn(stream, 8)) for _ in range(5)}) == 5


def test_the_state_is_plain_data(tmp_path):
    stream = ShuffledStream(Counting([10, 10]), 4)
    drawn(stream, 7)
    torch.save(stream.state_dict(), tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt", weights_only=True) == stream.state_dict()


def test_another_number_of_processes_goes_on_with_the_next_epoch():
    stream = ShuffledStream(Counting([10, 10]), 4)
    drawn(stream, 27)
    assert stream.epoch == 1
    wider = ShuffledStream(Counting([10, 10]), 4).shard(0, 2)
    wider.load_state_dict(stream.state_dict())
    wanted = ShuffledStream(Counting([10, 10]), 4).shard(0, 2)
    drawn(wanted, 20)
    assert drawn(wider, 10) == drawn(wanted, 10)
    assert wider.epoch == 2


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"buffer": 5}, {"shards": 3}, {"rank": -1}, {"extra": 0}, {"epoch": 0.5}]
)
def test_the_state_of_another_stream_is_refused(change):
    stream = ShuffledStream(Counting([10, 10]), 4)
    with pytest.raises(DataError) as caught:
        stream.load_state_dict({**stream.state_dict(), **change})
    assert caught.value.argument in (*change, "state")


@pytest.mark.parametrize(
    "arguments", [{"buffer": 0}, {"seed": -1}, {"rank": 2, "size": 2}, {"size": 0}, {"buffer": 1.5}]
)
def test_arguments(arguments):
    with pytest.raises(ArgumentError) as caught:
        ShuffledStream(Counting([3]), **arguments)
    assert caught.value.argument in arguments


def test_what_is_decoded_is_checked():
    class Bad(Counting):
        def __init__(self, sample):
            super().__init__([3])
            self.sample = sample

        def decode(self, record):
            return self.sample

    for sample in ((torch.zeros(3), 0), (torch.zeros(2).double(), 0), (torch.zeros(2), None)):
        with pytest.raises(DataError, match="decode"):
            ShuffledStream(Bad(sample)).next_batch(1)
    with pytest.raises(DataError, match="NaN"):
        ShuffledStream(Bad((torch.tensor([0.0, float("nan")]), 0))).next_batch(1)
    with pytest.raises(DataError, match="no records"):
        ShuffledStream(Counting([0, 0])).next_batch(1)
    with pytest.raises(DataError, match="process 4 of 5"):
        ShuffledStream(Counting([4])).shard(4, 5).next_batch(1)


def test_a_data_set_with_a_stream():
    stream, test = ShuffledStream(Counting([10])), torch.zeros(4, 2)
    assert isinstance(stream, Stream)
    data = Dataset("d", test[:0], test, stream=stream)
    assert data.event_shape == (2,)
    assert data.labelled
    state = stream.state_dict()
    assert torch.equal(data.sample(5), data.sample(5))
    assert stream.state_dict() == state
    for wrong in ({"train": test, "test": test}, {"train": test[:0].double(), "test": test.double()}, {}):
        with pytest.raises(DataError):
            Dataset("d", **{"train": torch.zeros(0, 3), "test": torch.zeros(1, 3), **wrong}, stream=stream)
    with pytest.raises(DataError, match="next_batch"):
        Dataset("d", test[:0], test, stream=[1, 2])


# --- read ahead by other processes


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more than this machine has cores, on purpose
def test_workers_share_an_epoch_and_go_on_exactly():
    def made():
        return ParallelStream(ShuffledStream(Counting([24] * 6), 10, 3), workers=3, ahead=2)

    assert isinstance(made(), Stream)
    assert sorted(drawn(made(), 144, 4)) == list(range(144))
    whole = drawn(made(), 200, 4)
    first = made()
    assert drawn(first, 5 * 4, 4) == whole[:20]
    state = first.state_dict()
    second = made()
    second.load_state_dict(state)
    assert drawn(second, 100, 4) == whole[20:120]
    assert drawn(first, 20, 4) == whole[20:40]
    early = made()
    early.load_state_dict(made().state_dict())
    assert drawn(early, 8, 4) == whole[:8]
    with pytest.raises(DataError, match="3 workers"):
        early.load_state_dict({"workers": [None], "turn": 0})
    with pytest.raises(ArgumentError, match="workers"):
        ParallelStream(first.stream, workers=0)


def test_workers_keep_the_batches_of_another_size_exact():
    stream = ParallelStream(ShuffledStream(Counting([12] * 4), 5), workers=2)
    seen = drawn(stream, 8, 4) + drawn(stream, 6, 3)
    assert len(set(seen)) == 14


# --- tar shards


def tar(path, samples, extra=()):
    """A WebDataset shard of (name, values or bytes, label)."""
    with tarfile.open(path, "w") as archive:

        def add(name, content):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))

        for name, values, label in samples:
            buffer = io.BytesIO()
            if isinstance(values, bytes):
                buffer.write(values)
            else:
                Image.fromarray(values).save(buffer, "PNG")
            if label is not None:
                add(f"{name}.cls", str(label).encode())
            add(f"{name}.png", buffer.getvalue())
            add(f"{name}.json", b"{}")
        for name, content in extra:
            add(name, content)
    return path


def image(k, shape=(4, 6, 3)):
    return np.random.default_rng(k).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def shards(tmp_path):
    for s in range(3):
        tar(
            tmp_path / f"train-{s}.tar", [(f"{k:04}", image(k), k) for k in range(5 * s, 5 * s + 5)], [("README", b"x")]
        )
    tar(tmp_path / "test.tar", [(f"{k}", image(k), k) for k in range(100, 104)])
    return tmp_path


def test_tar_shards_hold_every_image_with_its_label(shards):
    data = webdataset(str(shards / "train-*.tar"), test_path=shards / "test.tar", test_samples=3, buffer=4)
    assert data.event_shape == (3, 4, 6)
    assert data.test_labels.tolist() == [100, 101, 102]
    x, labels = data.stream.next_batch(15)
    assert sorted(labels.tolist()) == list(range(15))
    for values, label in zip(x, labels.tolist(), strict=True):
        assert np.array_equal(values.permute(1, 2, 0).numpy(), image(label))
    assert torch.equal(data.test[0].permute(1, 2, 0), torch.from_numpy(image(100)))
    for start in range(6):
        records = list(data.stream.shards.records(1, start))
        assert [int(record.label) for record in records] == list(range(5 + start, 10))
    assert len(webdataset(shards, labels=False).test) == 0
    assert webdataset(shards, labels=False).stream.next_batch(2)[1] is None


def test_tar_shards_through_workers_go_on_exactly(shards):
    stream = ParallelStream(webdataset(str(shards / "train-*.tar"), buffer=3).stream, workers=2)
    stream.next_batch(3)
    other = ParallelStream(webdataset(str(shards / "train-*.tar"), buffer=3).stream, workers=2)
    other.load_state_dict(stream.state_dict())
    for _ in range(4):
        for a, b in zip(stream.next_batch(3), other.next_batch(3), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("samples", "word"),
    [
        ([("bad", b"no image", 1)], r"bad\.png.*readable"),
        ([("small", image(0, (4, 5, 3)), 1)], r"small\.png.*5x4"),
        ([("bare", image(0), None)], r"bare\.png.*\.cls"),
        ([("word", image(0), "cat")], r"word\.png.*whole number"),
    ],
)
def test_unusable_members_are_named(shards, samples, word):
    tar(shards / "zz.tar", samples)

    def read(workers):
        stream = webdataset([str(shards / "train-0.tar"), str(shards / "zz.tar")]).stream
        return (ParallelStream(stream, workers) if workers else stream).next_batch(6)

    for workers in (0, 1):
        with pytest.raises(DataError, match=word):
            read(workers)


def test_unusable_tar_files(shards):
    for path in (shards / "absent.tar", str(shards / "no-*.tar"), [str(shards / "absent.tar")]):
        with pytest.raises(DataError, match="no such file"):
            webdataset(path)
    content = (shards / "train-0.tar").read_bytes()
    (shards / "bad.tar").write_bytes(b"no tar file, whatever it is called" * 40)
    with pytest.raises(DataError, match=r"bad\.tar"):
        webdataset(shards / "bad.tar")
    (shards / "bad.tar").write_bytes(content[:700])
    with pytest.raises(DataError, match=r"bad\.tar"):
        webdataset(shards / "bad.tar").stream.next_batch(5)
    for end in (
        content[: len(content) // 2048 * 1024],
        content.rstrip(b"\0") + b"\0" * (-len(content.rstrip(b"\0")) % 512),
    ):
        (shards / "bad.tar").write_bytes(end)  # whole blocks, but without the end mark
        with pytest.raises(DataError, match=r"bad\.tar.*short"):
            webdataset(shards / "bad.tar", buffer=100).stream.next_batch(5)
    place = content.index(b"0003.png")
    (shards / "bad.tar").write_bytes(content[:place] + b"\xff" * 512 + content[place + 512 :])
    with pytest.raises(DataError, match=r"bad\.tar.*damaged"):  # tarfile itself would end here in silence
        webdataset(shards / "bad.tar", buffer=100).stream.next_batch(5)
    tar(shards / "empty.tar", [])
    with pytest.raises(DataError, match="no images"):
        webdataset(shards / "empty.tar")


@settings(max_examples=60)
@given(st.integers(0, 9000), st.binary(min_size=1, max_size=600))
def test_whatever_the_bytes_of_a_tar_file_samples_or_a_typed_error(place, noise):
    with tempfile.TemporaryDirectory() as folder:
        path = tar(os.path.join(folder, "x.tar"), [(str(k), image(k), k) for k in range(3)])
        with open(path, "r+b") as file:
            file.seek(place)
            file.write(noise)
        caught = None
        try:
            assert len(webdataset(path).stream.next_batch(4)[0]) == 4
        except DataError as error:
            caught = str(error)
        assert caught is None or "x.tar" in caught or "process" in caught
