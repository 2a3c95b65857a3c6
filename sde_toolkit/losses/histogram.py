"""Where in λ the loss comes from: sums and counts of per-sample losses in bins of the half log-SNR.

The mean of bin k is sums[k]/counts[k]; sums and counts of several batches, or processes, add up.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sde_toolkit.errors import ArgumentError

__all__ = ["lambda_histogram"]


def lambda_histogram(losses: Tensor, lam: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
    """(sums, counts) of ``losses`` by bins [edges_k, edges_{k+1}) of λ; the first and the last bin are open outwards.

    Shapes: losses and lam (B,), edges (K+1,), for example ``torch.linspace(-10, 10, 21)``, to (K,) each, sums in the
    dtype of the losses, counts int64. Nothing is lost: λ below the first edge or above the last, ±∞ too, belongs to
    the outer bins. A loss that is not finite spoils its own bin only. Everything stays on the device of the losses,
    without synchronisation, and the result does not depend on the order in which a GPU adds.

    Raises:
        ArgumentError: if the shapes do not fit or, on the CPU, if the edges do not increase or a λ is NaN.
    """
    _check(losses, lam, edges)
    inner = edges[1:-1].to(losses.device, torch.promote_types(lam.dtype, edges.dtype))
    index = torch.bucketize(lam.detach().to(inner).contiguous(), inner, right=True)
    inside = index == torch.arange(len(inner) + 1, device=losses.device).unsqueeze(1)
    values = torch.where(inside, losses.detach(), torch.zeros_like(losses))
    return values.sum(1), inside.sum(1)


def _check(losses: Any, lam: Any, edges: Any) -> None:
    for name, value in (("losses", losses), ("lam", lam), ("edges", edges)):
        if not (isinstance(value, Tensor) and value.ndim == 1 and value.is_floating_point()):
            found = (tuple(value.shape), value.dtype) if isinstance(value, Tensor) else value
            raise ArgumentError(name, found, "not a floating-point tensor of one axis", "Pass one value per sample.")
    if losses.shape != lam.shape:
        problem = f"there are {len(losses)} losses"
        raise ArgumentError("lam", tuple(lam.shape), problem, "Pass the half log-SNR of every sample.")
    if len(edges) < 2:
        raise ArgumentError("edges", edges, "no bin", "Pass K + 1 increasing edges for K bins.")
    if edges.device.type == "cpu" and not bool((edges.diff() > 0).all()):
        raise ArgumentError("edges", edges.tolist(), "they do not increase", "Sort them and leave out what repeats.")
    if lam.device.type == "cpu" and bool(lam.isnan().any()):
        raise ArgumentError("lam", "NaN", "a λ is no number", "Pass sde.half_log_snr(t) for times in [0, 1].")
