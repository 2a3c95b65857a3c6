"""Blank matplotlib figures, without a display."""

from __future__ import annotations

from typing import Any

from sde_toolkit.errors import MissingDependencyError

__all__ = ["FAINT", "INK", "new_figure", "require_matplotlib", "text_width"]

INK, FAINT = "#1f2937", "#9ca3af"


def new_figure(width: float, height: float) -> Any:
    """A matplotlib figure, sizes in inches. It needs no display and does not touch pyplot's global state.

    Raises:
        MissingDependencyError: without matplotlib.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def require_matplotlib() -> None:
    """Refuse before any work if nothing can be drawn.

    Raises:
        MissingDependencyError: without matplotlib.
    """
    try:
        import matplotlib.backends.backend_agg
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError("matplotlib", "figures", "cli", error) from None


def text_width(text: str, points: float) -> float:
    """The width of a text in inches, in matplotlib's own font."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    return float(TextPath((0, 0), text, prop=FontProperties(size=points)).get_extents().width) / 72 if text else 0.0
