"""The loss as a function of λ: sums and counts of per-sample losses in bins of the half log-SNR.

The mean of bin k is sums[k]/counts[k]. Sums and counts of several batches, or processes, may be added.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sde_toolkit.errors import ArgumentError

__all__ = ["lambda_histogram"]


def lambda_histogram(losses: Tensor, lam: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
    """The sum and the number of ``losses`` in each bin [edges_k, edges_{k+1}) of λ.

    λ below the first edge counts in the first bin, λ above the last edge in the last bin, also ±∞. A loss that is not
    finite affects its own bin only. Everything stays on the device of the losses, without synchronisation. The result
    does not depend on the order in which a GPU adds.

    Args:
        losses: (B,).
        lam: λ of each sample, (B,).
        edges: increasing edges of K bins, (K+1,), for example ``torch.linspace(-10, 10, 21)``.

    Returns:
        sums (K,) in the dtype of the losses, and counts (K,) int64.

    Raises:
        ArgumentError: if the shapes do not fit or, on the CPU, if the edges do not increase or a λ is NaN.
    """
    _check_histogram(losses, lam, edges)
    inner = edges[1:-1].to(losses.device, torch.promote_types(lam.dtype, edges.dtype))
    index = torch.bucketize(lam.detach().to(inner).contiguous(), inner, right=True)
    inside = index == torch.arange(len(inner) + 1, device=losses.device).unsqueeze(1)
    values = torch.where(inside, losses.detach(), torch.zeros_like(losses))
    return values.sum(1), inside.sum(1)


def _check_histogram(losses: Any, lam: Any, edges: Any) -> None:
    for name, value in (("losses", losses), ("lam", lam), ("edges", edges)):
        if not (isinstance(value, Tensor) and value.ndim == 1 and value.is_floating_point()):
            found = (tuple(value.shape), value.dtype) if isinstance(value, Tensor) else value
            remedy = "Pass one loss and one λ per sample, and K + 1 edges."
            raise ArgumentError(name, found, "not a floating-point tensor of one axis", remedy)
    if losses.shape != lam.shape:
        problem = f"there are {len(losses)} losses"
        raise ArgumentError("lam", tuple(lam.shape), problem, "Pass the half log-SNR of every sample.")
    if len(edges) < 2:
        raise ArgumentError("edges", edges, "they make no bin", "Pass K + 1 increasing edges for K bins.")
    if edges.device.type == "cpu" and not bool((edges.diff() > 0).all()):
        raise ArgumentError("edges", edges.tolist(), "they do not increase", "Sort them and remove repeated ones.")
    if lam.device.type == "cpu" and bool(lam.isnan().any()):
        raise ArgumentError("lam", "NaN", "a λ is not a number", "Pass sde.half_log_snr(t) for times in [0, 1].")
