"""The page of every report: one self-contained HTML file beside its pictures, JSON and CSV, written together.

A report gives its content as a :class:`Page`; how it looks is decided here and in ``templates/``.
"""

from __future__ import annotations

import base64
import io
import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, TypeAlias

from sde_toolkit.errors import ArgumentError, MissingDependencyError
from sde_toolkit.evaluation.report_table import Table, as_csv
from sde_toolkit.files.whole import write_all

__all__ = [
    "VECTORS",
    "Block",
    "Definitions",
    "Enlargement",
    "Figure",
    "Page",
    "Section",
    "as_png",
    "as_vectors",
    "checked_provenance",
    "facts_of",
    "json_data",
    "require_report_packages",
    "write_page",
]

VECTORS = ("pdf", "svg")  # kinds of files beside a PNG, without loss at any size


@dataclass(frozen=True, eq=False)
class Enlargement:
    """A picture that a click on part of a figure opens.

    ``box``: that part, as (left, top, width, height) in shares of the figure. ``name``: of the picture's file, without
    suffix; ``title``: what it shows; ``png``: its content.
    """

    box: tuple[float, float, float, float]
    name: str
    title: str
    png: bytes

    @property
    def style(self) -> str:
        """The place of the part, for HTML."""
        sides = zip(("left", "top", "width", "height"), self.box, strict=True)
        return "; ".join(f"{side}: {100 * share:.2f}%" for side, share in sides)


@dataclass(frozen=True, eq=False)
class Figure:
    """A matplotlib figure, its file's name without suffix, and its caption.

    ``narrow``: not as wide as the page. ``enlargements``: of its parts.
    """

    name: str
    caption: str
    drawing: Any
    narrow: bool = False
    enlargements: tuple[Enlargement, ...] = ()


@dataclass(frozen=True)
class Definitions:
    """Terms and what is said of each."""

    entries: tuple[tuple[str, str], ...]


Block: TypeAlias = Table | Figure | Definitions | str
"""A part of a section. In texts and definitions ``backticks`` are code and **stars** are bold."""


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    heading: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Page:
    """A report: the first of ``findings`` is the headline; ``facts`` are one line; ``provenance`` comes last."""

    title: str
    findings: Sequence[str]
    facts: Sequence[str]
    sections: Sequence[Section]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def figures(self) -> list[Figure]:
        """All figures, in their order."""
        return [block for section in self.sections for block in section.blocks if isinstance(block, Figure)]

    @property
    def enlargements(self) -> list[Enlargement]:
        """The enlargements of all figures."""
        return [part for figure in self.figures for part in figure.enlargements]

    def html(self, pictures: Mapping[str, bytes] | None = None) -> str:
        """The page with its pictures inside; ``pictures``: the PNGs by their figures' names, where they are known."""
        drawn = {f.name: as_png(f.drawing) for f in self.figures} if pictures is None else pictures
        larger = {part.name: part.png for part in self.enlargements}
        return self._render("page.html.j2", escape=True, pictures={**larger, **drawn})

    def markdown(self) -> str:
        """The same in Markdown, with links to the pictures' files."""
        return self._render("page.md.j2", escape=False, pictures={})

    def _render(self, template: str, *, escape: bool, pictures: Mapping[str, bytes]) -> str:
        import jinja2
        from markupsafe import Markup
        from markupsafe import escape as escaped

        def marked(text: str) -> Markup:
            html = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", str(escaped(text)))
            return Markup(re.sub(r"`(.+?)`", r"<code>\1</code>", html))

        source = (resources.files("sde_toolkit.evaluation") / "templates" / template).read_text("utf-8")
        environment = jinja2.Environment(
            autoescape=escape, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        environment.filters["marked"] = marked
        environment.tests |= {
            kind.__name__.lower(): lambda block, kind=kind: isinstance(block, kind)
            for kind in (Table, Figure, Definitions)
        }
        provenance = json.dumps(json_data(dict(self.provenance)), indent=2, ensure_ascii=False)
        encoded = {name: base64.b64encode(content).decode() for name, content in pictures.items()}
        return environment.from_string(source).render(page=self, provenance=provenance, pictures=encoded)


def write_page(
    page: Page,
    directory: str | Path,
    results: Mapping[str, Any],
    tables: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    results_name: str | None = "results.json",
    markdown: bool = False,
    vectors: bool = False,
    more: Mapping[str, bytes] | None = None,
) -> Path:
    """Write ``report.html``, the results as JSON, a CSV for each of ``tables``, and the PNGs; returns the page's path.

    Everything is composed before the first file is written, and the files appear together.

    Args:
        tables: records by the names of their files.
        results_name: of the JSON file; None: it is written elsewhere.
        markdown: write ``report.md``, too.
        vectors: write figures as PDF and SVG, too, but not those of samples.
        more: further files, by name.

    Raises:
        ArgumentError: for a provenance that JSON cannot hold.
        OSError: naming the file that cannot be written; none is replaced then.
    """
    files: dict[str, bytes] = dict(more or {})
    pictures = {figure.name: as_png(figure.drawing) for figure in page.figures}
    if results_name is not None:
        files[results_name] = _as_bytes(_as_json(results) + "\n")
    for name, records in tables.items():
        files[name] = _as_bytes(as_csv(records))
    if markdown:
        files["report.md"] = _as_bytes(page.markdown())
    files["report.html"] = _as_bytes(page.html(pictures))
    files |= {f"{name}.png": content for name, content in pictures.items()}
    for figure in page.figures if vectors else ():
        if figure.enlargements:  # samples: pixels, at any size
            continue
        files |= {f"{figure.name}.{kind}": as_vectors(figure.drawing, kind) for kind in VECTORS}
    files |= {f"{part.name}.png": part.png for part in page.enlargements}
    folder = Path(directory)
    for place in {(folder / name).parent for name in files}:
        place.mkdir(parents=True, exist_ok=True)
    write_all(folder, files)
    return folder / "report.html"


def require_report_packages() -> None:
    """Refuse before the work if a package for reports is missing.

    Raises:
        MissingDependencyError: without matplotlib or jinja2.
    """
    for package in ("matplotlib", "jinja2"):
        try:
            __import__(package)
        except ImportError as error:
            raise MissingDependencyError(package, "a report", "cli", error) from None


def as_png(figure: Any) -> bytes:
    """A matplotlib figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()


def as_vectors(figure: Any, kind: str) -> bytes:
    """A matplotlib figure that was drawn before, as "pdf" or "svg". The same figure gives the same bytes: no date."""
    import matplotlib

    figure.set_layout_engine(None)  # the layout is that of the PNG
    buffer = io.BytesIO()
    dates = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
    fonts = logging.getLogger("fontTools")  # tells every table of a font where somebody logs INFO, as Hydra does
    level = fonts.level
    fonts.setLevel(logging.WARNING)
    try:
        with matplotlib.rc_context({"svg.hashsalt": "sde_toolkit", "pdf.fonttype": 42}):
            figure.savefig(buffer, format=kind, dpi=150, metadata=dates[kind])
    finally:
        fonts.setLevel(level)
    return buffer.getvalue()


def json_data(value: Any) -> Any:
    """Dictionaries, lists and numbers for JSON, which knows no NaN and no infinity: they become null."""
    if isinstance(value, Mapping):
        return {str(key): json_data(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_data(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def checked_provenance(provenance: Mapping[str, Any] | None) -> dict[str, Any]:
    """Plain data for the page's last section.

    Raises:
        ArgumentError: for what JSON cannot hold.
    """
    about: dict[str, Any] = json_data(dict(provenance or {}))
    try:
        json.dumps(about, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ArgumentError("provenance", provenance, f"not plain data ({error})", "Use numbers and texts.") from None
    return about


def facts_of(provenance: Mapping[str, Any], *middle: str, device: str = "", seconds: float | None = None) -> list[str]:
    """The line of facts: the model, what is known of the work, the machine, the time and the date."""
    model, machine = (
        part if isinstance(part, Mapping) else {} for part in (provenance.get(name) for name in ("model", "machine"))
    )
    threads = machine.get("cpu_threads")
    place = ", ".join(part for part in (device, f"{threads} CPU threads" if threads else "") if part)
    took = "" if seconds is None else f"{seconds:.0f} s in all"
    found = [model.get("name"), *middle, place, took, provenance.get("date")]
    return [str(fact) for fact in found if fact]


def _as_json(content: Mapping[str, Any]) -> str:
    return json.dumps(json_data(content), indent=2, ensure_ascii=False, allow_nan=False)


def _as_bytes(text: str) -> bytes:
    """UTF-8; bytes of a file name or an argument that are no valid text are escaped."""
    return text.encode("utf-8", "backslashreplace")
