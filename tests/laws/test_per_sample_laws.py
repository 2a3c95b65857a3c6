"""Steps per sample, on the flow and on the SDE: each sample is solved as if it were alone, and says what it took."""

import functools
import math
from dataclasses import replace
from itertools import product

import pytest
import scipy.integrate
import torch
from catalogue import (
    EVENT_SHAPES,
    SDES,
    SMOOTH_SDES,
    convergence_order,
    covering,
    doubles,
    flow_solution,
    gaussian_data,
    marginal,
    model_of,
    name,
    own_moments,
    relative_error,
    run_on,
    spread,
)

from sde_toolkit import (
    SDE,
    VPSDE,
    GaussianMixture,
    ReverseEquation,
    Solver,
    gaussian,
    grids,
    probability_flow,
    sample,
)
from sde_toolkit.errors import ArgumentError, MaxEvaluationsError, NonFiniteError
from sde_toolkit.integrators import AdaptiveSDE, PerSample, Scipy, adaptive_sde
from sde_toolkit.integrators.adaptive_sde import KnownPath
from sde_toolkit.integrators.per_sample import TABLEAUS
from sde_toolkit.integrators.stepping import root_mean_square

BEGIN, END = 0.9, 0.1
METHODS = [PerSample(method=method) for method in PerSample.methods]
NOISY = Solver("noisy", 1.0, AdaptiveSDE(rtol=0.1, atol=0.1))
BOTH = [probability_flow(PerSample(rtol=1e-3)), NOISY]  # for what does not depend on tolerances
# Bisection for 1/λ at a time per sample is dear where α and σ are quadratures: those join the laws of few samples.
QUICK = [sde for sde in SDES if type(sde).solve_half_log_snr is not SDE.solve_half_log_snr]
SMOOTH = [sde for sde in QUICK if sde in SMOOTH_SDES]
every_sde = pytest.mark.parametrize("sde", SDES, ids=name)
every_quick_sde = pytest.mark.parametrize("sde", QUICK, ids=name)
every_smooth_sde = pytest.mark.parametrize("sde", SMOOTH, ids=name)
every_method = pytest.mark.parametrize("integrator", METHODS, ids=lambda i: i.method)
both = pytest.mark.parametrize("solver", BOTH, ids=lambda s: name(s.integrator))


def points(sde, t=BEGIN, n=9, event=(2,)):
    size = (sde.alpha(t) ** 2 + sde.sigma(t) ** 2).sqrt()
    return size * torch.randn(n, *event, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def two_modes(sde):
    """Far apart and narrow: steep between them, easy elsewhere. Elementwise, so that only sample() could couple."""
    return GaussianMixture(doubles(-4.0, 4.0), sde, std=0.1)


def by_rows(model):
    """The same model with every row computed alike: vector loops round otherwise than the scalars they leave over."""

    def network(x, time):
        whole = torch.arange(16 * (-(-len(x) // 16))).clamp(max=len(x) - 1)
        return model.network(x[whole], time.expand(len(x))[whole])[: len(x)]

    return model_of(network, model.sde, "v")


def mixed_points(sde, n=33):
    """Mostly easy starts, and hard ones near the watershed."""
    size = (sde.alpha(BEGIN) ** 2 * 16 + sde.sigma(BEGIN) ** 2).sqrt()
    x = size * torch.randn(n, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    x[::8] *= 0.01
    return x


def solve(solver, model, x, grid=(BEGIN, END), **options):
    return sample(model, solver, doubles(*grid), x_start=x, **{"dtype": torch.float64, **options})


@pytest.mark.parametrize(("method", "peer"), [("dopri5", scipy.integrate.RK45), ("bosh3", scipy.integrate.RK23)])
def test_the_pairs_are_the_published_ones(method, peer):
    pair = TABLEAUS[method]
    for i, row in enumerate(pair.a[:-1], start=1):
        assert row == pytest.approx(tuple(peer.A[i, :i]), rel=1e-14, abs=1e-16)
    assert pair.a[-1] == pytest.approx(tuple(peer.B), rel=1e-14)
    assert pair.c == pytest.approx((*peer.C, 1), rel=1e-14)
    assert pair.q == peer.error_estimator_order + 1
    sign = math.copysign(1, peer.E[0] * pair.e[0])
    assert [sign * e for e in pair.e] == pytest.approx(list(peer.E), rel=1e-12, abs=1e-16)


@pytest.mark.on_device
@every_sde
def test_the_flow_of_gaussian_data_is_met_at_tight_tolerance(sde):
    x, model = points(sde, n=3), gaussian_data(sde)
    found = solve(probability_flow(PerSample(rtol=1e-10, atol=1e-10)), model, x).x
    assert relative_error(found, flow_solution(sde, x, BEGIN, END)) < 1e-7


@pytest.mark.on_device
@pytest.mark.parametrize("sde", QUICK[:2], ids=name)
def test_agreement_with_scipy_at_tight_tolerance(sde):
    """On data whose flow has no closed form."""
    x, model = points(sde, n=3, event=()), GaussianMixture(doubles(-1.0, 1.0), sde, std=0.5)
    reference = solve(probability_flow(Scipy(method="DOP853", rtol=1e-11, atol=1e-11)), model, x).x
    assert relative_error(solve(probability_flow(PerSample(rtol=1e-10, atol=1e-10)), model, x).x, reference) < 1e-7


@functools.cache
def ends_of_mixed_points():
    model, x = two_modes(VPSDE()), mixed_points(VPSDE())
    return solve(probability_flow(PerSample(rtol=1e-12, atol=1e-12)), model, x).x


@pytest.mark.on_device
@every_method
@pytest.mark.parametrize("tolerance", [1e-3, 1e-5, 1e-7])
def test_every_sample_is_within_tolerance(integrator, tolerance):
    model, x, truth = two_modes(VPSDE()), mixed_points(VPSDE()), ends_of_mixed_points()
    found = solve(probability_flow(replace(integrator, rtol=tolerance, atol=tolerance)), model, x).x
    error = (found - truth).abs() / (1 + truth.abs())
    assert error.max() < 30 * tolerance  # the steepest start stretches its error before it contracts
    assert error.median() < 3 * tolerance


@pytest.mark.on_device
@pytest.mark.parametrize(
    ("sde", "setting"), covering(QUICK, list(product(BOTH, [(BEGIN, END), (BEGIN, 0.5, 0.3, END)]))), ids=name
)
def test_a_sample_is_the_same_bits_alone_and_in_any_company(sde, setting):
    solver, grid = setting
    model, x = by_rows(two_modes(sde)), mixed_points(sde, 17)
    whole = solve(solver, model, x, grid)
    assert whole.statistics.evaluations.unique().numel() > 1
    for batch_size in (6, 16):
        split = solve(solver, model, x, grid, batch_size=batch_size)
        assert torch.equal(split.x, whole.x)
        for part in ("accepted", "rejected", "evaluations"):
            assert torch.equal(getattr(split.statistics, part), getattr(whole.statistics, part))
    alone = solve(solver, model, x[8:9], grid, first_index=8)
    assert torch.equal(alone.x, whole.x[8:9])


@pytest.mark.on_device
@both
def test_float32_is_the_same_bits_too(solver):
    model = gaussian(torch.zeros(3, 5), VPSDE(), std=torch.linspace(0.1, 1, 15).reshape(3, 5))
    whole, split = (
        sample(model, solver, doubles(1.0, 0.3, 0.01), shape=(21, 3, 5), batch_size=size) for size in (None, 4)
    )
    assert torch.equal(whole.x, split.x)


@pytest.mark.on_device
def test_the_norm_of_a_sample_knows_no_other():
    for size in (1, 2, 3, 7, 1000):
        x = torch.randn(9, size, generator=torch.Generator().manual_seed(1))
        assert torch.equal(torch.cat([root_mean_square(row[None]) for row in x]), root_mean_square(x))
        torch.testing.assert_close(root_mean_square(x), x.square().mean(1).sqrt())


@pytest.mark.on_device
@both
def test_conditions_follow_the_samples_that_are_still_under_way(solver):
    mean = torch.linspace(-3, 3, 9, dtype=torch.float64)

    def network(x, time, condition):
        alpha, sigma = VPSDE().alpha(time), VPSDE().sigma(time)
        narrow = condition["std"].to(x)
        return sigma * (x - alpha * condition["mean"].to(x)) / (alpha**2 * narrow**2 + sigma**2)

    condition = {"mean": mean, "std": torch.logspace(-3, 1, 9, dtype=torch.float64), "label": torch.tensor(1)}
    model, x = model_of(network, VPSDE()), points(VPSDE(), event=())
    whole = solve(solver, model, x, condition=condition)
    assert whole.statistics.evaluations.unique().numel() > 1
    assert torch.equal(solve(solver, model, x, condition=condition, batch_size=1).x, whole.x)


class Recorder(torch.nn.Module):
    """Remembers every (sample, time) asked for; the samples are told by the condition."""

    def __init__(self, exact):
        super().__init__()
        self.exact, self.asked = exact, []

    def forward(self, x, time, condition):
        self.asked.append((condition.clone(), time.clone()))
        return self.exact(x, time).epsilon


@both
def test_evaluations_are_those_made_and_no_time_is_passed(solver):
    sde, n = VPSDE(), 33
    network = Recorder(two_modes(sde))
    found = solve(solver, model_of(network, sde), mixed_points(sde), condition=torch.arange(n))
    asked = torch.cat([torch.stack([c.double(), t.double().expand(len(c))]) for c, t in network.asked], 1)
    assert torch.equal(asked[0].long().bincount(minlength=n), found.statistics.evaluations)
    assert found.nfe == len(network.asked) == found.statistics.evaluations.max()
    for i in range(n):
        times = asked[1, asked[0] == i]
        assert times.max() == pytest.approx(BEGIN, abs=1e-12)
        assert times.min() == pytest.approx(END, abs=1e-12)
        assert times[-1] == times.min()  # ends there, and went no further


@pytest.mark.on_device
@every_method
@pytest.mark.parametrize("grid", [(BEGIN, END), (BEGIN, 0.6, 0.5, 0.3, END)], ids=len)
def test_what_the_flow_costs(integrator, grid):
    """Two evaluations find the first step, each attempt takes the pair's stages but the first, also over many times."""
    statistics = solve(probability_flow(integrator), two_modes(VPSDE()), mixed_points(VPSDE()), grid).statistics
    stages = len(TABLEAUS[integrator.method].c) - 1
    assert torch.equal(statistics.evaluations, 2 + stages * (statistics.accepted + statistics.rejected))
    assert (statistics.accepted >= len(grid) - 1).all()
    assert statistics.rejected.sum() > 0


@pytest.mark.on_device
@every_sde
def test_there_and_back_again(sde):
    """Encoding is the same solver on the reversed interval."""
    solver, model, x = probability_flow(PerSample(rtol=1e-8, atol=1e-8)), gaussian_data(sde), points(sde, n=3)
    there = run_on(solver, model, doubles(BEGIN, END), x)
    assert relative_error(run_on(solver, model, doubles(END, 0.4, BEGIN), there), x) < 1e-6


@pytest.mark.on_device
@both
def test_a_sample_that_is_not_finite_is_named_by_its_place_in_the_whole_batch(solver):
    exact = two_modes(VPSDE())

    def network(x, time, condition):
        y = exact(x, time).epsilon
        return torch.where((condition == 24) & (time < 0.3), math.nan, y)

    with pytest.raises(NonFiniteError, match=r"1 of 33 samples \(first: 24\)") as caught:
        solve(solver, model_of(network, VPSDE()), mixed_points(VPSDE()), condition=torch.arange(33))
    assert END <= caught.value.t < 0.3


@pytest.mark.on_device
@both
def test_the_limit_is_each_samples_own(solver):
    model, x = two_modes(VPSDE()), mixed_points(VPSDE())
    free = solve(solver, model, x)
    needed = free.statistics.evaluations
    enough = replace(solver, integrator=replace(solver.integrator, max_nfe=int(needed.max())))
    assert torch.equal(solve(enough, model, x, batch_size=11).x, free.x)
    scarce = replace(solver, integrator=replace(solver.integrator, max_nfe=int(needed.max()) - 1))
    with pytest.raises(MaxEvaluationsError) as caught:
        solve(scarce, model, x)
    assert END <= caught.value.t <= BEGIN
    hardest = int(needed.argmax())
    others = torch.cat([x[:hardest], x[hardest + 1 :]])
    if needed.sort().values[-2] < needed.max() and solver.eta == 0:
        assert solve(scarce, model, others).x.isfinite().all()


@pytest.mark.on_device
@both
def test_fixed_step_solvers_have_no_statistics_and_these_have(solver):
    model = gaussian(torch.zeros(2), VPSDE(), std=0.5)
    assert sample(model, solver, doubles(1.0, 0.1), shape=(3, 2), batch_size=2).statistics.accepted.shape == (3,)
    assert sample(model, probability_flow(), doubles(1.0, 0.1), shape=(3, 2)).statistics is None


# The SDE.


def accepts_all(eta):
    """One step per interval of the grid, whatever its error."""
    return Solver("", eta, AdaptiveSDE(rtol=1e9, atol=1e9, first_step=1.0))


@pytest.mark.on_device
@pytest.mark.parametrize(("sde", "eta"), covering(SMOOTH, [0.5, 1.0]), ids=name)
def test_weak_order_of_its_scheme(sde, eta):
    counts, errors, begin, end = (16, 32, 64), [], 0.7, 0.4
    mean, covariance = marginal(sde, end)
    for n in counts:
        grid = grids.uniform_lambda(sde, n, start=begin, end=end)
        own = own_moments(accepts_all(eta), gaussian_data(sde), grid, *marginal(sde, begin))
        errors.append(math.hypot((own[0] - mean).norm().item(), (own[1] - covariance).norm().item()))
    assert -0.15 < convergence_order(counts, errors) - AdaptiveSDE.weak_order < 0.5  # linear data are kind to it


@pytest.mark.on_device
@pytest.mark.parametrize(("sde", "eta"), covering(SMOOTH, [0.5, 1.0]), ids=name)
def test_strong_order_of_its_scheme(sde, eta):
    """On one Brownian path in λ: how far n steps are from 2n, which falls as their errors do."""
    counts, finest, begin, end = (32, 64, 128), 256, 0.7, 0.4
    z = torch.randn(finest, 100, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    x, model, ends = points(sde, begin, 100), gaussian_data(sde), {}
    for n in (*counts, finest):
        grid = grids.uniform_lambda(sde, n, start=begin, end=end)
        summed = z.reshape(n, finest // n, 100, 2).sum(1) / math.sqrt(finest // n)
        ends[n] = run_on(accepts_all(eta), model, grid, x, summed)
    errors = [(ends[n] - ends[2 * n]).square().mean().sqrt().item() for n in counts]
    assert convergence_order(counts, errors) == pytest.approx(AdaptiveSDE.strong_order, abs=0.15)


@pytest.mark.on_device
@pytest.mark.parametrize(("sde", "eta"), covering(QUICK, [1.0, 0.5]), ids=name)
def test_the_marginal_is_right_within_error_bars(sde, eta):
    n, size = 2000, spread(sde, END).max().sqrt().item()
    mean, covariance = marginal(sde, BEGIN)
    z = torch.randn(n, 2, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    start = mean + z @ torch.linalg.cholesky(covariance).T
    solver = Solver("", eta, AdaptiveSDE(rtol=0.02, atol=0.02 * size))
    found = solve(solver, gaussian_data(sde), start, generator=torch.Generator().manual_seed(7))
    mean, covariance = marginal(sde, END)
    assert ((found.x.mean(0) - mean).abs() < 5 * covariance.diagonal().sqrt() / math.sqrt(n)).all()
    variances = covariance.diagonal()
    bars = ((variances[:, None] * variances + covariance**2) / n).sqrt()
    assert ((found.x.T.cov() - covariance).abs() < 5 * bars).all()


class GivenPath:
    """Stands in for KnownPath: one Brownian path for all solves, a fine random walk in λ."""

    cells = 2**14

    def __init__(self, x, length):
        self.length, self.at = length, torch.zeros(len(x), dtype=torch.float64)
        z = torch.randn(self.cells, *x.shape, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
        self.walk = torch.cat([torch.zeros_like(x)[None], z.cumsum(0) * math.sqrt(length / self.cells)])

    def value(self, u):
        place = (u / self.length * self.cells).round().long().clamp(max=self.cells)
        return self.walk[place, torch.arange(len(u))]

    def increment(self, h, z):
        return self.value(self.at + h) - self.value(self.at)

    def move(self, h, increment, good):
        self.at = torch.where(good, self.at + h, self.at)

    def keep(self, rows):
        self.at, self.walk = self.at[rows], self.walk[:, rows]


@every_smooth_sde
def test_the_error_on_a_path_falls_with_the_tolerance(sde, monkeypatch):
    begin, end = 0.6, 0.3
    length = (sde.half_log_snr(end) - sde.half_log_snr(begin)).item()
    monkeypatch.setattr(adaptive_sde, "KnownPath", lambda x: GivenPath(x, length))
    x, size, ends = points(sde, begin, 25), spread(sde, end).max().sqrt().item(), {}
    for tolerance in (0.3, 0.03, 0.006):
        solver = Solver("", 1.0, AdaptiveSDE(rtol=tolerance, atol=tolerance * size))
        ends[tolerance] = solve(solver, gaussian_data(sde), x, (begin, end)).x
    coarse, fine = ((ends[t] - ends[0.006]).square().mean().sqrt().item() / size for t in (0.3, 0.03))
    assert fine < coarse / 2
    assert fine < 0.1


@pytest.mark.parametrize(
    "dislike", [lambda w, h: w.abs() > h.sqrt(), lambda w, h: w > 0.3 * h.sqrt()], ids=["large", "positive"]
)
def test_rejections_that_depend_on_the_noise_do_not_change_its_law(dislike):
    """However attempts are chosen and refused, the path to distance 1 is Brownian: noise drawn anew would not be."""
    n = 10_000
    generator = torch.Generator().manual_seed(9)
    path, at, w = KnownPath(torch.zeros(n)), torch.zeros(n, dtype=torch.float64), torch.zeros(n)
    half, retries = torch.zeros(n), torch.zeros(n, dtype=torch.int64)
    while (at < 1).any():
        scale = 0.4 * 0.5**retries * (0.5 + torch.rand(n, generator=generator, dtype=torch.float64))
        h = torch.minimum(scale, torch.where(at < 0.5, 0.5 - at, 1 - at))
        dw = path.increment(h, torch.randn(n, generator=generator))
        good = ~dislike(dw.double(), h) | (retries >= 4) | (h == 0)
        path.move(h, dw, good)
        at, w = torch.where(good, at + h, at), torch.where(good, w + dw, w)
        half = torch.where(at <= 0.5, w, half)
        retries = torch.where(good, 0, retries + 1)
    bar = 1 / math.sqrt(n)
    for values, variance in ((half, 0.5), (w - half, 0.5), (w, 1.0)):
        assert abs(values.mean()) < 5 * bar * math.sqrt(variance)
        assert abs(values.var() / variance - 1) < 5 * bar * math.sqrt(2)
    assert abs((half * (w - half)).mean()) < 5 * bar * 0.5
    assert path.ahead[path.ahead > 1e-9].isinf().all()  # what has been passed is forgotten


@pytest.mark.on_device
@pytest.mark.parametrize("event", EVENT_SHAPES, ids=name)
def test_any_event_shape_of_the_sde(event):
    model = gaussian(torch.full(event, 0.5), VPSDE(), std=0.4)
    n = max(4, 4096 // math.prod(event))
    found = sample(model, Solver("", 1.0, AdaptiveSDE(rtol=0.05, atol=0.01)), doubles(1.0, 0.1), shape=(n, *event))
    assert found.x.shape == (n, *event)
    std = (VPSDE().alpha(0.1) ** 2 * 0.4**2 + VPSDE().sigma(0.1) ** 2).sqrt().item()
    assert abs(found.x.mean().item() - VPSDE().alpha(0.1).item() * 0.5) < 5 * std / math.sqrt(found.x.numel())
    assert abs(found.x.std().item() / std - 1) < 5 / math.sqrt(2 * found.x.numel())


@pytest.mark.parametrize(
    ("argument", "value"),
    [("rtol", 0.0), ("atol", math.nan), ("max_nfe", 0), ("safety", 0.0), ("exponent", 1.5), ("first_step", -1.0)],
)
def test_bad_settings_of_the_sde_solver(argument, value):
    with pytest.raises(ArgumentError) as caught:
        AdaptiveSDE(**{argument: value})
    assert f"{argument}={value!r}" in str(caught.value)


@pytest.mark.on_device
def test_the_sde_solver_refuses_the_flow():
    with pytest.raises(ArgumentError, match=r"eta=0\.0.*PerSample"):
        AdaptiveSDE().check(ReverseEquation(two_modes(VPSDE()), 0.0))
