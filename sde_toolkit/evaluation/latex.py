"""Tables for LaTeX, with the lines of booktabs."""

from __future__ import annotations

import re

from sde_toolkit.evaluation.report_table import Column, Table

__all__ = ["latex_table", "latex_text"]

_SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$", "|": "$|$", "\"": "''",
    "±": r"$\pm$", "≈": r"$\approx$", "–": "--", "—": "---", "−": "$-$", "·": r"$\cdot$", "×": r"$\times$",
    "≥": r"$\geq$", "≤": r"$\leq$", "…": r"\ldots{}", "√": r"$\sqrt{}$", "₀": "$_0$", "₁": "$_1$", "₂": "$_2$",
    "²": "$^2$", "³": "$^3$", "α": r"$\alpha$", "β": r"$\beta$", "ε": r"$\epsilon$", "η": r"$\eta$",
    "λ": r"$\lambda$", "σ": r"$\sigma$", "τ": r"$\tau$", "μ": r"$\mu$", "κ": r"$\kappa$", "δ": r"$\delta$",
    "Δ": r"$\Delta$", "Σ": r"$\Sigma$",
}  # fmt: skip


def latex_table(table: Table, caption: str, label: str) -> str:
    r"""A ``table`` environment with a ``tabular``, for ``\usepackage{booktabs,graphicx}``; the best in bold.

    A table that is wider than the line is made smaller, so that no column is lost at the margin.

    Args:
        caption: plain text; it is escaped.
        label: of ``\ref``.
    """
    form = "".join("l" if column.left else "r" for column in table.columns)
    lines = [
        r"% needs \usepackage{booktabs,graphicx}",
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{latex_text(caption)}}}",
        rf"  \label{{{label}}}",
        r"  \footnotesize",
        r"  \setlength{\tabcolsep}{4pt}",
        r"  \resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"  \begin{{tabular}}{{{form}}}",
        r"    \toprule",
        f"    {' & '.join(latex_text(column.heading) for column in table.columns)} \\\\",
        r"    \midrule",
    ]
    for line in table.lines:
        lines += {"": [], "group": [r"    \addlinespace"], "floor": [r"    \midrule"]}[line.kind]
        cells = (
            _cell(cell, column, best=k in line.best)
            for k, (cell, column) in enumerate(zip(line.cells, table.columns, strict=True))
        )
        lines.append(f"    {' & '.join(cells)} \\\\")
    return "\n".join([*lines, r"    \bottomrule", r"  \end{tabular}}", r"\end{table}", ""])


def _cell(cell: str, column: Column, *, best: bool) -> str:
    text = latex_text(cell if column.left else re.sub(r"(?<![\w.])-(?=\d)", "−", cell))  # a minus, not a hyphen
    return rf"\textbf{{{text}}}" if best else text


def latex_text(text: str) -> str:
    """Plain text with what is special to LaTeX escaped, and common signs as formulas; other letters stay."""
    return "".join(_SPECIAL.get(letter, letter) for letter in text)
