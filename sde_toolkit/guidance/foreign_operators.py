"""What may stand for an operator: ours, a matrix, scipy's LinearOperator, a physics object of deepinv, a function."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.errors import ArgumentError
from sde_toolkit.guidance.matrix_operators import LinearFunction, Matrix, by_pair
from sde_toolkit.guidance.operator_checks import check_operator
from sde_toolkit.guidance.operators import LinearOperator, as_shape

__all__ = ["ScipyOperator", "as_operator"]


def as_operator(
    A: Any,
    event_shape: Sequence[int] | None = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> LinearOperator:
    """``A`` as an operator, checked once: that it is linear, and that ⟨A x, y⟩ = ⟨x, Aᵀ y⟩ for random x and y.

    Args:
        A: a :class:`LinearOperator`; a matrix (m, D), a tensor or an array; a ``scipy.sparse.linalg.LinearOperator`` or
            sparse matrix (scipy computes its products, on the CPU); a physics object of deepinv, or anything else with
            ``A`` and ``A_adjoint``; a function of a batch, whose adjoint is autograd's.
        event_shape: the shape of one x; needed for deepinv's objects and functions.
        device, dtype: where a physics object or a function is checked; by default where its parameters and buffers are,
            or the CPU in torch's default dtype.

    Raises:
        ArgumentError: for anything else; for events of another shape; for what is not linear, mixes the rows of a
            batch, does not return tensors (B, *measured), or has another adjoint.
    """
    operator = _operator(A, event_shape, device, dtype)
    if event_shape is not None and operator.event_shape != as_shape("event_shape", event_shape):
        problem = f"it takes events of shape {operator.event_shape}, and events have shape {tuple(event_shape)}"
        raise ArgumentError("A", A, problem, "Make it for events of that shape.")
    check_operator(operator)
    return operator


def _operator(A: Any, event_shape: Any, device: Any, dtype: Any) -> LinearOperator:
    if isinstance(A, LinearOperator):
        return A
    if isinstance(A, np.ndarray):
        if A.dtype.kind not in "biuf":
            raise ArgumentError("A", A, "not an array of real numbers", "Pass an array (m, D).")
        A = torch.from_numpy(np.array(A))
    if isinstance(A, Tensor):
        return Matrix(A, event_shape)
    if (hasattr(A, "matmat") and hasattr(A, "rmatmat")) or hasattr(A, "tocsr"):
        return ScipyOperator(A, event_shape)
    physics = callable(getattr(A, "A", None)) and callable(getattr(A, "A_adjoint", None))
    if not physics and not callable(A):
        remedy = "Pass an operator of sde_toolkit.guidance, a matrix, scipy's or deepinv's operator, or a function."
        raise ArgumentError("A", A, "not a linear operator", remedy)
    if event_shape is None:
        remedy = "Pass as_operator(A, event_shape=(1, 28, 28)), for example."
        raise ArgumentError("event_shape", None, "the shape of the events cannot be seen from A", remedy)
    device, dtype = _home(A, device, dtype)
    if physics:
        return LinearFunction(A.A, event_shape, adjoint=A.A_adjoint, device=device, dtype=dtype)
    return LinearFunction(A, event_shape, device=device, dtype=dtype)


def _home(A: Any, device: Any, dtype: Any) -> tuple[Any, Any]:
    """Where a module is, and in which precision, as far as neither is given."""
    if isinstance(A, torch.nn.Module):
        for value in (*A.parameters(), *A.buffers()):
            if value.is_floating_point():
                return value.device if device is None else device, value.dtype if dtype is None else dtype
    return device, dtype


class ScipyOperator(LinearOperator):
    """A ``scipy.sparse.linalg.LinearOperator`` (m, D), or a sparse matrix, times the elements of an event.

    Its products are computed by scipy, on the CPU, and have derivatives of every order and ``torch.func``'s rules.

    Args:
        operator: (m, D), real.
        event_shape: with D elements; by default (D,).

    Raises:
        ArgumentError: if it is complex, or an event has another number of elements.
    """

    def __init__(self, operator: Any, event_shape: Sequence[int] | None = None) -> None:
        from scipy.sparse.linalg import aslinearoperator

        operator = aslinearoperator(operator)
        m, D = map(int, operator.shape)
        if operator.dtype is not None and np.issubdtype(operator.dtype, np.complexfloating):
            problem = "it is complex, and events are real"
            raise ArgumentError("A", operator, problem, "Stack its real and imaginary parts: 2 m rows.")
        shape = (D,) if event_shape is None else as_shape("event_shape", event_shape)
        if math.prod(shape) != D:
            problem = f"it has {math.prod(shape)} elements, and the operator has {D} columns"
            raise ArgumentError("event_shape", shape, problem, "Pass the shape of one x.")
        super().__init__(shape, (m,))
        self.operator = operator

    def apply(self, x: Tensor) -> Tensor:
        return by_pair(x.reshape(x.shape[0], math.prod(self.event_shape)), self._there, self._back)

    def apply_adjoint(self, y: Tensor) -> Tensor:
        return by_pair(y, self._back, self._there).reshape(y.shape[0], *self.event_shape)

    def _there(self, x: Tensor) -> Tensor:
        return _by_numpy(self.operator.matmat, x)

    def _back(self, y: Tensor) -> Tensor:
        return _by_numpy(self.operator.rmatmat, y)


def _by_numpy(products: Callable[[np.ndarray], np.ndarray], rows: Tensor) -> Tensor:
    """Products with the columns of an array, for the rows of a tensor."""
    columns = rows.detach().to("cpu", torch.promote_types(rows.dtype, torch.float32)).numpy().T
    return torch.from_numpy(np.ascontiguousarray(products(columns).T)).to(rows.device, rows.dtype)
