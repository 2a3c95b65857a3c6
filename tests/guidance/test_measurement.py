"""Measurements: solves, likelihoods and residuals equal those of dense linear algebra and of torch.distributions."""

import copy
import math
import pickle

import pytest
import torch
from operator_examples import OPERATORS, numbers, operator
from test_host_synchronisation import CountReads

from sde_toolkit import guidance
from sde_toolkit.guidance import Blur, Mask, Measurement
from sde_toolkit.guidance import measurement_solves as solves
from sde_toolkit.noise.streams import per_sample_noise

every_operator = pytest.mark.parametrize("case", OPERATORS, ids=lambda case: f"{case[0]}-{case[1]}")
NOISES = ["number", "diagonal", "covariance"]
every_noise = pytest.mark.parametrize("noise", NOISES)


def near(found, expected, loose=1e-9):
    torch.testing.assert_close(found, expected, rtol=loose, atol=loose)


def given(A, noise):
    """The noise's argument, and its covariance (m, m)."""
    m = math.prod(A.measured_shape)
    if noise == "number":
        return {"noise_std": 0.3}, 0.09 * torch.eye(m, dtype=torch.float64)
    if noise == "diagonal":
        std = 0.1 + numbers(*A.measured_shape, seed=7).abs()
        return {"noise_std": std}, torch.diag(std.flatten() ** 2)
    factor = numbers(m, m, seed=8)
    covariance = factor @ factor.mT + 0.1 * torch.eye(m, dtype=torch.float64)
    return {"noise_covariance": covariance}, covariance


def problem(case, noise):
    A = operator(case)
    arguments, covariance = given(A, noise)
    x, y = numbers(4, *A.event_shape), numbers(*A.measured_shape, seed=1)
    return Measurement(A, y, **arguments), covariance, x, y


def dense_solve(M, covariance, e, scales):
    rows = [torch.linalg.solve(s * M @ M.mT + covariance, row) for s, row in zip(scales, e.flatten(1), strict=True)]
    return torch.stack(rows).reshape(e.shape)


SCALES = torch.tensor([0.0, 1e-3, 1.0, 50.0], dtype=torch.float64)


@every_noise
@every_operator
def test_solves_are_dense_solves(case, noise):
    """For a number as scale, and for one per sample, in the shape in which it lies beside x."""
    measurement, covariance, x, y = problem(case, noise)
    e, M = measurement.residual(x), measurement.A.matrix()
    near(e, y - measurement.A(x))
    near(measurement.solve(e, SCALES.reshape(4, *(1,) * (x.ndim - 1))), dense_solve(M, covariance, e, SCALES))
    for scale in (2.5, torch.tensor(2.5, dtype=torch.float64)):
        near(measurement.solve(e, scale), dense_solve(M, covariance, e, [2.5] * 4))
    near(measurement.solve(e[:0], 1.0), e[:0])
    single = Measurement(measurement.A, y.float(), **given(measurement.A, noise)[0]).solve(e.float(), SCALES)
    assert single.dtype == torch.float32
    near(single.double(), dense_solve(M, covariance, e, SCALES), loose=1e-3)


@every_noise
@every_operator
def test_conjugate_gradients_and_eigenvectors_agree_with_them(case, noise):
    """Every way to solve, also where a cheaper one is chosen."""
    measurement, covariance, x, _ = problem(case, noise)
    e, M = measurement.residual(x), measurement.A.matrix()
    column = SCALES.reshape(4, *(1,) * (e.ndim - 1))
    ways = [solves._ByConjugateGradients(measurement.A, measurement.noise)]
    ways.append(solves._InEigenvectors(measurement.A, measurement.noise))
    if noise == "number":
        ways.append(solves._InSingularVectors(measurement.A, measurement.noise.variance))
    for way in ways:
        near(way(e, column), dense_solve(M, covariance, e, SCALES))


@every_noise
@every_operator
def test_log_likelihood_is_that_of_torch(case, noise):
    measurement, covariance, x, y = problem(case, noise)
    law = torch.distributions.MultivariateNormal(measurement.A(x).flatten(1), covariance)
    near(measurement.log_likelihood(x), law.log_prob(y.flatten()))
    each = numbers(4, *measurement.A.measured_shape, seed=5)
    near(measurement.log_likelihood(x, each), law.log_prob(each.flatten(1)))
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(measurement.log_likelihood(leaf).sum(), leaf)
    near(gradient, measurement.A.adjoint(measurement.apply_precision(measurement.residual(x))))


@every_noise
def test_precision_is_the_inverse_of_covariance(noise):
    measurement, covariance, x, _ = problem(("Matrix", 1), noise)
    e = measurement.residual(x)
    near(measurement.apply_covariance(e).flatten(1), e.flatten(1) @ covariance)
    near(measurement.apply_precision(measurement.apply_covariance(e)), e)


@every_operator
def test_without_noise_a_solve_is_the_pseudo_inverse(case):
    A = operator(case)
    exact = Measurement(A, noise_std=0.0)
    assert exact.noise_is_zero
    e, M = numbers(4, *A.measured_shape, seed=1), A.matrix()
    near(A.adjoint(exact.solve(A.gram(e), 2.0)), A.adjoint(e) / 2.0)
    near(exact.solve(A(A.adjoint(e)), 2.0).flatten(1), A(A.adjoint(e)).flatten(1) @ torch.linalg.pinv(2 * M @ M.mT))


def test_without_noise_a_solve_does_not_amplify_round_off():
    """In float32, for a blur with singular values far below its precision: Aᵀ (A Aᵀ)⁺ A is a projection."""
    A, x = Blur.gaussian(2.0, (32,)), numbers(3, 32).float()
    projected = A.adjoint(Measurement(A, noise_std=0.0).solve(A(x), 1.0))
    assert (projected.norm(dim=1) <= 1.001 * x.norm(dim=1)).all()


def test_large_measurements_are_solved_without_a_matrix():
    """4096 elements: by conjugate gradients, and the answer solves the system."""
    A = Mask(torch.arange(64 * 64).reshape(64, 64) % 3 > 0) @ Blur.gaussian(1.0, (64, 64))
    x = numbers(3, 64, 64)
    scales = torch.tensor([0.1, 1.0, 100.0], dtype=torch.float64).reshape(3, 1, 1)
    for noise in (0.1, 0.05 + numbers(*A.measured_shape).abs()):
        measurement = Measurement(A, A(x)[0], noise_std=noise)
        e = measurement.residual(x)
        solved = measurement.solve(e, scales)
        near(scales[:, 0] * A.gram(solved) + measurement.apply_covariance(solved), e, loose=1e-8)


@every_noise
def test_solves_keep_their_precision_where_the_noise_is_small(noise):
    """In float32, s A Aᵀ five orders above Σ_y: Aᵀ of the solve, which guidance uses, is right to 1e-3 in norm."""
    A = Mask(torch.arange(32) % 2 == 0) @ Blur.gaussian(1.5, (32,))
    e = A(numbers(4, 32))
    arguments, covariance = given(A, noise)
    arguments = {name: value * (0.1 if name == "noise_std" else 0.01) for name, value in arguments.items()}
    expected = A.adjoint(dense_solve(A.matrix(), 0.01 * covariance, e, [2500.0] * 4))
    found = A.adjoint(Measurement(A, **arguments).solve(e.float(), 2500.0).double())
    assert ((found - expected).norm(dim=1) < 1e-3 * expected.norm(dim=1)).all()


def test_blurs_keep_their_precision_outside_of_the_range():
    """A blur whose spectrum has zeros: what of e is outside of the range does not leak into it in float32."""
    A = Blur(torch.tensor([0.5, 0.5], dtype=torch.float64), (32,))
    assert len(A.svd().s) == 31
    e = A(numbers(4, 32))
    expected = dense_solve(A.matrix(), 2.5e-3 * torch.eye(32, dtype=torch.float64), e, [2500.0] * 4)
    found = A.adjoint(Measurement(A, noise_std=0.05).solve(e.float(), 2500.0).double())
    assert ((found - A.adjoint(expected)).norm(dim=1) < 1e-3 * A.adjoint(expected).norm(dim=1)).all()


@every_noise
@every_operator
def test_solves_have_derivatives(case, noise):
    """A solve is linear in e, and differentiable in the scale, in torch.func and in autograd."""
    measurement, _, x, _ = problem(case, noise)
    e, de, scale = measurement.residual(x), numbers(4, *measurement.A.measured_shape, seed=3), torch.ones(4).double()
    near(torch.func.jvp(lambda v: measurement.solve(v, 1.0), (e,), (de,))[1], measurement.solve(de, 1.0))
    # d(s A Aᵀ + Σ)⁻¹ e / ds = −K⁻¹ A Aᵀ K⁻¹ e
    change = torch.func.jvp(lambda s: measurement.solve(e, s), (scale,), (scale,))[1]
    near(change, -measurement.solve(measurement.A.gram(measurement.solve(e, scale)), scale))
    both = torch.func.vmap(lambda v: measurement.solve(v, 1.0))(torch.stack([e, de]))
    near(both[1], measurement.solve(de, 1.0))


@every_noise
def test_simulated_measurements_have_the_noise(noise):
    """Mean A x_0, covariance Σ_y; and sample i has its own noise, whatever the batch."""
    A = operator(("Matrix", 1))
    arguments, covariance = given(A, noise)
    measurement, x = Measurement(A, **arguments), numbers(1, *A.event_shape).expand(4_000, *A.event_shape)
    e = (measurement.simulate(x, seed=3) - A(x)).flatten(1)
    inverse = torch.linalg.inv(torch.linalg.cholesky(covariance))
    white = e @ inverse.mT
    assert white.mean(0).abs().max() < 5 / math.sqrt(len(x))
    assert (white.mT @ white / len(x) - torch.eye(e.shape[1])).abs().max() < 5 * math.sqrt(2 / len(x))
    first = measurement.simulate(x[:1], seed=3) - A(x[:1])
    of_sampling = per_sample_noise(3, 0, tuple(first.shape), dtype=first.dtype)()
    assert (first - measurement.noise.colour(of_sampling)).abs().max() > 1e-3  # one seed serves both
    tail = measurement.simulate(x[5:9], seed=3, first_index=5)
    assert torch.equal(tail, measurement.simulate(x[:12], seed=3)[5:9])


@every_noise
def test_no_host_synchronisation(noise):
    measurement, _, x, _ = problem(("Blur", 1), noise)
    e = measurement.residual(x)
    measurement.solve(e, SCALES)  # what is computed once
    with CountReads() as counted:
        measurement.solve(measurement.residual(x), SCALES)
        measurement.log_likelihood(x)
        measurement.apply_precision(e)
    assert counted.reads == 0


@every_noise
def test_copies_are_the_same_measurement(noise):
    measurement, _, x, _ = problem(("Blur", 1), noise)
    expected = measurement.solve(measurement.residual(x), 1.0)
    for copied in (copy.deepcopy(measurement), pickle.loads(pickle.dumps(measurement))):
        assert torch.equal(copied.solve(copied.residual(x), 1.0), expected)
        assert torch.equal(copied.log_likelihood(x), measurement.log_likelihood(x))


def test_what_the_caller_changes_later_is_not_seen():
    M, y, x = numbers(3, 8), numbers(3, seed=1), numbers(2, 8)
    measurement = Measurement(guidance.Matrix(M), y, noise_std=0.1)
    before = measurement.residual(x)
    for given_tensor in (M, y):
        given_tensor.zero_()
    assert torch.equal(measurement.residual(x), before)


def test_a_measurement_prints_no_numbers():
    measurement = Measurement(guidance.Matrix(numbers(20, 20)), numbers(20), noise_covariance=torch.eye(20))
    assert len(repr(measurement)) < 250
