"""Tables of coefficients: what a name was given in ``prepare`` is what a row has under it."""

import pytest
import torch
from catalogue import doubles

from sde_toolkit.integrators.tables import Table


def table(steps):
    a, b, c, d, e = torch.arange(5 * steps, dtype=torch.float64).reshape(5, steps)
    inner = Table.of(steps, {"inputs": (c, d), "one": e})
    columns = {"single": a, "none": (), "pair": (b, c), "stages": (((a,), (d, e)), ((b,), ())), "inner": inner}
    return Table.of(steps, columns), (a, b, c, d, e)


@pytest.mark.parametrize("steps", [1, 3, 64, 65, 130])
def test_rows_have_what_was_named(steps):
    found, columns = table(steps)
    rows = list(found)
    assert len(rows) == len(found) == steps
    for i, row in enumerate(rows):
        a, b, c, d, e = (column[i] for column in columns)
        expected = (a, (), (b, c), (((a,), (d, e)), ((b,), ())), ((c, d), e))
        for read in (row, found[i], found.layout.read(found.values[i].unbind())):
            assert tuple(read) == expected
            assert (read.single, read.pair, read.inner.inputs, read.inner.one) == (a, (b, c), (c, d), e)


def test_numbers_are_spread_over_the_steps_and_rows_of_plain_names_are_read_alike():
    found = Table.of(3, {"inputs": (doubles(1.0)[0], doubles(2.0, 3.0, 4.0)), "A": doubles(5.0)})
    assert found.values.tolist() == [[1.0, 2.0, 5.0], [1.0, 3.0, 5.0], [1.0, 4.0, 5.0]]
    assert [tuple(row) for row in found] == [tuple(found[i]) for i in range(3)]


def test_equal_layouts_are_one_object():
    assert table(2)[0].layout is table(7)[0].layout
    assert table(2)[0].layout is not Table.of(2, {"single": doubles(1.0)}).layout


@pytest.mark.parametrize("steps", [1, 64, 130])
def test_what_is_done_in_some_steps_only_stays_a_bool_on_the_host_in_rows_and_is_a_number_in_values(steps):
    on = torch.arange(steps) % 3 == 1
    number = torch.arange(steps, dtype=torch.float64)
    inner = Table.of(steps, {"A": number, "inputs": (number, on)})
    found = Table.of(steps, {"stages": ((number, (on,)), (~on,)), "inner": inner}).to("meta", torch.float32)
    for i, row in enumerate(found):
        for read in (row, found[i]):
            (of_device, (first,)), (second,) = read.stages
            assert of_device.device.type == read.inner.A.device.type == "meta"
            assert (bool(first), bool(second), bool(read.inner.inputs[1])) == (bool(on[i]), not on[i], bool(on[i]))
    values = Table.of(steps, {"inner": inner, "on": on}).values
    assert torch.equal(values[:, 2], on.double())
    assert torch.equal(values[:, 3], on.double())
