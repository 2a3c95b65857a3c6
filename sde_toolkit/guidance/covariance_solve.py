"""Solving K w = e where K should be a covariance, and is known only by products that may not be quite those of one.

Arnoldi's method for the preconditioned system, M⁻¹ K w = M⁻¹ e: directions z_1, ..., z_k, orthonormal in zᵀ M z, and
H = (z_iᵀ K z_j). With the symmetric part S of H, w_k = Σ c_i z_i, S c = (|e|, 0, ..., 0). If K is symmetric and
positive this is the k-th iterate of conjugate gradients (Saad 2003, sections 6.4 and 6.7).

The products of a network's Jacobian are not symmetric. The antisymmetric part of H says by how much they are wrong. An
eigenvalue of S that is no larger than that may as well be 0 or negative, and a solution that divides by it is
arbitrary and large. So the iterations end where S has such an eigenvalue, and the answer is the last w_k before it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_toolkit.batching import expand_to
from sde_toolkit.checks import all_hold, branches_on_data
from sde_toolkit.guidance.conjugate_gradients import inner_products

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
    size = _root(inner_products(e, z))
    begun = going = size > 0
    u, z = _divided(e, size, going), _divided(z, size, going)
    iterations = torch.zeros(e.shape[0], dtype=torch.int64, device=e.device)
    error = torch.zeros_like(size)  # the antisymmetric part, at the last iteration of each system
    basis: list[tuple[Tensor, Tensor]] = []  # u = M z, and z
    columns: list[Tensor] = []  # of H
    images: list[Tensor] = []
    iterates: list[tuple[Tensor, Tensor]] = []  # c of 1, 2, ... elements, and which systems went on to it
    for _ in range(max_iterations):
        if branches_on_data() and all_hold(~going) is True:
            break
        basis.append((u, z))
        v, image = apply(z)
        images.append(image)
        iterations = iterations + going
        column, v = _orthogonalised(v, basis)
        z = precondition(v)
        h = _root(inner_products(v, z))
        columns.append(torch.cat([column, h.unsqueeze(1)], dim=1))
        S, antisymmetric = _symmetric_part(columns)
        error = torch.where(going, antisymmetric, error)
        accepted = going & _exceeds(S, error)
        c = _solved(S, size, accepted)
        iterates.append((c, accepted))
        left = _residual_norm(columns, size, c)
        whole = h > 4 * torch.finfo(e.dtype).eps * _root(column.square().sum(1))  # else v is round-off
        going = accepted & (left > goal * size) & whole
        u, z = _divided(v, h, going), _divided(z, h, going)
    if not images:
        return CovarianceSolution(None, iterations, ~begun & begun)
    c, solved = _last_sound(columns, iterates, error)
    total = torch.zeros_like(images[0])
    for i, image in enumerate(images):
        total = total + expand_to(c[:, i], image) * image
    return CovarianceSolution(total, iterations, begun & ~solved)


def _last_sound(columns: list[Tensor], iterates: list[tuple[Tensor, Tensor]], error: Tensor) -> tuple[Tensor, Tensor]:
    """Each system's last iterate that was accepted, and would be with all that is known of K at the end.

    The first iterations see little of the antisymmetric part, and may have accepted what the later ones would not.
    Where even the first one would not be accepted, its step is shortened: it divides by the antisymmetric part.
    """
    S, k = _symmetric_part(columns)[0], len(columns)
    first, solved = iterates[0]
    shorter = torch.where(solved, S[:, 0, 0], 1) / torch.maximum(torch.where(solved, S[:, 0, 0], 1), error)
    c = torch.nn.functional.pad(torch.where(solved, first[:, 0] * shorter, 0).unsqueeze(1), (0, k - 1))
    sound = solved & _exceeds(S[:, :1, :1], error)
    for j, (found, accepted) in enumerate(iterates[1:], 2):
        sound = sound & accepted & _exceeds(S[:, :j, :j], error)
        c = torch.where(sound.unsqueeze(1), torch.nn.functional.pad(found, (0, k - j)), c)
    return c, solved


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


def _symmetric_part(columns: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The symmetric part S (B, k, k) of H, and the norm (B,) of the antisymmetric one."""
    H = _matrix(columns)[:, :-1]
    with torch.no_grad():
        N = ((H - H.mT) / 2).nan_to_num()  # a network's NaN is found elsewhere
        size = torch.linalg.eigvalsh(N.mT @ N)[:, -1].clamp_min(0).sqrt()
    return (H + H.mT) / 2, size


def _exceeds(S: Tensor, error: Tensor) -> Tensor:
    """Whether all eigenvalues of S are larger than a number per system."""
    with torch.no_grad():
        unit = torch.eye(S.shape[1], dtype=S.dtype, device=S.device)
        info: Tensor = torch.linalg.cholesky_ex(S - error.reshape(-1, 1, 1) * unit).info
        return info == 0


def _solved(S: Tensor, size: Tensor, accepted: Tensor) -> Tensor:
    """c (B, k) with S c = (|e|, 0, ...), for systems whose S is positive; without a meaning for others."""
    unit = torch.eye(S.shape[1], dtype=S.dtype, device=S.device)
    root = torch.linalg.cholesky_ex(torch.where(accepted.reshape(-1, 1, 1), S, unit)).L
    return torch.cholesky_solve(size.reshape(-1, 1, 1) * unit[:, :1], root).squeeze(2)


def _residual_norm(columns: list[Tensor], size: Tensor, c: Tensor) -> Tensor:
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
