"""A transform is invertible, and its log-determinant is that of its Jacobian."""

import copy
import math
import pickle

import numpy as np
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


@st.composite
def arrays(draw, numbers, shape):
    """One of them, or an array that broadcasts to ``shape``: of fewer axes, or with axes of length 1."""
    kept = shape[draw(st.integers(0, len(shape))) :]
    own = tuple(draw(st.sampled_from([1, n])) for n in kept)
    flat = draw(st.lists(numbers, min_size=math.prod(own), max_size=math.prod(own)))
    return torch.tensor(flat, dtype=torch.float64).reshape(own)


@st.composite
def fitting(draw):
    """A transform and an event shape that it acts on."""
    shape = draw(st.sampled_from(SHAPES))
    by_parts = st.builds(Affine, shift=arrays(shifts, shape), scale=arrays(scales, shape))
    return draw(st.one_of(transforms, by_parts)), shape


@settings(max_examples=60, deadline=None)
@given(case=fitting(), seed=st.integers(0, 99))
def test_round_trip(case, seed):
    transform, shape = case
    x = torch.randn(5, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    torch.testing.assert_close(transform.inverse(transform.forward(x)), x, rtol=1e-12, atol=1e-11)
    torch.testing.assert_close(transform.forward(transform.inverse(x)), x, rtol=1e-9, atol=1e-8)


@settings(max_examples=40, deadline=None)
@given(case=fitting())
def test_log_abs_det_is_that_of_the_jacobian(case):
    transform, shape = case
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


@settings(max_examples=30, deadline=None)
@given(case=fitting(), data=st.data())
def test_each_element_has_its_own_numbers_whatever_the_batch(case, data):
    """Column i of a batch of one, two or three is what the numbers of element i make of it."""
    transform, shape = case
    x = torch.randn(3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    if not isinstance(transform, Affine):
        return
    shift, scale = (torch.tensor(v, dtype=torch.float64).expand(shape) for v in (transform.shift, transform.scale))
    for i in range(3):
        for place in [tuple(k) for k in torch.ones(shape).nonzero().tolist()] if shape else [()]:
            one = Affine(shift[place].item(), scale[place].item())
            for batch in (x[i : i + 1], x):
                row = 0 if len(batch) == 1 else i
                found = transform.forward(batch)[(row, *place)].item()
                assert found == pytest.approx(one.forward(x[(i, *place)]).item(), rel=1e-14, abs=1e-14)


def test_arrays_are_immutable_comparable_and_short_in_print():
    scale = torch.tensor([2.0, 3.0])
    affine = Affine([1, 2], scale)
    scale.zero_()
    assert affine == Affine(np.array([1.0, 2.0]), (2.0, 3.0))
    assert hash(affine) == hash(Affine((1.0, 2.0), [2.0, 3.0]))
    assert affine != Affine([1.0, 2.0], [2.0, 3.5])
    assert pickle.loads(pickle.dumps(affine)) == copy.deepcopy(affine) == affine
    with pytest.raises(AttributeError):
        affine.scale = (1.0, 1.0)
    x = torch.randn(4, 2)
    first = affine.forward(x)
    affine.forward(x).zero_()
    assert torch.equal(affine.forward(x), first)
    big = Affine(torch.zeros(3, 32, 32), torch.ones(3, 1, 1))
    assert len(repr(big)) < 200
    assert repr(affine) == "Affine(shift=[1, 2], scale=[2, 3])"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("offset", [0.0, 1.0, 50.0, 1e3, 1e5])
def test_the_round_trip_costs_the_round_off_of_the_numbers_themselves(dtype, offset):
    """Of the model's number, and of the datum: to a few units in the last place of each, in units of the spread."""
    spread = torch.tensor([1.0, 1e-6, 300.0], dtype=torch.float64)
    transform = Affine(offset * spread, 1 / spread)
    z = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = ((offset + z) * spread).to(dtype)
    eps = torch.finfo(dtype).eps
    y = transform.forward(x)
    exact = (x.double() - offset * spread) / spread
    slack = 1e-15 * (1 + offset)  # of float64 itself
    near = 2 * eps * min(offset, 4)  # where float32 loses two digits at most, it is used
    assert ((y - exact).abs() <= 2 * eps * exact.abs() + near + slack).all()
    back = transform.inverse(y)
    assert back.dtype == dtype
    assert ((back - x).abs() / spread <= eps * (4 * exact.abs() + 2 * offset) + slack).all()


def test_gradients_flow_after_a_first_use_in_inference_mode():
    affine = Affine([1.0, 2.0], [3.0, 4.0])
    with torch.inference_mode():
        affine.forward(torch.ones(1, 2))
    x = torch.ones(1, 2, requires_grad=True)
    affine.forward(x).sum().backward()
    assert x.grad.tolist() == [[3.0, 4.0]]


def test_arrays_that_do_not_broadcast_to_a_sample_are_refused():
    per_column = Affine([1.0, 2.0], [1.0, 1.0])
    for x in (torch.ones(2, 3), torch.ones(2), torch.ones(2, 2, 3)):
        with pytest.raises(ArgumentError, match="shape"):
            per_column.forward(x)
        with pytest.raises(ArgumentError, match="shape"):
            per_column.inverse(x)
        with pytest.raises(ArgumentError, match="shape"):
            per_column.log_abs_det(x.shape[1:])
    with pytest.raises(ArgumentError, match="shape"):
        Affine(torch.ones(5, 2), 1.0).forward(torch.ones(5, 2))  # not over the batch


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
        ({"scale": [1.0, 0.0]}, "scale"),
        ({"scale": [1.0, math.nan]}, "scale"),
        ({"scale": [1.0, "2"]}, "scale"),
        ({"shift": [[1.0], [1.0, 2.0]]}, "shift"),
        ({"shift": [[1.0], 2.0]}, "shift"),
        ({"shift": []}, "shift"),
        ({"shift": [1.0, 2.0], "scale": [1.0, 2.0, 3.0]}, "shift, scale"),
        ({"shift": torch.zeros(2**14 + 1)}, "shift"),
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
