"""The report on a comparison: its files say what was measured, and nothing that was not."""

import csv
import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from importlib import metadata

import numpy as np
import pytest
import torch

from sde_toolkit import VPSDE, Affine, GaussianMixture, ScoreModel, UNet, ddim, ddpm, grids, probability_flow
from sde_toolkit.data.pictures import contact_sheet, sample_rows
from sde_toolkit.errors import ArgumentError, MissingDependencyError
from sde_toolkit.evaluation import report
from sde_toolkit.evaluation.comparison import compare_solvers
from sde_toolkit.evaluation.comparison_tables import comparison_table
from sde_toolkit.evaluation.error_parts import ErrorParts
from sde_toolkit.evaluation.page import require_report_packages
from sde_toolkit.evaluation.paired import PairedDifferences
from sde_toolkit.evaluation.report import report_files, write_report
from sde_toolkit.evaluation.report_table import plus_minus
from sde_toolkit.evaluation.sample_sheets import row_files, sheet_names
from sde_toolkit.jobs.provenance import provenance_of
from sde_toolkit.metrics.judge import Judge, exact_features
from sde_toolkit.metrics.metric import Estimate


def disc():
    """One mode: an exact flow without the many steps that the borders between modes take."""
    return GaussianMixture(torch.tensor([[0.3, -0.2]]), VPSDE(), std=0.9)


@pytest.fixture(scope="module")
def compared():
    """With paired differences, and with parts of the error that are made up."""
    model = disc()
    real = model.draw(120, generator=torch.Generator().manual_seed(9))
    features = exact_features(model, real)
    judge = Judge(real, 30, features, metrics=features.usual_metrics(0, 8), splits=2)
    solvers = {"heun": probability_flow(), "ddpm": ddpm(), "ddim": ddim()}
    options = {"endpoint_n": 10, "batch_size": 15, "references": False}
    got = compare_solvers(model, solvers, [5, 9], n=30, judge=judge, **options)
    made_up = ErrorParts(Estimate(0.031, 0.001), Estimate(0.5, 0.02), None, Estimate(1e-7, 1e-8))
    parts = {k: dict.fromkeys(row.measured, made_up) for k, row in enumerate(got.rows)}
    return replace(got, paired=PairedDifferences.of(got), error_parts=parts)


@pytest.fixture(scope="module")
def written(compared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    write_report(compared, folder, provenance_of(disc(), "ring <b>", None, seed=0), title="Rings & <things>")
    return folder


@pytest.fixture(autouse=True)
def _no_vectors(monkeypatch):
    """PDF and SVG take a second for each report: `written` alone has them, since it is made before this."""
    monkeypatch.setattr("sde_toolkit.evaluation.page.VECTORS", ())


def test_page_csv_and_json_say_the_same(compared, written):
    content = json.loads((written / "results.json").read_text(encoding="utf-8"))
    with (written / "results.csv").open(encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    page = (written / "report.html").read_text(encoding="utf-8")
    assert len(content["rows"]) == len(table) == len(compared.rows)
    for row, in_json, in_csv in zip(compared.rows, content["rows"], table, strict=True):
        assert in_csv["solver"] == in_json["solver"] == row.solver
        assert int(in_csv["nfe"]) == in_json["nfe"] == row.nfe
        assert float(in_csv["kernel_distance"]) == in_json["kernel_distance"] == row.measured["kernel_distance"].value
        assert (in_csv["rmse"] == "") == (in_json["rmse"] is None) == ("rmse" not in row.measured)
        assert plus_minus(row.measured["sliced_wasserstein"]) in page
        assert content["times"][f"{row.solver}, {row.grid}, {row.nfe}"] == list(row.times)
    assert all(sentence in page for sentence in content["findings"])


def test_the_page_needs_nothing_but_itself(written):
    """Its pictures are inside, its script is, and every link leads to a place on it."""
    page = (written / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|<link|<script[^>]|@import|url\(", page)
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]*)"', page))
    places = re.findall(r'id="([^"]*)"', page)
    assert len(places) == len(set(places))
    assert {link.removeprefix("#") for link in re.findall(r'href="([^"]*)"', page)} <= set(places)
    assert "Rings &amp; &lt;things&gt;" in page
    assert "ring <b>" not in page


def test_every_figure_and_every_row_is_a_file_and_on_the_page(compared, written):
    figures = {path.stem for path in written.glob("*.png")}
    assert figures == {"error", "distances", "pareto", "paired", "samples_5", "samples_9"}
    assert {path.stem for path in written.glob("*.pdf")} == {path.stem for path in written.glob("*.svg")}
    assert {path.stem for path in written.glob("*.svg")} == {"error", "distances", "pareto", "paired"}
    rows = list(written.glob("samples/*.png"))
    assert len(rows) == len(compared.rows)
    page = (written / "report.html").read_text(encoding="utf-8")
    assert page.count("<img") == len(figures) + len(rows)
    assert {f"samples/{path.stem}" for path in rows} <= set(re.findall(r'href="#([^"]*)"', page))


def test_the_samples_of_each_row_are_kept(compared, written):
    arrays = np.load(written / "samples.npz")
    assert set(arrays) == {path.stem for path in written.glob("samples/*.png")}
    for row, samples in zip(compared.rows, compared.samples, strict=True):
        assert np.array_equal(arrays[f"{row.solver}_{row.grid}_{row.budget}"], samples.numpy())


def test_a_command_knows_beforehand_which_files_it_will_write(compared, written):
    there = {path.relative_to(written).as_posix() for path in written.rglob("*") if path.is_file()}
    assert there == set(report_files(compared.request.runs))


def numbers(cell):
    return re.findall(r"[\d.]+", cell)


def test_the_tables_to_paste_have_the_cells_of_the_page(compared, written):
    table = comparison_table(compared)
    assert any(line.best for line in table.lines)
    page, tex, markdown = (
        (written / name).read_text(encoding="utf-8") for name in ("report.html", "table.tex", "table.md")
    )
    in_tex = [line for line in tex.splitlines() if line.endswith(r"\\") and " & " in line][1:]
    in_markdown = markdown.splitlines()[2:]
    for line, latex, mark in zip(table.lines, in_tex, in_markdown, strict=True):
        bold = [line.cells[k] for k in sorted(line.best)]
        assert list(map(numbers, re.findall(r"\\textbf\{(.*?)\}", latex))) == list(map(numbers, bold))
        assert re.findall(r"\*\*(.*?)\*\*", mark) == bold
        assert latex.count(" & ") == len(line.cells) - 1
        assert all(f">{cell}</td>" in page for cell in line.cells)


def test_parts_of_the_error_are_on_the_page_and_in_the_json(compared, written):
    page = (written / "report.html").read_text(encoding="utf-8")
    assert "Whose error is it?" in page
    shown = sum(len({"rmse", "sliced_wasserstein"} & set(row.measured)) for row in compared.rows)
    assert page.count("0.0310 ± 0.0010") == shown
    content = json.loads((written / "results.json").read_text(encoding="utf-8"))
    assert len(content["paired"]) == sum(len(matrix.cells) for matrix in compared.paired)
    assert set(content["hashes"]) == {"models", "data", "code"}
    bare = report.comparison_page(replace(compared, paired=None, error_parts=None), {}, "bare")
    assert "Whose error is it?" not in [section.heading for section in bare.sections]
    assert "paired" not in [figure.name for figure in bare.figures]


def test_provenance_is_complete(written):
    record = json.loads((written / "results.json").read_text(encoding="utf-8"))["provenance"]
    assert record["versions"]["torch"] == metadata.version("torch")
    assert {"command", "date", "model", "seed", "machine"} <= set(record)
    assert record["machine"]["cpu_threads"] == torch.get_num_threads()


ODD = ["karras, 1/7", "karras, 1:7", "KARRAS, 1_7", "..", "$\\frac$", "_hidden", "CON", "é <b>", "x" * 300, ""]


def test_names_may_have_any_character(tmp_path):
    """Every grid has a sheet of its own, whatever it is called, and every solver on it a picture."""
    sheets = sheet_names([(grid, budget) for grid in ODD for budget in (4, None)])
    rows = row_files([(solver, grid, 4) for solver in ("$\\frac$", "a/b") for grid in ODD])
    assert len({sheet.lower() for sheet in sheets}) == len(ODD) + 1  # adaptive solvers have one for all
    assert len({row.lower() for row in rows}) == 2 * len(ODD)
    names = [*sheets, *(row.removeprefix("samples/") for row in rows)]
    assert all(re.fullmatch(r"[\w.-]{1,100}", name, re.ASCII) for name in names)


def test_files_of_odd_names_stay_in_their_folder(tmp_path):
    odd = ["../karras, 1/7", "$\\frac$"]
    builders = dict.fromkeys(odd, grids.karras)
    got = compare_solvers(disc(), {"a/b": ddpm()}, [4], grids=builders, n=4, endpoint_n=0)
    write_report(got, tmp_path / "run")
    rows = json.loads((tmp_path / "run/results.json").read_text(encoding="utf-8"))["rows"]
    assert [row["grid"] for row in rows] == odd
    assert {path.parent for path in tmp_path.rglob("*.*")} == {tmp_path / "run", tmp_path / "run/samples"}
    there = {path.relative_to(tmp_path / "run").as_posix() for path in tmp_path.rglob("*.*")}
    assert there <= set(report_files(got.request.runs))


def test_a_report_needs_no_provenance_and_is_whole_or_absent(tmp_path, monkeypatch):
    compared = compare_solvers(disc(), ddim(), [3], n=4, endpoint_n=0)
    page = write_report(compared, tmp_path / "bare")
    assert "5 CPU" not in page.read_text(encoding="utf-8")
    assert json.loads((tmp_path / "bare/results.json").read_text(encoding="utf-8"))["provenance"] == {}
    write_report(compared, tmp_path / "some", {"note": "mine", "model": None})
    for wrong in ({"x": object()}, {"x": torch.zeros(2)}):
        with pytest.raises(ArgumentError, match="provenance"):
            write_report(compared, tmp_path / "none", wrong)
    with pytest.raises(ArgumentError, match="comparison"):
        write_report(None, tmp_path / "none")
    monkeypatch.setattr(report, "comparison_page", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(compared, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_without_real_data_the_reason_is_stated(tmp_path):
    torch.manual_seed(0)
    network = UNet(1, widths=(8, 8), attention_levels=(), blocks_per_level=1, dims=1)
    model = ScoreModel(network, VPSDE(), "edm", event_shape=(1, 16), transform=Affine(0.0, 2.0)).eval()
    got = compare_solvers(
        model,
        {"ddim": ddim(), "ddpm": ddpm()},
        [3],
        n=4,
        endpoint_n=2,
        endpoint_steps=4,
        without_judge="none of that shape",
    )
    write_report(got, tmp_path, provenance_of(model, "tiny", None, seed=0))
    content = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert content["real_data"] == {"skipped": "none of that shape"}
    assert set(content["metrics"]) == {"rmse"}
    assert "kernel_distance" not in content["rows"][0]
    assert "none of that shape" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not (tmp_path / "distances.png").exists()


def pixels(figure):
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba()).copy()


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8), (2,), (), (1,), (16,), (2, 16)])
def test_every_common_event_has_a_picture_that_shows_its_samples(shape):
    """Another first or last sample, in any of the sets, is another picture; the same samples are the same picture."""
    x = torch.rand(5, *shape, generator=torch.Generator().manual_seed(0))
    sheet = pixels(contact_sheet(x))
    assert np.array_equal(sheet, pixels(contact_sheet(x.clone())))
    rows = [("one", x), ("empty", x[:0])]
    both = pixels(sample_rows(rows, x).figure)
    for k in (0, 4):
        moved = x.clone()
        moved[k] = moved[k] + 0.5 if shape in ((), (1,)) else 1 - moved[k].flip(-1)  # into another bin
        assert not np.array_equal(sheet, pixels(contact_sheet(moved)))
        assert not np.array_equal(both, pixels(sample_rows([("one", moved), *rows[1:]], x).figure))
        assert not np.array_equal(both, pixels(sample_rows(rows, moved).figure))


def test_events_without_a_picture_have_none():
    assert contact_sheet(torch.randn(5, 2, 3, 4, 5)) is None


@pytest.mark.parametrize(
    ("estimate", "shown"),
    [
        (Estimate(0.01234, 0.0045), "0.0123 ± 0.0045"),
        (Estimate(12.34, 1.1), "12.3 ± 1.1"),
        (Estimate(123.4, 25.0), "123 ± 25"),
        (Estimate(0.5, 0.0), "0.5"),
        (Estimate(0.5, math.nan), "0.5"),
    ],
)
def test_numbers_are_rounded_by_their_error(estimate, shown):
    assert plus_minus(estimate) == shown


def test_optional_packages_are_loaded_only_where_they_are_used():
    check = (
        "import sys, sde_toolkit.evaluation, sde_toolkit.jobs.provenance;"
        "print({'ot', 'matplotlib', 'jinja2', 'hydra', 'omegaconf'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_a_missing_package_is_named_before_the_work(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=rf"{package}.*sde-toolkit\[cli\]"):
        require_report_packages()
