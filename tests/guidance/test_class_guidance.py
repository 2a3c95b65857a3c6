"""Classifier-free guidance: x̂_u + γ (x̂_c − x̂_u), for every way in which a class and "no class" can be told."""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import pytest
import torch
from catalogue import SDES, name, relative_error
from torch import nn

from sde_toolkit import (
    EDMSDE,
    MLP,
    VESDE,
    VPSDE,
    FlowMatching,
    ScoreModel,
    Solver,
    clip_x0,
    ddim,
    ddpm,
    dpmpp_2m,
    grids,
    heun,
    pc,
    reschedule,
    sample,
)
from sde_toolkit.errors import ArgumentError
from sde_toolkit.guidance import UNCONDITIONAL, Guided, classifier_free
from sde_toolkit.integrators import Exponential, PerSample
from sde_toolkit.interop import from_diffusers

N, K = 7, 3
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 1])
SDE = VPSDE()
GRID = grids.uniform(SDE, 6, end=0.01)


class Classes(nn.Module):
    """Elementwise, so that rows do not depend on the batch; label K is "no class". It counts its calls and rows."""

    def __init__(self):
        super().__init__()
        self.hyperparameters = {"num_classes": K}
        self.shifts = nn.Parameter(torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float64), requires_grad=False)
        self.rows = []

    def forward(self, x, time, condition):
        if not torch.compiler.is_compiling():
            self.rows.append(len(x))
        shift = self.shifts[condition].to(x)
        return torch.tanh(x + shift.reshape(-1, *(1,) * (x.ndim - 1)))


def conditional(network=None, sde=SDE, **options):
    return ScoreModel(network or Classes(), sde, "x0", event_shape=(2,), **options)


def drawn(model, solver=None, condition=LABELS, grid=GRID, n=N, **options):
    return sample(model, solver or ddim(), grid, shape=(n, 2), condition=condition, dtype=torch.float64, **options)


def x_0(model, x, t, condition):
    return model(x, t, condition).x_0


X = torch.linspace(-2, 2, 2 * N, dtype=torch.float64).reshape(N, 2)
NOTHING = torch.full_like(LABELS, K)


@pytest.mark.on_device
@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("sde", SDES, ids=name)
def test_the_estimate_moves_on_the_line_through_the_two(sde, stacked):
    model = conditional(sde=sde)
    for t in (0.2, torch.linspace(0.1, 0.9, N)):
        given, free = x_0(model, X, t, LABELS), x_0(model, X, t, NOTHING)
        for scale in (-1.0, 0.0, 0.5, 1.0, 2.0, 7.5):
            found = x_0(classifier_free(model, scale, stacked=stacked), X, t, LABELS)
            torch.testing.assert_close(found, (1 - scale) * free + scale * given, rtol=1e-10, atol=1e-10)


@pytest.mark.on_device
@pytest.mark.parametrize("solver", [ddim(), ddpm(), dpmpp_2m(), heun(), pc()], ids=name)
def test_a_scale_of_one_is_the_conditional_model_and_zero_the_unconditional_by_one_evaluation(solver):
    for scale, labels in ((1, LABELS), (0, NOTHING)):
        plain, network = drawn(conditional(), solver, labels), Classes()
        guided = drawn(classifier_free(conditional(network), scale), solver)
        assert relative_error(guided.x, plain.x) < 1e-12
        assert guided.nfe == plain.nfe == len(network.rows)


@pytest.mark.on_device
@pytest.mark.parametrize("solver", [ddim(), ddpm(), dpmpp_2m(), heun(), pc()], ids=name)
@pytest.mark.parametrize("stacked", [True, False])
def test_evaluations_are_those_that_the_network_saw(solver, stacked):
    network = Classes()
    found = drawn(classifier_free(conditional(network), 2.0, stacked=stacked), solver, tweedie=True)
    assert found.nfe * N == sum(network.rows)
    assert set(network.rows) == {2 * N if stacked else N}
    assert found.nfe == 2 * drawn(conditional(), solver, tweedie=True).nfe


@pytest.mark.on_device
@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_batch_mates_do_not_matter_bit_for_bit(eta, stacked):
    guided, solver = classifier_free(conditional(), 3.0, (0.1, 5.0), stacked=stacked), Solver("", eta, Exponential())
    for condition in (LABELS, Guided(LABELS, torch.linspace(0, 3, N)), Guided(LABELS, 2.0, LABELS.flip(0))):
        whole = drawn(guided, solver, condition).x
        for batch_size in (1, 3):
            assert torch.equal(drawn(guided, solver, condition, batch_size=batch_size).x, whole)


@pytest.mark.on_device
def test_the_scale_is_guidance_scale_of_diffusers_and_one_more_than_that_of_the_paper():
    guiders = pytest.importorskip("diffusers.guiders")
    model, t = conditional(), 0.6
    given, free = (model(X, t, labels).epsilon for labels in (LABELS, NOTHING))
    for scale in (1.0, 3.0):
        found = classifier_free(model, scale)(X, t, LABELS).epsilon
        for theirs, original in ((scale, False), (scale - 1, True)):
            guider = guiders.ClassifierFreeGuidance(guidance_scale=theirs, use_original_formulation=original)
            torch.testing.assert_close(found, guider.forward(given, free).pred, rtol=1e-9, atol=1e-9)


def test_of_diffusers_networks_dit_has_a_row_for_no_class_and_a_table_of_labels_ends_before():
    diffusers = pytest.importorskip("diffusers")
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (8,)}
    sizes = {"sample_size": 8, "norm_num_groups": 4, "in_channels": 1, "out_channels": 1}
    unet = diffusers.UNet2DModel(**sizes, **blocks, layers_per_block=1, num_class_embeds=4)
    heads = {"num_attention_heads": 2, "attention_head_dim": 4, "num_layers": 1, "patch_size": 4}
    dit = diffusers.DiTTransformer2DModel(**sizes, **heads, num_embeds_ada_norm=3)
    unet, dit = (from_diffusers(network, diffusers.DDPMScheduler()).eval() for network in (unet, dit))
    with pytest.raises(ArgumentError, match="knows its 4 classes, and no row for samples without one"):
        classifier_free(unet, 2.0)
    for guided in (classifier_free(unet, 2.0, no_class=3), classifier_free(dit, 2.0)):
        found = sample(guided, ddim(), nfe=4, shape=(2, 1, 8, 8), condition=torch.tensor([0, 2]))
        assert found.nfe == 4


# What a class is told as, and what "no class".


class Pair(NamedTuple):
    text: torch.Tensor
    size: object


@dataclass(frozen=True)
class Added:
    pooled: torch.Tensor
    kind: str


def total(condition):
    """One number per row of any of the conditions below."""
    if condition is None:
        return torch.zeros(1, dtype=torch.float64)
    if isinstance(condition, torch.Tensor):
        return condition.reshape(len(condition), -1).double().mean(1) if condition.ndim else condition.double()
    if isinstance(condition, dict):
        return sum(map(total, condition.values()))
    if isinstance(condition, tuple | list):
        return sum(map(total, condition))
    if isinstance(condition, Added):
        return total(condition.pooled)
    return torch.tensor(float(condition) if isinstance(condition, float) else 0.0, dtype=torch.float64)


def told(x, time, condition=None):
    return torch.tanh(x + total(condition)[:, None])


TEXT = torch.linspace(-1, 1, N * 6, dtype=torch.float64).reshape(N, 2, 3)
POOLED = torch.linspace(2, 0, N, dtype=torch.float64)
EMPTY = torch.tensor([[0.1, 0.2, 0.3], [0.0, -0.5, 0.1]], dtype=torch.float64)
WAYS = {
    "tensor": (TEXT, EMPTY),
    "one row": (TEXT, EMPTY[None]),
    "a number": (LABELS, 5),
    "0-dim": (POOLED, torch.tensor(0.3, dtype=torch.float64)),
    "dict": ({"text": TEXT, "size": 2.0}, {"text": EMPTY, "size": 2.0}),
    "another shared value": ({"text": TEXT, "size": 2.0}, {"text": EMPTY, "size": 0.5}),
    "longer text": ([TEXT], [torch.cat([EMPTY, EMPTY])]),
    "tuple": ((TEXT, POOLED), (EMPTY, torch.tensor(0.5))),
    "nested": (
        {"a": [Pair(TEXT, 1.5), Added(POOLED, "cat")], "b": None},
        {"a": [Pair(EMPTY, 1.5), Added(torch.zeros(1, dtype=torch.float64), "cat")], "b": None},
    ),
    "nothing": ({"text": TEXT}, UNCONDITIONAL),
}


def rows_of(given, like):
    """What is given as no class, written out for every sample."""
    if given is UNCONDITIONAL:
        return None
    if isinstance(like, torch.Tensor):
        given = torch.as_tensor(given)
        return torch.cat([given if given.ndim == like.ndim else given[None]] * len(like))
    if isinstance(like, dict):
        return {key: rows_of(given[key], part) for key, part in like.items()}
    if isinstance(like, Pair):
        return Pair(*map(rows_of, given, like))
    if isinstance(like, tuple | list):
        return type(like)(map(rows_of, given, like))
    if isinstance(like, Added):
        return replace(like, pooled=rows_of(given.pooled, like.pooled))
    return given


@pytest.mark.parametrize("way", WAYS)
def test_any_condition_can_be_guided_stacked_or_not_and_in_batches(way):
    condition, no_class = WAYS[way]
    model = ScoreModel(told, SDE, "x0", event_shape=(2,))
    without = rows_of(no_class, condition)
    expected = x_0(model, X, 0.4, without) * (1 - 2.5) + 2.5 * x_0(model, X, 0.4, condition)
    guided = classifier_free(model, 2.5, no_class=no_class)
    torch.testing.assert_close(x_0(guided, X, 0.4, condition), expected, rtol=1e-10, atol=1e-10)
    if without is not None:
        by_row = classifier_free(model, 1.0, no_class=UNCONDITIONAL)
        each = x_0(by_row, X, 0.4, Guided(condition, 2.5, without))
        torch.testing.assert_close(each, expected, rtol=1e-10, atol=1e-10)
    whole = drawn(guided, condition=condition)
    apart = drawn(classifier_free(model, 2.5, no_class=no_class, stacked=False), condition=condition, batch_size=3)
    assert relative_error(apart.x, whole.x) < 1e-12
    assert whole.nfe == apart.nfe == 2 * (len(GRID) - 1)


@pytest.mark.on_device
def test_a_scale_for_each_sample_is_that_sample_at_its_scale():
    scales = torch.tensor([0.0, 1.0, 2.0, 3.0, 0.5, 4.0, 1.5], dtype=torch.float64)
    found = drawn(classifier_free(conditional(), 9.0), condition=Guided(LABELS, scales), batch_size=3).x
    for i, scale in enumerate(scales.tolist()):
        one = drawn(classifier_free(conditional(), scale), condition=LABELS[i : i + 1], n=1, first_index=i).x
        torch.testing.assert_close(found[i : i + 1], one, rtol=1e-11, atol=1e-11)


def test_networks_of_this_package_have_a_row_of_their_own():
    torch.manual_seed(0)
    network = MLP((2,), width=8, depth=1, num_classes=K)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.5)
    model = ScoreModel(network, SDE, "v", event_shape=(2,)).eval()
    x = X.float()
    with torch.no_grad():
        expected = -x_0(model, x, 0.5, None) + 2 * x_0(model, x, 0.5, LABELS)
        found = x_0(classifier_free(model, 2.0), x, 0.5, LABELS)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


# The interval.


def levels(sde, grid):
    return sde.sigma(grid) / sde.alpha(grid)


@pytest.mark.on_device
@pytest.mark.parametrize("solver", [ddim(), ddpm(), dpmpp_2m(), heun(), pc()], ids=name)
@pytest.mark.parametrize("stacked", [True, False])
def test_outside_of_the_interval_it_is_the_conditional_model_bit_for_bit(solver, stacked):
    model, network = conditional(), Classes()
    grid = grids.uniform_lambda(SDE, 6, end=0.01)
    low = levels(SDE, grid[3]).item()
    found = drawn(
        classifier_free(conditional(network), 3.0, (low, math.inf), stacked=stacked), solver, grid=grid, trajectory=True
    )
    rest = drawn(model, solver, grid=grid, trajectory=True)
    assert not torch.equal(found.trajectory[1], rest.trajectory[1])
    assert found.nfe * N == sum(network.rows)
    if solver.eta > 0 or solver.name == "dpmpp_2m":
        return
    below = sample(model, solver, grid[4:], x_start=found.trajectory[4], condition=LABELS)
    assert torch.equal(below.x, found.x)


@pytest.mark.on_device
def test_no_evaluation_is_made_in_vain_outside_of_it():
    network = Classes()
    grid = grids.uniform_lambda(SDE, 6, end=0.01)
    guided = classifier_free(conditional(network), 3.0, tuple(levels(SDE, grid[[3, 1]]).tolist()), stacked=False)
    found = drawn(guided, grid=grid, tweedie=True)
    assert len(network.rows) == found.nfe == 3 * 2 + 4 * 1  # three steps begin in it; three do not, nor the last


@pytest.mark.on_device
@pytest.mark.parametrize("solver", [ddim(), heun(), pc()], ids=name)
def test_wrappers_around_it_evaluate_no_more(solver):
    guided, grid = classifier_free(conditional(), 3.0, (0.3, 3.0)), grids.uniform_lambda(SDE, 6, end=0.01)
    plain = drawn(guided, solver, grid=grid, tweedie=True)
    assert plain.nfe < 2 * drawn(conditional(), solver, grid=grid, tweedie=True).nfe
    wrapped = drawn(clip_x0(reschedule(guided, SDE), -90, 90), solver, grid=grid, tweedie=True)
    assert wrapped.nfe == plain.nfe
    assert relative_error(wrapped.x, plain.x) < 1e-10


@pytest.mark.on_device
def test_the_interval_is_one_of_noise_levels_whatever_the_path():
    lambdas = torch.linspace(-2, 2, 9, dtype=torch.float64)
    ends = tuple(lambdas[[6, 3]].neg().exp().tolist())
    estimates = []
    for sde in (VPSDE(), VESDE(0.01, 50), FlowMatching(), EDMSDE()):
        t = sde.inverse_half_log_snr(lambdas)
        guided = classifier_free(conditional(sde=sde), 3.0, ends)
        acts = [not torch.equal(*(x_0(m, X, s, LABELS) for m in (guided, conditional(sde=sde)))) for s in t]
        moved = reschedule(classifier_free(conditional(), 3.0, ends), sde)
        s = sde.inverse_half_log_snr(lambdas[4])
        estimates.append(x_0(moved, X * (sde.alpha(s) ** 2 + sde.sigma(s) ** 2).sqrt(), s, LABELS))
        assert acts == [3 <= i <= 6 for i in range(9)]
    for other in estimates[1:]:
        torch.testing.assert_close(other, estimates[0], rtol=1e-8, atol=1e-8)


@pytest.mark.on_device
@pytest.mark.on_card("the mock device compiles nothing")
@pytest.mark.parametrize("condition", [LABELS, Guided(LABELS, torch.linspace(0, 3, N))], ids=["labels", "scales"])
def test_compiled_steps_agree_and_count_what_they_evaluate(condition):
    guided = classifier_free(conditional(), 3.0, (0.5, 3.0))
    plain = drawn(guided, condition=condition)
    compiled = drawn(guided, condition=condition, compile="aot_eager")
    torch.testing.assert_close(compiled.x, plain.x, rtol=1e-10, atol=1e-10)
    assert compiled.nfe == 2 * (len(GRID) - 1)  # a graph has no branches: both are evaluated in every step


@pytest.mark.on_device
def test_adaptive_solvers_guide_within_it():
    solver, ends = Solver("", 0.0, PerSample(rtol=1e-8, atol=1e-8)), grids.uniform(SDE, 1, end=0.01)
    found = drawn(classifier_free(conditional(), 2.0, (0.5, 3.0)), solver, grid=ends).x
    fine = grids.uniform_lambda(SDE, 4000, end=0.01)
    expected = drawn(classifier_free(conditional(), 2.0, (0.5, 3.0)), heun(), grid=fine).x
    torch.testing.assert_close(found, expected, rtol=3e-3, atol=3e-3)


@pytest.mark.on_device
def test_a_grid_that_misses_the_interval_is_named_in_a_warning():
    guided = classifier_free(conditional(), 2.0, (1000.0, 2000.0))
    with pytest.warns(UserWarning, match=r"interval=\(1000\.0, 2000\.0\).*6 steps begin at σ/α from 152"):
        drawn(guided)


# Refusals.


def untouchable(x, time, condition=None):
    raise AssertionError("the network was evaluated before the error was raised")


def test_networks_without_such_a_row_are_refused_with_the_remedy():
    with pytest.raises(ArgumentError, match=r"no_class=None.*no classes of its own.*label_dropout.*UNCONDITIONAL"):
        classifier_free(ScoreModel(told, SDE, "x0"), 2.0)
    network = Classes()
    network.no_class = "refused"
    with pytest.raises(ArgumentError, match=r"knows its 3 classes, and no row for samples without one"):
        classifier_free(conditional(network), 2.0)


@pytest.mark.parametrize(
    ("scale", "said"),
    [(math.nan, "scale"), ("3", "scale"), (True, "scale"), (torch.ones(7), r"Guided\(labels, scale\)")],
)
def test_scales_that_are_no_number(scale, said):
    with pytest.raises(ArgumentError, match=said):
        classifier_free(conditional(), scale)


@pytest.mark.parametrize("interval", [(3.0, 0.1), (1.0, 1.0), (-1.0, 2.0), (0.0, math.nan), 0.5, (1.0,), "ab"])
def test_intervals_that_are_none(interval):
    with pytest.raises(ArgumentError, match="interval"):
        classifier_free(conditional(), 2.0, interval)


ROW = torch.zeros(3, dtype=torch.float64)
BAD = [
    (LABELS, None, TEXT, r"no_class=.*not one row for all.*Guided"),
    (POOLED, ROW, None, r"no_class=.*not one row for all"),
    ({"text": TEXT}, {"text": TEXT[:2]}, None, r"no_class\.text.*not one row"),
    ({"text": TEXT}, {"words": EMPTY}, None, r"no_class=.*words.*text.*same structure"),
    ({"text": TEXT}, EMPTY, None, r"no_class=.*same structure"),
    ({"text": [TEXT]}, {"text": ["cat"]}, None, r"no_class\.text\[0\].*one row"),
    (None, None, None, r"condition=.*stands for class labels"),
    (POOLED, None, None, r"condition=.*stands for class labels"),
    ({"label": LABELS}, None, None, r"condition=.*stands for class labels"),
    (Guided(LABELS, torch.ones(3)), None, None, r"condition\.scale.*3 rows for 7"),
    (Guided({"a": [LABELS[:2]]}), None, None, r"condition\.condition\.a\[0\].*2 rows for 7"),
    (Guided(LABELS, 2.0, LABELS[:1]), None, None, r"condition\.no_class.*1 rows for 7"),
    (Guided(LABELS, "much"), None, None, r"scale.*much"),
]


@pytest.mark.on_device
@pytest.mark.parametrize(("condition", "no_class", "other", "said"), BAD)
def test_conditions_that_do_not_fit_are_refused_by_name_before_any_evaluation(condition, no_class, other, said):
    network = Classes()
    network.forward = untouchable
    model = conditional(network)
    with pytest.raises(ArgumentError, match=said):
        drawn(classifier_free(model, 2.0, no_class=no_class if other is None else other), condition=condition)


def test_what_was_given_is_noted():
    guided = classifier_free(ScoreModel(told, SDE, "x0"), 2.0, (0.1, 3.0), no_class={"text": EMPTY}, stacked=False)
    noted = guided.description()
    assert (noted["wrapper"], noted["scale"], noted["interval"]) == ("ClassifierFree", 2.0, [0.1, 3.0])
    assert noted["no_class"] == {"no_class.text": [2, 3]}
