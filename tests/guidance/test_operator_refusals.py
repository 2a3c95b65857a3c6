"""What is no linear operator, or no measurement, is refused by an error that names it and says what to do."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_examples import numbers

from sde_toolkit.errors import ArgumentError
from sde_toolkit.guidance import (
    Blur,
    Composition,
    Downsample,
    Fourier,
    Grey,
    LinearFunction,
    LinearOperator,
    Mask,
    Matrix,
    Measurement,
    as_operator,
)

quickly = settings(max_examples=25, deadline=None)
not_a_shape = st.sampled_from([None, 3, (), (0, 2), (2.0,), "12", (-1,), [[1]], (True, 2)])
not_a_std = st.one_of(st.floats(max_value=-1e-300), st.sampled_from([math.nan, math.inf, -math.inf, "0.1", 1j, True]))


def refused(call, *words):
    with pytest.raises(ArgumentError) as caught:
        call()
    missing = [word for word in map(str, words) if word not in str(caught.value)]
    assert not missing, f"{missing} not in {caught.value}"
    assert caught.value.remedy


@quickly
@given(
    bad=st.one_of(st.floats(allow_nan=True).filter(lambda v: v not in (0, 1)), st.integers(2, 255)),
    at=st.integers(0, 5),
)
def test_a_mask_of_other_numbers(bad, at):
    mask = torch.ones(6, dtype=torch.float64)
    mask[at] = bad
    for kind in (Mask, Fourier):
        refused(lambda kind=kind: kind(mask), "mask=", "0 or 1", "mask > 0.5")


def test_a_mask_that_measures_nothing_or_does_not_fit():
    refused(lambda: Mask(torch.zeros(3, 4)), "mask=", "nothing is measured")
    refused(lambda: Mask(torch.ones(3, 4), (1, 4, 3)), "mask=(3, 4)", "(1, 4, 3)")
    refused(lambda: Fourier(torch.ones(3, 4), (1, 4, 3)), "mask=(3, 4)", "(1, 4, 3)")
    refused(lambda: Fourier(torch.ones(3, 4), (4,)), "mask=(3, 4)", "(4,)")
    for wrong in ([1, 0], np.ones(3), None, torch.tensor(1)):
        refused(lambda wrong=wrong: Mask(wrong), "mask=", "zeros and ones")


@quickly
@given(k=st.integers(1, 9), h=st.integers(1, 9), n=st.integers(1, 8), w=st.integers(1, 8))
def test_a_kernel_is_no_larger_than_the_image(k, h, n, w):
    if k <= n and h <= w:
        assert Blur(torch.ones(k, h), (2, n, w)).measured_shape == (2, n, w)
    else:
        refused(lambda: Blur(torch.ones(k, h), (2, n, w)), f"kernel=({k}, {h})", "larger", "Cut")


def test_kernels_that_are_none():
    for wrong in (
        torch.ones(()),
        torch.ones(2, 2, 2),
        torch.ones(0),
        torch.ones(3, dtype=torch.complex64),
        [1.0],
        None,
    ):
        refused(lambda wrong=wrong: Blur(wrong, (8, 8)), "kernel=", "torch.ones(3, 3) / 9")
    refused(lambda: Blur(torch.tensor([1, math.nan]), (8,)), "kernel=", "finite")
    refused(lambda: Blur(torch.ones(2, 2), (8,)), "kernel=(2, 2)", "larger")
    for std in (0, -1.0, math.nan, "wide"):
        refused(lambda std=std: Blur.gaussian(std, (8,)), "std=", "positive")
    refused(lambda: Blur.gaussian(1.0, (8,), axes=2), "axes=2")


@quickly
@given(factor=st.integers(-3, 13), n=st.integers(1, 12))
def test_a_factor_divides_the_length(factor, n):
    if factor >= 1 and n % factor == 0:
        assert Downsample(factor, (n,)).measured_shape == (n // factor,)
    else:
        refused(lambda: Downsample(factor, (n,)), f"factor={factor}", "Pass")


def test_factors_and_weights_that_are_none():
    for wrong in (1.5, (), (2, 2, 2), (2, 0), "2", None, True):
        refused(lambda wrong=wrong: Downsample(wrong, (4, 4)), "factor=", "Pass 2")
    for wrong in ((1, 2), (1, math.nan, 0), "rgb", 3):
        refused(lambda wrong=wrong: Grey((3, 4, 4), wrong), "weights=", "channels")
    refused(lambda: Grey((2, 4), (0, 0)), "weights=", "nothing is measured")


@quickly
@given(shape=not_a_shape)
def test_event_shapes(shape):
    if shape is not None:
        refused(lambda: Mask(torch.ones(2, 2), shape), "event_shape=", "not a shape")
        refused(lambda: as_operator(numbers(2, 2), shape), "event_shape=", "not a shape")
    refused(lambda: Blur(torch.ones(1), shape), "event_shape=", "not a shape")
    refused(lambda: Downsample(1, shape), "event_shape=", "not a shape")
    refused(lambda: Grey(shape), "event_shape=", "not a shape")
    refused(lambda: as_operator(lambda x: x, shape), "event_shape=")


def test_matrices_that_are_none():
    for wrong in (torch.ones(3), torch.ones(0, 3), torch.ones(2, 2, dtype=torch.complex64), [[1.0]]):
        refused(lambda wrong=wrong: Matrix(wrong), "matrix=", "(m, D)")
    refused(lambda: Matrix(torch.full((2, 2), math.inf)), "matrix=", "finite")
    refused(lambda: Matrix(torch.ones(2, 6), (2, 2)), "event_shape=(2, 2)", "6")
    refused(lambda: Matrix(torch.ones(2, 6), (2, 3), (3,)), "measured_shape=(3,)", "2")


@quickly
@given(rows=st.integers(0, 3), extra=st.sampled_from([(), (3,), (4, 1), (5,), (1, 4)]))
def test_events_and_measurements_of_another_shape(rows, extra):
    A, B = Mask(torch.tensor([1, 0, 1, 1])), numbers(rows, *extra)
    if extra != (4,):
        refused(lambda: A(B), f"x={tuple(B.shape)}".replace("=(3,)", "="), "(B, 4)")
    if extra != (3,):
        refused(lambda: A.adjoint(B), "y=", "(B, 3)")
    refused(lambda: A([0.0] * 4), "x=", "not a tensor")
    refused(lambda: A(torch.ones(1, 4, dtype=torch.complex64)), "x=", "real")


def test_compositions_that_do_not_fit():
    A = Mask(torch.tensor([1, 0, 1, 1]))
    refused(lambda: A @ A, "outer=", "(4,)", "(3,)")
    refused(lambda: A @ torch.ones(4), "inner=", "as_operator", "A(x)")
    refused(lambda: Composition(lambda x: x, A), "outer=", "as_operator")


class WrongAdjoint(LinearOperator):
    """A difference with the sign of its adjoint wrong, as one writes it at first."""

    def __init__(self):
        super().__init__((6,), (5,))

    def apply(self, x):
        return x.diff(dim=1)

    def apply_adjoint(self, y):
        return torch.nn.functional.pad(y, (0, 1)) - torch.nn.functional.pad(y, (1, 0))


class RightAdjoint(WrongAdjoint):
    def apply_adjoint(self, y):
        return -super().apply_adjoint(y)


def test_an_adjoint_that_is_none():
    assert as_operator(RightAdjoint()).was_checked
    for wrong in (
        lambda: as_operator(WrongAdjoint()),
        lambda: Measurement(WrongAdjoint(), noise_std=1.0),
        lambda: as_operator(LinearFunction(lambda x: 2 * x, (4,), adjoint=lambda y: y)),
        lambda: as_operator(LinearFunction(lambda x: x.roll(1, 1), (4,), adjoint=lambda y: y.roll(1, 1))),
        lambda: as_operator(LinearFunction(lambda x: x.detach(), (4,))),  # autograd sees nothing
    ):
        refused(wrong, "A=", "dot test", "autograd")


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (lambda x: x + 1, "not linear"),
        (lambda x: x.square(), "not linear"),
        (lambda x: x.abs(), "not linear"),
        (lambda x: x.clamp(-10, 10), "not linear"),
        (lambda x: x.relu(), "not linear"),
        (lambda x: x - x.mean(0), "other rows"),
        (lambda x: x.flip(0), "other rows"),
        (lambda x: x / 0, "finite"),
        (lambda x: x.numpy(), "tensor"),
        (lambda x: (x, x), "tensor"),
        (lambda x: None, "tensor"),
        (lambda x: x.sum(), "rows"),
        (lambda x: x.sum(0), "rows"),
        (lambda x: x.sum(1), "(B, ...)"),
        (lambda x: torch.fft.fft(x), "real"),
        (lambda x: x @ torch.ones(3, 3), "RuntimeError"),
        (lambda x: x.image, "AttributeError"),
        (lambda x: x.round(), "not linear"),
    ],
)
def test_functions_that_are_no_operators(function, problem):
    refused(lambda: as_operator(function, (4,)), "A", problem)


@quickly
@given(offset=st.floats(1e-3, 1e3) | st.floats(-1e3, -1e-3))
def test_no_affine_function_passes(offset):
    refused(lambda: as_operator(lambda x: x + offset, (4,)), "A=", "not linear", "subtract it from y")


def test_what_stands_for_no_operator():
    for wrong in (None, 3, "mask", [[1.0, 2.0]], {"A": 1}):
        refused(lambda wrong=wrong: as_operator(wrong, (2,)), "A=", "not a linear operator", "scipy")
        refused(lambda wrong=wrong: Measurement(wrong, noise_std=1.0), "A=")
    for kind in (object, complex, "U3"):
        refused(lambda kind=kind: as_operator(np.ones((2, 2)).astype(kind)), "A=", "real numbers")
    refused(lambda: as_operator(lambda x: x), "event_shape=None", "event_shape=(1, 28, 28)")
    refused(lambda: as_operator(Mask(torch.ones(4)), (2, 2)), "A=", "(4,)", "(2, 2)")


def test_operators_of_scipy_that_do_not_fit():
    from scipy.sparse.linalg import LinearOperator as Scipy

    M = np.ones((2, 3))
    no_adjoint = Scipy((2, 3), matvec=lambda x: M @ x, dtype=np.float64)
    wrong_adjoint = Scipy((2, 3), matvec=lambda x: M @ x, rmatvec=lambda y: 2 * M.T @ y, dtype=np.float64)
    refused(lambda: as_operator(no_adjoint), "A=", "A.adjoint(y) fails")
    refused(lambda: as_operator(wrong_adjoint), "A=", "dot test")
    refused(lambda: as_operator(Scipy((2, 3), matvec=lambda x: 1j * x, dtype=np.complex128)), "A=", "complex")
    refused(lambda: as_operator(wrong_adjoint, (2, 2)), "event_shape=(2, 2)", "3")


def test_large_operators_have_no_matrix():
    A = Mask(torch.arange(65 * 64) % 2 == 0) @ Blur.gaussian(1.0, (65 * 64,))
    for call in (A.matrix, A.svd, lambda: A.pseudo_inverse(numbers(1, 65 * 32))):
        refused(call, "A=", "4096", "method")


# Measurements

A = Mask(torch.tensor([1, 0, 1, 1]))


@quickly
@given(std=not_a_std)
def test_noises_that_are_none(std):
    refused(lambda: Measurement(A, noise_std=std), "noise_std=", "finite and not negative", "0.05")
    if isinstance(std, float):
        each = torch.tensor([1.0, std, 1.0], dtype=torch.float64)
        refused(lambda: Measurement(A, noise_std=each), "noise_std=", "finite and not negative")
        refused(
            lambda: Measurement(A, noise_std=torch.tensor(std, dtype=torch.float64)),
            "noise_std=",
            "finite and not negative",
        )


def test_noises_of_another_shape_none_and_two():
    refused(lambda: Measurement(A), "noise_std=None", "noise_std=0.05")
    refused(lambda: Measurement(A, noise_std=1.0, noise_covariance=torch.eye(3)), "noise_std=1.0", "noise_covariance")
    for shape in ((1,), (4,), (3, 3), (1, 3)):
        refused(lambda shape=shape: Measurement(A, noise_std=torch.ones(shape)), f"noise_std={shape}", "(3,)")
    for wrong in (torch.ones(3), torch.eye(4), [[1.0]], torch.eye(3, dtype=torch.complex64)):
        refused(lambda wrong=wrong: Measurement(A, noise_covariance=wrong), "noise_covariance=", "(3, 3)")


@quickly
@given(value=st.floats(-2, 2).filter(lambda v: abs(v) > 1.001), skew=st.floats(1e-3, 1))
def test_covariances_that_are_none(value, skew):
    bad, skewed = torch.eye(3), torch.eye(3)
    bad[0, 2] = bad[2, 0] = value
    skewed[1, 2] = skew
    refused(lambda: Measurement(A, noise_covariance=bad), "noise_covariance=", "not positive definite", "3 x 3")
    refused(
        lambda: Measurement(A, noise_covariance=-torch.eye(3)), "noise_covariance=", "not positive definite", "1 x 1"
    )
    refused(lambda: Measurement(A, noise_covariance=torch.zeros(3, 3)), "noise_covariance=", "not positive definite")
    refused(lambda: Measurement(A, noise_covariance=skewed), "noise_covariance=", "symmetric", "(C + C.mT) / 2")
    refused(lambda: Measurement(A, noise_covariance=torch.full((3, 3), math.nan)), "noise_covariance=", "finite")


@quickly
@given(shape=st.lists(st.integers(1, 4), max_size=3).map(tuple).filter(lambda s: s != (3,)))
def test_a_y_of_another_shape(shape):
    refused(lambda: Measurement(A, torch.ones(shape), noise_std=1.0), f"y={shape}", "(3,)", "A(")
    own, none, x = Measurement(A, torch.ones(3), noise_std=1.0), Measurement(A, noise_std=1.0), numbers(2, 4)
    if shape != (2, 3):
        for measurement in (own, none):
            refused(lambda m=measurement: m.residual(x, torch.ones(shape)), f"y={shape}", "(B, 3)")
            refused(lambda m=measurement: m.log_likelihood(x, torch.ones(shape)), f"y={shape}", "(B, 3)")


def test_ys_that_are_none():
    refused(lambda: Measurement(A, [1.0, 2.0, 3.0], noise_std=1.0), "y=", "not a tensor")
    refused(lambda: Measurement(A, torch.tensor([1.0, math.nan, 2.0]), noise_std=1.0), "y=", "finite", "Mask")
    refused(lambda: Measurement(A, torch.ones(3, dtype=torch.complex64), noise_std=1.0), "y=")
    none, x = Measurement(A, noise_std=1.0), numbers(2, 4)
    refused(lambda: none.residual(x), "y=None", "condition")
    refused(lambda: none.residual(x, 3), "y=3", "(B, 3)")


def test_no_division_by_a_noise_of_zero():
    for std in (0, 0.0, torch.zeros(3), torch.tensor([1.0, 0.0, 1.0]), 1e-200):
        measurement = Measurement(A, torch.ones(3), noise_std=std)
        for call in (
            lambda m=measurement: m.log_likelihood(numbers(2, 4)),
            lambda m=measurement: m.apply_precision(numbers(2, 3)),
        ):
            refused(call, "noise_std=", "divides by it", "DDNM")
        measurement.solve(numbers(2, 3), 1.0)


@quickly
@given(rows=st.integers(0, 5).filter(lambda n: n not in (1, 4)))
def test_scales_of_another_size(rows):
    measurement, e = Measurement(A, noise_std=1.0), numbers(4, 3)
    refused(lambda: measurement.solve(e, torch.ones(rows, 1)), "scale=", "4 rows")
    refused(lambda: measurement.solve(e, torch.ones(4, 3)), "scale=(4, 3)", "one per sample")
    refused(lambda: measurement.solve(e[:, :2], 1.0), "e=(4, 2)", "(B, 3)")
    for wrong in (-1.0, math.nan, "large", None):
        refused(lambda wrong=wrong: measurement.solve(e, wrong), "scale=", "not negative")
