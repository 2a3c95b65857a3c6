"""What is told before a comparison is what happens: evaluations of the network, and the steps of the bars."""

import itertools

import pytest
import torch

from sde_toolkit import VPSDE, ScoreModel, ddim, grids, probability_flow
from sde_toolkit.evaluation import comparison, comparison_batches, error_parts, paired, references
from sde_toolkit.evaluation.comparison import compare_in_team
from sde_toolkit.evaluation.comparison_request import ComparisonRequest
from sde_toolkit.evaluation.evaluation_counts import planned_evaluations
from sde_toolkit.evaluation.real_samples import judge_of_data
from sde_toolkit.jobs.team import Team
from sde_toolkit.models import clip_x0


class Counting(torch.nn.Module):
    """A network of a class that nobody knows, which counts the samples that it sees, in copies of itself too."""

    def __init__(self, fails_at=None):
        super().__init__()
        self.weight, self.seen, self.fails_at = torch.nn.Parameter(torch.tensor(0.9)), [], fails_at

    def __deepcopy__(self, memo):
        copy = Counting(self.fails_at)
        copy.seen = self.seen
        return copy

    def forward(self, x, t):
        self.seen.append(len(x))
        noisy = self.fails_at is not None and len(self.seen) > self.fails_at
        return self.weight.to(x.dtype) * x * (float("nan") if noisy else 1.0)


def early(sde, steps):
    return grids.uniform(sde, steps, end=0.2)


def euler(denoise, sigmas, x, rng):
    for r, s in itertools.pairwise(sigmas):
        x = x + (s - r) * (x - denoise(x, r)) / r
    return x


def planned_and_made(network, tmp_path, monkeypatch, **options):
    """The evaluations that were told, and those that were counted, planners' included."""
    monkeypatch.setenv("SDE_TOOLKIT_CACHE", str(tmp_path))
    model = ScoreModel(network, VPSDE(), "epsilon", event_shape=(3,)).eval()
    request = ComparisonRequest(model=model, n=7, batch_size=3, endpoint_steps=4, check_declaration=False, **options)
    before, told = sum(network.seen), []
    compare_in_team(request, Team(), None, say=told.append)
    return request, before, sum(network.seen), told


REAL = torch.randn(60, 3, generator=torch.Generator().manual_seed(1))
CASES = {
    "two seeds": {"solvers": ["auto", "ddim", "heun", "ddpm"], "budgets": [4, 7], "seeds": 2},
    "foreign and early": {
        "solvers": {"mine": euler, "heun": probability_flow()},
        "grids": [early, grids.karras],
        "budgets": [5],
    },
    "no references": {"solvers": ["ddim"], "budgets": [4], "references": False},
    "no flow": {"solvers": ["ddim", "ddpm"], "budgets": [4], "endpoint_n": 0},
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("judged", [False, True])
def test_planned_evaluations_are_those_that_are_made(name, judged, tmp_path, monkeypatch):
    options = {"endpoint_n": 5, **CASES[name]}
    network = Counting()
    if judged:
        options["judge"] = judge_of_data(ScoreModel(network, VPSDE(), "epsilon", event_shape=(3,)), REAL, 7)
    request, planning, made, (told,) = planned_and_made(network, tmp_path, monkeypatch, **options)
    assert f"{made:,} evaluations of" in told
    assert planned_evaluations(request).measuring == planning


def test_what_is_kept_is_not_planned_again(tmp_path, monkeypatch):
    network = Counting()
    _, _, first, (told,) = planned_and_made(network, tmp_path, monkeypatch, solvers=["ddim", "ddpm"], budgets=[4])
    assert "references" in told
    _, before, last, (again,) = planned_and_made(network, tmp_path, monkeypatch, solvers=["ddim", "ddpm"], budgets=[4])
    assert before == first
    assert f"{last - before:,} evaluations of" in again


def test_a_guided_models_evaluations_are_those_of_its_networks(tmp_path, monkeypatch):
    network = Counting()
    monkeypatch.setenv("SDE_TOOLKIT_CACHE", str(tmp_path))
    plain = ScoreModel(network, VPSDE(), "epsilon", event_shape=(3,)).eval()
    models = {"plain": plain, "clipped": clip_x0(plain, -2.0, 2.0)}
    told = []
    request = ComparisonRequest(model=plain, models=models, solvers=["ddim"], budgets=[4], n=5, endpoint_steps=3)
    compare_in_team(request, Team(), None, say=told.append)
    assert f"{sum(network.seen):,} evaluations of" in told[0]


class Bar:
    made = ()

    def __init__(self, total, title, *, enabled):
        self.total, self.title, self.done = total, title, 0
        Bar.made = (*Bar.made, self)

    def update(self, n=1):
        self.done += n

    def set_postfix_str(self, text): ...

    def close(self): ...


@pytest.mark.parametrize("fails_at", [None, 20])
def test_every_bar_ends_at_its_total(fails_at, tmp_path, monkeypatch):
    """Also if a row fails, and if a solver chooses its own steps."""
    Bar.made = ()
    for module in (comparison, comparison_batches, error_parts, paired, references):
        monkeypatch.setattr(module, "progress_bar", Bar)
    solvers = {"ddim": ddim(), "heun": probability_flow(), "adaptive": probability_flow(_adaptive()), "mine": euler}
    network = Counting(fails_at)
    options = {"judge": judge_of_data(ScoreModel(network, VPSDE(), "epsilon", event_shape=(3,)), REAL, 7), "seeds": 2}
    if fails_at is not None:
        options |= {"references": False, "endpoint_n": 0}
    planned_and_made(network, tmp_path, monkeypatch, solvers=solvers, budgets=[4], progress=True, **options)
    assert {bar.title: bar.done for bar in Bar.made} == {bar.title: bar.total for bar in Bar.made}
    assert len(Bar.made) >= 4


def _adaptive():
    from sde_toolkit.integrators import TorchDiffEq

    return TorchDiffEq(rtol=1e-2)


@pytest.mark.parametrize("shape", [(2,), (1,), (3,)])
def test_panels_of_points_have_a_thousand_of_them(shape, tmp_path, monkeypatch):
    """What a row lacks of them is drawn for the picture alone, from the noises that come next."""
    monkeypatch.setenv("SDE_TOOLKIT_CACHE", str(tmp_path))
    network, told = Counting(), []
    model = ScoreModel(network, VPSDE(), "epsilon", event_shape=shape).eval()
    options = {"solvers": ["ddpm"], "budgets": [3], "endpoint_n": 0, "check_declaration": False}
    small, large = (ComparisonRequest(model=model, n=n, points=1000, **options) for n in (7, 1000))
    found, whole = (compare_in_team(request, Team(), None, say=told.append) for request in (small, large))
    assert len(found.samples[0]) == 7
    if shape == (3,):
        assert len(found.pictured(0)) == 7
    else:
        assert torch.allclose(found.pictured(0), whole.pictured(0), atol=1e-5)
        assert "points of pictures 2,979" in told[0]
    assert sum(network.seen) == sum(int(text.split()[0].replace(",", "")) for text in told)
    conditional = ComparisonRequest(model=model, n=7, points=1000, condition=torch.arange(7), **options)
    assert conditional.points_missing == 0
