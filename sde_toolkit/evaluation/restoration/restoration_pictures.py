"""One measurement of images or signals: y, the truth, and for each method its mean, spread and samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.data.blank_figures import INK, new_figure
from sde_toolkit.data.pictures import picture_kind
from sde_toolkit.evaluation.figure_style import COLOURS, style_axes
from sde_toolkit.evaluation.naming import literal
from sde_toolkit.evaluation.restoration.restoration_results import EXACT, Restoration
from sde_toolkit.evaluation.restoration.restoration_tasks import hidden_places
from sde_toolkit.metrics.metric import Array

__all__ = ["picture_of_images", "picture_of_lines", "rows_of_case"]

_SAMPLES = 8  # images of each method
_CELL, _GAP, _HEAD, _PAD = 0.92, 0.08, 0.26, 0.1  # inches
_HIDDEN = (0.95, 0.62, 0.34)
_LINES = 10


def rows_of_case(result: Restoration, i: int) -> list[tuple[str, Tensor]]:
    """The samples (n, *event) after measurement i, in data space, of each method; and exact ones, if they are known."""
    sets = [(done.name, done.x[i]) for done in result.restored if not done.failure]
    if result.exact is not None:
        sets.append((EXACT, result.exact.x[i]))
    return [(name, result.data(x.unsqueeze(0))[0].double()) for name, x in sets]


def picture_of_images(result: Restoration, i: int) -> Any:
    """Measurement and truth on the left, large; then a row for each method."""
    rows, truth = rows_of_case(result, i), result.request.truth[i].double().cpu()
    low, high = _range(result, truth)
    tallest = max(x.std(0).square().mean(0).sqrt().max().item() for _, x in rows) or 1.0
    columns = min(_SAMPLES, rows[0][1].shape[0])
    aspect = truth.shape[-2] / truth.shape[-1]
    tall, step = _CELL * aspect, _CELL + _GAP
    high_rows = max(2, len(rows))
    below = len(rows) * (tall + _GAP)
    big = min(1.9 * _CELL, (high_rows * (tall + _GAP) - _HEAD - _GAP) / 2 / aspect)
    height = _PAD + _HEAD + max(below, 2 * big * aspect + _HEAD + _GAP) + _PAD
    left = _PAD + big + 0.1
    words = max(len(word) for name, _ in rows for word in literal(name).split())
    label = 0.35 + 0.085 * words
    width = left + label + (2 + columns) * step + 0.3 + _PAD
    sheet = _Sheet(width, height)
    for j, (title, picture) in enumerate(
        (("measured", measured_picture(result, i, low, high)), ("truth", _shown(truth, low, high)))
    ):
        y = _PAD + _HEAD + j * (big * aspect + _HEAD + _GAP)
        sheet.image(picture, _PAD, y, big, big * aspect)
        sheet.text(_PAD + big / 2, y - 0.05, title)
    at_mean, at_std, at_samples = (left + label + shift for shift in (0.0, step, 2 * step + 0.15))
    for x, title in ((at_mean, "mean"), (at_std, "std")):
        sheet.text(x + _CELL / 2, _PAD + _HEAD - 0.05, title)
    sheet.text(at_samples + _CELL / 2, _PAD + _HEAD - 0.05, "samples")
    for j, (name, samples) in enumerate(rows):
        y = _PAD + _HEAD + j * (tall + _GAP)
        sheet.text(left + label - 0.12, y + tall / 2, literal(name).replace(" ", "\n"), ha="right", va="center")
        sheet.image(_shown(samples.mean(0), low, high), at_mean, y, _CELL, tall)
        sheet.image(_spread_picture(samples, tallest), at_std, y, _CELL, tall)
        for c in range(columns):
            sheet.image(_shown(samples[c], low, high), at_samples + c * step, y, _CELL, tall)
    return sheet.figure


class _Sheet:
    """A figure on which images and texts are placed in inches from the upper left corner."""

    def __init__(self, width: float, height: float) -> None:
        self.figure = new_figure(width, height)
        self.figure.set_layout_engine(None)
        self.width, self.height = width, height

    def image(self, pixels: Array, x: float, y: float, wide: float, tall: float) -> None:
        box = (x / self.width, 1 - (y + tall) / self.height, wide / self.width, tall / self.height)
        axes = self.figure.add_axes(box)
        axes.imshow(pixels, interpolation="nearest", aspect="auto", vmin=0, vmax=1)
        axes.set(xticks=[], yticks=[])
        for side in axes.spines.values():
            side.set(color="#d1d5db", linewidth=0.6)

    def text(self, x: float, y: float, text: str, ha: str = "center", va: str = "bottom") -> None:
        place = (x / self.width, 1 - y / self.height)
        self.figure.text(*place, text, ha=ha, va=va, fontsize=9, color=INK)


def measured_picture(result: Restoration, i: int, low: float, high: float) -> Array:
    """What was measured of image i as a picture (h, w, 3): itself, if it is one, or else in its place in the event."""
    measurement = result.request.measurements[i]
    A, transform = measurement.A, result.request.model.transform
    x_0 = result.truth_in_model_space[i : i + 1]
    y = measurement.measured(x_0)
    if picture_kind(A.measured_shape) == "image":
        y, scale = y.double(), getattr(transform, "scale", None)
        known = scale is None or not isinstance(scale, tuple)
        return _shown(transform.inverse(y[None])[0] if known else y, low, high)
    back = transform.inverse(A.adjoint(y[None]).float())[0].double()
    pixels, hidden = _shown(back, low, high), hidden_places(A).all(0).numpy()
    pixels[hidden] = _HIDDEN
    return pixels


def _shown(x: Tensor, low: float, high: float) -> Array:
    """An image (1 or 3, h, w) as colours (h, w, 3) in 0..1."""
    pixels: Any = ((x.double() - low) / (high - low)).clamp(0, 1).expand(3, -1, -1).permute(1, 2, 0).numpy().copy()
    return pixels


def _spread_picture(x: Tensor, top: float) -> Array:
    """The standard deviation of samples (n, c, h, w) per pixel, from white to dark blue at ``top``."""
    share = (x.std(0).square().mean(0).sqrt() / top).clamp(0, 1).unsqueeze(-1)
    white, middle, dark = (
        torch.tensor(c, dtype=torch.float64) for c in ((1.0, 1.0, 1.0), (0.35, 0.6, 0.85), (0.03, 0.15, 0.4))
    )
    first, second = (2 * share).clamp(max=1), (2 * share - 1).clamp(min=0)
    pixels: Any = (white + first * (middle - white) + second * (dark - middle)).numpy()
    return pixels


def _range(result: Restoration, truth: Tensor) -> tuple[float, float]:
    """The values of black and white: those that the transform names, or those of the truth."""
    transform = result.request.model.transform
    low, high = (getattr(transform, name, None) for name in ("low", "high"))
    if low is None or high is None:
        low, high = truth.min().item(), truth.max().item()
    return (low, high) if high > low else (low - 1, low + 1)


def picture_of_lines(result: Restoration, i: int) -> Any:
    """A panel for each method; of several channels the first is drawn."""
    rows, truth = rows_of_case(result, i), result.request.truth[i].double().cpu()
    first = (lambda x: x[..., 0, :]) if truth.ndim == 2 else (lambda x: x)
    columns = min(3, len(rows))
    deep = -(-len(rows) // columns)
    figure = new_figure(3.6 * columns, 2.4 * deep)
    panels = list(figure.subplots(deep, columns, squeeze=False, sharex=True, sharey=True).flat)
    places, values = _measured_elements(result, i)
    for j, (panel, (name, x)) in enumerate(zip(panels, rows, strict=False)):
        colour = "#374151" if name == EXACT else COLOURS[j % len(COLOURS)]
        panel.plot(first(x[:_LINES]).T.numpy(), color=colour, linewidth=0.6, alpha=0.4)
        panel.plot(first(x.mean(0)).numpy(), color=colour, linewidth=1.8)
        panel.plot(first(truth).numpy(), color="black", linewidth=1, linestyle="--")
        panel.plot(places, values, "o", color="black", markersize=2.5)
        panel.set_title(literal(name), fontsize=10, color=INK)
        style_axes(panel)
    for panel in panels[len(rows) :]:
        panel.set_axis_off()
    return figure


def _measured_elements(result: Restoration, i: int) -> tuple[Array, Array]:
    """Places and values, in data space, of single measured elements of the first channel; none for a blur."""
    measurement, shape = result.request.measurements[i], result.request.truth.shape[1:]
    A = measurement.A
    nothing: Any = np.empty(0)
    if A.row_gram != 1.0 or not bool(hidden_places(A).any()):
        return nothing, nothing
    y = measurement.measured(result.truth_in_model_space[i : i + 1])
    back = result.request.model.transform.inverse(A.adjoint(y[None]).float())[0].double()
    known = ~hidden_places(A)
    back, known = (part[0] if len(shape) == 2 else part for part in (back, known))
    places: Any = known.nonzero().squeeze(1).numpy()
    return places, back.numpy()[places]
