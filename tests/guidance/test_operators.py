"""Operators are linear, with their own adjoint, matrix, singular values and pseudo-inverse, in every precision."""

import pytest
import torch
from operator_examples import OPERATORS, numbers, operator

pytestmark = pytest.mark.parametrize("case", OPERATORS, ids=lambda case: f"{case[0]}-{case[1]}")


def inner(u, v):
    return (u * v).flatten(1).sum(1)


def test_dot_test(case):
    A = operator(case)
    x, y = numbers(3, *A.event_shape), numbers(3, *A.measured_shape, seed=1)
    torch.testing.assert_close(inner(A(x), y), inner(x, A.adjoint(y)), rtol=1e-12, atol=1e-12)
