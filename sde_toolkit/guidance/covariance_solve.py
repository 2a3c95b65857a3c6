"""Solving K w = e where K should be a covariance, and is known only by products that may not be quite those of one.

Arnoldi's method for the preconditioned system, M⁻¹ K w = M⁻¹ e: directions z_1, ..., z_k, orthonormal in zᵀ M z, and
H = (z_iᵀ K z_j). With the symmetric part S of H, w_k = Σ c_i z_i, S c = (|e|, 0, ..., 0). If K is symmetric and
positive this is the k-th iterate of conjugate gradients (Saad 2003, sections 6.4 and 6.7).

The products of a network's Jacobian are not symmetric. The antisymmetric part of H says by how much they are wrong. An
eigenvalue of S that is no larger than that may as well be 0 or negative, and a solution that divides by it is
arbitrary and large. So w_k is accepted only while S is larger, and the last accepted one is the answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_toolkit.batching import expand_to
from sde_toolkit.checks import all_hold, branches_on_data

__all__ = ["CovarianceSolution", "solve_covariance"]


@dataclass(frozen=True, eq=False)
class CovarianceSolution:
    """Solved systems.

    Attributes:
        image: L w, (B, ...); None where no product was needed.
        iterations: (B,), the products that each system took.
        unsolved: (B,), whether not even w_1 was accepted, so that w = 0.
    """

    image: Tensor | None
    iterations: Tensor
    unsolved: Tensor


def solve_covariance(
    apply: Callable[[Tensor], tuple[Tensor, Tensor]],
    e: Tensor,
    precondition: Callable[[Tensor], Tensor],
    *,
    tolerance: float,
    max_iterations: int,
) -> CovarianceSolution:
    """L w for K w = e, with another linear map L.

    A system stops when √(rᵀM⁻¹r), r = e − K w, is at most ``tolerance`` times that of e, or round-off; at a w that is
    not accepted; or after ``max_iterations``. What has stopped does not change any more, whatever the others do. Where
    branches on data are possible the batch stops with its last system: one look at the device per iteration.

    Args:
        apply: p (B, ...) to (K p, L p); one call per iteration, for all systems.
        e: (B, *measured).
        precondition: r to M⁻¹ r, M symmetric, positive and similar to K.
    """
    goal = max(tolerance, 4 * torch.finfo(e.dtype).eps)
    z = precondition(e)
    size = _root(_inner(e, z))
    going = size > 0
    u, z = _divided(e, size, going), _divided(z, size, going)
    iterations = torch.zeros(e.shape[0], dtype=torch.int64, device=e.device)
    unsolved = torch.zeros_like(going)
    basis: list[tuple[Tensor, Tensor]] = []  # u = M z, and z
    images: list[Tensor] = []
    columns: list[Tensor] = []  # of H
    c = e.new_zeros(e.shape[0], 0)
    for _ in range(max_iterations):
        if branches_on_data() and all_hold(~going) is True:
            break
        basis.append((u, z))
        v, image = apply(z)
        images.append(image)
        iterations = iterations + going
        column, v = _orthogonalised(v, basis)
        z = precondition(v)
        h = _root(_inner(v, z))
        columns.append(torch.cat([column, h.unsqueeze(1)], dim=1))
        found, sound = _galerkin(columns, size, going)
        accepted = going & sound
        c = torch.nn.functional.pad(c, (0, 1))
        c = torch.where(accepted.unsqueeze(1), found, c)
        left = _residual(columns, size, c)
        unsolved = going & ~sound if len(columns) == 1 else unsolved
        whole = h > 4 * torch.finfo(e.dtype).eps * _root(column.square().sum(1))  # else v is round-off
        going = accepted & (left > goal * size) & whole
        u, z = _divided(v, h, going), _divided(z, h, going)
    if not images:
        return CovarianceSolution(None, iterations, unsolved)
    total = torch.zeros_like(images[0])
    for i, image in enumerate(images):
        total = total + expand_to(c[:, i], image) * image
    return CovarianceSolution(total, iterations, unsolved)


def _orthogonalised(v: Tensor, basis: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """h (B, k) = z_iᵀ v, and v − Σ h_i u_i, by Gram and Schmidt, twice."""
    us, zs = (torch.stack(part, dim=1) for part in zip(*basis, strict=True))
    total = v.new_zeros(v.shape[0], len(basis))
    for _ in range(2):
        h = (zs * v.unsqueeze(1)).flatten(2).sum(2)
        v = v - (h.reshape(*h.shape, *(1,) * (v.ndim - 1)) * us).sum(1)
        total = total + h
    return total, v


def _matrix(columns: list[Tensor]) -> Tensor:
    """H̄ (B, k + 1, k) from its columns, of 2, 3, ..., k + 1 elements."""
    k = len(columns)
    return torch.stack([torch.nn.functional.pad(c, (0, k + 1 - c.shape[1])) for c in columns], dim=2)


def _galerkin(columns: list[Tensor], size: Tensor, going: Tensor) -> tuple[Tensor, Tensor]:
    """c (B, k) with S c = (|e|, 0, ...), and whether S is larger than what makes H unsymmetric (B,)."""
    H = _matrix(columns)[:, :-1]
    S, N = (H + H.mT) / 2, (H - H.mT) / 2
    k = H.shape[1]
    unit = torch.eye(k, dtype=H.dtype, device=H.device)
    error = _root(N.square().sum((1, 2)) / 2)  # an upper bound of the norm of N, sharp for k = 2 and 3
    with torch.no_grad():
        sound = going & (torch.linalg.cholesky_ex(S - error.reshape(-1, 1, 1) * unit).info == 0)
    root = torch.linalg.cholesky_ex(torch.where(sound.reshape(-1, 1, 1), S, unit)).L
    right = size.reshape(-1, 1, 1) * unit[:, :1]
    return torch.cholesky_solve(right, root).squeeze(2), sound


def _residual(columns: list[Tensor], size: Tensor, c: Tensor) -> Tensor:
    """√(rᵀM⁻¹r), (B,): the norm of (|e|, 0, ...) − H̄ c."""
    r = -(_matrix(columns) * c.unsqueeze(1)).sum(2)
    first = torch.zeros_like(r)
    first[:, 0] = size
    return _root((r + first).square().sum(1))


def _root(square: Tensor) -> Tensor:
    """The square root, whose derivative at 0 is 0."""
    positive = square > 0
    return torch.where(positive, torch.where(positive, square, 1).sqrt(), 0)


def _divided(v: Tensor, by: Tensor, going: Tensor) -> Tensor:
    """v over a number per system; 0 for a system that has stopped, so that nothing grows in it."""
    return torch.where(expand_to(going, v), v / expand_to(torch.where(going, by, 1), v), 0)


def _inner(u: Tensor, v: Tensor) -> Tensor:
    """(B,)."""
    return (u * v).reshape(u.shape[0], -1).sum(1) if u.shape[0] else u.new_zeros(0)
