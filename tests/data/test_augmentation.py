"""Augmentation is a pure function of its random numbers; its labels say what was done; exact where pixels allow it."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sde_toolkit.data.augmentation import (
    Augmentation,
    EDMAugmentation,
    HorizontalFlip,
    NoAugmentation,
    horizontal_flip,
)
from sde_toolkit.data.warping import half_way_weights, warp
from sde_toolkit.errors import ArgumentError

EVERY = [NoAugmentation(), HorizontalFlip(), EDMAugmentation(), EDMAugmentation(0.9, scaling=0.0), EDMAugmentation(1.0)]
ALONE = {"x_flip": 0, "y_flip": 0, "scaling": 0, "rotation": 0, "anisotropy": 0, "translation": 0}


def draws(augmentation, B, seed=0):
    generator = torch.Generator().manual_seed(seed)
    k, m = augmentation.draws
    uniform = torch.rand(B, k, generator=generator, dtype=torch.float64)
    return uniform, torch.randn(B, m, generator=generator, dtype=torch.float64)


def images(B, H=9, W=12, C=3, dtype=torch.float32, seed=0):
    return torch.randn(B, C, H, W, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def affine(B, a, b=(0.0, 0.0)):
    rows = torch.tensor([[*a[0], b[0]], [*a[1], b[1]]], dtype=torch.float64)
    return rows.expand(B, 2, 3)


# --- laws of all augmentations


@pytest.mark.parametrize("augmentation", EVERY)
def test_the_protocol(augmentation):
    assert isinstance(augmentation, Augmentation)
    x = images(5)
    kept = x.clone()
    uniform, normal = draws(augmentation, 5)
    y, labels = augmentation(x, uniform, normal)
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    assert torch.equal(x, kept)
    assert (labels is None) == (augmentation.width == 0)
    if labels is not None:
        assert labels.shape == (5, augmentation.width)
        assert labels.dtype == torch.float32


@pytest.mark.parametrize("augmentation", EVERY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_sample_depends_on_its_batch(augmentation, dtype):
    x = images(13, dtype=dtype)
    uniform, normal = draws(augmentation, 13)
    whole, labels = augmentation(x, uniform, normal)
    for part in (slice(0, 1), slice(3, 7), slice(12, 13), slice(None, None, 5)):
        again, its = augmentation(x[part], uniform[part], normal[part])
        assert torch.equal(again, whole[part])
        assert labels is None or torch.equal(its, labels[part])


@pytest.mark.parametrize("augmentation", [HorizontalFlip(0.0), EDMAugmentation(0.0), NoAugmentation()])
def test_probability_zero_is_the_identity(augmentation):
    x = images(20)
    y, labels = augmentation(x, *draws(augmentation, 20))
    assert torch.equal(x, y)
    assert labels is None or not labels.any()


@pytest.mark.parametrize("augmentation", EVERY)
def test_the_global_random_state_is_not_used(augmentation):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    augmentation(images(3), *draws(augmentation, 3))
    assert torch.equal(before, torch.get_rng_state())


# --- flips


@pytest.mark.parametrize("shape", [(8, 5), (8, 1, 6), (8, 3, 4, 5), (8, 2, 3, 4, 5)])
def test_a_flip_is_an_involution_with_its_probability(shape):
    x = torch.randn(shape)
    uniform = torch.linspace(0, 0.99, 8, dtype=torch.float64)
    once = horizontal_flip(x, uniform, 0.3)
    assert torch.equal(horizontal_flip(once, uniform, 0.3), x)
    mirrored = torch.tensor([torch.equal(a, b.flip(-1)) for a, b in zip(once, x, strict=True)])
    assert torch.equal(mirrored, uniform < 0.3)
    assert torch.equal(horizontal_flip(x, uniform, 1.0), x.flip(-1))


def test_flips_of_edm():
    x = images(400)
    only_x = EDMAugmentation(0.12, **{**ALONE, "x_flip": 1e8})
    y, labels = only_x(x, *draws(only_x, 400))
    flipped = labels[:, 0] == 1
    assert 160 < flipped.sum() < 240  # a fair coin, always thrown
    assert torch.equal(y[flipped], x[flipped].flip(-1))
    assert torch.equal(y[~flipped], x[~flipped])
    only_y = EDMAugmentation(1.0, **{**ALONE, "y_flip": 1})
    y, labels = only_y(x, *draws(only_y, 400))
    flipped = labels[:, 1] == 1
    assert 160 < flipped.sum() < 240
    assert torch.equal(y[flipped], x[flipped].flip(-2))


# --- resampling


@pytest.mark.parametrize("K", [1, 2, 3, 4])
def test_half_way_weights_are_exact_for_polynomials(K):
    nodes = np.arange(-K, K) + 0.5
    weights = np.array(half_way_weights(K))
    for degree in range(2 * K):
        assert (weights * nodes**degree).sum() == pytest.approx(float(degree == 0), abs=1e-12)
    assert np.allclose(weights, weights[::-1], rtol=0, atol=1e-15)


def test_the_identity_flips_and_quarter_turns_permute_the_pixels():
    x = images(2, 8, 8, dtype=torch.float64)
    assert torch.allclose(warp(x, affine(2, ((1, 0), (0, 1)))), x, atol=1e-12, rtol=0)
    assert torch.allclose(warp(x, affine(2, ((-1, 0), (0, 1)))), x.flip(-1), atol=1e-12, rtol=0)
    for quarters in range(1, 4):
        angle = quarters * math.pi / 2
        turn = ((math.cos(angle), -math.sin(angle)), (math.sin(angle), math.cos(angle)))
        turned = warp(x, affine(2, turn))
        assert torch.allclose(turned, torch.rot90(x, quarters, (-2, -1)), atol=1e-12, rtol=0)
    oblong = images(2, 5, 8, dtype=torch.float64)
    assert torch.allclose(warp(oblong, affine(2, ((-1, 0), (0, -1)))), oblong.flip(-1, -2), atol=1e-12, rtol=0)


@given(st.integers(-40, 40), st.integers(-40, 40), st.integers(1, 7), st.integers(1, 7))
def test_whole_pixels_shift_the_mirrored_plane(right, down, H, W):
    x = images(1, H, W, C=1, dtype=torch.float64)
    plane = np.pad(x[0, 0].numpy(), ((40, 40), (40, 40)), mode="symmetric")
    wanted = plane[40 - down : 40 - down + H, 40 - right : 40 - right + W]
    shifted = warp(x, affine(1, ((1, 0), (0, 1)), (-right, -down)))
    assert np.allclose(shifted[0, 0].numpy(), wanted, atol=1e-12, rtol=0)


@pytest.mark.parametrize("angle", [0.0, 0.3, 1.2, -2.0])
@pytest.mark.parametrize("factor", [0.8, 1.0, 1.3])
def test_smooth_images_follow_the_map(angle, factor):
    """cos(πk(i + 1/2)/W) is its own mirrored plane: the warped image is known everywhere."""
    H, W = 24, 32

    def image(column, row):
        return (math.pi * 2 * (column + 0.5) / W).cos() * (math.pi * (row + 0.5) / H).cos() + 0.3

    row, column = torch.meshgrid(torch.arange(H).double(), torch.arange(W).double(), indexing="ij")
    a = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]).double() / factor
    b = torch.tensor([1.37, -4.2])
    at_column = a[0, 0] * (column - (W - 1) / 2) + a[0, 1] * (row - (H - 1) / 2) + b[0] + (W - 1) / 2
    at_row = a[1, 0] * (column - (W - 1) / 2) + a[1, 1] * (row - (H - 1) / 2) + b[1] + (H - 1) / 2
    warped = warp(image(column, row)[None, None], affine(1, a.tolist(), b.tolist()))[0, 0]
    assert (warped - image(at_column, at_row)).abs().max() < 5e-3


def test_what_is_too_fine_for_the_pixels_is_smoothed_away():
    """Shrunk to 2/3, stripes of period 2.4 would have period 1.6 < 2: nearest or bilinear sampling shows false ones."""
    column = torch.arange(48).double()
    x = (2 * math.pi * column / 2.4).cos().expand(1, 1, 48, 48)
    inner = warp(x, affine(1, ((1.5, 0), (0, 1))))[..., 10:-10, 10:-10]
    bilinear = torch.nn.functional.interpolate(x, size=(48, 32), mode="bilinear")[..., 10:-10, 8:-8]
    assert inner.std() < 0.5 * bilinear.std()


# --- labels


def forward_map(labels, signs, H, W):
    """G = T N R S forwards, as table 6 of Karras et al. states it, from the labels and the one sign they leave open."""
    maps = []
    for (_, _, size, c, s, nc, ns, right, down), sign in zip(labels.double().tolist(), signs.tolist(), strict=True):
        turn, direction, stretch = -math.atan2(s, c + 1), math.atan2(ns, nc), sign * math.hypot(nc, ns)

        def rotate(angle):
            return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])

        ratio = 2 ** (0.2 * stretch)
        linear = rotate(direction) @ np.diag([ratio, 1 / ratio]) @ rotate(-direction)
        linear = linear @ rotate(turn) * 2 ** (0.2 * size)
        maps.append((linear, np.array([right * W / 8, down * H / 8])))
    return maps


def test_the_labels_say_where_the_content_went():
    """A blob's mass, centre and covariance move by the map that the labels state."""
    H, W, B = 96, 80, 40
    row, column = torch.meshgrid(torch.arange(H) - (H - 1) / 2, torch.arange(W) - (W - 1) / 2, indexing="ij")
    centre, spread = np.array([5.0, -3.0]), np.array([[14.0, 4.0], [4.0, 8.0]])
    offset = torch.stack([column - centre[0], row - centre[1]], -1).double()
    inverse = torch.from_numpy(np.linalg.inv(spread))
    blob = torch.exp(-0.5 * torch.einsum("hwi,ij,hwj->hw", offset, inverse, offset))[None, None].expand(B, 1, H, W)
    augmentation = EDMAugmentation(0.7, x_flip=0, y_flip=0)
    uniform, normal = draws(augmentation, B)
    y, labels = augmentation(blob, uniform, 0.7 * normal)
    seen = 0
    for image, (linear, shift) in zip(y[:, 0], forward_map(labels, normal[:, 1].sign(), H, W), strict=True):
        where = linear @ centre + shift
        covariance = linear @ spread @ linear.T
        reach = 5 * np.sqrt(np.diag(covariance))
        if (abs(where) + reach > [W / 2, H / 2]).any():
            continue  # cut off by the frame
        seen += 1
        near = ((column - where[0]).abs() < reach[0]) & ((row - where[1]).abs() < reach[1])
        image = image * near  # the mirrored plane shows other blobs further off
        mass = image.sum()
        mean = torch.stack([(image * column).sum(), (image * row).sum()]) / mass
        assert mean.numpy() == pytest.approx(where, abs=0.02)
        d = torch.stack([column - mean[0], row - mean[1]]).double()
        found = torch.einsum("ihw,jhw,hw->ij", d, d, image) / mass
        assert np.allclose(found.numpy(), covariance, atol=0.3)
        assert mass.item() == pytest.approx(blob[0].sum().item() * np.linalg.det(linear), rel=0.01)
    assert seen > 15


def test_labels_are_zero_iff_the_image_is_untouched():
    augmentation = EDMAugmentation(0.2, x_flip=1)
    x = images(300, 6, 6)
    y, labels = augmentation(x, *draws(augmentation, 300))
    silent = ~labels.any(1)
    untouched = (x == y).flatten(1).all(1)
    assert torch.equal(silent, untouched)
    assert 0.25 < silent.double().mean() < 0.45  # (1 − 0.1)² (1 − 0.2)⁴ = 0.33


def test_the_distribution_of_the_labels():
    augmentation, B = EDMAugmentation(0.3, x_flip=1e8), 20_000
    _, labels = augmentation(torch.zeros(B, 1, 1, 1), *draws(augmentation, B))
    labels = labels.double().numpy()
    used = {"size": labels[:, 2] != 0, "turn": (labels[:, 3:5] != 0).any(1)}
    used |= {"stretch": (labels[:, 5:7] != 0).any(1), "shift": (labels[:, 7:9] != 0).any(1)}
    for flags in used.values():
        assert abs(flags.mean() - 0.3) < 4 * math.sqrt(0.21 / B)
    together = (used["size"] & used["shift"]).mean()
    assert abs(together - 0.09) < 4 * math.sqrt(0.09 / B)
    assert abs(labels[:, 0].mean() - 0.5) < 0.02
    assert abs(labels[:, 1].mean() - 0.15) < 0.02
    normal = [labels[used["size"], 2], labels[used["shift"], 7], labels[used["shift"], 8]]
    angle = np.arctan2(labels[used["turn"], 4], labels[used["turn"], 3] + 1)
    radius = np.hypot(labels[used["stretch"], 5], labels[used["stretch"], 6])
    for values, law in [*((v, "norm") for v in normal), (radius, "halfnorm")]:
        assert stats.kstest(values, law).pvalue > 1e-3
    assert stats.kstest((angle + math.pi) / (2 * math.pi), "uniform").pvalue > 1e-3


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("x_flip", [0]),
        ("y_flip", [1]),
        ("scaling", [2]),
        ("rotation", [3, 4]),
        ("anisotropy", [5, 6]),
        ("translation", [7, 8]),
    ],
)
def test_each_transform_has_its_own_switch(name, columns):
    alone = EDMAugmentation(1.0, **{**ALONE, name: 1})
    _, labels = alone(images(50), *draws(alone, 50))
    assert sorted({int(c) for c in labels.nonzero()[:, 1]}) == columns


# --- bad input


@pytest.mark.parametrize("probability", [-0.1, 1.1, math.nan, "0.5", None, True])
def test_probabilities_are_checked(probability):
    for kind in (HorizontalFlip, EDMAugmentation):
        with pytest.raises(ArgumentError, match="probability"):
            kind(probability)


def test_bad_input():
    edm = EDMAugmentation()
    good = draws(edm, 2)
    for x in (torch.zeros(2, 3), torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2, 1, 4)):
        with pytest.raises(ArgumentError, match="HorizontalFlip"):
            edm(x, *good)
    with pytest.raises(ArgumentError, match="uniform"):
        edm(torch.zeros(3, 1, 4, 4), *good)
    with pytest.raises(ArgumentError, match="normal"):
        edm(torch.zeros(2, 1, 4, 4), good[0], good[0])
    with pytest.raises(ArgumentError, match="uniform"):
        HorizontalFlip()(torch.zeros(2, 4), torch.zeros(2), torch.zeros(2, 0))
    with pytest.raises(ArgumentError, match="axis"):
        horizontal_flip(torch.zeros(2), torch.zeros(2))
    with pytest.raises(ArgumentError, match="rotation"):
        EDMAugmentation(rotation=-1)
