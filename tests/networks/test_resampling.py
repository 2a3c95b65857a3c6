"""Laws of the filters by which blocks halve and double, and of the convolutions they are merged with."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.signal import upfirdn
from torch.nn import functional

from sde_toolkit.networks.convolutions import Pointwise, Rows, convolution
from sde_toolkit.networks.resampling import Double, FilteredStride, Halve, StridedConvolution, UpConvolution

TAPS = [(1, 1), (1, 3, 3, 1), (1, 2, 5, 3), (1, -2, 9, 9, 3, 1)]
SIZES = {1: (10,), 2: (6, 8), 3: (4, 6, 8)}


def along_axes(x, taps, up, down, crop):
    """scipy's upfirdn along every spatial axis: zeros between, filter, keep every ``down``-th; then ``crop``."""
    f = np.asarray(taps, dtype=float) / sum(taps) * up
    out = x.numpy()
    for axis in range(2, x.ndim):
        out = upfirdn(f[::-1], out, up=up, axis=axis)
        out = np.take(out, crop(x.shape[axis], len(taps)), axis=axis)
    return torch.from_numpy(out)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("taps", TAPS)
def test_halving_is_upfirdn(taps, dims):
    """Convolved in full, the output at 2i + L/2 is the one whose window is centred between samples 2i and 2i + 1."""
    x = torch.randn(2, 3, *SIZES[dims], dtype=torch.float64)
    expected = along_axes(x, taps, 1, 2, lambda n, length: range(length // 2, length // 2 + n, 2))
    torch.testing.assert_close(Halve(dims, taps).double()(x), expected)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("taps", TAPS)
def test_doubling_is_upfirdn(taps, dims):
    x = torch.randn(2, 3, *SIZES[dims], dtype=torch.float64)
    flipped = taps[::-1]  # a filter that spreads runs the other way round than one that collects
    expected = along_axes(x, flipped, 2, 1, lambda n, length: range(length // 2 - 1, length // 2 - 1 + 2 * n))
    torch.testing.assert_close(Double(dims, taps).double()(x), expected)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("taps", TAPS)
def test_doubling_is_the_adjoint_of_halving(taps, dims):
    """⟨double(x), y⟩ = 2^dims ⟨x, halve(y)⟩."""
    x = torch.randn(2, 3, *SIZES[dims], dtype=torch.float64)
    y = torch.randn(2, 3, *(2 * n for n in SIZES[dims]), dtype=torch.float64)
    left, right = (Double(dims, taps).double()(x) * y).sum(), (x * Halve(dims, taps).double()(y)).sum()
    torch.testing.assert_close(left, 2**dims * right)


@pytest.mark.parametrize("taps", TAPS[:2])
def test_constants_survive_away_from_the_border(taps):
    x = torch.full((1, 2, 12, 12), 3.0, dtype=torch.float64)
    inner = (..., slice(2, -2), slice(2, -2))
    double, halve = Double(2, taps).double(), Halve(2, taps).double()
    torch.testing.assert_close(double(x)[inner], torch.full_like(double(x)[inner], 3.0))
    torch.testing.assert_close(halve(double(x))[inner], x[inner])


@pytest.mark.parametrize("taps", TAPS)
def test_a_shift_by_two_becomes_a_shift_by_one(taps):
    """Away from the border, and the other way round in doubling."""
    x = torch.randn(1, 1, 40, dtype=torch.float64)
    halve, double = Halve(1, taps).double(), Double(1, taps).double()
    torch.testing.assert_close(halve(x.roll(2, -1))[..., 4:-4], halve(x).roll(1, -1)[..., 4:-4])
    torch.testing.assert_close(double(x.roll(1, -1))[..., 8:-8], double(x).roll(2, -1)[..., 8:-8])


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("taps", TAPS[:2])
def test_doubling_and_convolving_at_once(taps, dims):
    """The transposed convolution with added-up weights, border included, at any number of samples."""
    layer = UpConvolution(dims, 3, 5, taps).double()
    torch.nn.init.normal_(layer.conv.bias)
    for batch in (1, 700):
        x = torch.randn(batch, 3, *(2, 3, 1)[:dims], dtype=torch.float64)
        expected = layer.conv(Double(dims, taps).double()(x))
        torch.testing.assert_close(layer(x), expected)
    if taps == (1, 1):
        torch.testing.assert_close(layer.folded(x), expected)


def test_the_merged_convolution_has_the_same_gradients():
    layer = UpConvolution(2, 3, 5).double()
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 5, 8, 8, dtype=torch.float64)
    found = [
        torch.autograd.grad((out * weight).sum(), (x, layer.conv.weight, layer.conv.bias))
        for out in (layer.folded(x), layer.conv(layer.doubled(x)))
    ]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_filtered_stride_is_filter_then_stride(dims):
    """Song et al.: L/2 zeros on both sides, the filter, then three taps at every second position."""
    layer = FilteredStride(dims, 2, 4, (1, 3, 3, 1)).double()
    x = torch.randn(2, 2, *SIZES[dims], dtype=torch.float64)
    smooth = along_axes(functional.pad(x, (2, 2) * dims), (1, 3, 3, 1), 1, 1, lambda n, length: range(length - 1, n))
    expected = layer.conv(smooth)
    assert expected.shape[2:] == tuple(n // 2 for n in SIZES[dims])
    torch.testing.assert_close(layer(x), expected)


def test_a_strided_convolution_starts_at_the_sample_it_keeps():
    """Ho et al.: the kernel (1, 0, 0) keeps samples 0, 2, 4, ...; (0, 0, 1) keeps 2, 4, ... and a zero."""
    layer = StridedConvolution(1, 1)
    x = torch.arange(1.0, 9.0).reshape(1, 1, 8)
    with torch.no_grad():
        layer.conv.weight.copy_(torch.tensor([[[1.0, 0.0, 0.0]]]))
    assert layer(x).flatten().tolist() == [1, 3, 5, 7]
    with torch.no_grad():
        layer.conv.weight.copy_(torch.tensor([[[0.0, 0.0, 1.0]]]))
    assert layer(x).flatten().tolist() == [3, 5, 7, 0]


@pytest.mark.parametrize("width", [6, 128, 160])
@pytest.mark.parametrize("count", [(3,), (16,), (4, 8), (2, 3, 16), (0,)])
def test_rows_are_mapped_linearly_however_many(count, width):
    """Wide ones in multiples of 16 by one kernel, others by another."""
    layer = Rows(width, 10)
    rows = torch.randn(*count, width)
    torch.testing.assert_close(layer(rows), rows @ layer.weight.T + layer.bias)


@pytest.mark.parametrize("width", [6, 128])
@pytest.mark.parametrize("size", [(16,), (4, 4), (2, 3, 4), (5, 3)])
def test_maps_of_the_channels_are_convolutions_of_one_tap(size, width):
    x = torch.randn(2, width, *size)
    for layer in (Pointwise(width, 10), convolution(len(size), width, 10, kernel=1)):
        weight, bias = layer.weight.flatten(1), layer.bias.reshape(-1, *(1,) * len(size))
        torch.testing.assert_close(layer(x), torch.einsum("bc...,dc->bd...", x, weight) + bias)


def test_half_precision_filters_round_only_their_result():
    """They are computed in float32, under autocast too."""
    x = torch.randn(1, 4, 8, 8).bfloat16()
    for layer in (Double(2, (1, 2, 5, 3)), Halve(2, (1, 2, 5, 3))):  # elevenths are not exact in bfloat16
        with torch.autocast("cpu", torch.bfloat16):
            found = layer(x)
        assert torch.equal(found, layer(x.float()).bfloat16())
