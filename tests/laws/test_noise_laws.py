"""Random numbers are functions of (seed, purpose, draw, sample): the same integers everywhere, of the stated laws.

With ``pytest --device cuda`` the numbers of the device are compared with those of the CPU. Without a device, torch's
operations on the CPU are: they are what a device without Triton draws with.
"""

import importlib.util
import itertools
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from noted_blocks import NotedBlocks
from scipy.stats import binomtest, kstest, norm

from sde_toolkit.noise.box_muller import HostBoxMuller, normals_by_torch
from sde_toolkit.noise.keyed_draws import KeyedDraws
from sde_toolkit.noise.philox import Blocks, HostPhilox, philox, signed, words_by_torch
from sde_toolkit.noise.streams import Purpose, per_sample_noise
from sde_toolkit.noise.word_sources import DeviceWords

WORD = st.integers(0, 2**64 - 1)
CPU = torch.device("cpu")
PUBLISHED = [  # Random123's kat_vectors, philox4x64 with 10 rounds: counter, key, block
    ("0 0 0 0", "0 0", "16554d9eca36314c db20fe9d672d0fdc d7e772cee186176b 7e68b68aec7ba23b"),
    (" ".join(4 * ["f" * 16]), " ".join(2 * ["f" * 16]),
     "87b092c3013fe90b 438c3c67be8d0224 9cc7d7c69cd777b6 a09caebf594f0ba0"),
    ("243f6a8885a308d3 13198a2e03707344 a4093822299f31d0 082efa98ec4e6c89", "452821e638d01377 be5466cf34e90c6c",
     "a528f45403e61d95 38c72dbd566e9788 a5a1610e72fd18b5 57bd43b5e52b7fe6"),
]  # fmt: skip


def unsigned(words):
    return [word % 2**64 for word in words.flatten().tolist()]


def drawn_there(seed, purpose, device):
    """The draws of a device; on the CPU those of torch's operations."""
    draws = KeyedDraws(seed, purpose, device)
    draws.device, draws.source = device, DeviceWords(device)
    return draws


# The integers


@pytest.mark.parametrize(("counter", "key", "block"), PUBLISHED)
def test_the_cipher_gives_the_published_blocks(counter, key, block, device):
    counter, key, block = ([int(word, 16) for word in words.split()] for words in (counter, key, block))
    found = philox(torch.tensor([[signed(word)] for word in counter], device=device), tuple(key))
    assert unsigned(found) == block


@settings(max_examples=30)
@given(key=st.tuples(WORD, WORD), place=st.integers(1, 2**100), high=st.integers(0, 2**128 - 1))
def test_numpy_and_torch_walk_through_the_same_blocks(key, place, high):
    blocks = Blocks(key, (high << 128) + place, 6)
    host = HostPhilox(key)
    host.start(blocks.counter)
    assert host.words(24).tolist() == unsigned(words_by_torch(blocks, CPU))


@pytest.mark.parametrize("place", [1, 2**64 - 3, 2**64, 5 * 2**64 - 2])
def test_the_walk_carries_from_word_to_word(place, device):
    whole = words_by_torch(Blocks((7, 9), place, 8), device)
    for i in range(8):
        assert torch.equal(words_by_torch(Blocks((7, 9), place + i, 1), device)[0], whole[i])
    host = HostPhilox((7, 9))
    host.start(place)
    assert host.words(32).tolist() == unsigned(whole)


# The same numbers on every device and in every batch

SHAPES = [(5,), (4, 1), (3, 2), (512, 2), (2, 7), (3, 3, 8), (2, 40_001), (9, 129), (0, 3), (3, 0)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_device_and_the_cpu_draw_the_same(shape, device):
    seed, first = 2**63 + 11, 2**40 + 3
    here, there = KeyedDraws(seed, 4), drawn_there(seed, 4, device)
    assert here.integers(6, first, 9) == there.integers(6, first, 9)
    for exact in ("uniform", "sign"):
        one, two = (getattr(draws, exact)(6, first, shape) for draws in (here, there))
        assert one.shape == two.shape == shape
        assert torch.equal(one, two.cpu())
    one, two = (draws.normal(6, first, shape) for draws in (here, there))
    assert one.shape == two.shape == shape
    assert one.dtype == two.dtype == torch.float32
    assert ((one - two.cpu()).abs() <= 8 * 2.0**-23 * one.abs()).all()


@pytest.mark.parametrize("shape", [(6,), (6, 3), (6, 2, 4), (6, 20_000)], ids=str)
@pytest.mark.parametrize("first", [0, 5, 2**32 - 2, 2**63 - 3])
def test_a_split_changes_no_bit(shape, first, device):
    whole = per_sample_noise(9, first, shape, device=device)
    parts = [per_sample_noise(9, first + a, (b - a, *shape[1:]), device=device) for a, b in ((0, 1), (1, 4), (4, 6))]
    for _ in range(3):
        assert torch.equal(whole(), torch.cat([part() for part in parts]))


@given(n=st.integers(1, 90), numbers=st.integers(1, 300), cut=st.integers(0, 89), seed=WORD)
def test_a_row_does_not_depend_on_the_batch(n, numbers, cut, seed):
    i = cut % n
    draws = KeyedDraws(seed, 1)
    for kind in (draws.normal, draws.uniform, draws.sign):
        assert torch.equal(kind(2, 0, (n, numbers))[i], kind(2, i, (1, numbers))[0])


def test_any_order_of_the_draws_gives_the_same():
    draws = KeyedDraws(3, 0)
    forward = [draws.normal(k, 0, (4, 5)) for k in range(5)]
    for k in (3, 0, 4, 2):
        assert torch.equal(draws.normal(k, 0, (4, 5)), forward[k])


@pytest.mark.parametrize("shape", [(4, 5), (2, 3, 8), (1, 2), (3, 2001), (0, 2), (3,)], ids=str)
def test_draws_that_are_made_ahead_are_the_same(shape):
    steps, draws = per_sample_noise(3, 7, shape), KeyedDraws(3, Purpose.SAMPLING)
    for k in range(40):
        assert torch.equal(steps(), draws.normal(k, 7, shape))


def test_a_float64_run_has_the_noise_of_a_float32_run(device):
    single, double = (per_sample_noise(1, 2, (8, 6), dtype=t, device=device) for t in (torch.float32, torch.float64))
    assert torch.equal(single().double(), double())


def test_no_block_is_drawn_twice(monkeypatch):
    """Kinds, sizes, draws, samples, purposes and seeds all have their own."""
    noted = NotedBlocks(monkeypatch)
    for seed, purpose, draw, numbers in itertools.product((0, 1, 2**64 - 1), (0, 1), (0, 1, 2**63), (1, 7, 8, 9, 129)):
        draws = KeyedDraws(seed, purpose)
        for kind in (draws.normal, draws.uniform, draws.sign):
            kind(draw, 0, (3, numbers))
            kind(draw, 3, (2, numbers))
        if numbers == 1:
            draws.integers(draw, 0, 5)
            draws.generator(draw)
    assert len(noted.walks) == 3 * 2 * 3 * (5 * 6 + 2)
    assert noted.shared() == []


def test_a_draw_of_any_batch_is_one_walk(monkeypatch):
    noted, noise = NotedBlocks(monkeypatch), per_sample_noise(0, 0, (3000, 2))
    noise(), noise()
    assert len(noted.walks) == 2


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_the_kernels_give_the_same_when_triton_interprets_them():
    """On the CPU: what a GPU computes with is run by numpy."""
    script = """
import contextlib, torch
from sde_toolkit.noise import keyed_draws, philox_kernels, word_sources
torch.cuda.device = lambda device: contextlib.nullcontext()
for shape in [(5,), (2, 7), (3, 3, 8), (9, 129)]:
    found = []
    for kernels in (None, philox_kernels):
        word_sources._kernels = lambda device: kernels
        draws = keyed_draws.KeyedDraws(2**63 + 1, 4)
        draws.source = word_sources.DeviceWords(torch.device("cpu"))
        found.append([kind(3, 2**64 - 2, shape) for kind in (draws.uniform, draws.sign, draws.normal)])
        found[-1].append(draws.normals(2**64 - 4, 3, 1, shape))
    for one, two in zip(*found):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=0)
"""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)


# Normals are those of Box and Muller, to the rounding of float32


def test_normals_are_box_mullers_to_a_few_units_in_the_last_place():
    """Against float64, from the same u and θ; with the extreme words, where u is smallest and largest."""
    words = np.random.default_rng(0).integers(0, 2**64, 10**6, np.uint64)
    words[:6] = [0, 2**64 - 1, 2**32 - 1, 2**63, 2**31, 1]
    low, high = words.astype(np.uint32), (words >> np.uint64(32)).astype(np.uint32).view(np.int32)
    u = (low.astype(np.float32) + np.float32(0.5)).astype(np.float64) / 2**32
    theta = (high.astype(np.float32) * np.float32(np.float32(np.pi) / 2**31)).astype(np.float64)
    expected = np.sqrt(-2 * np.log(u)) * np.array([np.cos(theta), np.sin(theta)])
    r, cosine, sine = HostBoxMuller()(words)
    by_torch = [z.numpy() for z in normals_by_torch(torch.from_numpy(words.view(np.int64)))]
    for found in (np.array([r * cosine, r * sine]), np.array(by_torch)):
        assert np.isfinite(found).all()
        assert (np.abs(found - expected) <= 5 * 2.0**-23 * np.abs(expected)).all()
    assert 6.7 < np.abs(expected).max() < 6.8


# The laws of the numbers


@pytest.fixture(scope="module")
def many():
    """2²² normals: 16 draws of 64 samples of 64² elements."""
    draws = KeyedDraws(20, Purpose.SAMPLING)
    return torch.stack([draws.normal(k, 0, (64, 4096)) for k in range(16)]).double()


def test_normals_have_the_moments_and_the_distribution_of_normals(many):
    z, n = many.flatten(), many.numel()
    for power in range(1, 9):
        mean, second = ((math.prod(range(1, k, 2)) if k % 2 == 0 else 0) for k in (power, 2 * power))
        assert abs(z.pow(power).mean().item() - mean) < 5 * math.sqrt((second - mean**2) / n), power
    assert kstest(z[::16].numpy(), "norm").pvalue > 1e-4


def test_the_tails_reach_beyond_five_standard_deviations():
    """As often as the normal law says, on either side: 2²⁵ numbers, nineteen of them expected beyond 5."""
    draws, n = KeyedDraws(21, Purpose.SAMPLING), 2**25
    beyond = {(side, sigma): 0 for side in (-1, 1) for sigma in (3, 4, 5)}
    for k in range(16):
        z = draws.normal(k, 0, (16, n // 256))
        far = z[z.abs() > 3]
        for side, sigma in beyond:
            beyond[side, sigma] += int((side * far > sigma).sum())
    for (_, sigma), count in beyond.items():
        assert binomtest(count, n, norm.sf(sigma)).pvalue > 1e-4
    assert binomtest(beyond[-1, 5] + beyond[1, 5], n, 2 * norm.sf(5)).pvalue > 1e-4


def test_draws_samples_and_elements_are_independent(many):
    """No correlation of the numbers, nor of their squares: the two normals of one word share their radius."""
    by_draw, by_sample, by_element = many.flatten(1), many.transpose(0, 1).flatten(1), many.flatten(0, 1).T
    pairs = torch.cat([by_element[:16], by_element[2048:2064]])  # elements j and j + 2048 come from one word
    for rows in (by_draw, by_sample, pairs):
        for seen in (rows, rows.square(), rows.abs()):
            correlation = torch.corrcoef(seen) - torch.eye(len(seen), dtype=torch.float64)
            assert correlation.abs().max() < 6 / math.sqrt(seen.shape[1])


def test_neighbouring_keys_have_nothing_in_common():
    """Seeds, purposes, draws, samples and sizes that differ by one, and large ones that agree in half of their bits."""
    keys = [(seed, 0, 0, 0) for seed in (0, 1, 2**32, 2**63, 2**63 + 1)]
    keys += [(0, purpose, 0, 0) for purpose in Purpose if purpose]
    keys += [(0, 0, draw, 0) for draw in (1, 2, 2**32, 2**63)] + [(0, 0, 0, i) for i in (1, 2, 2**32, 2**33, 2**63)]
    n = 20_000
    z = torch.stack([KeyedDraws(seed, purpose).normal(k, i, (1, n))[0] for seed, purpose, k, i in keys]).double()
    z = torch.cat([z, KeyedDraws(0, 0).normal(0, 0, (1, n + 8))[:, :n].double()])  # of another size
    for seen in (z, z.square()):
        assert (torch.corrcoef(seen) - torch.eye(len(z), dtype=torch.float64)).abs().max() < 6 / math.sqrt(n)


def test_uniforms_are_uniform_and_signs_are_fair():
    draws = KeyedDraws(22, Purpose.TIMES)
    u, s = draws.uniform(0, 0, (64, 2000)), draws.sign(1, 0, (64, 2000))
    assert kstest(u.flatten().numpy(), "uniform").pvalue > 1e-4
    assert ((u * 2**53) % 1 == 0).all()
    assert s.abs().eq(1).all()
    assert abs(s.mean().item()) < 5 / math.sqrt(s.numel())
    places = draws.sign(2, 0, (20_000, 64)).T  # the 64 bits of a word
    for rows in (u, s, places):
        correlation = torch.corrcoef(rows.double()) - torch.eye(len(rows), dtype=torch.float64)
        assert correlation.abs().max() < 6 / math.sqrt(rows.shape[1])
