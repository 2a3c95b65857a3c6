"""Panels of points, numbers and signals, all with the same axes, on the exact density or on real data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.data.blank_figures import INK, new_figure

__all__ = ["Backdrop", "panels_of"]

MOST_POINTS, _SIGNALS, _BINS = 1000, 8, 40
_SOFT, _BLUE, _DARK = "#6b7280", "#2563eb", "#374151"
_LEFT, _BOTTOM, _TITLE, _GAP = 0.42, 0.28, 0.28, 0.16  # margins around and between panels, in inches

Bounds = tuple[float, float]


@dataclass(frozen=True, eq=False)
class Backdrop:
    """What samples are drawn on: real samples (n, *event), or the exact log-density of events (n, *event) to (n,)."""

    real: Tensor | None = None
    log_density: Callable[[Tensor], Tensor] | None = None


def panels_of(
    sets: Sequence[tuple[str, Tensor]], kind: str, backdrop: Backdrop, *, real_last: bool, size: float = 2.3
) -> tuple[Any, tuple[tuple[float, float, float, float], ...]]:
    """A figure with a panel of ``size`` inches for each set, and the panels' places as in
    :class:`sde_toolkit.data.pictures.Sheet`.

    The axes fit the last set if it is the real data, else the backdrop's samples, else all sets together.
    """
    reference = sets[-1][1] if real_last else backdrop.real
    if reference is None or len(reference) == 0:
        reference = torch.cat([x for _, x in sets])
    scene = _Scene.of(kind, reference.detach().cpu().float(), backdrop, [x for _, x in sets])
    wide, tall = size * (1.5 if kind == "lines" else 1.0), size * scene.aspect
    rows = -(-len(sets) // (3 if kind == "lines" else 5))
    columns = -(-len(sets) // rows)
    left = 0.12 if kind == "lines" else _LEFT
    w = left + columns * (wide + _GAP)
    h = rows * (tall + _TITLE) + (rows - 1) * _GAP / 2 + _BOTTOM
    figure = new_figure(w, h)
    figure.set_layout_engine(None)
    boxes = []
    for i, (label, x) in enumerate(sets):
        row, column = divmod(i, columns)
        x0, y0 = left + column * (wide + _GAP), h - (row + 1) * (tall + _TITLE) - row * _GAP / 2
        panel = figure.add_axes((x0 / w, y0 / h, wide / w, tall / h))
        panel.set_title(_fitting(label, wide), fontsize=9.5, color=INK, pad=4)
        scene.draw(panel, x.detach().cpu().float(), real=real_last and i == len(sets) - 1)
        below = i + columns >= len(sets)
        panel.tick_params(
            labelsize=7, colors=_SOFT, length=2, labelleft=column == 0 and kind != "lines", labelbottom=below
        )
        for side in panel.spines.values():
            side.set_color("#d1d5db")
        boxes.append((x0 / w, 1 - (y0 + tall + _TITLE) / h, wide / w, (tall + _TITLE) / h))
    return figure, tuple(boxes)


def _fitting(label: str, inches: float) -> str:
    """A title that is no wider than its panel: a long name takes two lines."""
    most = max(8, int(inches * 13))
    if len(label) <= most:
        return label
    return f"{label[: most // 2]}…{label[-(most - most // 2 - 1) :]}"


@dataclass(frozen=True, eq=False)
class _Scene:
    """The axes of all panels, and what is behind the samples."""

    kind: str
    x: Bounds
    y: Bounds
    aspect: float  # height over width
    backdrop: Backdrop
    step: float = 0.0  # between signals

    @classmethod
    def of(cls, kind: str, reference: Tensor, backdrop: Backdrop, sets: Sequence[Tensor]) -> _Scene:
        flat = reference.reshape(len(reference), -1)
        if kind == "points":
            x, y = _widened(flat[:, 0]), _widened(flat[:, 1])
            wanted = (y[1] - y[0]) / (x[1] - x[0])
            aspect = min(max(wanted, 0.5), 1.6)  # what is longer than that gets more room on its short side
            if wanted < aspect:
                y = _stretched(y, aspect / wanted)
            elif wanted > aspect:
                x = _stretched(x, wanted / aspect)
            return cls(kind, x, y, aspect, backdrop)
        if kind == "histogram":
            x = _widened(flat)
            heights = [_heights(values, x).max() for values in (reference, *sets) if len(values)]
            most = min(max(heights), 2.5 * heights[0])  # a set at one point may be cut off
            return cls(kind, x, (0.0, 1.08 * float(most)), 0.8, backdrop)
        low, high = flat[:_SIGNALS].min().item(), flat[:_SIGNALS].max().item()
        step, count = 0.7 * (high - low or 1.0), min(_SIGNALS, max(map(len, sets)))
        y = (low - step * (count - 0.8), high + 0.2 * step)
        return cls(kind, (0, max(1, reference.shape[-1] - 1)), y, 0.85, backdrop, step)

    def draw(self, panel: Any, x: Tensor, *, real: bool) -> None:
        """The samples on their backdrop; the real data stand alone."""
        colour = _DARK if real else _BLUE
        {"points": self._points, "histogram": self._histogram, "lines": self._lines}[self.kind](panel, x, colour, real)

    def _points(self, panel: Any, x: Tensor, colour: str, real: bool) -> None:
        if self.backdrop.log_density is not None:
            panel.imshow(
                self._density(self.backdrop.log_density),
                extent=(*self.x, *self.y),
                origin="lower",
                aspect="auto",
                cmap="Greys",
                interpolation="bilinear",
                vmin=0,
                vmax=2.4,
            )
        elif self.backdrop.real is not None and not real:
            behind = self.backdrop.real[:MOST_POINTS].detach().cpu().float()
            panel.scatter(behind[:, 0], behind[:, 1], s=6, linewidths=0, color="#dfe3e8", rasterized=True)
        shown = x[:MOST_POINTS].numpy()
        size, alpha = (4.0, 0.75) if len(shown) < 400 else (3.0, 0.5)
        size *= (panel.get_window_extent().width / panel.figure.dpi / 2.3) ** 0.8
        panel.scatter(shown[:, 0], shown[:, 1], s=size, alpha=alpha, linewidths=0, color=colour, rasterized=True)
        panel.set(xlim=self.x, ylim=self.y)
        self._count_outside(panel, x, torch.tensor([self.x, self.y]))

    def _density(self, log_density: Callable[[Tensor], Tensor]) -> np.ndarray:
        """The density's square root over the panel, 1 at its peak: thin parts stay visible."""
        side = 140
        xs, ys = torch.linspace(*self.x, side).double(), torch.linspace(*self.y, side).double()
        grid = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), -1).reshape(-1, 2)
        values: np.ndarray = log_density(grid).reshape(side, side).detach().cpu().numpy()
        return np.exp((values - values.max()) / 2)

    def _histogram(self, panel: Any, x: Tensor, colour: str, real: bool) -> None:
        values, edges = x.flatten().numpy(), np.linspace(*self.x, _BINS + 1)
        panel.stairs(_heights(x, self.x), edges, fill=True, color=colour, alpha=0.75 if not real else 0.85)
        if self.backdrop.log_density is not None:
            at = torch.linspace(*self.x, 300).double()
            shape = (300, *x.shape[1:])
            panel.plot(at, self.backdrop.log_density(at.reshape(shape)).exp().detach(), color=INK, linewidth=1.1)
        elif self.backdrop.real is not None and not real:
            behind = self.backdrop.real.detach().cpu().float()
            panel.stairs(_heights(behind, self.x), edges, color=INK, linewidth=0.9)
        panel.set(xlim=self.x, ylim=self.y)
        self._count_outside(panel, torch.from_numpy(values)[:, None], torch.tensor([self.x]))

    def _lines(self, panel: Any, x: Tensor, colour: str, real: bool) -> None:
        """Signals below one another. The channels of one signal are drawn over each other."""
        signals = (x[:_SIGNALS, None] if x.ndim == 2 else x[:_SIGNALS]).numpy()
        for i, signal in enumerate(signals):
            for channel, line in enumerate(signal):
                panel.plot(line - i * self.step, linewidth=0.9, color=colour, alpha=1 / (1 + 0.5 * channel))
        panel.set(xlim=self.x, ylim=self.y)
        panel.set_yticks([])

    def _count_outside(self, panel: Any, flat: Tensor, bounds: Tensor) -> None:
        """Say how many samples are not in the picture."""
        if len(flat) == 0:
            return
        outside = int(((flat < bounds[:, 0]) | (flat > bounds[:, 1])).any(1).sum())
        if outside:
            said = f"{outside} of {len(flat)} outside"
            panel.text(
                0.98, 0.97, said, transform=panel.transAxes, ha="right", va="top", fontsize=7, color="#b91c1c",
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
            )  # fmt: skip


def _heights(x: Tensor, bounds: Bounds) -> np.ndarray:
    """The density of numbers in each bin; numbers out of bounds count in the total."""
    values = x.detach().cpu().flatten().numpy()
    counts, edges = np.histogram(values, bins=_BINS, range=bounds)
    return counts / max(1, len(values)) / np.diff(edges)


def _widened(x: Tensor) -> Bounds:
    """The range of some numbers, widened by 15 % on either side."""
    low, high = x.min().item(), x.max().item()
    pad = 0.15 * max(high - low, 1e-6)
    return low - pad, high + pad


def _stretched(bounds: Bounds, factor: float) -> Bounds:
    middle, half = (bounds[0] + bounds[1]) / 2, (bounds[1] - bounds[0]) / 2 * factor
    return middle - half, middle + half
