"""Pictures of samples: image grids, scatter plots, lines or histograms, depending on the event shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.errors import MissingDependencyError

__all__ = ["contact_sheet", "new_figure", "picture_kind", "require_pictures", "sample_rows"]

INK, FAINT = "#1f2937", "#9ca3af"


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


def new_figure(width: float, height: float) -> Any:
    """A matplotlib figure, sizes in inches. It needs no display and does not touch pyplot's global state.

    Raises:
        MissingDependencyError: without matplotlib.
    """
    require_pictures()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def require_pictures(event_shape: tuple[int, ...] | None = None) -> None:
    """Refuse before any work if pictures of events of this shape (None: of any shape) cannot be drawn.

    Raises:
        MissingDependencyError: without matplotlib.
    """
    if event_shape is None or picture_kind(event_shape) != "none":
        try:
            import matplotlib.backends.backend_agg
            import matplotlib.figure  # noqa: F401
        except ImportError as error:
            raise MissingDependencyError("matplotlib", "figures", "cli", error) from None


def sample_rows(rows: Sequence[tuple[str, Tensor]], real: Tensor | None = None, *, columns: int = 16) -> Any | None:
    """A figure with one labelled row (images) or panel (points, signals, numbers) per set; None for other event shapes.

    Args:
        rows: (label, samples (n, *event)) in data space; an empty set has an empty row or panel.
        real: real samples, drawn last and set apart.
        columns: images shown of each set.
    """
    known = [(label, x) for label, x in rows] + ([("real data", real)] if real is not None else [])
    shapes = {tuple(x.shape[1:]) for _, x in known if len(x)}
    if len(shapes) != 1:
        return None
    event_shape = shapes.pop()
    kind = picture_kind(event_shape)
    if kind == "image":
        return _image_rows(known, real is not None, columns)
    if kind == "none":
        return None
    return _panel_figure(known, kind, real is not None)


def contact_sheet(x: Tensor) -> Any | None:
    """A figure of all samples of one set (n, *event) in data space: a square of images, or one panel."""
    kind = picture_kind(tuple(x.shape[1:]))
    if kind == "none" or len(x) == 0:
        return None
    if kind != "image":
        return _panel_figure([(f"{len(x)} samples", x)], kind, False, size=4.5)
    columns = int(np.ceil(np.sqrt(len(x))))
    rows = [("", part) for part in x.split(columns)]
    return _image_rows(rows, False, columns)


def _image_rows(rows: Sequence[tuple[str, Tensor]], real_last: bool, columns: int) -> Any:
    """Images as a strip for each row, drawn pixel by pixel with a gap of a few pixels between them."""
    shown = [x[:columns].float() for _, x in rows]
    low, high = _grey_range(shown[-1] if real_last else torch.cat(shown))
    height, width = shown[0].shape[-2:]
    gap = max(1, round(0.07 * height))
    strips = [_strip(x, columns, height, width, gap, low, high) for x in shown]
    labelled = any(label for label, _ in rows)
    inches = 0.62 if columns <= 16 else 10 / columns
    left = 1.75 if labelled else 0.1
    unit = inches / (width + gap)
    total_height = sum(s.shape[0] for s in strips) * unit + 0.25 * real_last
    figure = new_figure(left + columns * inches + 0.1, total_height + 0.15)
    figure.set_layout_engine("none")
    w, h = figure.get_size_inches()
    y = h - 0.07
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
    return figure


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


def _panel_figure(sets: Sequence[tuple[str, Tensor]], kind: str, real_last: bool, size: float = 2.3) -> Any:
    rows = -(-len(sets) // (3 if kind == "lines" else 5))
    columns = -(-len(sets) // rows)
    wide = 1.5 if kind == "lines" else 1.0
    figure = new_figure(columns * size * wide, rows * (size + 0.25))
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=kind != "lines").ravel()
    for panel in axes[len(sets) :]:
        panel.set_axis_off()
    reference = sets[-1][1].float() if real_last else torch.cat([x for _, x in sets]).float()
    bounds = _bounds(reference)
    for i, ((label, x), panel) in enumerate(zip(sets, axes, strict=False)):
        real = real_last and i == len(sets) - 1
        panel.set_title(label, fontsize=10, color=INK)
        _style_axes(panel)
        values = x.detach().cpu().float().numpy()
        colour = "#374151" if real else "#2563eb"
        if kind == "points":
            panel.scatter(values[:, 0], values[:, 1], s=3, alpha=0.5, linewidths=0, color=colour)
            panel.set(xlim=bounds[0], ylim=bounds[1], aspect="equal")
        elif kind == "histogram":
            density = len(values) > 0
            panel.hist(values.ravel(), bins=40, range=bounds[0], density=density, color=colour)
        else:
            _draw_lines(panel, values, colour)
    return figure


def _draw_lines(panel: Any, values: np.ndarray, colour: str, shown: int = 8) -> None:
    """Signals below one another. The channels of one signal are drawn over each other."""
    signals = values[:shown, None] if values.ndim == 2 else values[:shown]
    offset = 0.7 * float(np.ptp(signals)) if signals.size else 1.0
    for i, signal in enumerate(signals):
        for channel, line in enumerate(signal):
            panel.plot(line - i * offset, linewidth=0.9, color=colour, alpha=1 / (1 + 0.5 * channel))
    panel.set_yticks([])


def _bounds(x: Tensor) -> list[tuple[float, float]]:
    """The range of each coordinate, widened by 15 % on either side."""
    flat = x.reshape(len(x), -1)
    low, high = flat.amin(0), flat.amax(0)
    pad = 0.15 * (high - low).clamp(min=1e-6)
    return list(zip((low - pad).tolist(), (high + pad).tolist(), strict=True))


def _style_axes(panel: Any) -> None:
    panel.tick_params(labelsize=7, colors=FAINT, length=2)
    for side in panel.spines.values():
        side.set_color("#d1d5db")
