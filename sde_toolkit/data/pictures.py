"""Pictures of samples: image grids, scatter plots, lines or histograms, depending on the event shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.data.blank_figures import FAINT, INK, new_figure, require_matplotlib, text_width
from sde_toolkit.data.sample_panels import Backdrop, panels_of

__all__ = ["Backdrop", "Sheet", "contact_sheet", "picture_kind", "require_pictures", "sample_rows"]

Box = tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class Sheet:
    """A figure with one row or panel per set of samples.

    ``boxes``: where each of them lies, as (left, top, width, height) in shares of the figure, from the upper left.
    """

    figure: Any
    boxes: tuple[Box, ...]


def picture_kind(event_shape: tuple[int, ...]) -> str:
    """``image`` for (1 or 3, H, W), ``points`` for (2,), ``lines`` for (L,) and (C, L), ``histogram`` for ()
    and (1,), ``none`` for the rest."""
    if len(event_shape) == 3 and event_shape[0] in (1, 3):
        return "image"
    if event_shape == (2,):
        return "points"
    if event_shape in ((), (1,)):
        return "histogram"
    return "lines" if len(event_shape) in (1, 2) else "none"


def require_pictures(event_shape: tuple[int, ...] | None = None) -> None:
    """Refuse before any work if pictures of events of this shape (None: of any shape) cannot be drawn.

    Raises:
        MissingDependencyError: without matplotlib.
    """
    if event_shape is None or picture_kind(event_shape) != "none":
        require_matplotlib()


def sample_rows(
    rows: Sequence[tuple[str, Tensor]],
    real: Tensor | None = None,
    *,
    backdrop: Backdrop | None = None,
    columns: int = 16,
) -> Sheet | None:
    """One labelled row (images) or panel (points, signals, numbers) per set; None for other event shapes.

    All panels have the same axes. At most 1000 points are drawn in each.

    Args:
        rows: (label, samples (n, *event)) in data space; an empty set has an empty row or panel.
        real: real samples, drawn last and set apart.
        backdrop: what points and histograms are drawn on, ``real`` by default. Its samples fix black and white, too,
            where there are no real ones.
        columns: images shown of each set.
    """
    known = [(label, x) for label, x in rows] + ([("real data", real)] if real is not None else [])
    shapes = {tuple(x.shape[1:]) for _, x in known if len(x)}
    if len(shapes) != 1:
        return None
    kind = picture_kind(shapes.pop())
    if kind == "image":
        return _image_rows(known, real is not None, columns, backdrop)
    if kind == "none":
        return None
    return Sheet(*panels_of(known, kind, backdrop or Backdrop(real), real_last=real is not None))


def contact_sheet(x: Tensor, backdrop: Backdrop | None = None, *, most: int | None = None) -> Any | None:
    """A figure of one set (n, *event) in data space: a square of images, or one panel.

    ``backdrop``: what points and histograms are drawn on; its real samples also fix black and white, and the axes.
    ``most``: images shown at most.
    """
    kind = picture_kind(tuple(x.shape[1:]))
    if kind == "none" or len(x) == 0:
        return None
    if kind != "image":
        return panels_of([(f"{len(x)} samples", x)], kind, backdrop or Backdrop(), real_last=False, size=4.5)[0]
    return _image_square(x[:most].float(), None if backdrop is None else backdrop.real)


def _image_square(x: Tensor, like: Tensor | None) -> Any:
    """Images row by row, as one picture."""
    columns = math.ceil(math.sqrt(len(x)))
    low, high = _grey_range(x if like is None else like.float())
    height, width = x.shape[-2:]
    gap = max(1, round(0.07 * height))
    pixels = np.concatenate([_strip(part, columns, height, width, gap, low, high) for part in x.split(columns)])
    unit = max(4.5 / pixels.shape[1], 1 / 150)
    figure = new_figure(pixels.shape[1] * unit, pixels.shape[0] * unit)
    figure.set_layout_engine(None)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(pixels, interpolation="nearest", aspect="auto", vmin=0, vmax=1)
    axes.set_axis_off()
    return figure


def _image_rows(rows: Sequence[tuple[str, Tensor]], real_last: bool, columns: int, backdrop: Backdrop | None) -> Sheet:
    """Images as a strip for each row, drawn pixel by pixel with a gap of a few pixels between them."""
    shown = [x[:columns].float() for _, x in rows]
    like = shown[-1] if real_last else None if backdrop is None else backdrop.real
    low, high = _grey_range(torch.cat(shown) if like is None else like.float())
    height, width = next(x for x in shown if len(x)).shape[-2:]
    gap = max(1, round(0.07 * height))
    strips = [_strip(x, columns, height, width, gap, low, high) for x in shown]
    inches = 0.62 if columns <= 16 else 10 / columns
    left = 0.25 + max(text_width(label, 10) for label, _ in rows)
    unit = inches / (width + gap)
    total_height = sum(s.shape[0] for s in strips) * unit + 0.25 * real_last
    figure = new_figure(left + columns * inches + 0.1, total_height + 0.15)
    figure.set_layout_engine(None)
    w, h = figure.get_size_inches()
    y, boxes = h - 0.07, list[Box]()
    for i, ((label, _), strip) in enumerate(zip(rows, strips, strict=True)):
        if real_last and i == len(rows) - 1:
            y -= 0.2
            line = [left / w, 1 - 0.1 / w]
            figure.add_artist(_line(line, [(y + 0.1) / h] * 2))
        tall = strip.shape[0] * unit
        y -= tall
        axes = figure.add_axes((left / w, y / h, columns * inches / w, tall / h))
        axes.imshow(strip, interpolation="nearest", aspect="auto", vmin=0, vmax=1)
        axes.set_axis_off()
        figure.text((left - 0.12) / w, (y + tall / 2) / h, label, ha="right", va="center", fontsize=10, color=INK)
        boxes.append((0.0, 1 - (y + tall) / h, 1.0, tall / h))
    return Sheet(figure, tuple(boxes))


def _line(x: list[float], y: list[float]) -> Any:
    from matplotlib.lines import Line2D

    return Line2D(x, y, color=FAINT, linewidth=0.8)


def _strip(x: Tensor, columns: int, height: int, width: int, gap: int, low: float, high: float) -> np.ndarray:
    """(H + gap, columns (W + gap), 3) in 0..1 on white."""
    strip = np.ones((height + gap, columns * (width + gap), 3))
    for i, image in enumerate(x):
        grey = ((image - low) / (high - low)).clamp(0, 1).expand(3, -1, -1).permute(1, 2, 0).numpy()
        left = i * (width + gap) + gap // 2
        strip[gap // 2 : gap // 2 + height, left : left + width] = grey
    return strip


def _grey_range(x: Tensor) -> tuple[float, float]:
    """The values of black and white: 0..255, 0..1, −1..1 or 0..16 if the data fill it, else all but 1 % of them."""
    low, high = (torch.quantile(x.flatten()[:100_000], q).item() for q in (0.005, 0.995))
    for a, b in ((0.0, 255.0), (0.0, 1.0), (-1.0, 1.0), (0.0, 16.0)):
        margin = 0.15 * (b - a)
        if abs(low - a) < margin and abs(high - b) < margin:
            return a, b
    return (low, high) if high > low else (low - 1, low + 1)
