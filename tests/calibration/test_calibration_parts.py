"""What every part of a calibration promises: least squares, pattern search, rates, residuals, growth, and errors."""

import math
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from sde_toolkit import VPSDE, FlowMatching, GaussianMixture, ReverseEquation, Solver, gaussian, grids, sample
from sde_toolkit.calibration import distributions, knots
from sde_toolkit.calibration.descent import Descent
from sde_toolkit.calibration.distributions import Likeness, residuals, sliced_squares
from sde_toolkit.calibration.gradient import Descending, optimise
from sde_toolkit.calibration.increments import grid_of, increments_of, warp_modes
from sde_toolkit.calibration.plan_errors import Measured
from sde_toolkit.calibration.problem import Problem
from sde_toolkit.calibration.reference import fine_grid, solve_finely
from sde_toolkit.calibration.search import RIDGES, fitted_weights, pattern_search
from sde_toolkit.calibration.starts import Contender
from sde_toolkit.integrators import Corrected, FrozenEDM, FrozenX0, Multistep
from sde_toolkit.integrators.tuned import Tuned

FLOAT = torch.float64


def mixture(sde):
    means = torch.tensor([[1.2, 0.0], [-0.7, 0.9], [0.0, -1.1]], dtype=FLOAT)
    return GaussianMixture(means, sde, std=0.3)


def problem_of(model):
    return Problem(model, 0.0, 0, (2,), FLOAT, torch.device("cpu"), fine_steps=400)


# Least squares


@pytest.mark.parametrize("inside", [Multistep(3, FrozenEDM(0.7)), Corrected(Multistep(2, FrozenX0()))], ids=str)
@pytest.mark.parametrize("sde", [VPSDE(), FlowMatching()], ids=lambda s: type(s).__name__)
def test_fitted_factors_are_the_bottom_of_the_ridge_problem(inside, sde):
    """Nothing near the fitted factors of a step has a smaller |x_s − x*|² + ridge Σ |v_c|² (f_c − 1)², v_c = ∂x_s/∂f_c.

    x_s is run by the tuned solver itself, x* is where a far finer solve is at the same time.
    """
    problem = problem_of(mixture(sde))
    chosen = problem.noise_set(24)
    grid = grids.uniform(sde, 4, end=0.05)
    plan = Contender(Solver("plain", 0.0, inside), grid, "")
    count = inside.tunable_weights
    free = count if isinstance(inside, Multistep) else count - inside.predictor.order - 1
    plans = list(fitted_weights(problem, chosen, plan))
    assert len(plans) == len(RIDGES)
    truths = {k: state_at(problem, chosen, grid[k + 1]) for k in (0, 3)}
    for ridge, found in zip(RIDGES, plans, strict=True):
        factors = torch.tensor(found.solver.integrator.factors, dtype=FLOAT)
        assert factors.shape == (4, count)
        for k, truth in truths.items():

            def reached(row, k=k, factors=factors):
                rows = factors.clone()
                rows[k] = row
                tuned = Tuned(inside, tuple(tuple(r) for r in rows.tolist()))
                x = problem.starts(chosen.noise)
                return problem.descent.run(tuned, grid, x, None, tweedie=False, keep=True)[1][k + 1]

            row = factors[k]
            assert torch.equal(row[free:], torch.ones(count - free, dtype=FLOAT))
            unit = torch.eye(count, dtype=FLOAT)
            v = [reached(row + unit[c]) - reached(row) for c in range(free)]
            miss = reached(row) - truth
            for c in range(free):
                slope = (v[c] * miss).sum() + ridge * v[c].square().sum() * (row[c] - 1)
                assert abs(slope.item()) <= 1e-6 * v[c].norm().item() * truth.norm().item()


def state_at(problem, chosen, t):
    times = problem.fine_times(1500)
    times = torch.cat([times[times > t + 1e-6], t[None]])
    return solve_finely(problem.flow, problem.starts(chosen.noise), times, keep=True).states[-1]


def test_fitting_evaluates_the_network_once_a_step():
    problem = problem_of(mixture(VPSDE()))
    chosen = problem.noise_set(8)
    plan = Contender(Solver("plain", 0.0, Multistep(2)), grids.uniform_lambda(VPSDE(), 5, end=0.05), "")
    spent = []
    before = problem.evaluations
    for _ in fitted_weights(problem, chosen, plan):
        spent.append(problem.evaluations - before)
        before = problem.evaluations
    assert spent[1:] == [5 * 8] * (len(RIDGES) - 1)


# Pattern search


@dataclass
class Bowl:
    """A problem whose error is a bowl in the increments, with its bottom at ``bottom``."""

    bottom: Tensor
    end: float
    earliest: float = 1e-4
    eta: float = 0.0

    def squares(self, plan, chosen, n=None):
        a = increments_of(plan.grid, self.end)
        a, bottom = a - a.mean(), self.bottom - self.bottom.mean()
        return (a - bottom).square().sum()[None]


def begin(steps=6):
    plan = Contender(Solver("any", 0.0, Multistep(2)), grids.uniform(VPSDE(), steps, end=0.02), "")
    return plan, increments_of(plan.grid, 1e-4)


@pytest.mark.parametrize("amount", [(0.7, -1.1, 0.0, 0.3), (-0.9, 0.8, 0.5, -0.6)])
def test_the_pattern_search_finds_the_bottom_of_a_bowl(amount):
    plan, a = begin()
    directions = warp_modes(a, 6, 4)[1:]
    bottom = a + torch.tensor(amount, dtype=FLOAT) @ directions
    bowl = Bowl(bottom, 1e-4)
    found = pattern_search(bowl, None, plan, n=1, deadline=math.inf, runs=2000)
    before, after = (bowl.squares(p, None).item() for p in (plan, found))
    assert before > 1
    assert after < 0.01


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_pattern_search_grows_its_stride_by_half_at_every_success(sign):
    """From stride 0.4, five successes cover 0.4 (1.5⁵ − 1)/0.5: the bottom there is met exactly in five lucky runs.

    On the other side every success costs a failure before it. Then strides halve until they are below 0.03.
    """
    steps, far = 6, sign * 0.4 * (1.5**5 - 1) / 0.5
    plan = Contender(Solver("any", 0.0, Multistep(2)), grids.uniform(VPSDE(), steps, end=1e-4), "")
    a = increments_of(plan.grid, 1e-4)
    bowl = Bowl(a + far * warp_modes(a, steps, 1)[0], 1e-4)
    runs = 1 + (5 if sign > 0 else 10)
    search = {"n": 1, "deadline": math.inf, "modes": 1}
    assert bowl.squares(pattern_search(bowl, None, plan, runs=runs, **search), None).item() < 1e-20
    assert bowl.squares(pattern_search(bowl, None, plan, runs=runs - 1, **search), None).item() > 1
    told = []
    pattern_search(bowl, None, plan, runs=1000, tell=told.append, **search)
    stride, failures = 0.4 * 1.5**5, 0
    while stride > 0.03:
        stride, failures = stride / 2, failures + 2
    assert len(told) == runs - 1 + failures


@pytest.mark.parametrize("left", [True, False])
def test_warp_modes_are_cosines_over_the_steps(left):
    """Even modes are the same from both ends, odd ones change sign, mode k crosses zero k times, no two are alike."""
    steps = 10
    a = torch.zeros(steps + left, dtype=FLOAT)
    modes = warp_modes(a, steps, 4)
    assert modes.shape == (4 + left, steps + left)
    if left:
        assert torch.equal(modes[0], torch.eye(steps + 1, dtype=FLOAT)[-1])
        assert not modes[1:, -1].any()
        modes = modes[1:, :-1]
    for k, mode in enumerate(modes, start=1):
        torch.testing.assert_close(mode.flip(0), (-1) ** k * mode)
        assert mode[0].item() == pytest.approx(1.0)
        assert int((mode.sign().diff().abs() > 1).sum()) == k
    ends = torch.ones(steps, dtype=FLOAT)
    ends[0] = ends[-1] = 0.5  # the trapezium rule, under which cosines at equal steps are orthogonal
    products = (modes * ends) @ modes.T
    torch.testing.assert_close(products, products.diagonal().diag(), atol=1e-12, rtol=0)


# Knots


@pytest.mark.parametrize("scale", [0.3, 1.0, 16.0])
def test_errors_grow_as_the_flow_of_a_gaussian_carries_them(scale):
    """γ = 1: an error of the state at time t, squared, reaches the end as large as the flow of N(0, σ_d²) makes it."""
    model = gaussian(torch.zeros(2), VPSDE(), std=scale)
    times = torch.tensor([0.7, 0.4, 0.1], dtype=FLOAT)
    found = knots._growth(model.sde, times, 1.0, model.sigma_data)
    descent = Descent(model)
    for t, growth in zip(times, found, strict=True):
        grid = fine_grid(model.sde, 200, start=t.item(), end=1e-6, sigma_data=scale)
        x = scale * torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=FLOAT)
        end = solve_finely(descent, x, grid).end
        assert growth.item() == pytest.approx(((end[1] - end[0]) / scale).square().mean().item(), rel=1e-4)


def test_without_growth_errors_count_in_units_of_the_data():
    """γ = 0: what is left of an error after the signal was scaled up to its size at t = 0."""
    times = torch.tensor([1.0, 0.5, 0.0], dtype=FLOAT)
    for sde in (VPSDE(), FlowMatching()):
        found = knots._growth(sde, times, 0.0, 1.0)
        assert (found * sde.alpha(times).square())[1:].tolist() == pytest.approx([1.0, 1.0])
        assert bool(found.isfinite().all())


# Descent by gradients


@pytest.fixture
def noted(monkeypatch):
    """What the optimiser is given: the rate and the size of the gradient, at every step."""
    rates: list[float] = []
    sizes: list[float] = []

    class Adam(torch.optim.Adam):
        def step(self, closure=None):
            rates.append(self.param_groups[0]["lr"])
            sizes.append(self.param_groups[0]["params"][0].grad.norm().item())
            return super().step(closure)

    monkeypatch.setattr(torch.optim, "Adam", Adam)
    return SimpleNamespace(rates=rates, sizes=sizes)


def slope_of(sizes):
    """A problem whose loss has a gradient of the next of these sizes, at a grid that stays."""
    left = iter(sizes)
    sde = VPSDE()
    equation = ReverseEquation(mixture(sde), 0.0)
    return SimpleNamespace(
        seed=0,
        earliest=0.0,
        device=torch.device("cpu"),
        descent=SimpleNamespace(equation=equation),
        directions=lambda generator: None,
        loss=lambda integrator, grid, table, *rest, **how: next(left) * grid.sum(),
    )


def descend(problem, iterations, rate):
    plan = Contender(Solver("any", 0.0, Multistep(2)), grids.uniform(VPSDE(), 4, end=0.02), "")
    how = Descending(iterations=iterations, batch=2, grid_rate=rate)
    return plan, optimise(problem, [0, 1], plan, how, weights=False, deadline=math.inf)[-1]


def test_rates_rise_over_a_tenth_and_fall_along_half_a_cosine(noted):
    N = 200
    descend(slope_of([1.0] * N), N, 0.1)
    rates = torch.tensor(noted.rates, dtype=FLOAT)
    assert len(rates) == N
    assert rates[0].item() == pytest.approx(0.1 * 0.1, rel=1e-6)
    assert rates.argmax().item() == N // 10
    assert (rates[: N // 10 + 1].diff() > 0).all()
    after = rates[N // 10 :]
    assert (after.diff() < 0).all()
    assert rates[N // 2].item() == pytest.approx(0.1 / 2)
    # half a cosine: mirror images about its middle add up to the whole, and it is as curved as it is high
    torch.testing.assert_close(
        rates[N // 10 : N - N // 10 + 1] + rates[N // 10 : N - N // 10 + 1].flip(0),
        torch.full((161,), 0.1, dtype=FLOAT),
    )
    torch.testing.assert_close(
        (after - 0.05).square()[1:-1] + (after[2:] - after[:-2]).div(2 * torch.pi / N).square(),
        torch.full((len(after) - 2,), 0.05**2, dtype=FLOAT),
        rtol=1e-3,
        atol=0,
    )
    assert rates[-1] < 1e-4 * 0.1


def test_the_first_move_is_a_tenth_of_the_rate_for_every_increment(noted):
    plan, found = descend(slope_of([1.0]), 1, 0.05)
    moved = increments_of(found.grid, 0.0) - increments_of(plan.grid, 0.0)
    moved = moved - moved.mean()
    assert moved.abs().max().item() <= 2 * 0.005
    assert torch.unique((moved.diff() / 0.005).round(decimals=3)).tolist() != [0.0]
    assert set((moved.diff() / 0.005).round().tolist()) <= {-2.0, 0.0, 2.0}


def test_one_large_gradient_is_clipped_to_ten_times_the_usual(noted):
    """However large it is, it passes as ten usual ones, and is remembered as at most thirty; the next are untouched."""
    for outlier in (1e3, 1e6):
        noted.sizes.clear()
        descend(slope_of([1, 1, 1, outlier, 1, outlier, 1]), 7, 0.0)
        sizes = torch.tensor(noted.sizes) / noted.sizes[0]
        assert sizes[[0, 1, 2, 4, 6]].tolist() == pytest.approx([1.0] * 5)
        assert sizes[3].item() == pytest.approx(10.0)
        remembered = 0.9 * (0.9 + 0.1 * 30) + 0.1  # the running size, an outlier and an ordinary gradient later
        assert sizes[5].item() == pytest.approx(10 * remembered)


def test_gradients_that_stay_large_pass_whole_after_a_while(noted):
    descend(slope_of([1.0] + [100.0] * 40), 41, 0.0)
    sizes = torch.tensor(noted.sizes) / noted.sizes[0]
    assert sizes[1].item() == pytest.approx(10.0)
    assert sizes[-1].item() == pytest.approx(100.0)


# Distances of distributions


@pytest.mark.parametrize("scale", [0.5, 1.0, 16.0])
def test_residuals_are_the_posterior_variance(scale):
    """For N(0, σ_d²): E|x − x̂_0|² = σ_d²/(1 + snr σ_d²) at levels snr σ_d² = 1, e², e⁴, e⁶, whatever the unit."""
    model = gaussian(torch.zeros(4), VPSDE(), std=scale)
    x = model.draw(60_000, generator=torch.Generator().manual_seed(1), dtype=FLOAT)
    found = residuals(ReverseEquation(model, 1.0), x, earliest=1e-6).mean(1)
    wanted = [scale**2 / (1 + math.exp(2 * level)) for level in range(4)]
    assert found.tolist() == pytest.approx(wanted, rel=0.02)


def test_the_floor_belongs_to_the_number_of_samples():
    """A shifted copy of the target exceeds it by the shift less three floors; half the samples have twice the floor."""
    drawn = torch.randn(400, 2, generator=torch.Generator().manual_seed(0), dtype=FLOAT)
    likeness = Likeness(drawn, torch.ones(1), torch.ones(1))
    directions = torch.eye(2, dtype=FLOAT)
    shift, size = 5.0, drawn.square().mean()
    beyond = [
        (likeness.excess(drawn[rows] + shift, rows, directions) * size).item()
        for rows in (slice(0, 400), slice(0, 200), slice(0, 100))
    ]
    whole, half, quarter = (shift**2 - value for value in beyond)
    two_halves = sliced_squares(drawn[:200], drawn[200:], directions).mean().item()
    assert half == pytest.approx(3 * two_halves)
    assert whole == pytest.approx(half / 2)
    assert quarter == pytest.approx(half * 2)
    assert likeness.excess(drawn[200:], slice(0, 200), directions).item() == 0.0


def test_blocks_are_judged_against_the_others(monkeypatch):
    """Residuals of c² times the size: log c squared in every block. Noise alone: nothing on average, unlike squares."""
    sizes = torch.tensor([1.0, 0.3], dtype=FLOAT)
    likeness = Likeness(torch.zeros(800, 1, dtype=FLOAT) + 1, sizes, torch.tensor([1.0, 0.5], dtype=FLOAT))
    x, directions = torch.ones(800, 1, dtype=FLOAT), torch.ones(1, 1, dtype=FLOAT)

    def blocks(squares):
        monkeypatch.setattr(distributions, "residuals", lambda *a, **k: squares)
        return likeness.blocks(None, x, directions, 0.0)

    c = 1.7
    level = (c * sizes).square()[:, None].expand(2, 800)
    assert blocks(level).tolist() == pytest.approx([1.5 * math.log(c) ** 2] * 8)
    generator = torch.Generator().manual_seed(0)
    means, naive = [], []
    for _ in range(1500):
        noise = 1 + torch.rand(2, 800, generator=generator, dtype=FLOAT) - 0.5
        means.append(blocks(noise * sizes.square()[:, None]).mean().item())
        naive.append((torch.log(noise.mean(1)) / 2).square().sum().item())
    means = torch.tensor(means)
    assert abs(means.mean()) < 4 * means.std() / len(means) ** 0.5
    assert torch.tensor(naive).mean() > 8 * means.std() / len(means) ** 0.5  # what a biased estimate would show


# Errors


def test_a_measured_error_is_a_root_mean_square_with_its_spread():
    """Over repeated draws the value varies by the stated error, and its mean is the root of the mean square."""
    generator = torch.Generator().manual_seed(0)
    found = [Measured.of(torch.randn(400, generator=generator, dtype=FLOAT).square() * 9) for _ in range(2000)]
    values = torch.tensor([m.value for m in found])
    assert values.mean().item() == pytest.approx(3.0, rel=0.005)
    assert torch.tensor([m.error for m in found]).mean().item() == pytest.approx(values.std().item(), rel=0.06)
    assert Measured.of(torch.full((5,), 4.0)) == Measured(2.0, 0.0)
    assert Measured.of(torch.full((5,), -4.0)) == Measured(0.0, 0.0)
    assert math.isnan(Measured.of(torch.tensor([4.0])).error)


def test_grids_have_every_increment():
    a = torch.randn(6, generator=torch.Generator().manual_seed(0), dtype=FLOAT)
    grid = grid_of(a, 0.9, 0.1, 5)
    torch.testing.assert_close(increments_of(grid, 0.1), torch.log_softmax(a, 0))


# Runs


@pytest.mark.parametrize("tweedie", [False, True])
def test_a_run_of_a_calibration_is_a_run_of_sample(tweedie):
    """The same bits at the end and on the way, and every evaluation counted once for each sample."""
    model, grid = mixture(VPSDE()), grids.uniform(VPSDE(), 5, end=0.01)
    solver, x = (
        Solver("2m", 0.0, Multistep(2)),
        torch.randn(7, 2, dtype=FLOAT, generator=torch.Generator().manual_seed(0)),
    )
    runs = Descent(model)
    end, states = runs.run(solver.integrator, grid, x, tweedie=tweedie, keep=True)
    expected = sample(model, solver, grid, x_start=x, tweedie=tweedie, trajectory=True)
    assert torch.equal(end, expected.x)
    assert torch.equal(states, expected.trajectory)
    assert runs.evaluations == 7 * expected.nfe
