"""One or more small instances of every public operator: a new one needs its line here, and all laws then test it."""

import inspect

import torch

from sde_toolkit import guidance
from sde_toolkit.guidance import LinearOperator, as_operator


def numbers(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scipy_difference():
    import numpy as np
    from scipy.sparse.linalg import LinearOperator as Scipy

    M = np.diff(np.eye(6), axis=0)
    return Scipy(M.shape, matvec=lambda x: M @ x, rmatvec=lambda y: M.T @ y, dtype=np.float64)


def differences(x):
    return x[..., 1:] - 0.5 * x[..., :-1]


G = guidance
EXAMPLES = {
    "Blur": [
        G.Blur(numbers(4), (7,)),
        G.Blur(numbers(3, 2), (2, 5, 4)),
        G.Blur(numbers(2, 3), (3, 4)),
        G.Blur(torch.tensor([1.0, -1.0]), (2, 6)),
        G.Blur.gaussian(0.7, (1, 4, 6)),
    ],
    "Composition": [
        G.Mask(torch.arange(8) % 2 == 0) @ G.Blur.gaussian(1.5, (8,)),
        G.Downsample(2, (1, 4, 4)) @ G.Grey((3, 4, 4)),
        G.Matrix(numbers(3, 8)) @ G.Mask(torch.arange(12).reshape(3, 4) % 3 > 0),
    ],
    "Downsample": [G.Downsample(3, (6,)), G.Downsample(2, (2, 4, 6)), G.Downsample((3, 1), (2, 6, 2))],
    "Fourier": [
        G.Fourier(torch.tensor([1, 0, 1, 1, 0, 0])),
        G.Fourier(numbers(4, 5) > 0, (2, 4, 5)),
        G.Fourier(torch.ones(3, 4)),
    ],
    "Grey": [G.Grey((3, 2, 4)), G.Grey((2, 3)), G.Grey((4, 2, 2), (1, 0, -2, 0.5))],
    "LinearFunction": [
        as_operator(differences, (2, 5), dtype=torch.float64),
        G.LinearFunction(lambda x: 3 * x.flip(1), (4,), adjoint=lambda y: 3 * y.flip(1), dtype=torch.float64),
    ],
    "Mask": [
        G.Mask(torch.tensor([1, 0, 1, 1])),
        G.Mask(torch.arange(12).reshape(3, 4) % 3 > 0, (2, 3, 4)),
        G.Mask(torch.ones(2, 2, 2)),
    ],
    "Matrix": [
        G.Matrix(numbers(3, 5)),
        G.Matrix(numbers(8, 6), (1, 2, 3), (2, 4)),
        G.Matrix(numbers(5, 2) @ numbers(2, 4, seed=1)),
    ],
    "ScipyOperator": [as_operator(scipy_difference()), as_operator(scipy_difference(), (2, 3))],
}

PUBLIC = [
    name
    for name, value in vars(guidance).items()
    if inspect.isclass(value) and issubclass(value, LinearOperator) and not inspect.isabstract(value)
]
OPERATORS = [(name, i) for name in PUBLIC for i in range(len(EXAMPLES.get(name, [None])))]


def operator(case):
    name, i = case
    assert name in EXAMPLES, f"{name} is public: give it an example in operator_examples.py"
    return EXAMPLES[name][i]
