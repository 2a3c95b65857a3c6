"""One measurement of points in the plane: each method's samples over exact ones, and the strip that y allows."""

from __future__ import annotations

from typing import Any

import torch

from sde_toolkit.data.blank_figures import FAINT, INK, new_figure
from sde_toolkit.evaluation.figure_style import COLOURS, style_axes
from sde_toolkit.evaluation.naming import literal
from sde_toolkit.evaluation.restoration.restoration_pictures import rows_of_case
from sde_toolkit.evaluation.restoration.restoration_results import EXACT, Restoration

__all__ = ["picture_of_points"]

_POINTS = 1000  # drawn of each set
_ACROSS = 240  # points of the lattice on which the residual is computed


def picture_of_points(result: Restoration, i: int) -> Any:
    """A panel for each method."""
    rows = rows_of_case(result, i)
    exact = dict(rows).get(EXACT)
    known = sorted(rows, key=lambda row: row[0] != EXACT)  # the exact posterior first
    truth = result.request.truth[i].double().cpu()
    everything = torch.stack([torch.quantile(x, share, dim=0) for _, x in rows for share in (0.02, 0.98)])
    everything = torch.cat([truth[None], everything])  # without the farthest samples
    low, high = everything.amin(0), everything.amax(0)
    middle, half = (low + high) / 2, 0.6 * (high - low).max().item() or 1.0
    columns = min(4, len(known))
    deep = -(-len(known) // columns)
    figure = new_figure(2.7 * columns, 2.9 * deep)
    panels = list(figure.subplots(deep, columns, squeeze=False, sharex=True, sharey=True).flat)
    across = torch.linspace(-half, half, _ACROSS, dtype=torch.float64)
    lattice = torch.stack(torch.meshgrid(middle[0] + across, middle[1] + across, indexing="xy"), -1)
    residual = _residual_size(result, i, lattice.reshape(-1, 2)).reshape(_ACROSS, _ACROSS)
    colours = iter(COLOURS * len(known))
    for panel, (name, x) in zip(panels, known, strict=False):
        if exact is not None:
            panel.scatter(*exact[:_POINTS].T.numpy(), s=6, color="#9ca3af", alpha=0.6, linewidths=0)
        if name != EXACT:
            panel.scatter(*x[:_POINTS].T.numpy(), s=4, color=next(colours), alpha=0.6, linewidths=0)
        if result.request.noise_std > 0:
            panel.contour(*lattice.permute(2, 0, 1).numpy(), residual.numpy(), [2.0], colors=FAINT, linewidths=0.8,
                          linestyles="--")  # fmt: skip
        panel.plot(*truth.tolist(), "*", color="black", markerfacecolor="none", markersize=11)
        panel.set(xlim=_limits(middle[0], half), ylim=_limits(middle[1], half), aspect="equal")
        panel.set_title(literal(name), fontsize=10, color=INK)
        style_axes(panel)
    for panel in panels[len(known) :]:
        panel.set_axis_off()
    return figure


def _residual_size(result: Restoration, i: int, x: torch.Tensor) -> torch.Tensor:
    """max |y − A x|/σ_y for x (N, 2) in data space."""
    measurement = result.request.measurements[i]
    e = measurement.residual(result.request.model.transform.forward(x))
    return e.reshape(len(x), -1).abs().amax(1) / max(result.request.noise_std, 1e-12)


def _limits(middle: torch.Tensor, half: float) -> tuple[float, float]:
    return middle.item() - half, middle.item() + half
