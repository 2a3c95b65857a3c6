"""Linear operators: what a measurement y = A x_0 + noise does to x_0.

An operator maps batches: ``A(x)`` is (B, *measured) for x (B, *event), ``A.adjoint(y)`` is Aᵀ y, ``A @ B`` is "first B,
then A". A subclass gives :meth:`LinearOperator.apply`, and :meth:`LinearOperator.apply_adjoint` unless autograd is to
take it. Everything else has a general form here, which a subclass with more structure overrides.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from sde_toolkit.batching import as_floating
from sde_toolkit.checks import is_count
from sde_toolkit.errors import ArgumentError
from sde_toolkit.guidance.constants import Constant

__all__ = ["SVD", "Composition", "LinearOperator", "as_shape", "check_rows"]

_MATRIX_UP_TO = 4096  # elements of an event or a measurement, up to which an operator is written as a matrix
_AT_ONCE = 2**22  # numbers of unit events that are measured at once


@dataclass(frozen=True, eq=False)
class SVD:
    """A = U diag(s) Vᵀ, with r singular values above 0. Batches of coefficients are (B, r).

    Attributes:
        s: (r,), float64, on the CPU.
        to_range: y (B, *measured) to Uᵀ y.
        from_range: c (B, r) to U c.
        to_domain: x (B, *event) to Vᵀ x.
        from_domain: c (B, r) to V c.
    """

    s: Tensor
    to_range: Callable[[Tensor], Tensor]
    from_range: Callable[[Tensor], Tensor]
    to_domain: Callable[[Tensor], Tensor]
    from_domain: Callable[[Tensor], Tensor]
    _s: Constant = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_s", Constant(self.s))

    def s_beside(self, x: Tensor) -> Tensor:
        """s on the device and in the dtype of x."""
        return self._s.beside(x)


class LinearOperator(ABC):
    """A linear map A of events.

    Args:
        event_shape: the shape of one x, without the batch.
        measured_shape: the shape of one A(x), without the batch.

    Attributes:
        row_gram: the number g where A Aᵀ = g I; None where it is no multiple of the identity, or not known.
        closed_svd: whether :meth:`svd` costs no more than a few applications.
        device, dtype: where :meth:`matrix` and checks ask the operator.
        was_checked: whether ``as_operator`` has checked it.

    Raises:
        ArgumentError: if a shape is none.
    """

    row_gram: float | None = None
    closed_svd: ClassVar[bool] = False
    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float64
    was_checked: bool = False

    def __init__(self, event_shape: Sequence[int], measured_shape: Sequence[int]) -> None:
        self.event_shape = as_shape("event_shape", event_shape)
        self.measured_shape = as_shape("measured_shape", measured_shape)
        self._svd: SVD | None = None

    @abstractmethod
    def apply(self, x: Tensor) -> Tensor:
        """A x for x (B, *event), floating-point numbers, B > 0: (B, *measured) in the dtype and on the device of x."""

    def apply_adjoint(self, y: Tensor) -> Tensor:
        """Aᵀ y for y (B, *measured): (B, *event). By default autograd's."""
        if not torch.compiler.is_compiling() and torch.is_inference_mode_enabled():
            with torch.inference_mode(False):  # inside of it there is no autograd
                return self.apply_adjoint(y.clone())
        start = y.new_zeros(y.shape[0], *self.event_shape)
        return torch.func.vjp(self.apply, start)[1](y)[0]

    def __call__(self, x: Tensor) -> Tensor:
        """A x.

        Raises:
            ArgumentError: unless x is (B, *event).
        """
        x = check_rows("x", x, self.event_shape, "Pass events of the shape that the operator was made for.")
        return self.apply(x) if x.shape[0] else _no_rows(x, self.measured_shape)

    def adjoint(self, y: Tensor) -> Tensor:
        """Aᵀ y.

        Raises:
            ArgumentError: unless y is (B, *measured).
        """
        y = check_rows("y", y, self.measured_shape, "Pass measurements of the shape of A(x).")
        return self.apply_adjoint(y) if y.shape[0] else _no_rows(y, self.event_shape)

    def gram(self, y: Tensor) -> Tensor:
        """A Aᵀ y."""
        return self(self.adjoint(y)) if self.row_gram is None else self.row_gram * y

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """A⁺ y: of all x with the least ‖A x − y‖ the shortest.

        Singular values below max(m, D) ε times the largest count as 0, ε the precision of y, as in torch.linalg.pinv.
        """
        svd = self.svd()
        c, s = svd.to_range(y), svd.s_beside(y)
        return svd.from_domain(torch.where(s > self.least_singular_value(y.dtype), c / s, 0))

    def least_singular_value(self, dtype: torch.dtype) -> float:
        """What is below counts as 0 in this precision."""
        s, size = self.svd().s, max(*map(math.prod, (self.event_shape, self.measured_shape)))
        return float(s.max()) * size * torch.finfo(dtype).eps if len(s) else 0.0

    def svd(self) -> SVD:
        """The singular value decomposition, computed once: here from the matrix, in float64.

        Raises:
            ArgumentError: if an event or a measurement has more than 4096 elements.
        """
        if self._svd is None:
            self._svd = self._decomposed()
        return self._svd

    def _decomposed(self) -> SVD:
        """The SVD of the matrix. Singular values that are 0 to round-off are left out."""
        M = self.matrix().cpu()
        U, s, Vt = torch.linalg.svd(M, full_matrices=False)
        r = int((s > s[0] * max(M.shape) * torch.finfo(M.dtype).eps).sum())
        range_, domain = Constant(U[:, :r]), Constant(Vt[:r].mT)
        D, m = self.event_shape, self.measured_shape
        return SVD(
            s[:r],
            to_range=lambda y: y.reshape(y.shape[0], math.prod(m)) @ range_.beside(y),
            from_range=lambda c: (c @ range_.beside(c).mT).reshape(c.shape[0], *m),
            to_domain=lambda x: x.reshape(x.shape[0], math.prod(D)) @ domain.beside(x),
            from_domain=lambda c: (c @ domain.beside(c).mT).reshape(c.shape[0], *D),
        )

    def matrix(self) -> Tensor:
        """A as a matrix (m, D), float64, from A(unit events).

        Raises:
            ArgumentError: if an event or a measurement has more than 4096 elements.
        """
        D, m = math.prod(self.event_shape), math.prod(self.measured_shape)
        if max(D, m) > _MATRIX_UP_TO:
            problem = f"it has {D} columns and {m} rows; up to {_MATRIX_UP_TO} it is written as a matrix"
            raise ArgumentError("A", self, problem, "Choose a method that does not need the matrix or SVD of A.")
        rows = max(1, _AT_ONCE // D)
        parts = []
        for first in range(0, D, rows):
            count = min(rows, D - first)
            units = torch.zeros(count, D, dtype=self.dtype, device=self.device)
            units[torch.arange(count), torch.arange(first, first + count)] = 1
            parts.append(self(units.reshape(count, *self.event_shape)).reshape(count, m).to(torch.float64))
        return torch.cat(parts).mT.contiguous()

    def __matmul__(self, other: LinearOperator) -> LinearOperator:
        """First ``other``, then this one.

        Raises:
            ArgumentError: unless ``other`` is an operator whose measurements are events of this one.
        """
        return Composition(self, other)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_svd": None}  # it holds functions, and is computed again

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.event_shape} -> {self.measured_shape})"


class Composition(LinearOperator):
    """First ``inner``, then ``outer``: ``outer @ inner``.

    Raises:
        ArgumentError: unless both are operators, and a measurement of ``inner`` is an event of ``outer``.
    """

    def __init__(self, outer: LinearOperator, inner: LinearOperator) -> None:
        for name, value in (("outer", outer), ("inner", inner)):
            if not isinstance(value, LinearOperator):
                remedy = "Make it one: as_operator(A, event_shape). An operator is applied to a tensor by A(x)."
                raise ArgumentError(name, value, "not a LinearOperator", remedy)
        if inner.measured_shape != outer.event_shape:
            problem = f"it measures events of shape {outer.event_shape}, and {inner!r} gives {inner.measured_shape}"
            raise ArgumentError("outer", outer, problem, "Make it for events of that shape.")
        super().__init__(inner.event_shape, outer.measured_shape)
        self.outer, self.inner = outer, inner
        self.device = inner.device if inner.device.type != "cpu" else outer.device
        self.dtype = min(outer.dtype, inner.dtype, key=lambda dtype: torch.finfo(dtype).bits)
        if outer.row_gram is not None and inner.row_gram is not None:
            self.row_gram = outer.row_gram * inner.row_gram

    def apply(self, x: Tensor) -> Tensor:
        return self.outer.apply(self.inner.apply(x))

    def apply_adjoint(self, y: Tensor) -> Tensor:
        return self.inner.apply_adjoint(self.outer.apply_adjoint(y))

    def __repr__(self) -> str:
        return f"{self.outer!r} @ {self.inner!r}"


def as_shape(name: str, value: Any) -> tuple[int, ...]:
    """A shape of at least one axis, as a tuple of ints.

    Raises:
        ArgumentError: naming it.
    """
    if not isinstance(value, Sequence) or isinstance(value, str) or not value or not all(map(is_count, value)):
        raise ArgumentError(name, value, "not a shape", "Pass the shape of one event, without the batch: (1, 28, 28).")
    return tuple(map(int, value))


def check_rows(name: str, value: Any, shape: tuple[int, ...], remedy: str) -> Tensor:
    """A real tensor (B, *shape), of floating-point numbers.

    Raises:
        ArgumentError: naming it.
    """
    value = as_floating(value, name)
    if value.ndim != len(shape) + 1 or tuple(value.shape[1:]) != shape or value.is_complex():
        problem = f"it must be real, of shape {('B', *shape)}".replace("'", "")
        raise ArgumentError(name, value if value.is_complex() else tuple(value.shape), problem, remedy)
    return value


def _no_rows(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(0, *shape), which depends on x (0, ...) as far as autograd is concerned."""
    return x.sum() * x.new_zeros(0, *shape)
