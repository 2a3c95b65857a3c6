"""Figures of a restoration: each measurement with its samples, and the spread against the errors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sde_toolkit.data.blank_figures import FAINT, INK, new_figure
from sde_toolkit.data.pictures import picture_kind
from sde_toolkit.evaluation.figure_style import COLOURS, MARKERS, style_axes
from sde_toolkit.evaluation.naming import literal
from sde_toolkit.evaluation.page import Figure
from sde_toolkit.evaluation.restoration.restoration_pictures import picture_of_images, picture_of_lines
from sde_toolkit.evaluation.restoration.restoration_points import picture_of_points
from sde_toolkit.evaluation.restoration.restoration_results import EXACT, Restoration

__all__ = ["figure_names", "restoration_figures"]

_BINS, _LEAST = 12, 240  # bins of the spread, and elements that they need
_SHOWN = 12  # measurements with a figure of their own


def restoration_figures(result: Restoration) -> list[Figure]:
    """One figure for each of the first measurements, if events can be drawn; and the spread against the errors."""
    kind = picture_kind(tuple(result.request.truth.shape[1:]))
    draw, caption = {
        "image": (picture_of_images, _IMAGES),
        "lines": (picture_of_lines, _LINES),
        "points": (picture_of_points, _POINTS),
    }.get(kind, (None, ""))
    figures: list[Figure] = []
    if draw is not None and result.scores:
        for i in range(min(_SHOWN, len(result.request.truth))):
            text = f"Measurement {i + 1}. {caption if i == 0 else ''}".strip()
            figures.append(Figure(_case_name(i), text, draw(result, i)))
    if result.request.truth.numel() >= _LEAST and result.scores:
        figures.append(Figure("spread", _SPREAD, _honesty(result), narrow=True))
    return figures


def figure_names(measurements: int) -> list[str]:
    """The names of all figures that :func:`restoration_figures` may draw."""
    return [*(_case_name(i) for i in range(min(_SHOWN, measurements))), "spread"]


def _case_name(i: int) -> str:
    return f"measurement_{i + 1}"


_IMAGES = (
    "Left: what was measured, and the truth. Orange is not measured. Then for each method the mean of its samples, "
    "their standard deviation per pixel (white is 0; the scale is the same for all methods), and some of them."
)
_LINES = (
    "Samples (thin), their mean (thick) and the truth (dashed). Dots are measured values, where single elements are "
    "measured."
)
_POINTS = (
    "Samples of each method, and exact posterior samples in grey. The star is the truth. Between the dashed lines the "
    "residual is at most 2 σ_y."
)
_SPREAD = (
    "Elements in groups by the standard deviation of their samples (across), and the root mean square error of the "
    "mean in each group (up). On the diagonal the spread is honest: the errors are as large as the samples say. Above "
    "it the samples are too sure."
)


def _honesty(result: Restoration) -> Any:
    """The errors of the mean against the standard deviation, both per element, in groups of equal size."""
    figure = new_figure(5.2, 4.2)
    axes = figure.subplots()
    truth = result.request.truth.double().flatten()
    ends: list[float] = []
    sets = [(done.name, done.x) for done in result.restored if not done.failure]
    if result.exact is not None:
        sets.append((EXACT, result.exact.x))
    for j, (name, x) in enumerate(sets):
        data = result.data(x).double()
        std = data.std(1).flatten()
        errors = (data.mean(1).flatten() - truth).square() / (1 + 1 / data.shape[1])
        groups = [torch.stack([std[g].square().mean(), errors[g].mean()]) for g in _groups(std)]
        across, up = torch.stack(groups).sqrt().T.numpy()
        ends += [across.max(), up.max()]
        exact = name == EXACT
        axes.plot(
            across, up, label=literal(name), marker="o" if exact else MARKERS[j % len(MARKERS)],
            color="#374151" if exact else COLOURS[j % len(COLOURS)], linewidth=1.4, markersize=4,
        )  # fmt: skip
    top = 1.05 * max(ends)
    axes.plot([0, top], [0, top], color=FAINT, linewidth=1, linestyle="--", zorder=1)
    axes.set(xlim=(0, top), ylim=(0, top))
    axes.set_xlabel("standard deviation of the samples", fontsize=9, color=INK)
    axes.set_ylabel("error of their mean", fontsize=9, color=INK)
    axes.legend(fontsize=8, frameon=False)
    style_axes(axes)
    return figure


def _groups(std: Tensor) -> tuple[Tensor, ...]:
    """Places in groups of equal size, by the standard deviation. Elements without any are in a group of their own."""
    order = std.argsort(stable=True)
    still = int((std <= 1e-6 * std.max()).sum())
    rest = order[still:]
    groups = rest.tensor_split(min(_BINS, max(1, len(rest))))
    return (*([order[:still]] if still else []), *(group for group in groups if len(group)))
