"""Laws of the U-Net's own: sizes, padding, attention, adaptation to widths."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sde_toolkit.errors import ArgumentError
from sde_toolkit.networks import MLP, UNet
from sde_toolkit.networks.blocks import Attention, ResidualBlock
from sde_toolkit.networks.normalisation import group_count
from sde_toolkit.networks.trunk import crop_to_size, pad_to_multiple


def small(**more):
    torch.manual_seed(0)
    return UNet(**{"widths": (4, 6, 8), "blocks_per_level": 1, "attention_head_width": 4, **more})


@pytest.mark.parametrize("dims", [1, 2])
def test_any_size_works_and_is_kept(dims, stir):
    net = stir(small(dims=dims))

    @given(size=st.lists(st.integers(1, 13), min_size=dims, max_size=dims), batch=st.integers(1, 2))
    @settings(max_examples=15, deadline=None)
    @torch.no_grad()
    def law(size, batch):
        x = torch.randn(batch, 1, *size)
        out = net(x, torch.rand(batch))
        assert out.shape == x.shape
        assert out.isfinite().all()
        assert out.any()

    law()


@given(size=st.lists(st.integers(1, 20), min_size=1, max_size=3), multiple=st.sampled_from([1, 2, 4, 8]))
@settings(max_examples=50, deadline=None)
def test_padding_reaches_the_multiple_and_cropping_undoes_it(size, multiple):
    x = torch.randn(2, 3, *size)
    padded = pad_to_multiple(x, multiple)
    assert all(0 <= long - short < multiple for long, short in zip(padded.shape[2:], size, strict=True))
    assert all(length % multiple == 0 for length in padded.shape[2:])
    assert torch.equal(crop_to_size(padded, size), x)
    torch.testing.assert_close(padded.square().sum(), x.square().sum())


def test_a_divisible_size_is_not_padded(stir, monkeypatch):
    net = stir(small())
    x, time = torch.randn(2, 1, 8, 12), torch.rand(2)
    expected = net(x, time)
    monkeypatch.setattr("sde_toolkit.networks.trunk.pad", None)
    monkeypatch.setattr("sde_toolkit.networks.trunk.crop_to_size", lambda h, size: h)
    assert torch.equal(net(x, time), expected)


def test_a_padded_call_is_the_call_on_the_padded_data(stir):
    net = stir(small())
    x, time = torch.randn(2, 1, 6, 9), torch.rand(2)
    wide = torch.zeros(2, 1, 8, 12)
    wide[:, :, 1:7, 1:10] = x
    assert torch.equal(net(x, time), net(wide, time)[:, :, 1:7, 1:10])


def test_attention_does_not_care_about_the_order_of_positions(stir):
    attention = stir(Attention(8, 4, groups=2)).double()
    x, order = torch.randn(2, 8, 7, dtype=torch.float64), torch.randperm(7)
    out = attention(x, torch.zeros(2, 1))
    assert not torch.allclose(out, x)
    torch.testing.assert_close(attention(x[:, :, order], torch.zeros(2, 1)), out[:, :, order])


def test_attention_sits_where_it_is_named():
    net = small(attention_levels=(1,))
    for path in (net.down, net.up):
        assert [any(isinstance(part, Attention) for part in stage) for stage in path] == [False, True, False]
    assert any(isinstance(part, Attention) for part in net.middle)


@pytest.mark.parametrize("widths", [(4, 4), (4, 10)])
def test_a_new_block_is_its_skip(widths):
    inputs, outputs = widths
    block = ResidualBlock(2, inputs, outputs, time_width=6, groups=2, dropout=0.0)
    x = torch.randn(2, inputs, 5, 5)
    torch.testing.assert_close(block(x, torch.randn(2, 6)), block.skip(x))


def test_film_scales_by_one_plus_and_shifts(stir):
    """Nichol & Dhariwal 2021: h -> norm(h) (1 + scale) + shift, so silence leaves the norm as it is."""
    block = stir(ResidualBlock(2, 4, 4, time_width=6, groups=2, dropout=0.0))
    scale, shift = torch.randn(4), torch.randn(4)
    with torch.no_grad():
        block.film.weight.zero_()
        block.film.bias.copy_(torch.cat([scale, shift]))
    x = torch.randn(2, 4, 5, 5)
    h = block.enter(torch.nn.functional.silu(block.enter_norm(x)))
    h = torch.nn.functional.group_norm(h, 2, weight=1 + scale, bias=shift)
    expected = x + block.leave(torch.nn.functional.silu(h))
    torch.testing.assert_close(block(x, torch.randn(2, 6)), expected, rtol=1e-5, atol=1e-5)


@given(width=st.integers(2, 300), groups=st.integers(1, 64), least=st.integers(1, 8))
@settings(max_examples=100, deadline=None)
def test_groups_divide_the_width_and_hold_as_many_channels_as_asked(width, groups, least):
    count = group_count(width, groups, least)
    assert width % count == 0
    assert count <= groups
    assert width // count >= min(least, width)
    larger = range(count + 1, min(groups, width // least) + 1)
    assert all(width % candidate for candidate in larger)


@given(widths=st.lists(st.integers(2, 13), min_size=1, max_size=3))
@settings(max_examples=10, deadline=None)
def test_any_widths_work(widths, stir):
    net = stir(UNet(widths=widths, attention_levels=range(len(widths)), time_width=6))
    x = torch.randn(1, 1, 3, 5)
    assert net(x, torch.rand(1)).shape == x.shape


def test_memory_format_changes_nothing_but_speed(stir):
    net = stir(small())
    x, time = torch.randn(2, 1, 8, 8), torch.rand(2)
    expected = net(x, time)
    out = net.to(memory_format=torch.channels_last)(x, time)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)


def test_dropout_acts_in_training_alone(stir):
    net = stir(small(dropout=0.5))
    x, time = torch.randn(2, 1, 8, 8), torch.rand(2)
    assert torch.equal(net(x, time), net(x, time))
    net.train()
    assert not torch.equal(net(x, time), net(x, time))


def test_the_default_network_fits_its_budget():
    """The shipped example stays below 6 MB in float32."""
    state = UNet(num_classes=10).state_dict()
    assert 4.8e6 < sum(value.numel() * value.element_size() for value in state.values()) < 6e6


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("widths", ()),
        ("widths", (8, 1)),
        ("attention_levels", (3,)),
        ("attention_levels", (-1,)),
        ("dims", 4),
        ("dropout", 1.0),
        ("dropout", float("nan")),
        ("in_channels", 0),
        ("blocks_per_level", 0),
        ("attention_head_width", 0),
        ("groups", 0),
        ("time_width", 7),
        ("time_width", 0),
    ],
)
def test_a_unet_that_cannot_be_built_is_refused(argument, value):
    with pytest.raises(ArgumentError) as caught:
        UNet(**{argument: value})
    assert caught.value.argument == argument


@pytest.mark.parametrize(("argument", "value"), [("event_shape", (2, 0)), ("width", 7), ("width", 0), ("depth", 0)])
def test_an_mlp_that_cannot_be_built_is_refused(argument, value):
    with pytest.raises(ArgumentError) as caught:
        MLP(**{argument: value})
    assert caught.value.argument == argument


def test_an_empty_image_is_refused():
    with pytest.raises(ArgumentError, match="none empty"):
        small()(torch.zeros(1, 1, 0, 4), torch.zeros(1))
