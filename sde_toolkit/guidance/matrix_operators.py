"""Operators that are given: as a matrix, or as a function."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sde_toolkit.batching import as_floating
from sde_toolkit.checks import check_amount
from sde_toolkit.errors import ArgumentError, SDEToolkitError
from sde_toolkit.guidance.constants import Constant
from sde_toolkit.guidance.operators import LinearOperator, as_shape

__all__ = ["LinearFunction", "Matrix", "by_pair"]


class Matrix(LinearOperator):
    """A matrix (m, D) times the elements of an event in their order in memory.

    Args:
        matrix: (m, D).
        event_shape: with D elements; by default (D,).
        measured_shape: with m elements; by default (m,).

    Raises:
        ArgumentError: if it is no matrix of finite real numbers, or a shape has another number of elements.
    """

    def __init__(
        self,
        matrix: Tensor,
        event_shape: Sequence[int] | None = None,
        measured_shape: Sequence[int] | None = None,
    ) -> None:
        if not isinstance(matrix, Tensor) or matrix.ndim != 2 or matrix.is_complex() or 0 in matrix.shape:
            problem = "not a matrix of real numbers with at least one row and column"
            raise ArgumentError("matrix", matrix, problem, "Pass a tensor (m, D).")
        matrix = as_floating(matrix, "matrix")
        if not bool(matrix.isfinite().all()):
            raise ArgumentError("matrix", matrix, "not all of its numbers are finite", "Pass finite numbers.")
        m, D = matrix.shape
        measured_shape = (m,) if measured_shape is None else measured_shape
        super().__init__((D,) if event_shape is None else event_shape, measured_shape)
        for name, shape, count in (("event_shape", self.event_shape, D), ("measured_shape", self.measured_shape, m)):
            if math.prod(shape) != count:
                problem = f"it has {math.prod(shape)} elements, and the matrix {tuple(matrix.shape)} needs {count}"
                raise ArgumentError(name, shape, problem, "The matrix is (elements of A(x), elements of x).")
        self._matrix = Constant(matrix)

    def apply(self, x: Tensor) -> Tensor:
        M = self._matrix.beside(x)
        return (x.reshape(x.shape[0], M.shape[1]) @ M.mT).reshape(x.shape[0], *self.measured_shape)

    def apply_adjoint(self, y: Tensor) -> Tensor:
        M = self._matrix.beside(y)
        return (y.reshape(y.shape[0], M.shape[0]) @ M).reshape(y.shape[0], *self.event_shape)

    def matrix(self) -> Tensor:
        check_amount("A", self, math.prod(self._matrix.value.shape), bytes_each=8)
        return self._matrix.value.to(torch.float64)


class LinearFunction(LinearOperator):
    """A function of a batch of events as an operator.

    Args:
        function: x (B, *event) to (B, *measured); linear, each row for itself.
        event_shape: the shape of one x.
        adjoint: y (B, *measured) to Aᵀ y (B, *event); by default autograd's. With one, neither function has to be
            differentiable, or known to torch.func.
        device, dtype: of the tensor by which the measured shape is found; the CPU and torch's default dtype.

    Raises:
        ArgumentError: if the function fails, or returns no tensor with a row per event. ``as_operator`` also checks
            that it is linear and that the adjoint is its adjoint.
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        event_shape: Sequence[int],
        *,
        adjoint: Callable[[Tensor], Tensor] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        for name, value in (("function", function), ("adjoint", adjoint)):
            if not (callable(value) or (name == "adjoint" and value is None)):
                raise ArgumentError(name, value, "not a function of a tensor", "Pass a function of a batch (B, ...).")
        self.device = torch.device("cpu" if device is None else device)
        self.dtype = torch.get_default_dtype() if dtype is None else dtype
        shape = as_shape("event_shape", event_shape)
        self.function, self._adjoint = function, adjoint
        measured = self._measured(torch.zeros(1, *shape, device=self.device, dtype=self.dtype))
        super().__init__(shape, tuple(measured.shape[1:]))

    def apply(self, x: Tensor) -> Tensor:
        return self._there(x) if self._adjoint is None else by_pair(x, self._there, self._back)

    def apply_adjoint(self, y: Tensor) -> Tensor:
        return super().apply_adjoint(y) if self._adjoint is None else by_pair(y, self._back, self._there)

    def _there(self, x: Tensor) -> Tensor:
        return self._rows("A(x)", self.function, x)

    def _back(self, y: Tensor) -> Tensor:
        return self._rows("A.adjoint(y)", self._adjoint, y)

    def _measured(self, x: Tensor) -> Tensor:
        """A(x) of a first x.

        Raises:
            ArgumentError: if that fails.
        """
        try:
            with torch.no_grad():
                return self._there(x)
        except SDEToolkitError:
            raise
        except Exception as error:
            problem = f"it fails for x of shape {tuple(x.shape)}: {type(error).__name__}: {error}"
            remedy = "It must take a batch of events: is event_shape right, and are device and dtype?"
            raise ArgumentError("A", self.function, problem, remedy) from error

    def _rows(self, what: str, function: Any, x: Tensor) -> Tensor:
        """The function's answer, a tensor with as many rows as x."""
        answer: Any = function(x)
        if not isinstance(answer, Tensor) or answer.ndim < 2 or answer.shape[0] != x.shape[0] or answer.is_complex():
            found = tuple(answer.shape) if isinstance(answer, Tensor) and not answer.is_complex() else answer
            problem = f"it must be a real tensor with the {x.shape[0]} rows of its argument {tuple(x.shape)}"
            remedy = "Return a tensor (B, ...); split complex numbers with torch.view_as_real."
            raise ArgumentError(what, found, problem, remedy)
        return answer


def by_pair(x: Tensor, there: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor]) -> Tensor:
    """``there(x)``, a linear function of the rows of x, with derivatives of every kind from its adjoint ``back``.

    Both functions get plain tensors alone, under torch.func too.
    """
    return _Pair.apply(x, there, back)


class _Pair(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, there: Any, back: Any) -> Tensor:
        return there(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.there, ctx.back = inputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return by_pair(gradient, ctx.back, ctx.there), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return by_pair(tangent, ctx.there, ctx.back)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], x: Tensor, there: Any, back: Any) -> tuple[Tensor, int]:
        x = x.movedim(in_dims[0], 0)
        return by_pair(x.flatten(0, 1), there, back).unflatten(0, x.shape[:2]), 0
