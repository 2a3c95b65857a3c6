"""Pictures of an evaluation: how the values are spread, what is likely and what is not, and where the flow ends."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from sde_toolkit.data.pictures import FAINT, INK, new_figure, picture_kind
from sde_toolkit.evaluation.density.evaluating import Evaluation
from sde_toolkit.evaluation.density.summary import Background, scale, spread, unit
from sde_toolkit.evaluation.figures import COLOURS, _tidy

__all__ = ["draw_all"]

_COLUMNS = 12


def draw_all(evaluation: Evaluation, background: Background) -> dict[str, tuple[str, Any]]:
    """File name without suffix → (caption, matplotlib figure)."""
    figures = {"histogram": (_HISTOGRAM, _histogram(evaluation, background))}
    if picture_kind(tuple(evaluation.x.shape[1:])) == "image":
        figures["extremes"] = (
            f"The most likely samples (above) and the least likely (below), with their {unit(evaluation)}, each row "
            "from the most extreme inwards.",
            _extremes(evaluation),
        )
    if len(evaluation.ends) > 1:
        figures["end_times"] = (_ENDS, _end_times(evaluation))
    return figures


_HISTOGRAM = (
    "The samples one by one; vertical lines are means. The values of the bounds are spread by the noise of their "
    "random times as well."
)
_ENDS = (
    "How the answer moves with the time that stands for data, on the same samples with the same noise and probes: as "
    "it is, and with the first-order estimate of log p_end − log p_0 taken off, which is good where it makes the curve "
    "flat. Bars are one standard error of the difference to the end that was used."
)


def _histogram(evaluation: Evaluation, background: Background) -> Any:
    figure = new_figure(6.4, 3.6)
    axes = figure.subplots()
    factor, values = scale(evaluation), evaluation.values
    sets = [("flow, exact", values["nats"].mean(1))]
    for name, key in (("ELBO", "elbo_nats"), ("DDPM bound", "discrete_nats")):
        if key in values:
            sets.append((name, values[key]))
    if background.truth is not None:
        sets.append(("exact log p", background.truth.detach().cpu().double().numpy()))
    everything = np.concatenate([v for _, v in sets]) * factor
    low, high = np.quantile(everything, (0.002, 0.998))
    pad = 0.03 * (high - low) or 0.5
    bins = np.linspace(low - pad, high + pad, int(np.clip(2.5 * math.sqrt(evaluation.n), 10, 40)) + 1)
    for i, (name, nats) in enumerate(sets):
        colour = COLOURS[i]
        shown = np.clip(nats * factor, bins[0], bins[-1])
        if i == 0:
            axes.hist(shown, bins, color=colour, alpha=0.35, label=name)
        else:
            axes.hist(shown, bins, histtype="step", color=colour, linewidth=1.4, label=name)
        axes.axvline((nats * factor).mean(), color=colour, linewidth=1.2, linestyle="-" if i == 0 else "--")
    label = "bits per dimension" if unit(evaluation) == "bits/dim" else "log-likelihood, nats per sample"
    axes.set_xlabel(label, fontsize=9, color=INK)
    axes.set_ylabel("samples", fontsize=9, color=INK)
    axes.legend(fontsize=8, frameon=False)
    _tidy(axes)
    return figure


def _extremes(evaluation: Evaluation) -> Any:
    nats, factor = evaluation.values["nats"].mean(1), scale(evaluation)
    count = min(2 * _COLUMNS, len(nats) // 2 or 1)
    columns = min(_COLUMNS, count)
    order = np.argsort(-nats, kind="stable")
    chosen = (order[:count], order[::-1][:count])
    rows = [(title, part[i : i + columns]) for title, part in zip(("most likely", "least likely"), chosen, strict=True)
            for i in range(0, count, columns)]  # fmt: skip
    height, width = evaluation.x.shape[-2:]
    cell, text = 0.78, 0.2
    tall = cell * height / width
    figure = new_figure(1.0 + columns * (cell + 0.06), len(rows) * (tall + text) + 0.35)
    figure.set_layout_engine("none")
    w, h = figure.get_size_inches()
    low, high = _range(evaluation)
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
            image = ((evaluation.x[int(i)].double() - low) / (high - low)).clamp(0, 1).expand(3, -1, -1)
            axes.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest", aspect="auto")
            axes.set_axis_off()
            below = {"ha": "center", "va": "top", "fontsize": 7, "color": "#4b5563"}
            figure.text((left + cell / 2) / w, (y - 0.03) / h, f"{nats[i] * factor:.2f}", **below)
        y -= text
    return figure


def _range(evaluation: Evaluation) -> tuple[float, float]:
    levels = evaluation.request.levels
    if levels is not None:
        return levels.low, levels.high
    low, high = (torch.quantile(evaluation.x.flatten()[:100_000].double(), q).item() for q in (0.005, 0.995))
    return (low, high) if high > low else (low - 1, low + 1)


def _end_times(evaluation: Evaluation) -> Any:
    figure = new_figure(5.2, 3.4)
    axes = figure.subplots()
    factor = scale(evaluation)
    ends = [max(e.end, 1e-9) for e in evaluation.ends]
    for i, (name, of) in enumerate((("as it is", 0.0), ("less the estimate of what stopping adds", 1.0))):
        means = [float((e.nats - of * e.truncation).mean()) * factor for e in evaluation.ends]
        bars = [np.nan_to_num(spread(e.shift * factor)) for e in evaluation.ends]
        axes.errorbar(
            ends, means, yerr=bars, label=name, color=COLOURS[i], marker="os"[i], linewidth=1.4, markersize=5, capsize=2
        )
    axes.axvline(max(evaluation.request.end_of(evaluation.model), 1e-9), color=FAINT, linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    axes.set_xlabel("end time t", fontsize=9, color=INK)
    axes.set_ylabel(f"{unit(evaluation)}, first {len(evaluation.ends[0].nats)} samples", fontsize=9, color=INK)
    axes.legend(fontsize=8, frameon=False)
    _tidy(axes)
    return figure
