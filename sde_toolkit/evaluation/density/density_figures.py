"""Figures of a data set's likelihood: the histogram, the most and least likely samples, the end times."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from sde_toolkit.data.blank_figures import FAINT, INK, new_figure
from sde_toolkit.data.pictures import picture_kind
from sde_toolkit.evaluation.density.density_findings import Background, scale, spread, unit
from sde_toolkit.evaluation.density.evaluating import DatasetLikelihood
from sde_toolkit.evaluation.figure_style import COLOURS, style_axes
from sde_toolkit.evaluation.page import Figure

__all__ = ["likelihood_figures"]

_COLUMNS = 12


def likelihood_figures(result: DatasetLikelihood, background: Background) -> list[Figure]:
    """The histogram; for images the most and the least likely; and the end times, if there are several."""
    figures = [Figure("histogram", _HISTOGRAM, _histogram(result, background), narrow=True)]
    if picture_kind(tuple(result.x.shape[1:])) == "image":
        caption = (
            f"The most likely samples (above) and the least likely (below), with their {unit(result)}, each row from "
            "the most extreme inwards."
        )
        figures.append(Figure("extremes", caption, _extremes(result)))
    if len(result.ends) > 1:
        figures.append(Figure("end_times", _ENDS, _end_times(result), narrow=True))
    return figures


_HISTOGRAM = (
    "One value per sample; vertical lines are means. The noise of their random times also spreads the values of "
    "the bounds."
)
_ENDS = (
    "The answer against the end time of the flow, on the same samples with the same noise and probes: as it is, and "
    "without the first-order estimate of log p_end − log p_0. The estimate is good where it makes the curve flat. Bars "
    "are one standard error of the difference to the end time that was used."
)


def _histogram(result: DatasetLikelihood, background: Background) -> Any:
    figure = new_figure(6.4, 3.6)
    axes = figure.subplots()
    factor, values = scale(result), result.values
    sets = [("flow, exact", values["nats"].mean(1))]
    for name, key in (("ELBO", "elbo_nats"), ("DDPM bound", "discrete_nats")):
        if key in values:
            sets.append((name, values[key]))
    if background.truth is not None:
        sets.append(("exact log p", background.truth.detach().cpu().double().numpy()))
    everything = np.concatenate([v for _, v in sets]) * factor
    low, high = np.quantile(everything, (0.002, 0.998))
    pad = 0.03 * (high - low) or 0.5
    bins = np.linspace(low - pad, high + pad, int(np.clip(2.5 * math.sqrt(result.n), 10, 40)) + 1)
    for i, (name, nats) in enumerate(sets):
        colour = COLOURS[i]
        shown = np.clip(nats * factor, bins[0], bins[-1])
        if i == 0:
            axes.hist(shown, bins, color=colour, alpha=0.35, label=name)
        else:
            axes.hist(shown, bins, histtype="step", color=colour, linewidth=1.4, label=name)
        axes.axvline((nats * factor).mean(), color=colour, linewidth=1.2, linestyle="-" if i == 0 else "--")
    label = "bits per dimension" if unit(result) == "bits/dim" else "log-likelihood, nats per sample"
    axes.set_xlabel(label, fontsize=9, color=INK)
    axes.set_ylabel("samples", fontsize=9, color=INK)
    axes.legend(fontsize=8, frameon=False)
    style_axes(axes)
    return figure


def _extremes(result: DatasetLikelihood) -> Any:
    nats, factor = result.values["nats"].mean(1), scale(result)
    count = min(2 * _COLUMNS, len(nats) // 2 or 1)
    columns = min(_COLUMNS, count)
    order = np.argsort(-nats, kind="stable")
    chosen = (order[:count], order[::-1][:count])
    rows = [(title, part[i : i + columns]) for title, part in zip(("most likely", "least likely"), chosen, strict=True)
            for i in range(0, count, columns)]  # fmt: skip
    height, width = result.x.shape[-2:]
    cell, text = 0.78, 0.2
    tall = cell * height / width
    figure = new_figure(1.0 + columns * (cell + 0.06), len(rows) * (tall + text) + 0.35)
    figure.set_layout_engine(None)
    w, h = figure.get_size_inches()
    low, high = _range(result)
    y, before = h - 0.06, ""
    for title, part in rows:
        y -= tall + (0.16 if before and before != title else 0.0)
        if title != before:
            label = title.replace(" ", "\n")
            figure.text(0.9 / w, (y + tall / 2) / h, label, ha="right", va="center", fontsize=9, color=INK)
        before = title
        for j, i in enumerate(part):
            left = 1.0 + j * (cell + 0.06)
            axes = figure.add_axes((left / w, y / h, cell / w, tall / h))
            image = ((result.x[int(i)].double() - low) / (high - low)).clamp(0, 1).expand(3, -1, -1)
            axes.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest", aspect="auto")
            axes.set_axis_off()
            below = {"ha": "center", "va": "top", "fontsize": 7, "color": "#4b5563"}
            figure.text((left + cell / 2) / w, (y - 0.03) / h, f"{nats[i] * factor:.2f}", **below)
        y -= text
    return figure


def _range(result: DatasetLikelihood) -> tuple[float, float]:
    levels = result.request.levels
    if levels is not None:
        return levels.low, levels.high
    low, high = (torch.quantile(result.x.flatten()[:100_000].double(), q).item() for q in (0.005, 0.995))
    return (low, high) if high > low else (low - 1, low + 1)


def _end_times(result: DatasetLikelihood) -> Any:
    figure = new_figure(5.2, 3.4)
    axes = figure.subplots()
    factor = scale(result)
    ends = [max(e.end, 1e-9) for e in result.ends]
    for i, (name, of) in enumerate((("as it is", 0.0), ("less the estimate of what stopping adds", 1.0))):
        means = [float((e.nats - of * e.truncation).mean()) * factor for e in result.ends]
        bars = [np.nan_to_num(spread(e.shift * factor)) for e in result.ends]
        axes.errorbar(
            ends, means, yerr=bars, label=name, color=COLOURS[i], marker="os"[i], linewidth=1.4, markersize=5, capsize=2
        )
    axes.axvline(max(result.request.end_of(result.model), 1e-9), color=FAINT, linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    axes.set_xlabel("end time t", fontsize=9, color=INK)
    axes.set_ylabel(f"{unit(result)}, first {len(result.ends[0].nats)} samples", fontsize=9, color=INK)
    axes.legend(fontsize=8, frameon=False)
    style_axes(axes)
    return figure
