"""Discrete schedules from the literature. Each function returns β_1, ..., β_N as a float64 tensor.

``VPSDE.from_betas(cosine_betas(1000))`` is the continuous SDE with α(i/N)² = ᾱ_i = Π_{j≤i} (1 − β_j).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sde_toolkit.checks import MOST, check_count, is_number
from sde_toolkit.errors import ArgumentError
from sde_toolkit.sde.cosine import CosineVPSDE

__all__ = ["cosine_betas", "linear_betas", "scaled_linear_betas", "sigmoid_betas", "zero_terminal_snr"]


def linear_betas(N: int, start: float = 1e-4, end: float = 0.02) -> Tensor:
    """Equal steps from ``start`` to ``end`` (Ho et al. 2020, section 4: 1e-4 to 0.02 in 1000 steps).

    Raises:
        ArgumentError: unless N >= 1 and both β lie strictly between 0 and 1.
    """
    _check_ends(N, start, end)
    return torch.linspace(start, end, N, dtype=torch.float64)


def scaled_linear_betas(N: int, start: float = 0.00085, end: float = 0.012) -> Tensor:
    """Equal steps in √β (latent diffusion, Rombach et al. 2022: 0.00085 to 0.012 in 1000 steps).

    Raises:
        ArgumentError: unless N >= 1 and both β lie strictly between 0 and 1.
    """
    _check_ends(N, start, end)
    return torch.linspace(start**0.5, end**0.5, N, dtype=torch.float64) ** 2


def sigmoid_betas(N: int, start: float = 1e-4, end: float = 0.02) -> Tensor:
    """start + (end − start) sigmoid(u), with u in equal steps from −6 to 6 (GeoDiff, Xu et al. 2022).

    Raises:
        ArgumentError: unless N >= 1 and both β lie strictly between 0 and 1.
    """
    _check_ends(N, start, end)
    return start + (end - start) * torch.sigmoid(torch.linspace(-6, 6, N, dtype=torch.float64))


def cosine_betas(N: int, s: float = 0.008, max_beta: float = 0.999) -> Tensor:
    """β_i = min(1 − ᾱ(i/N)/ᾱ((i−1)/N), max_beta) with ᾱ a squared cosine (Nichol & Dhariwal 2021, eq. 17).

    :class:`CosineVPSDE` is the same ᾱ in continuous time, without the limit ``max_beta``.

    Raises:
        ArgumentError: unless N >= 1, s >= 0 and 0 < max_beta <= 1 (1 leaves no signal at the end).
    """
    check_count("N", N, "DDPM's has 1000.", most=MOST)
    if not (is_number(max_beta) and 0 < max_beta <= 1):
        raise ArgumentError("max_beta", max_beta, "the largest β must lie in (0, 1]", "The paper uses 0.999.")
    log_alpha = CosineVPSDE(s).log_alpha(torch.arange(N + 1, dtype=torch.float64) / N)
    return -torch.expm1(2 * log_alpha.diff()).clamp(min=-max_beta)


def zero_terminal_snr(betas: Any) -> Tensor:
    """The schedule, rescaled so that no signal is left at its end: the last β becomes 1 (Lin et al. 2024, algorithm 1).

    √ᾱ is shifted so that it ends at 0, and scaled so that √ᾱ_1 stays. It is computed from the differences of √ᾱ, so
    that small β keep their digits. Takes and returns (N,). A network for such a schedule must predict v or x0.

    Raises:
        ArgumentError: unless there are at least two β, all strictly between 0 and 1 (the last may be 1).
    """
    b = torch.as_tensor(betas, dtype=torch.float64)
    if b.ndim != 1 or len(b) < 2:
        raise ArgumentError("betas", tuple(b.shape), "a schedule of at least two steps is needed", "Pass (N,), N >= 2.")
    good = (b > 0) & (b < 1)
    good[-1] |= b[-1] == 1
    if not bool(good.all()):
        i = int((~good).int().argmax())
        problem = "every β must lie strictly between 0 and 1 (the last may be 1)"
        raise ArgumentError(f"betas[{i}]", b[i].item(), problem, "Check the schedule; DDPM's is linear_betas(1000).")
    kept = torch.sqrt(1 - b)  # √ᾱ_i / √ᾱ_(i−1)
    root = kept.cumprod(0)
    loss = root[:-1] * b[1:] / (1 + kept[1:])  # √ᾱ_(i−1) − √ᾱ_i
    left = loss.flip(0).cumsum(0).flip(0)  # √ᾱ_(i−1) − √ᾱ_N
    fraction = loss / left  # 1 − √(ᾱ_i/ᾱ_(i−1)) after the rescaling
    return torch.cat([b[:1], fraction * (2 - fraction)])


def _check_ends(N: Any, start: Any, end: Any) -> None:
    check_count("N", N, "DDPM's has 1000.", most=MOST)
    for name, beta in (("start", start), ("end", end)):
        if not (is_number(beta) and 0 < beta < 1):
            remedy = "Ho et al. use 1e-4 and 0.02."
            raise ArgumentError(name, beta, "every β must lie strictly between 0 and 1", remedy)
