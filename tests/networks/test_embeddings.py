"""Laws of the time embeddings."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sde_toolkit.errors import ArgumentError
from sde_toolkit.networks import Condition, FourierEmbedding, SinusoidalEmbedding
from sde_toolkit.networks.embeddings import Conditioning

EMBEDDINGS = [SinusoidalEmbedding, FourierEmbedding]


@pytest.mark.parametrize("kind", EMBEDDINGS)
@given(
    dim=st.integers(1, 40).map(lambda half: 2 * half),
    times=st.lists(st.floats(-1e3, 1e3), min_size=0, max_size=5),
)
@settings(max_examples=25, deadline=None)
def test_each_time_becomes_pairs_on_the_unit_circle(kind, dim, times):
    time = torch.tensor(times, dtype=torch.float64)
    sines, cosines = kind(dim)(time).chunk(2, dim=1)
    assert sines.shape == cosines.shape == (len(times), dim // 2)
    torch.testing.assert_close(sines**2 + cosines**2, torch.ones_like(sines))


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_sinusoidal_frequencies_span_the_periods(scale):
    """Ho et al. 2020: angular frequencies from 1 to 1/max_period, evenly spaced in their logarithm."""
    time = torch.tensor([1e-7 / scale], dtype=torch.float64)
    slopes = SinusoidalEmbedding(12, scale=scale, max_period=500.0)(time)[0, :6] / time
    expected = scale * torch.logspace(0, -math.log10(500.0), 6, dtype=torch.float64)
    torch.testing.assert_close(slopes, expected)


def test_fourier_frequencies_are_gaussian_with_the_scale_as_deviation():
    frequencies = FourierEmbedding(20000, scale=7.0).frequencies
    standard_error = 7.0 / math.sqrt(2 * 10000)
    assert abs(frequencies.std().item() - 7.0) < 5 * standard_error
    assert abs(frequencies.mean().item()) < 5 * 7.0 / math.sqrt(10000)


def test_fourier_frequencies_depend_on_the_seed_alone_and_travel_with_the_state():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = FourierEmbedding(16, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(one.frequencies, FourierEmbedding(16, seed=3).frequencies)
    other = FourierEmbedding(16, seed=4)
    assert not torch.equal(one.frequencies, other.frequencies)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.frequencies, other.frequencies)


@pytest.mark.parametrize("kind", EMBEDDINGS)
def test_low_precision_times_are_embedded_in_float32(kind):
    time = torch.tensor([0.25, 0.5])
    assert torch.equal(kind(8)(time.bfloat16()), kind(8)(time))
    assert kind(8)(time.double()).dtype == torch.float64


@pytest.mark.parametrize("kind", EMBEDDINGS)
@pytest.mark.parametrize("dim", [0, 7, -2])
def test_a_width_that_does_not_pair_is_refused(kind, dim):
    with pytest.raises(ArgumentError, match=f"dim={dim}"):
        kind(dim)


@pytest.mark.parametrize("kind", EMBEDDINGS)
@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_that_is_not_positive_is_refused(kind, scale):
    with pytest.raises(ArgumentError, match="scale="):
        kind(8, scale=scale)


@pytest.mark.parametrize("kind", EMBEDDINGS)
@pytest.mark.parametrize("time", [torch.tensor(0.5), torch.zeros(2, 1), torch.zeros(2, dtype=torch.long)])
def test_a_time_that_is_not_one_float_per_sample_is_refused(kind, time):
    with pytest.raises(ArgumentError, match="time="):
        kind(8)(time)


def test_labels_among_the_features_are_augmentations_with_one_number_per_class():
    torch.manual_seed(0)
    x, time, label = torch.zeros(3, 1), torch.tensor([0.1, 2.0, 30.0]), torch.tensor([0, 2, 1])
    net = Conditioning(8, "sinusoidal", 1.0, 3, features=6, augmentation_width=4, label_place="features")
    net.augmentation.weight.data = net.labels.weight.detach().T.clone()
    blank = Conditioning(8, "sinusoidal", 1.0, None, features=6, augmentation_width=4)
    blank.load_state_dict({k: v for k, v in net.state_dict().items() if not k.startswith("labels")})
    for told in (label, None):
        one_hot = torch.eye(4)[torch.full((3,), 3) if told is None else told]
        torch.testing.assert_close(net(x, time, told), blank(x, time, Condition(augmentation=one_hot)))


def test_no_class_is_a_row_of_zeros_or_refused():
    torch.manual_seed(0)
    x, time, none = torch.zeros(2, 1), torch.tensor([0.1, 2.0]), torch.tensor([3, 3])
    net = Conditioning(8, "sinusoidal", 1.0, 3, no_class="zero")
    blank = Conditioning(8, "sinusoidal", 1.0, None)
    blank.load_state_dict({k: v for k, v in net.state_dict().items() if not k.startswith("labels")})
    assert torch.equal(net(x, time, none), blank(x, time, None))
    assert torch.equal(net(x, time, None), blank(x, time, None))
    assert not torch.equal(net(x, time, none - 1), blank(x, time, None))
    net = Conditioning(8, "sinusoidal", 1.0, 3, no_class="refused")
    net(x, time, none - 1)
    for label in (none, None):
        with pytest.raises(ArgumentError, match=r"condition.*0\.\.2"):
            net(x, time, label)
