"""``sde-toolkit table RUN RUN ...``: several comparisons as one table."""

from __future__ import annotations

from omegaconf import DictConfig

from sde_toolkit.cli.folders import CONFIG, holding, output_folder, save_config
from sde_toolkit.cli.setup import listed
from sde_toolkit.errors import ArgumentError
from sde_toolkit.evaluation.joined_comparisons import join_comparisons
from sde_toolkit.evaluation.report_table import as_csv
from sde_toolkit.files.whole import write_all

__all__ = ["run"]

_FILES = ("table.txt", "table.md", "table.tex", "table.csv")


def run(config: DictConfig) -> None:
    """Join, print the table, and write it in all forms."""
    runs = [str(given) for given in listed(config.runs)]
    if not runs:
        remedy = "Name folders that compare has written: sde-toolkit table runs/*"
        raise ArgumentError("runs", runs, "there is nothing to join", remedy)
    joined = join_comparisons(runs, config.metric)
    directory = output_folder(config)
    with holding(directory, "table", [*_FILES, CONFIG]):
        texts = (f"{joined.text()}\n", joined.markdown(), joined.latex(), as_csv(joined.records()))
        contents = {name: text.encode("utf-8", "backslashreplace") for name, text in zip(_FILES, texts, strict=True)}
        write_all(directory, contents)
        save_config(config, directory)
    print(joined.text())
    print(f"\nLaTeX, Markdown and CSV: {directory}")
