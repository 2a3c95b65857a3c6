"""Operators are linear, with their own adjoint, matrix, singular values and pseudo-inverse, in every precision."""

import copy
import math
import pickle

import pytest
import torch
from operator_examples import OPERATORS, numbers, operator
from test_host_synchronisation import CountReads
from torch.nn import functional

from sde_toolkit.guidance import (
    Blur,
    Downsample,
    Fourier,
    Grey,
    LinearFunction,
    Mask,
    Matrix,
    as_operator,
    conjugate_gradients,
)

every_operator = pytest.mark.parametrize("case", OPERATORS, ids=lambda case: f"{case[0]}-{case[1]}")
same = torch.testing.assert_close


def near(found, expected):
    same(found, expected, rtol=1e-10, atol=1e-10)


def inner(u, v):
    return (u * v).flatten(1).sum(1)


def event(A, n=3, seed=0):
    return numbers(n, *A.event_shape, seed=seed)


def measured(A, n=3, seed=1):
    return numbers(n, *A.measured_shape, seed=seed)


@pytest.mark.on_device
@every_operator
def test_dot_test(case):
    A = operator(case)
    x, y = event(A), measured(A)
    near(inner(A(x), y), inner(x, A.adjoint(y)))


@every_operator
def test_the_matrix_is_what_unit_events_become(case):
    A = operator(case)
    M = A.matrix()
    D, m = math.prod(A.event_shape), math.prod(A.measured_shape)
    assert M.shape == (m, D)
    assert M.dtype == torch.float64
    for j, unit in enumerate(torch.eye(D, dtype=torch.float64)):
        same(A(unit.reshape(1, *A.event_shape)).flatten(), M[:, j], rtol=1e-10, atol=1e-10)
    x, y = event(A), measured(A)
    near(A(x).flatten(1), x.flatten(1) @ M.mT)
    near(A.adjoint(y).flatten(1), y.flatten(1) @ M)
    near(A.gram(y).flatten(1), y.flatten(1) @ M @ M.mT)
    if A.row_gram is not None:
        near(A.row_gram * torch.eye(m, dtype=torch.float64), M @ M.mT)


@every_operator
def test_singular_values_and_vectors(case):
    """A = U S Vᵀ with orthonormal U and V, and no singular value is 0."""
    A = operator(case)
    svd = A.svd()
    r, x, y = len(svd.s), event(A), measured(A)
    c, unit = numbers(3, r, seed=2), torch.eye(r, dtype=torch.float64)
    assert (svd.s > 0).all()
    near(svd.from_range(svd.s * svd.to_domain(x)), A(x))
    near(svd.from_domain(svd.s * svd.to_range(y)), A.adjoint(y))
    for there, back, vector in ((svd.to_range, svd.from_range, y), (svd.to_domain, svd.from_domain, x)):
        near(there(back(unit)), unit)
        near(inner(back(c), vector), inner(c, there(vector)))
    assert A.svd() is svd


@every_operator
def test_moore_penrose(case):
    A = operator(case)
    M, eye = A.matrix(), torch.eye(math.prod(A.measured_shape), dtype=torch.float64)
    P = A.pseudo_inverse(eye.reshape(-1, *A.measured_shape)).flatten(1).mT
    for found, expected in ((M @ P @ M, M), (P @ M @ P, P), ((M @ P).mT, M @ P), ((P @ M).mT, P @ M)):
        near(found, expected)


@pytest.mark.on_device
@every_operator
def test_derivatives_of_every_kind(case):
    """A is its own derivative: forward and backward, in torch.func and in autograd, once and twice, and under vmap."""
    A = operator(case)
    x, dx, y = event(A), event(A, seed=3), measured(A)
    near(torch.func.jvp(A, (x,), (dx,))[1], A(dx))
    near(torch.func.vjp(A, x)[1](y)[0], A.adjoint(y))
    near(torch.func.jvp(A.adjoint, (y,), (y,))[1], A.adjoint(y))
    near(torch.func.vjp(A.adjoint, y)[1](x)[0], A(x))
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(0.5 * A(leaf).square().sum(), leaf, create_graph=True)
    near(gradient, A.adjoint(A(x)))
    near(torch.autograd.grad(inner(gradient, dx).sum(), leaf)[0], A.adjoint(A(dx)))
    stacked = torch.stack([x, dx], 1)
    near(torch.func.vmap(A, in_dims=1)(stacked), torch.stack([A(x), A(dx)]))
    near(torch.func.vmap(lambda v: torch.func.vjp(A, x)[1](v)[0])(torch.stack([y, 2 * y]))[1], 2 * A.adjoint(y))
    near(A(x), A(x.clone()))  # what was computed inside of a transform does not leak out of it


@every_operator
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_precision_and_rows(case, dtype):
    """Answers have the dtype of the question, to its precision; a batch of any size is its rows, and none are none."""
    A = operator(case)
    x, y, loose = event(A), measured(A), {torch.float32: 1e-5, torch.bfloat16: 0.2}[dtype]
    for function, v in ((A, x), (A.adjoint, y)):
        found = function(v.to(dtype))
        assert found.dtype == dtype
        same(found.double(), function(v), rtol=loose, atol=loose)
        near(torch.cat([function(v[:1]), function(v[1:])]), function(v))
        none = v[:0].clone().requires_grad_()
        assert function(none).shape == (0, *function(v).shape[1:])
        assert torch.autograd.grad(function(none).sum(), none)[0].shape == none.shape
    with torch.inference_mode():
        near(A(x.clone()), A(x))
        near(A.adjoint(y.clone()), A.adjoint(y))


@pytest.mark.parametrize("make", [lambda: Matrix(numbers(3, 4)), lambda: Blur(numbers(3), (4,)), lambda: Grey((4,))])
def test_a_first_use_in_inference_mode_leaves_later_derivatives(make):
    """What is kept from a call is no inference tensor, which autograd would refuse."""
    A, x = make(), numbers(2, 4).float().requires_grad_()
    with torch.inference_mode():
        A(x.detach().clone())
    assert torch.autograd.grad(A(x).sum(), x)[0].shape == x.shape


@pytest.mark.on_device
@every_operator
def test_no_host_synchronisation(case):
    if case[0] == "ScipyOperator":
        pytest.skip("scipy computes on the host")
    A = operator(case)
    x, y = event(A), measured(A)
    c = A.svd().to_range(y)  # once
    with CountReads() as counted:
        for values in (x, x.float()):
            A(values)
            A.gram(A(values))
            A.svd().from_domain(A.svd().to_domain(values))
        A.adjoint(y)
        A.svd().from_range(c)
    assert counted.reads == 0


@pytest.mark.on_device
@every_operator
def test_copies_are_the_same_operator(case):
    A = operator(case)
    A.svd()
    of_functions = case[0] in ("LinearFunction", "ScipyOperator")  # which are not pickled
    copied = copy.deepcopy(A) if of_functions else pickle.loads(pickle.dumps(A))
    same(copied(event(A)), A(event(A)), rtol=0, atol=0)
    near(copied.svd().s, A.svd().s)


@every_operator
def test_compositions(case):
    A = operator(case)
    m, D = math.prod(A.measured_shape), math.prod(A.event_shape)
    after = Matrix(numbers(3, m, seed=4), A.measured_shape)
    before = Matrix(numbers(D, 2, seed=5), (2,), A.event_shape)
    x, y = numbers(3, 2), numbers(3, 3, seed=1)
    near((after @ A @ before)(x), after(A(before(x))))
    near((after @ (A @ before)).adjoint(y), before.adjoint(A.adjoint(after.adjoint(y))))
    near((after @ A @ before).matrix(), after.matrix() @ A.matrix() @ before.matrix())


def test_one_graph_holds_every_operator():
    operators = [operator(case) for case in OPERATORS if case[0] != "ScipyOperator"]

    def there_and_back(events):
        return [A.adjoint(A(x)) for A, x in zip(operators, events, strict=True)]

    events = [event(A) for A in operators]
    compiled = torch.compile(there_and_back, backend="eager", fullgraph=True)
    for found, expected in zip(compiled(events), there_and_back(events), strict=True):
        near(found, expected)


# What each of them is


@pytest.mark.on_device
@pytest.mark.parametrize("size", [(3, 3), (4, 3), (5, 6)])
def test_a_blur_is_a_periodic_convolution(size):
    kernel, x = numbers(*size), numbers(2, 3, 6, 7)
    right, below = size[1] // 2, size[0] // 2  # the middle; torch's convolution has the kernel turned round
    left, above = size[1] - 1 - right, size[0] - 1 - below
    padded = functional.pad(x, [left, right, above, below], "circular")
    near(Blur(kernel, (3, 6, 7))(x), functional.conv2d(padded, kernel.flip(0, 1).expand(3, 1, *size), groups=3))


@pytest.mark.on_device
def test_a_gaussian_blur_keeps_sums_and_widens():
    x = torch.zeros(1, 31, dtype=torch.float64)
    x[0, 15] = 1
    blurred = Blur.gaussian(2.0, (31,))(x)[0]
    places = torch.arange(31) - 15
    near(blurred.sum(), torch.ones((), dtype=torch.float64))
    same((blurred * places**2).sum(), torch.tensor(4.0, dtype=torch.float64), rtol=1e-6, atol=0)


@pytest.mark.on_device
def test_downsampling_is_average_pooling():
    x = numbers(2, 3, 6, 4)
    near(Downsample(2, (3, 6, 4))(x), functional.avg_pool2d(x, 2))
    near(Downsample((3, 2), (3, 6, 4))(x), functional.avg_pool2d(x, (3, 2)))
    near(Downsample(4, (8,))(numbers(2, 8)), functional.avg_pool1d(numbers(2, 1, 8), 4)[:, 0])


@pytest.mark.on_device
def test_grey_is_grey_already():
    x = numbers(2, 1, 4, 4)
    for channels in (1, 2, 3):
        near(Grey((channels, 4, 4))(x.expand(2, channels, 4, 4)), x)


@pytest.mark.on_device
def test_a_mask_picks():
    x, mask = numbers(2, 3, 4), torch.arange(12).reshape(3, 4) % 5 == 0
    assert torch.equal(Mask(mask)(x), x[:, mask])
    assert torch.equal(Mask(mask).adjoint(Mask(mask)(x)), x * mask)


@pytest.mark.on_device
def test_all_frequencies_keep_the_norm_and_the_first_is_the_mean():
    x = numbers(2, 3, 4, 5)
    near(Fourier(torch.ones(4, 5), (3, 4, 5))(x).square().sum(), x.square().sum())
    first = torch.zeros(4, 5)
    first[0, 0] = 1
    near(Fourier(first, (3, 4, 5))(x)[:, :, 0, 0], x.mean((-1, -2)) * math.sqrt(20))


# What stands for one


def test_arrays_and_sparse_matrices_are_matrices():
    import scipy.sparse

    M, x = numbers(3, 4), numbers(2, 4)
    for given in (M, M.numpy(), scipy.sparse.csr_matrix(M.numpy()), lambda v: v @ M.to(v).mT):
        A = as_operator(given, (4,), dtype=torch.float64) if callable(given) else as_operator(given)
        near(A(x), x @ M.mT)
        near(A.adjoint(x[:, :3]), x[:, :3] @ M)
    near(as_operator(M, (2, 2))(x.reshape(2, 2, 2)), x @ M.mT)


class Physics(torch.nn.Module):
    """The face of a physics object of deepinv: inpainting, which keeps the shape of the image."""

    def __init__(self, mask):
        super().__init__()
        self.register_buffer("mask", mask)

    def A(self, x, **kwargs):  # noqa: N802
        return self.mask * x

    def A_adjoint(self, y, **kwargs):  # noqa: N802
        return self.mask * y

    def forward(self, x):
        return self.A(x) + torch.randn_like(x)


@pytest.mark.on_device
def test_a_physics_object_of_deepinv():
    mask = (torch.arange(12).reshape(1, 3, 4) % 3 > 0).double()
    A, ours, x = as_operator(Physics(mask), (1, 3, 4)), Mask(mask), numbers(2, 1, 3, 4)
    assert A.dtype == torch.float64
    near(A.adjoint(A(x)), ours.adjoint(ours(x)))
    near(A.pseudo_inverse(A(x)), ours.pseudo_inverse(ours(x)))


def test_a_function_with_an_adjoint_needs_no_autograd():
    """It gets plain tensors, so that it may leave torch, under every transform."""

    def there(x):
        return torch.from_numpy(x.numpy().cumsum(1))

    def back(y):
        return torch.from_numpy(y.flip(1).numpy().cumsum(1)).flip(1)

    A = as_operator(LinearFunction(there, (5,), adjoint=back, dtype=torch.float64))
    x, y = numbers(3, 5), numbers(3, 5, seed=1)
    near(A(x), x.cumsum(1))
    near(torch.func.vjp(A, x)[1](y)[0], A.adjoint(y))
    near(torch.func.jvp(A.adjoint, (x,), (y,))[1], A.adjoint(y))
    near(torch.func.vmap(A, in_dims=1)(torch.stack([x, y], 1))[1], A(y))
    near(torch.func.jacrev(A)(x[:1])[0, :, 0], A.matrix())
    near(torch.func.hessian(lambda v: 0.5 * A(v).square().sum())(x[:1]).reshape(5, 5), A.matrix().mT @ A.matrix())


# Conjugate gradients


@pytest.mark.on_device
def test_conjugate_gradients_solve_each_system_for_itself():
    """The answer of a dense solve; in exact arithmetic after as many products as there are different eigenvalues."""
    Q = torch.linalg.qr(numbers(8, 8))[0]
    values = torch.tensor([1.0, 1, 1, 1, 4, 4, 9, 9], dtype=torch.float64)
    K = Q @ torch.diag(values) @ Q.mT
    b = torch.stack([numbers(8), Q[:, 0], Q[:, 0] + Q[:, 5], torch.zeros(8, dtype=torch.float64)])
    found = conjugate_gradients(lambda p: p @ K, b, tolerance=1e-12, max_iterations=20)
    near(found.x, torch.linalg.solve(K, b.mT).mT)
    assert found.iterations.tolist() == [3, 1, 2, 0]
    assert (found.residual <= 1e-12).all()
    near(conjugate_gradients(lambda p: p @ K, b[1:2], tolerance=1e-12, max_iterations=20).x, found.x[1:2])
    short = conjugate_gradients(lambda p: p @ K, b, tolerance=1e-12, max_iterations=2)
    assert short.iterations.tolist() == [2, 1, 2, 0]
    near((b[0] - K @ short.x[0]).norm() / b[0].norm(), short.residual[0])
    assert conjugate_gradients(lambda p: p @ K, b[:0], tolerance=0.1, max_iterations=3).x.shape == (0, 8)
