"""Bayes' rule in closed form: components of Gaussians, seen through a linear measurement with Gaussian noise.

    y = A x + noise,  noise ~ N(0, R)        x ~ Σ_k w_k N(m_k, L_k L_kᵀ)

The rows of A are first made independent. With R = W diag(ρ²) Wᵀ, rows of Wᵀ A with ρ > 0 are divided by ρ, so that
their noise is N(0, I). Rows with ρ = 0 are exact statements, and come first. Then, for each component, with
e = y − A m and the singular values A L = P diag(s) Qᵀ (ν = 1 for noisy rows, 0 for exact ones),

    m + L Q diag(s/(s² + ν)) Pᵀ e        L Q diag(√(ν/(s² + ν)))        log N(y; A m, A L Lᵀ Aᵀ + R)

are the posterior's mean, the root of its covariance, and what the log-weight gains. No covariance is formed. So small
variances keep their digits, and directions that exact rows fix have variance 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from sde_toolkit.checks import check_amount
from sde_toolkit.errors import ArgumentError
from sde_toolkit.models.components import Components

__all__ = ["Linear", "StdOrCovariance", "dense_matrix", "seen_through"]

Linear: TypeAlias = Tensor | Callable[[Tensor], Tensor]
"""A matrix (m, D), or a linear map from (B, *event) to (B, *measured)."""

StdOrCovariance: TypeAlias = float | Tensor
"""A standard deviation, one for each measured number (*measured), or a covariance (m, m)."""

_MAPS = "It must map (B, *event) to (B, *measured); guidance.as_operator makes such a map of scipy's and deepinv's."
_LINEAR = 1e-4  # relative departure from A(x) = matrix x that rounding in float32 explains
_CONSISTENT = 1e-5  # part of an exact y outside the range of A that rounding in float32 explains


@dataclass(frozen=True)
class _Rows:
    """Statements rows · x = values + noise, the noise N(0, I) or none; log_scale is log|∂values/∂y|."""

    rows: Tensor
    values: Tensor
    noisy: bool
    log_scale: float


def seen_through(
    components: Components, A: Linear, y: Any, noise: Any, event_shape: tuple[int, ...]
) -> tuple[Components, Tensor]:
    """The components after a measurement y (*measured), and log N(y; A m_k, A C_k Aᵀ + R) (K,).

    The log-weights of the components are not changed: add the second to them, and normalise. Everything is on the CPU.

    Raises:
        ArgumentError: a map that is not linear, y or noise of another shape, an exact y that no x gives, and exact
            statements that leave y without a density under a component.
    """
    K, D = components.means.shape
    check_amount("A", f"for {K} components of {D} elements", 4 * K * D * D, 8)
    matrix, measured, precision = dense_matrix(A, event_shape, components.means.device)
    components = components.to(torch.device("cpu"))
    y = _checked_y(y, measured)
    mean, root = components.means, components.roots()
    rank, log_likelihood = (components.variances > 0).sum(1), torch.zeros(K, dtype=torch.float64)
    for part in _independent_rows(matrix, y, noise, measured, precision):
        mean, root, gained = _conditioned(mean, root, part)
        log_likelihood = log_likelihood + gained
        rank = rank if part.noisy else rank - len(part.rows)
    axes, std, _ = torch.linalg.svd(root)
    free = torch.arange(D) < rank.unsqueeze(1)  # the rest of the singular values are rounding
    return Components(components.log_weights, mean, torch.where(free, std**2, 0.0), axes), log_likelihood


def dense_matrix(
    A: Linear, event_shape: tuple[int, ...], device: torch.device
) -> tuple[Tensor, tuple[int, ...], float]:
    """A as a matrix (m, D) in float64 on the CPU, the shape *measured, and the precision of its numbers.

    A map is applied to the D unit events on ``device``, in float64, or in float32 if it takes nothing else.

    Raises:
        ArgumentError: a matrix of another width; a map that fails, or that is not linear.
    """
    D = math.prod(event_shape)
    if not callable(A):
        matrix = _float64("A", A, "Pass a matrix (m, D), or a function of (B, *event).")
        if matrix.ndim != 2 or matrix.shape[1] != D or not bool(matrix.isfinite().all()):
            problem = f"not a finite matrix (m, {D}) for events of shape {event_shape}"
            raise ArgumentError("A", tuple(matrix.shape), problem, "Pass (m, D), or a function of (B, *event).")
        return matrix, (len(matrix),), torch.finfo(torch.float64).eps
    answer, precision = _applied(A, torch.eye(D, dtype=torch.float64), event_shape, device)
    matrix, measured = answer.reshape(D, -1).mT, tuple(answer.shape[1:])
    x = torch.randn((3, D), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = x * torch.tensor([[0.0], [1.0], [-1e3]], dtype=torch.float64)
    departure = (_applied(A, x, event_shape, device)[0].reshape(3, -1) - x @ matrix.mT).norm(dim=1)
    if bool((departure > _LINEAR * matrix.norm() * x.norm(dim=1)).any()) or not bool(matrix.isfinite().all()):
        problem = "not linear: A(x) is not Σ x_i A(e_i) with its values at the unit events e_i"
        raise ArgumentError("A", A, problem, "Subtract A(0), and leave out clamps and everything else that bends.")
    return matrix, measured, precision


def _applied(
    A: Callable[[Tensor], Tensor], x: Tensor, event_shape: tuple[int, ...], device: torch.device
) -> tuple[Tensor, float]:
    """A(x) for rows x (B, D), in float64 on the CPU, and the precision in which it was computed."""
    dtypes = (torch.float32,) if device.type == "mps" else (torch.float64, torch.float32)
    for dtype in dtypes:
        try:
            with torch.no_grad():
                answer = A(x.to(device, dtype).reshape(len(x), *event_shape))
        except Exception as error:  # whatever a user's function raises
            failure = error
            continue
        if not isinstance(answer, Tensor) or answer.ndim == 0 or len(answer) != len(x):
            problem = f"for x of shape {(len(x), *event_shape)} it answers with {_answer_shape(answer)}"
            raise ArgumentError("A", A, problem, _MAPS)
        precision = dtype if answer.dtype == torch.float64 else torch.float32
        return answer.detach().to("cpu", torch.float64), torch.finfo(precision).eps
    problem = f"it fails for a batch of shape {(len(x), *event_shape)}: {failure}"
    raise ArgumentError("A", A, problem, _MAPS) from failure


def _float64(name: str, value: Any, remedy: str) -> Tensor:
    try:
        return torch.as_tensor(value, dtype=torch.float64, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError):
        raise ArgumentError(name, value, "not a tensor of numbers", remedy) from None


def _answer_shape(answer: Any) -> str:
    return f"shape {tuple(answer.shape)}" if isinstance(answer, Tensor) else f"a {type(answer).__name__}"


def _checked_y(y: Any, measured: tuple[int, ...]) -> Tensor:
    y = _float64("y", y, "Pass the measurement as a tensor.")
    if tuple(y.shape) != measured:
        raise ArgumentError("y", tuple(y.shape), f"A(x) has shape {measured} for one x", "Pass y of that shape.")
    if not bool(y.isfinite().all()):
        raise ArgumentError("y", y.tolist(), "not finite", "Leave out what was not measured, in y and in A.")
    return y.flatten()


def _independent_rows(
    matrix: Tensor, y: Tensor, noise: Any, measured: tuple[int, ...], precision: float
) -> list[_Rows]:
    """The measurement as exact rows of full rank, then rows with noise N(0, I)."""
    std, axes = _principal_noise(noise, measured)
    if axes is not None:
        matrix, y = axes.mT @ matrix, axes.mT @ y
    noisy = std > 0
    parts = [_exact_rows(matrix[~noisy], y[~noisy], precision)] if not bool(noisy.all()) else []
    if bool(noisy.any()):
        rho = std[noisy]
        parts.append(_Rows(matrix[noisy] / rho.unsqueeze(1), y[noisy] / rho, True, -rho.log().sum().item()))
    return [part for part in parts if len(part.rows) > 0]


def _principal_noise(noise: Any, measured: tuple[int, ...]) -> tuple[Tensor, Tensor | None]:
    """Standard deviations (m,) along the axes (m, m), or along the coordinates (None)."""
    m = math.prod(measured)
    remedy = f"Pass a standard deviation, {measured} of them, or a covariance {(m, m)}."
    noise = _float64("noise", noise, remedy)
    if not bool(noise.isfinite().all()):
        raise ArgumentError("noise", noise.tolist(), "not finite", remedy)
    if noise.ndim == 0 or tuple(noise.shape) == measured:
        if bool((noise < 0).any()):
            raise ArgumentError("noise", noise.tolist(), "a standard deviation is not negative", remedy)
        return noise.expand(measured).reshape(m), None
    if tuple(noise.shape) != (m, m):
        raise ArgumentError("noise", tuple(noise.shape), f"it does not fit y of shape {measured}", remedy)
    variances, axes = torch.linalg.eigh(noise)
    rounding = m * torch.finfo(torch.float64).eps * variances.abs().amax()
    if not torch.allclose(noise, noise.mT) or bool((variances < -1e4 * rounding).any()):
        raise ArgumentError("noise", tuple(noise.shape), "not symmetric positive semi-definite", remedy)
    return torch.where(variances > rounding, variances, 0.0).sqrt(), axes


def _exact_rows(matrix: Tensor, y: Tensor, precision: float) -> _Rows:
    """Exact statements with orthonormal rows, one for each dimension of the range.

    Raises:
        ArgumentError: if y is not in the range of the matrix.
    """
    U, s, Vh = torch.linalg.svd(matrix, full_matrices=False)
    r = int((s > max(matrix.shape) * precision * s.amax()).sum())
    U, s, Vh = U[:, :r], s[:r], Vh[:r]
    within = U.mT @ y
    if bool((y - U @ within).norm() > _CONSISTENT * y.norm()):
        remedy = "Pass y = A(x) of some x, or a noise above 0."
        raise ArgumentError("y", y.tolist(), "without noise, no x gives this y", remedy)
    return _Rows(Vh, within / s, False, -s.log().sum().item())


def _conditioned(mean: Tensor, root: Tensor, part: _Rows) -> tuple[Tensor, Tensor, Tensor]:
    """Means (K, D) and roots (K, D, D) after the statements, and the log-density of the values before them (K,)."""
    m, D = part.rows.shape
    P, s, Qh = torch.linalg.svd(part.rows @ root, full_matrices=m < D)  # Qh is (K, D, D)
    if not part.noisy:
        lost = s.amin(1) <= D * torch.finfo(torch.float64).eps * s.amax(1)
        if bool(lost.any()):
            problem = f"component {int(lost.int().argmax())} has no spread along a row of A, and y no density under it"
            raise ArgumentError("noise", 0.0, problem, "Pass a noise above 0, or components with a spread.")
    error = part.values - mean @ part.rows.mT
    along = torch.einsum("kmr,km->kr", P, error)
    total = s**2 + float(part.noisy)
    log_density = -0.5 * ((along**2 / total + total.log()).sum(1) + m * math.log(2 * math.pi))
    if m > D:  # what of the error no x explains is noise
        rest = error - torch.einsum("kmr,kr->km", P, along)
        log_density = log_density - 0.5 * (rest**2).sum(1)
    moved = torch.einsum("kri,kr->ki", Qh[:, : s.shape[1]], s / total * along)
    shrunk = torch.ones_like(mean)
    shrunk[:, : s.shape[1]] = (float(part.noisy) / total).sqrt()
    mean = mean + torch.einsum("kij,kj->ki", root, moved)
    return mean, root @ Qh.mT * shrunk.unsqueeze(1), log_density + part.log_scale
