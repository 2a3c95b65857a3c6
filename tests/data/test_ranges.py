"""Data of another range than the model's transform names are refused, or warned of: never taken in silence."""

import warnings

import pytest
import torch

from sde_toolkit.data import Affine, Dataset, Identity, eight_bit
from sde_toolkit.errors import DataError
from sde_toolkit.ranges import check_range

UNIT = torch.linspace(0, 1, 64).reshape(32, 2)
NAMED = {"grey levels": eight_bit(), "unit": Affine(0.5, 2.0, 0.0, 1.0), "mirrored": Affine(0.0, -2.0, -3.0, 5.0)}


def said(transform, x, recommended=None, **options):
    """The warnings, joined."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        check_range(transform, x, recommended, **options)
    return " ".join(str(w.message) for w in seen)


@pytest.mark.parametrize("name", NAMED)
def test_data_that_fill_the_range_pass_and_data_that_leave_it_are_refused(name):
    transform = NAMED[name]
    low, width = transform.low, transform.high - transform.low
    assert said(transform, low + width * UNIT) == ""
    assert said(transform, low + width * (0.4 + 0.2 * UNIT)) == ""  # half-dark images
    for wrong in (low - 0.1 * width + width * UNIT, low + width * 1.1 * UNIT):
        with pytest.raises(DataError, match="range"):
            check_range(transform, wrong)
        assert said(transform, wrong, slack=0.2 * width) == ""
        assert said(Affine(transform.shift, transform.scale), wrong) == ""  # no range is named


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("place", [0.0, 0.45, 0.95])
def test_data_in_a_sliver_of_the_range_are_warned_of(name, place):
    transform = NAMED[name]
    x = transform.low + (transform.high - transform.low) * (place + 0.05 * UNIT)
    assert "small part of the range" in said(transform, x)


def test_grey_levels_and_unit_intervals_are_told_apart():
    grey = (255 * UNIT).round().to(torch.uint8)
    assert said(eight_bit(), grey) == ""
    assert "range" in said(eight_bit(), UNIT)
    assert "range" in said(Identity(), grey)  # to the network as they are
    assert said(Identity(), UNIT) == ""
    assert said(Identity(), (3 * UNIT).round().to(torch.uint8)) == ""  # few whole numbers may be meant
    for wrong in (2 * UNIT - 1, 256.5 + UNIT):
        with pytest.raises(DataError, match="range"):
            check_range(eight_bit(), wrong)


def test_in_model_space_the_range_is_that_of_the_model():
    assert said(eight_bit(), 2 * UNIT - 1, space="model") == ""
    with pytest.raises(DataError, match="model space"):
        check_range(eight_bit(), 255 * UNIT, space="model")
    assert said(eight_bit(), 1.5 * (2 * UNIT - 1), space="model", slack=1.0) == ""


@pytest.mark.parametrize("other", [Affine(0.0, 2.0), Affine(0.5, 1.0), Affine(0.5, -2.0)], ids=str)
def test_a_transform_that_does_something_else_than_the_datas_own_is_warned_of(other):
    model = Affine(0.5, 2.0)
    assert "transform" in said(model, UNIT, other)
    assert said(model, UNIT, Affine(0.5, 2.0, 0.0, 1.0)) == ""  # what they do is the same
    assert said(model, UNIT, Affine(0.505, 1.98)) == ""  # moments of another sample of the same data
    assert said(model, UNIT, Identity()) == ""  # recommends nothing


def test_a_dataset_is_checked_part_by_part_and_named():
    with pytest.raises(DataError, match=r"dataset\.test of 'mine'"):
        Dataset("mine", 255 * UNIT, 300 * UNIT).check_range(eight_bit())
    with pytest.warns(UserWarning, match=r"dataset\.train of 'mine'"):
        Dataset("mine", UNIT, 255 * UNIT).check_range(eight_bit())
