"""A transform is invertible, and its log-determinant is that of its Jacobian."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sde_toolkit.data import Affine, Identity, Transform, eight_bit
from sde_toolkit.errors import ArgumentError

SHAPES = [(), (1,), (3,), (2, 3), (1, 2, 2)]
shifts = st.floats(-1e3, 1e3)
scales = st.floats(1e-3, 1e3).flatmap(lambda s: st.sampled_from([s, -s]))
transforms = st.one_of(st.just(Identity()), st.builds(Affine, shift=shifts, scale=scales))


@settings(max_examples=40, deadline=None)
@given(transform=transforms, shape=st.sampled_from(SHAPES), seed=st.integers(0, 99))
def test_round_trip(transform, shape, seed):
    x = torch.randn(5, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    torch.testing.assert_close(transform.inverse(transform.forward(x)), x, rtol=1e-12, atol=1e-11)
    torch.testing.assert_close(transform.forward(transform.inverse(x)), x, rtol=1e-9, atol=1e-8)


@settings(max_examples=25, deadline=None)
@given(transform=transforms, shape=st.sampled_from(SHAPES))
def test_log_abs_det_is_that_of_the_jacobian(transform, shape):
    x = torch.linspace(-1, 1, math.prod(shape), dtype=torch.float64)

    def flat(v):
        return transform.forward(v.reshape(1, *shape)).reshape(-1)

    jacobian = torch.autograd.functional.jacobian(flat, x)
    expected = torch.linalg.slogdet(jacobian).logabsdet.item()
    assert transform.log_abs_det(shape) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("transform", [Identity(), Affine(1.0, 2.0)])
def test_both_are_transforms_immutable_and_comparable(transform):
    assert isinstance(transform, Transform)
    with pytest.raises(AttributeError):
        transform.scale = 3.0
    assert Affine(1, 2) == Affine(1.0, 2.0)
    assert hash(Affine(1, 2)) == hash(Affine(1.0, 2.0))


@pytest.mark.parametrize("transform", [Identity(), Affine(0.5, 2.0)])
def test_dtypes(transform):
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        assert transform.forward(torch.ones(2, 3, dtype=dtype)).dtype == dtype
        assert transform.inverse(torch.ones(2, 3, dtype=dtype)).dtype == dtype
    for dtype in (torch.uint8, torch.int16, torch.uint16, torch.bool):
        assert transform.forward(torch.ones(2, 3, dtype=dtype)).dtype == torch.float32
    wide = torch.tensor([2**40, 2**40 + 1])
    assert transform.inverse(transform.forward(wide)).long().tolist() == wide.tolist()


def test_eight_bit_images_fill_minus_one_to_one_and_come_back_exactly():
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    y = eight_bit().forward(levels)
    assert y.dtype == torch.float32
    assert (y.min().item(), y.max().item()) == (-1.0, 1.0)
    assert torch.equal(eight_bit().inverse(y).round().to(torch.uint8), levels)


def test_the_input_is_left_alone():
    x = torch.ones(4)
    Affine(1.0, 5.0).forward(x).add_(1.0)
    assert torch.equal(x, torch.ones(4))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"scale": 0.0}, "scale"),
        ({"scale": math.inf}, "scale"),
        ({"scale": math.nan}, "scale"),
        ({"scale": "auto"}, "scale"),
        ({"scale": True}, "scale"),
        ({"shift": math.nan}, "shift"),
        ({"shift": -math.inf}, "shift"),
    ],
)
def test_maps_that_are_not_invertible_are_refused(arguments, named):
    with pytest.raises(ArgumentError) as caught:
        Affine(**arguments)
    assert caught.value.argument == named


def test_what_is_not_a_real_tensor_or_a_shape_is_refused():
    for bad in (torch.ones(2, dtype=torch.complex64), [1.0, 2.0]):
        with pytest.raises(ArgumentError, match="real"):
            Affine().forward(bad)
    for transform in (Identity(), Affine()):
        with pytest.raises(ArgumentError, match="event_shape"):
            transform.log_abs_det((2, -1))
