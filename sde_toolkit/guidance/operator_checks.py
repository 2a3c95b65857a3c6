"""One check of an operator before it is used: that it is linear, row by row, and that its adjoint is its adjoint."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_toolkit.errors import ArgumentError, SDEToolkitError
from sde_toolkit.guidance.operators import LinearOperator
from sde_toolkit.noise.streams import Once, generator_for

__all__ = ["check_operator"]

_LARGE_PROBE = 1000.0  # so that a function that is linear for small x alone, such as clamp, is found out
_ROWS = 3
_ZERO = 1e-6  # of A(x), what A(0) may be
_MAKE_LINEAR = "Guidance needs a linear A. If it adds a constant, take it out of A, and subtract it from y."


def check_operator(A: LinearOperator) -> None:
    """Ask an operator about random events, once: later calls with the same operator return at once.

    Raises:
        ArgumentError: if A(x) or A.adjoint(y) fails, has another shape, is not finite, is not linear, mixes the rows of
            a batch, or if ⟨A x, y⟩ is not ⟨x, Aᵀ y⟩.
    """
    if A.was_checked:
        return
    draw = _Probes(A)
    there = _Map(A, "A(x)", A.__call__, A.event_shape, A.measured_shape)
    back = _Map(A, "A.adjoint(y)", A.adjoint, A.measured_shape, A.event_shape)
    with torch.no_grad():
        for linear in (there, back):
            linear.check(draw)
        x, y = draw(A.event_shape), draw(A.measured_shape)
        Ax, Aty = there(x), back(y)
        for left, right in (((Ax, y), (x, Aty)), ((Ax, Ax), (x, back(Ax))), ((there(Aty), y), (Aty, Aty))):
            of_A, of_adjoint = (float((u * v).sum()) for u, v in (left, right))
            size = max(float(u.norm() * v.norm()) for u, v in (left, right))
            if abs(of_A - of_adjoint) > draw.tolerance * size:
                problem = f"its adjoint fails the dot test: ⟨A x, y⟩ = {of_A:.6g}, and ⟨x, Aᵀ y⟩ = {of_adjoint:.6g}"
                remedy = "Correct the adjoint, or leave it to autograd: as_operator(function, event_shape)."
                raise ArgumentError("A", A, problem, remedy)
    A.was_checked = True


class _Probes:
    """Random events from a generator of their own, where the operator is asked; and how far round-off may go there."""

    def __init__(self, A: LinearOperator) -> None:
        self.generator = generator_for(0, Once.OPERATOR_CHECK)
        self.device, self.dtype = A.device, A.dtype
        self.tolerance = 1e-6 if A.dtype == torch.float64 else 1e-3

    def __call__(self, shape: tuple[int, ...]) -> Tensor:
        drawn = torch.randn(_ROWS, *shape, generator=self.generator, dtype=torch.float64)
        return drawn.to(self.device, self.dtype)


@dataclass(frozen=True)
class _Map:
    """A or its adjoint, with its answers checked."""

    A: LinearOperator
    name: str
    function: Callable[[Tensor], Tensor]
    event: tuple[int, ...]
    answer: tuple[int, ...]

    def __call__(self, x: Tensor) -> Tensor:
        try:
            y = self.function(x)
        except SDEToolkitError:
            raise
        except Exception as error:
            problem = f"{self.name} fails for shape {tuple(x.shape)}: {type(error).__name__}: {error}"
            batch = f"(B, {', '.join(map(str, self.event))})"
            remedy = f"It must take batches {batch}: are event_shape, device and dtype right?"
            raise ArgumentError("A", self.A, problem, remedy) from error
        wanted = (x.shape[0], *self.answer)
        if not isinstance(y, Tensor) or tuple(y.shape) != wanted or not y.is_floating_point():
            found = f"shape {tuple(y.shape)}, {y.dtype}" if isinstance(y, Tensor) else type(y).__name__
            problem = f"{self.name} gives {found}, for x of shape {tuple(x.shape)}"
            raise ArgumentError("A", self.A, problem, f"It must give a real tensor of shape {wanted}.")
        if not bool(y.isfinite().all()):
            raise ArgumentError("A", self.A, f"{self.name} is not finite", "Remove what divides by 0 or overflows.")
        return y

    def check(self, draw: _Probes) -> None:
        """Refuse what is not linear, or mixes the rows."""
        x, z = draw(self.event), draw(self.event)
        of_x, of_z = self(x), self(z)
        if float(self(torch.zeros_like(x)).norm()) > _ZERO * float(of_x.norm()):
            raise ArgumentError("A", self.A, f"{self.name} is not linear: it is not 0 at 0", _MAKE_LINEAR)
        for found, expected, problem, remedy in (
            (self(x - 0.5 * z), of_x - 0.5 * of_z, f"{self.name} is not linear", _MAKE_LINEAR),
            (self(_LARGE_PROBE * x), _LARGE_PROBE * of_x, f"{self.name} is not linear", _MAKE_LINEAR),
            (self(x[:1]), of_x[:1], f"{self.name} of a row depends on the other rows", "Map each row for itself."),
        ):
            size = max(float(y.norm()) for y in (found, expected, math.sqrt(_ROWS) * of_z[:1]))
            if float((found - expected).norm()) > draw.tolerance * size:
                raise ArgumentError("A", self.A, problem, remedy)
