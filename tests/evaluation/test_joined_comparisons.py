"""Comparisons are joined into one table only if they were measured alike, and each value stands where it belongs."""

import json
import math
from dataclasses import replace

import pytest
import torch

from sde_toolkit import VPSDE, GaussianMixture, ddim, ddpm, grids, probability_flow
from sde_toolkit.errors import ArgumentError
from sde_toolkit.evaluation import join_comparisons
from sde_toolkit.evaluation.comparison import compare_solvers
from sde_toolkit.evaluation.comparison_results import results_as_data
from sde_toolkit.evaluation.report_table import plus_minus
from sde_toolkit.metrics.judge import Judge, flat_features
from sde_toolkit.metrics.sliced import SlicedWasserstein

SOLVERS = {"ddim": ddim(), "heun": probability_flow()}


def disc(std):
    return GaussianMixture(torch.tensor([[0.3, -0.2]]), VPSDE(), std=std)


def compared(std, solvers, budgets, *, projections=4, n=12, real_seed=0):
    model = disc(std)
    real = model.draw(60, generator=torch.Generator().manual_seed(real_seed))
    features = flat_features(model.transform, real)
    judge = Judge(real, n, features, metrics=[SlicedWasserstein(projections)], splits=2)
    return compare_solvers(
        model, solvers, budgets, n=n, judge=judge, endpoint_n=n, grids=grids.uniform, references=False
    )


def written(folder, comparison, name="disc"):
    folder.mkdir()
    content = results_as_data(comparison, {"model": {"name": name}})
    (folder / "results.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    first = compared(0.9, SOLVERS, [5, 8])
    second = compared(0.5, {**SOLVERS, "ddpm": ddpm()}, [5])
    more = compared(0.9, {"ddpm": ddpm()}, [5, 8])
    return {
        "folder": folder,
        "comparisons": (first, second, more),
        "paths": (written(folder / "a", first), written(folder / "b", second, "other"), written(folder / "c", more)),
    }


def test_every_value_of_every_run_is_in_the_table(runs):
    joined = join_comparisons(runs["paths"], "sliced_wasserstein")
    table = joined.table()
    assert [column.heading for column in table.columns] == ["model", "solver", "grid", "5", "8"]
    cells = {(line.cells[0], line.cells[1]): line.cells[3:] for line in table.lines}
    for comparison, name in zip(runs["comparisons"], ("disc", "other", "disc"), strict=True):
        for row in comparison.rows:
            shown = cells[name, row.solver][[5, 8].index(row.budget)]
            assert shown == plus_minus(row.measured["sliced_wasserstein"])
        assert cells[name, "real data (floor)"][0] == plus_minus(comparison.floor(comparison.metrics[1]))
    assert cells["other", "ddim"][1] == "–"
    assert len(joined.records()) == sum(len(comparison.rows) for comparison in runs["comparisons"])
    for text in (joined.text(), joined.markdown(), joined.latex()):
        assert "heun" in text
    assert "5" in joined.latex()


def test_the_metric_is_the_first_that_all_have(runs):
    joined = join_comparisons(runs["paths"][:2])
    assert joined.metric == "rmse"
    assert {(cell.model, cell.solver) for cell in joined.cells if cell.budget == 8} == {
        ("disc", "ddim"),
        ("disc", "heun"),
    }


def test_bold_is_the_best_of_a_model_and_a_budget(runs):
    joined = join_comparisons(runs["paths"][0])
    rows = [row for row in runs["comparisons"][0].rows if row.budget == 5]
    best = min(rows, key=lambda row: row.measured["rmse"].value)
    bold = {line.cells[1] for line in joined.table().lines if 3 in line.best}
    (matrix,) = (m for m in runs["comparisons"][0].paired if (m.metric, m.budget) == ("rmse", 5))
    (other,) = (row for row in rows if row is not best)
    i, j = (runs["comparisons"][0].rows.index(row) for row in (best, other))
    assert bold == {best.solver} | ({other.solver} if matrix.difference(i, j).verdict != "better" else set())
    alone = join_comparisons(runs["paths"][2], "sliced_wasserstein")
    assert not any(line.best for line in alone.table().lines)


def test_names_of_the_models_may_be_given(runs):
    joined = join_comparisons({"wide": runs["paths"][0], "narrow": runs["paths"][1]})
    assert joined.models == ["wide", "narrow"]


def test_models_of_one_name_are_told_apart_by_their_folders(runs, tmp_path):
    other = written(tmp_path / "z", runs["comparisons"][1], "disc")
    assert join_comparisons([runs["paths"][0], other], "rmse").models == ["disc (a)", "disc (z)"]


def test_what_was_measured_differently_is_refused_by_name(runs, tmp_path):
    first = runs["paths"][0]
    finer = written(tmp_path / "finer", compared(0.5, SOLVERS, [5], projections=7))
    with pytest.raises(ArgumentError, match=r"finer.*metric\.projections \(4 there, 7 here\)"):
        join_comparisons([first, finer], "sliced_wasserstein")
    assert join_comparisons({"one": first, "two": finer}, "rmse").models == [
        "one",
        "two",
    ]  # which does not depend on it
    fewer = written(tmp_path / "fewer", compared(0.5, SOLVERS, [5], n=10))
    with pytest.raises(ArgumentError, match=r"fewer.*real_data\.compared \(12 there, 10 here\)"):
        join_comparisons([first, fewer], "sliced_wasserstein")
    elsewhere = written(tmp_path / "elsewhere", compared(0.9, {"ddpm": ddpm()}, [5], real_seed=1))
    with pytest.raises(ArgumentError, match=r"elsewhere.*real data are not those"):
        join_comparisons([first, elsewhere], "sliced_wasserstein")


def test_mistakes_are_refused_by_name(runs, tmp_path):
    first = runs["paths"][0]
    with pytest.raises(ArgumentError, match=r"metric='fid'.*does not have it.*rmse, sliced_wasserstein"):
        join_comparisons([first], "fid")
    again = written(tmp_path / "again", runs["comparisons"][0])
    with pytest.raises(ArgumentError, match=r"again.*ddim, uniform, 5 of the model disc is in .*, too"):
        join_comparisons([first, again])
    with pytest.raises(ArgumentError, match="nothing to join"):
        join_comparisons([])
    with pytest.raises(ArgumentError, match="no report is there"):
        join_comparisons(tmp_path / "nowhere")
    (tmp_path / "results.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(ArgumentError, match="not that of a comparison"):
        join_comparisons(tmp_path)


def test_an_unknown_error_is_no_reason_to_be_bold(runs):
    joined = join_comparisons(runs["paths"][0])
    cells = [replace(cell, value=replace(cell.value, error=math.nan)) for cell in joined.cells]
    bare = replace(joined, cells=tuple(cells), near={})
    assert all(sum(k in line.best for line in bare.table().lines) == 1 for k in (3, 4))


def test_the_command_takes_folders_without_a_name(command, tmp_path, runs):
    odd = tmp_path / "with=sign, and comma"
    odd.mkdir()
    (odd / "results.json").write_bytes((runs["paths"][1] / "results.json").read_bytes())
    status, out, err = command("table", str(runs["paths"][0]), odd.name, "metric=rmse", "output=joined")
    assert status == 0, err
    assert "other" in out
    joined = join_comparisons([runs["paths"][0], odd], "rmse")
    assert (tmp_path / "joined/table.tex").read_text(encoding="utf-8") == joined.latex()
    assert (tmp_path / "joined/table.md").read_text(encoding="utf-8") == joined.markdown()
    assert (tmp_path / "joined/table.csv").read_text(encoding="utf-8").count("\n") == 1 + len(joined.cells)
    status, _, err = command("table")
    assert status == 2
    assert "nothing to join" in err
