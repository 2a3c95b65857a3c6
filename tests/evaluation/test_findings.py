"""What a report claims follows from its numbers and their intervals, and what it warns of is there."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from sde_toolkit import VPSDE, GaussianMixture, ScoreModel, ddim, grids, probability_flow
from sde_toolkit.data.pictures import Backdrop, sample_rows
from sde_toolkit.evaluation.cautions import comparison_cautions, last_step, outside_share
from sde_toolkit.evaluation.comparison import compare_solvers
from sde_toolkit.evaluation.comparison_tables import comparison_table
from sde_toolkit.evaluation.error_parts import ErrorParts
from sde_toolkit.evaluation.figure_style import legend_below
from sde_toolkit.evaluation.figures import comparison_figures
from sde_toolkit.evaluation.findings import comparison_findings
from sde_toolkit.evaluation.latex import latex_table, latex_text
from sde_toolkit.evaluation.linear_reference import gaussian_like
from sde_toolkit.evaluation.paired import Difference, PairedDifferences, PairedMatrix
from sde_toolkit.evaluation.pareto_figure import pareto_front
from sde_toolkit.evaluation.report_table import Column, Line, Table
from sde_toolkit.metrics.judge import Judge, flat_features
from sde_toolkit.metrics.metric import Estimate


def ring():
    angles = torch.arange(4) * (math.pi / 2)
    return GaussianMixture(torch.stack([angles.cos(), angles.sin()], 1), VPSDE(), std=0.2)


def judge_of(real, n):
    features = flat_features(ring().transform, real)
    return Judge(real, n, features, metrics=features.usual_metrics(0, 8), splits=2)


def compared(model=None, n=40, **options):
    model = ring() if model is None else model
    judge = judge_of(ring().draw(160, generator=torch.Generator().manual_seed(3)), n)
    solvers = {"ddim": ddim(), "heun": probability_flow()}
    options = {
        "budgets": [5],
        "n": n,
        "judge": judge,
        "endpoint_n": n,
        "grids": grids.uniform,
        "references": False,
        **options,
    }
    return compare_solvers(model, options.pop("solvers", solvers), options.pop("budgets"), **options)


@pytest.fixture(scope="module")
def found():
    return compared()


def with_difference(comparison, value, error, sure):
    """The comparison with made-up differences of its two rows: alike but for what is sure of them."""
    p = 1e-4 if sure else 0.5
    cell = Difference(value, error, value - 2 * error, value + 2 * error, p, p, True)
    matrices = {(m.name, 5): PairedMatrix(m.name, 5, (0, 1), {(0, 1): cell}) for m in comparison.metrics}
    return replace(comparison, paired=PairedDifferences(matrices))


# Claims


def test_a_solver_is_called_closest_only_where_the_paired_interval_allows_it(found):
    better = found.rows[0].measured["rmse"].value < found.rows[1].measured["rmse"].value
    value = -1.0 if better else 1.0
    sure, unsure = (" ".join(comparison_findings(with_difference(found, value, 0.1, yes))) for yes in (True, False))
    best = found.rows[0 if better else 1].solver
    assert f"Closest to the exact flow, by RMSE to flow: {best} at 5" in sure
    assert "Closest" not in unsure
    assert "no solver is measurably closer" in unsure
    assert "times that of" not in unsure


def test_bold_are_the_best_and_what_its_interval_does_not_tell_from_it(found):
    values = [row.measured["rmse"].value for row in found.rows]
    value = -1.0 if values[0] < values[1] else 1.0
    for sure, bold in ((True, 1), (False, 2)):
        lines = comparison_table(with_difference(found, value, 0.1, sure)).lines[:2]
        assert [3 in line.best for line in lines].count(True) == bold
        assert 3 in lines[0 if value < 0 else 1].best


# Cautions


def test_outside_is_what_lies_beyond_a_tenth_of_the_range():
    real = torch.tensor([[0.0, 0.0], [1.0, 10.0]])
    inside = torch.tensor([[-0.9, 10.9], [0.5, 5.0]])  # the margin is that of the widest coordinate
    assert outside_share(inside, real) == 0
    assert outside_share(torch.tensor([[0.5, 11.1], [0.5, -1.1], [-1.1, 5.0], [math.nan, 5.0]]), real) == 1
    images = torch.rand(50, 1, 4, 4)
    assert outside_share(images, images) == 0
    assert outside_share(torch.cat([images, 2 * torch.ones(50, 1, 4, 4)]), images) == 0.5
    x = torch.randn(50, 2)
    large = torch.zeros(2, 1, 20, 20)
    large[0, 0, 0, :5], large[1, 0, 0, :3] = 9.0, 9.0  # five elements of 400 are too many, three are not
    assert outside_share(large, torch.rand(50, 1, 20, 20)) == 0.5
    assert outside_share(1000 * x + 3, 1000 * x[:20] + 3) == outside_share(x, x[:20])  # in any unit


def test_samples_outside_the_range_of_the_data_are_told(found):
    far = found.judge.real[40:80].clone()
    far[:20] = 50.0
    said = comparison_cautions(replace(found, samples=(found.judge.real[:40], far)))
    outside = next(sentence for sentence in said if "outside the range" in sentence)
    assert "heun at 5 (50%)" in outside
    assert "ddim" not in outside
    real = replace(found, samples=(found.judge.real[:40], found.judge.real[40:80]))
    assert not any("outside the range" in sentence for sentence in comparison_cautions(real))


def test_draws_from_the_gaussian_of_some_data_have_their_moments():
    real = torch.randn(60, 2, 3, generator=torch.Generator().manual_seed(0)) @ torch.randn(3, 3) + 2
    drawn = gaussian_like(real, 200_000, seed=1)
    assert drawn.shape == (200_000, 2, 3)
    flat, of = drawn.reshape(-1, 6), real.reshape(-1, 6)
    assert torch.allclose(flat.mean(0), of.mean(0), atol=0.05)
    assert torch.allclose(flat.T.cov(), of.T.cov(), atol=0.05 * of.T.cov().abs().max().item())


def test_a_network_that_is_worse_than_linear_is_told_and_an_exact_one_is_not():
    nothing = ScoreModel(lambda x, t: torch.zeros_like(x) + 2.0, VPSDE(), "x0", event_shape=(2,))
    said = " ".join(comparison_findings(compared(nothing, endpoint_n=0, check_declaration=False)))
    assert "left behind" in said
    exact = compared(budgets=[30], solvers=ddim(), endpoint_n=0)
    assert "left behind" not in " ".join(comparison_findings(exact))


def test_a_grid_that_starves_a_solver_is_told():
    builders = {"uniform": grids.uniform, "all at the end": lambda sde, steps: grids.uniform(sde, steps) ** 0.02}
    both = compared(solvers=ddim(), budgets=[8], grids=builders)
    said = [sentence for sentence in comparison_cautions(both) if "grids starve" in sentence]
    worse = max(both.rows, key=lambda row: row.measured["rmse"].value)
    assert len(said) == 1
    assert f"ddim on {worse.grid} at 8" in said[0]
    levels = both.request.model.sde.half_log_snr(torch.tensor(worse.times, dtype=torch.float64))
    assert last_step(both, worse) == pytest.approx(float((levels[-1] - levels[-2]) / (levels[-1] - levels[0])))


def test_the_part_that_dominates_is_told(found):
    small, large = Estimate(0.01, 0.001), Estimate(0.5, 0.001)
    for part, said in (("truncation", "Where the grid ends"), ("network", "error of the network itself")):
        parts = replace(ErrorParts(small, small, small, small), **{part: large})
        with_parts = replace(found, error_parts={k: {"rmse": parts} for k in range(2)})
        assert any(said in sentence for sentence in comparison_cautions(with_parts))
        equal = replace(found, error_parts={k: {"rmse": ErrorParts(small, small, small, small)} for k in range(2)})
        assert not any(said in sentence for sentence in comparison_cautions(equal))


# Figures


def test_no_row_is_both_cheaper_and_better_than_one_on_the_front():
    rng = np.random.default_rng(0)
    points = [tuple(point) for point in rng.integers(0, 6, (40, 2)).tolist()]
    front = pareto_front(points)

    def beats(one, other):
        return one != other and one[0] <= other[0] and one[1] <= other[1]

    on = [points[k] for k in front]
    assert len(set(on)) == len(on)
    assert on == sorted(on)
    assert not any(beats(point, best) for best in on for point in points)
    assert all(point in on or any(beats(best, point) for best in on) for point in points)


def test_a_legend_of_many_long_names_is_not_cut():
    from sde_toolkit.data.blank_figures import new_figure

    for width, count in ((4.0, 12), (12.6, 12)):
        figure = new_figure(width, 4.0)
        axes = figure.subplots()
        lines = {f"a long name of a solver, number {k}, on its own grid": axes.plot([k, 1])[0] for k in range(count)}
        legend_below(figure, lines)
        figure.canvas.draw()
        box, whole = figure.legends[0].get_window_extent(), figure.bbox
        assert whole.x0 <= box.x0 <= box.x1 <= whole.x1
        assert whole.y0 <= box.y0
        assert axes.get_window_extent().y0 >= box.y1
        bare = new_figure(width, 4.0)
        alone = bare.subplots()
        bare.canvas.draw()
        assert axes.get_window_extent().height > 0.95 * alone.get_window_extent().height


@pytest.mark.parametrize("shape", [(2,), (1,), (16,)])
def test_all_panels_have_the_axes_of_the_real_data(shape):
    """Whatever the samples are, and with nothing white at the sides."""
    real = torch.randn(80, *shape, generator=torch.Generator().manual_seed(0)) * torch.arange(1, shape[0] + 1)
    sheet = sample_rows([("one", real[:20] + 3), ("far", 1e3 * real[20:]), ("none", real[:0])], real)
    panels = sheet.figure.axes
    assert len(panels) == 4
    assert len({(panel.get_xlim(), panel.get_ylim()) for panel in panels}) == 1
    if shape == (2,):
        assert panels[0].get_xlim()[0] < real[:, 0].min() < real[:, 0].max() < panels[0].get_xlim()[1]
        wide, tall = panels[0].get_window_extent().size
        x, y = (high - low for low, high in (panels[0].get_xlim(), panels[0].get_ylim()))
        assert y / x == pytest.approx(tall / wide, rel=1e-6)  # one unit is as long in both directions
    for panel, (left, top, width, height) in zip(panels, sheet.boxes, strict=True):
        place = panel.get_position()
        assert left - 1e-9 <= place.x0 <= place.x1 <= left + width + 1e-9
        assert 1 - top - height - 1e-9 <= place.y0 <= place.y1 <= 1 - top + 1e-9


def test_points_are_drawn_on_the_exact_density_or_on_real_data():
    model = ring()
    x, real = model.draw(5), model.draw(50)
    exact = sample_rows([("one", x)], real, backdrop=Backdrop(real, model.log_prob)).figure.axes[0]
    drawn = sample_rows([("one", x)], real).figure.axes[0]
    assert len(exact.images) == 1
    assert len(drawn.collections[0].get_offsets()) == 50
    shade = exact.images[0].get_array()
    i, j = np.unravel_index(shade.argmax(), shade.shape)
    low, high = np.array(exact.get_xlim()), np.array(exact.get_ylim())
    peak = torch.tensor([[np.linspace(*low, shade.shape[1])[j], np.linspace(*high, shade.shape[0])[i]]])
    assert model.log_prob(peak.double()) > model.log_prob(model.network.means).max() - 0.1


def test_who_beats_whom_is_drawn_from_both_sides(found):
    (figure,) = (f.drawing for f in comparison_figures(with_difference(found, -0.25, 0.1, True)) if f.name == "paired")
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert "−.25" in texts
    assert "+.25" in texts
    colours = {patch.get_facecolor() for patch in figure.axes[0].patches}
    assert len(colours) == 2


# LaTeX


def test_no_sign_of_a_name_is_a_command_of_latex():
    text = latex_text("a_b & 50% of $x$ #1 {y} ~ ^ \\frac é λ ±")
    plain = text
    for escaped in (r"\_", r"\&", r"\%", r"\$", r"\#", r"\{", r"\}", r"\textasciitilde{}", r"\textasciicircum{}",
                    r"\textbackslash{}", r"$\lambda$", r"$\pm$"):  # fmt: skip
        assert escaped in plain
        plain = plain.replace(escaped, "")
    assert not set(plain) & set("_&%$#{}~^\\λ±")
    assert "é" in plain


def test_a_latex_table_has_a_cell_for_each_column_and_true_minus_signs():
    columns = (Column("a_1", left=True), Column("b"))
    best = Line(("x-1", "-0.5 ± 0.1"), best=frozenset({1}))
    lines = (best, Line(("y", "1e-05 (-2–3)"), "group"), Line(("z", ""), "floor"))
    tex = latex_table(Table(columns, lines), "50 % & more", "tab:one")
    rows = [line for line in tex.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 4
    assert all(row.replace(r"\&", "").count("&") == 1 for row in rows)
    assert r"x-1 & \textbf{$-$0.5 $\pm$ 0.1}" in tex
    assert "1e-05 ($-$2--3)" in tex
    assert tex.index(r"\toprule") < tex.index(r"\midrule") < tex.index(r"\bottomrule")
