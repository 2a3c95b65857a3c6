"""Errors in two senses, root mean square and median: no calibration loses to ``auto`` or to its start in either."""

import math
from types import SimpleNamespace

import pytest
import torch

from sde_toolkit import VPSDE, GaussianMixture, Solver, auto, grids, sample
from sde_toolkit.calibration import calibrate, judging
from sde_toolkit.calibration.judging import Selection
from sde_toolkit.calibration.plan_errors import Measured, combined, surely_better, surely_worse, worse
from sde_toolkit.calibration.starts import Contender
from sde_toolkit.errors import ArgumentError
from sde_toolkit.integrators import Multistep
from sde_toolkit.noise.streams import Purpose, per_sample_noise

FLOAT = torch.float64


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=FLOAT)


def test_few_noises_move_the_root_mean_square_and_leave_the_typical_error():
    squares = random(401).square()
    changed = squares.clone()
    changed[squares.topk(20).indices] = 1e4  # of the largest errors: they change mode
    assert Measured.of(changed).value > 10 * Measured.of(squares).value
    assert Measured.typical(changed).value == Measured.typical(squares).value
    assert combined(4 * squares) == pytest.approx(4 * combined(squares))
    assert combined(squares) < combined(changed) < changed.mean().item()


@pytest.mark.parametrize("n", [64, 63, 400])
def test_the_typical_error_varies_by_its_stated_error(n):
    """Over repeated draws of errors that are log-normal, with median 3."""
    errors = 3 * (0.7 * random(1500, n)).exp()
    found = [Measured.typical(row.square()) for row in errors]
    values, stated = (torch.tensor([getattr(m, name) for m in found]) for name in ("value", "error"))
    assert values.median().item() == pytest.approx(3.0, rel=0.02)
    assert stated.mean().item() == pytest.approx(values.std().item(), rel=0.15)


def test_what_is_surely_worse_is_worse_nearly_always():
    """Two plans of one distribution and correlated errors: seldom; 1.5 times as large in one sense: nearly always."""
    base, own = random(400, 1000), random(2, 400, 1000, seed=1)
    one, other = ((base + 0.5 * part).exp() for part in own)
    alarms = sum(surely_worse(a, b) for a, b in zip(one[:, :200], other[:, :200], strict=True)) / 400
    assert 0.005 < alarms < 0.09  # one-sided, in two senses
    lost = other.clone()
    lost[:, :100] = 1e4
    middle = torch.where(other < 4 * other.median(), 1.5 * other, other)
    for changed in (lost, middle):
        assert sum(surely_worse(a, b) for a, b in zip(changed, other, strict=True)) > 395
        assert not any(surely_worse(b, a) for a, b in zip(changed, other, strict=True))
    claims = sum(surely_better(a, b) for a, b in zip(one[:, :200], other[:, :200], strict=True)) / 400
    assert 0.005 < claims < 0.06
    assert sum(surely_better(b, 1.2 * a) for a, b in zip(one, other, strict=True)) > 395
    assert surely_worse(torch.full((4,), math.inf), torch.ones(4))
    assert surely_better(torch.ones(4), torch.full((4,), math.inf))
    assert not surely_worse(torch.full((4,), math.inf), torch.full((4,), math.inf))


def plans(count):
    solver = Solver("any", 0.0, Multistep(2))
    return [Contender(solver, grids.uniform(VPSDE(), 3 + k, end=0.02), str(k)) for k in range(count)]


@pytest.fixture
def judged(monkeypatch):
    """A judge over plans whose squared errors are given: (plan, noises) to squares."""

    def make(squares, standard):
        def squares_of(plan, chosen, n=None):
            found = squares[plan, chosen]
            if found is None:
                raise ArgumentError("grid", 0, "it cannot run", "Another.")
            return found

        return Selection(SimpleNamespace(eta=0.0, squares=squares_of), standard)

    return make


@pytest.mark.parametrize("seed", range(20))
def test_no_choice_loses_in_either_sense(judged, seed):
    """Random errors with random outliers: the start never loses to auto, nor the best to auto, on ``select``.

    The best is not surely worse than the start, which was chosen there; without auto it is not worse at all."""
    all_plans = plans(7)
    squares = {}
    for k, plan in enumerate(all_plans):
        for j, name in enumerate(("fit", "select", "fresh")):
            found = (random(40, seed=100 * seed + 10 * k + j) * 0.3).exp() * (1 + 0.1 * k)
            found[: int(random(1, seed=seed + k).abs() * 3)] *= 50.0
            squares[plan, name] = found
    ranked, found, standard = all_plans[:4], all_plans[4:], all_plans[seed % 4]
    squares[all_plans[(seed + 1) % 4], "select"] = None  # a plan that cannot run
    judge = judged(squares, standard)
    start = judge.best_start(ranked, "fit", "select")
    assert not worse(squares[start, "select"], squares[standard, "select"])
    best = judge.best([start, *found], start, "select")
    assert not worse(squares[best, "select"], squares[standard, "select"])
    assert not surely_worse(squares[best, "select"], squares[start, "select"])
    alone = judged(squares, None).best([start, *found], start, "select")
    assert not worse(squares[alone, "select"], squares[start, "select"])
    verdict = judge.verdict(start, best, "fresh", Measured(0.0, 0.0))
    after = squares[verdict.kept, "fresh"]
    assert torch.equal(verdict.after, after)
    assert not surely_worse(after, squares[standard, "fresh"])
    assert not surely_worse(after, squares[verdict.start, "fresh"])
    assert verdict.improved == (verdict.kept is not verdict.start)


def test_a_plan_that_is_better_by_its_root_mean_square_alone_is_not_taken(judged):
    """As in 64 dimensions, where a start without outliers was 3.4 times as bad as auto on a usual noise."""
    standard, smooth, better = plans(3)
    typical = torch.full((40,), 1e-4, dtype=FLOAT)
    typical[:2] = 1.0
    squares = {}
    for name in ("fit", "select", "fresh"):
        squares |= {(standard, name): typical, (smooth, name): torch.full((40,), 1e-2, dtype=FLOAT)}
        squares[better, name] = 0.5 * typical
    judge = judged(squares, standard)
    assert judge.best_start([smooth, standard], "fit", "select") is standard
    assert judge.best([standard, smooth], standard, "select") is standard
    assert judge.best([standard, smooth, better], standard, "select") is better
    # twice the median, and a mean square that is 250 times smaller: better by any mean of the two, and not taken
    squares |= {(smooth, name): torch.full((40,), 2e-4, dtype=FLOAT) for name in ("fit", "select")}
    assert judge.best_start([smooth, standard], "fit", "select") is standard
    assert judge.best([standard, smooth], standard, "select") is standard
    fresh = judge.verdict(standard, smooth, "fresh", Measured(0.0, 0.0))
    assert fresh.kept is standard
    # a start that was chosen wrongly loses to auto on fresh noises
    fallen = judge.verdict(smooth, smooth, "fresh", Measured(0.0, 0.0))
    assert fallen.kept is fallen.start is standard
    assert "lost to auto" in fallen.reason
    assert judging.Selection(judge.problem, None).best_start([smooth, standard], "fit", "select") is not None


@pytest.mark.parametrize(("lost", "size", "taken"), [(10, 2.0, False), (1, 3.3, True)])
def test_a_start_vetoes_what_is_surely_worse_and_chance_does_not(judged, lost, size, taken):
    """A tenth of the start's median, and a larger mean square by ten lost noises, or by one. auto's is larger still."""
    standard, start, plan = plans(3)
    errors = torch.full((40,), 0.05, dtype=FLOAT)
    errors[:lost] = size
    squares = {(standard, "select"): torch.full((40,), 1.1, dtype=FLOAT), (plan, "select"): errors.square()}
    squares[start, "select"] = torch.full((40,), 0.25, dtype=FLOAT)
    assert worse(squares[plan, "select"], squares[start, "select"])
    best = judged(squares, standard).best([start, plan], start, "select")
    assert best is (plan if taken else start)
    assert judged(squares, None).best([start, plan], start, "select") is start


@pytest.mark.parametrize(("changed", "wanted"), [("few", 1), ("all", 0), ("none", 0.5)])
def test_the_objective_turns_towards_the_sense_that_loses(judged, changed, wanted):
    """Few noises change mode: the mean square is larger. All errors but the largest are larger: the median is."""
    standard, start, plan = plans(3)
    bar = torch.linspace(1, 2, 41, dtype=FLOAT)
    bar[-1] = 100.0
    few, every = bar.clone(), 1.5 * bar
    few[-3:], every[-1] = 500.0, 10.0
    squares = {(standard, "select"): bar, (start, "select"): 0 * bar}
    squares[plan, "select"] = {"few": few, "all": every, "none": 0.9 * bar}[changed]
    share = judged(squares, standard).share(plan, start, "select")
    assert 0 < share < 1
    assert abs(share - wanted) < 0.5 or share == wanted


def test_what_surely_loses_to_auto_is_not_taken_although_it_beats_its_start(judged):
    """One noise of the start changes mode, which is not told from luck; a third of those of the best are lost."""
    standard, start, best = plans(3)
    errors = (0.1 * random(40)).exp()
    uneven, lost = errors.clone(), 0.1 * errors
    uneven[0] = 11.0
    lost[:12] = 3.0
    squares = {
        (standard, "fresh"): errors.square(),
        (start, "fresh"): uneven.square(),
        (best, "fresh"): lost.square(),
    }
    kept = judged(squares, standard).verdict(start, best, "fresh", Measured(0.0, 0.0))
    assert kept.kept is kept.start is start
    assert judged(squares, None).verdict(start, best, "fresh", Measured(0.0, 0.0)).kept is best


@pytest.mark.parametrize("nfe", [8])
def test_a_calibration_is_no_worse_than_auto_in_either_sense(nfe):
    """On its fresh noises, measured by ``sample``; ``auto`` is always among the starts."""
    means = random(10, 8, seed=1)
    model = GaussianMixture(means, VPSDE(), std=0.2)
    found = calibrate(model, None, nfe, n=96, strategy="search", time_limit=0.5, reference_steps=100)
    n = found.record["n"]
    how = {"dtype": FLOAT, "purpose": Purpose.CALIBRATION}
    x = per_sample_noise(0, n["first_fresh"], (n["fresh"], 8), **how)() * model.sde.sigma(1.0)
    truth = sample(model, Solver("", 0.0, Multistep(3)), grids.uniform_lambda(VPSDE(), 400, end=1e-4), x_start=x,
                   tweedie=True).x  # fmt: skip
    plan = auto(model, nfe)
    ours, theirs = (
        (sample(model, p.solver, p.grid, x_start=x, tweedie=p.tweedie).x - truth).square().mean(1)
        for p in (found, plan)
    )
    assert not surely_worse(ours, theirs)
    assert found.after.value == pytest.approx(ours.mean().sqrt().item(), rel=0.05)
    assert found.typical_after.value == pytest.approx(ours.sqrt().median().item(), rel=0.05)
    assert combined(ours) <= combined(theirs) * 1.02
