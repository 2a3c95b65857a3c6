"""Units: data and noise measured in another unit are the same problem, and everything that chooses by itself knows it.

x → u x and σ → u σ at the same α is a change of units. Times stay what they are, λ moves by −log u, the data's size
σ_d becomes u σ_d. Samples, errors and distances in x are u times as large, densities lose D log u, and whatever counts
or compares stays the same, all to round-off.
"""

import functools
import math
from dataclasses import dataclass, field, replace

import pytest
import torch
from catalogue import SDES, SOLVERS, RandomNetwork, covering, doubles, name
from quickly import calibrate

from sde_toolkit import (
    EDMSDE,
    SDE,
    VESDE,
    VPSDE,
    FlowMatching,
    GaussianMixture,
    ScoreModel,
    Solver,
    auto,
    edm_stochastic,
    encode,
    grids,
    log_likelihood,
    losses,
    probability_flow,
    sample,
    variational_bound,
)
from sde_toolkit.calibration.problem import Problem
from sde_toolkit.evaluation import compare_solvers, local_errors
from sde_toolkit.evaluation.endpoint import flow_endpoint
from sde_toolkit.integrators import (
    AdamsBashforth,
    ChurnedHeun,
    Corrected,
    Exponential,
    Multistep,
    PerSample,
    Scipy,
    TorchDiffEq,
)
from sde_toolkit.likelihood import ExactTrace, Hutchinson, Joint, Refined, discrete_bound, finite_differences
from sde_toolkit.metrics.judge import Judge, exact_features, flat_features

UNITS = [16.0, 1 / 300]
every_unit = pytest.mark.parametrize("unit", UNITS, ids=["16", "a 300th"])


@dataclass(frozen=True)
class InUnits(SDE):
    """The path of ``inner`` for x in another unit: σ and g are ``unit`` times as large."""

    inner: SDE = field(default_factory=VPSDE)
    unit: float = 1.0

    @property
    def sampling_end(self):
        return self.inner.sampling_end

    @property
    def likelihood_end(self):
        return self.inner.likelihood_end

    def alpha(self, t):
        return self.inner.alpha(t)

    def log_alpha(self, t):
        return self.inner.log_alpha(t)

    def sigma(self, t):
        return self.unit * self.inner.sigma(t)

    def half_log_snr(self, t):
        return self.inner.half_log_snr(t) - math.log(self.unit)

    def solve_half_log_snr(self, lambda_t):
        return self.inner.solve_half_log_snr(lambda_t + math.log(self.unit))

    def f(self, t):
        return self.inner.f(t)

    def g(self, t):
        return self.unit * self.inner.g(t)

    def d_alpha(self, t):
        return self.inner.d_alpha(t)

    def d_sigma(self, t):
        return self.unit * self.inner.d_sigma(t)


def mixture(sde, unit, size=1.0):
    """Three modes; the data are ``size`` times as large as usual, and then measured in the unit."""
    means, std = doubles(-1.0, 0.5, 1.5, 1.0, 0.0, -2.0).reshape(3, 2), doubles(0.3, 0.6, 0.2)
    return GaussianMixture(means * size * unit, InUnits(sde, unit), std=std * size * unit)


def network(sde, unit, kind="x0"):
    """A rough network of x_0, ε or EDM's F, of data of size 0.7."""
    inner = RandomNetwork()

    def in_unit(x, time):
        if kind == "edm":
            return inner(x, time)  # it is given c_in x, which has no unit
        return (unit if kind == "x0" else 1.0) * inner(x / unit, time)

    how = {"time_input": lambda sde, t: t, "sigma_data": 0.7 * unit, "event_shape": (2,)}
    return ScoreModel(in_unit, InUnits(sde, unit), kind, **how)


def same(found, expected, unit=1.0, rtol=1e-6):
    """``found`` is ``unit`` times ``expected``, to ``rtol`` of its largest entry."""
    found, expected = (torch.as_tensor(v, dtype=torch.float64) for v in (found, expected))
    scale = expected.abs().max().item() if expected.numel() else 0.0
    torch.testing.assert_close(found / unit, expected, rtol=rtol, atol=rtol * scale)


RUN = {"shape": (16, 2), "seed": 5, "dtype": torch.float64}


# What ``auto`` chooses


@pytest.mark.parametrize(("sde", "eta"), covering(SDES, [0.0, 0.5, 1.0]), ids=name)
@pytest.mark.parametrize("unit", UNITS[:1])
def test_auto(sde, eta, unit):
    for nfe in (2, 9, 12, 22, 64):
        plans = [auto(mixture(sde, u, size=0.4), nfe, eta) for u in (1.0, unit)]
        same(plans[1].grid, plans[0].grid)
        ends = [
            sample(mixture(sde, u, size=0.4), plan.solver, plan.grid, tweedie=plan.tweedie, **RUN).x
            for u, plan in zip((1.0, unit), plans, strict=True)
        ]
        same(ends[1], ends[0], unit, rtol=1e-5)


@pytest.mark.parametrize("kind", ["x0", "epsilon", "edm"])
def test_auto_takes_the_size_from_the_model_whatever_it_predicts(kind):
    ends = [sample(network(EDMSDE(), u, kind), "auto", nfe=12, **RUN).x for u in (1.0, 16.0)]
    same(ends[1], ends[0], 16.0)


# Grids and solvers


@pytest.mark.parametrize("sde", SDES, ids=name)
@every_unit
def test_grid_builders(sde, unit):
    """Those in λ that have a center need the data's size."""
    start = 1.0 if sde.alpha(1.0) > 0 else 0.98
    for build in (grids.uniform, grids.quadratic, grids.uniform_lambda, grids.karras, grids.sech):
        size = {"sigma_data": unit} if build is grids.sech else {}
        same(build(InUnits(sde, unit), 9, start=start, **size), build(sde, 9, start=start))


def with_default_tolerances(solver):
    """The catalogue's are absolute."""
    adaptive = solver.integrator.evals_per_step is None
    return replace(solver, integrator=replace(solver.integrator, rtol=0.01, atol=None)) if adaptive else solver


SETTINGS = [(VPSDE(), UNITS[0]), (VESDE(), UNITS[1]), (EDMSDE(), UNITS[0]), (VPSDE(), UNITS[1])]


@pytest.mark.parametrize(
    ("solver", "setting"), covering([with_default_tolerances(solver) for solver in SOLVERS], SETTINGS, 2), ids=name
)
def test_every_solver(setting, solver):
    """Whoever steps by a tolerance takes the same steps."""
    (sde, unit), done = setting, []
    by_noise = solver.integrator.evals_per_step is None and solver.eta > 0
    for u in (1.0, unit):
        model, run = mixture(sde, u), {**RUN, "shape": (5, 2)}
        end = None
        if by_noise:  # which steps the noise lets pass is chaotic: over a hundred of them, round-off decides
            end = model.sde.inverse_half_log_snr(model.sde.half_log_snr(1.0) + 0.2).item()
        done.append(sample(model, solver, grids.uniform_lambda(model.sde, 6, end=end), **run))
    same(done[1].x, done[0].x, unit, rtol=1e-5 if by_noise else 1e-6)
    if done[0].statistics is not None:
        assert torch.equal(done[0].statistics.accepted, done[1].statistics.accepted)


ADAPTIVE = [PerSample(), PerSample("bosh3"), TorchDiffEq(), TorchDiffEq("bosh3"), Scipy(), Scipy("DOP853")]


@pytest.mark.parametrize(
    ("integrator", "unit"),
    covering(ADAPTIVE, UNITS),
    ids=lambda v: f"{name(v)}-{v.method}" if v in ADAPTIVE else name(v),
)
def test_adaptive_solvers_of_the_flow_up_and_down(integrator, unit):
    for way in (encode, lambda model, solver, grid, x, **how: sample(model, solver, grid, x_start=x, **how)):
        done = []
        for u in (1.0, unit):
            x = u * torch.randn(7, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
            done.append(way(mixture(VPSDE(), u), probability_flow(integrator), doubles(0.9, 0.05), x, dtype=x.dtype))
        assert done[0].nfe == done[1].nfe
        same(done[1].x, done[0].x, unit)


@pytest.mark.parametrize("integrator", [PerSample(rtol=1e-3), Scipy(rtol=1e-3), TorchDiffEq(rtol=1e-3)], ids=name)
def test_an_absolute_tolerance_that_is_given_is_in_the_units_of_x(integrator):
    x = torch.randn(7, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    model = mixture(VPSDE(), 1.0)

    def states(integrator, u):
        run = {"x_start": u * x, "dtype": torch.float64}
        return sample(mixture(VPSDE(), u), probability_flow(integrator), doubles(0.9, 0.05), **run)

    usual = states(integrator, 16.0)
    told = states(replace(integrator, atol=1e-3 * 16 * model.sigma_data), 16.0)
    assert torch.equal(usual.x, told.x)
    finer, scaled = states(replace(integrator, atol=1e-9), 16.0), states(replace(integrator, atol=1e-9 / 16), 1.0)
    same(finer.x, scaled.x, 16.0)
    assert finer.nfe > usual.nfe


def test_the_published_churn_is_that_of_data_of_size_one_half():
    sde, half = EDMSDE(), doubles(-0.5, 0.5)  # two points: √E[x_0²] is one half
    model = GaussianMixture(half, sde, std=0.0)
    grid = grids.uniform(sde, 12)
    published = Solver("", 0.0, ChurnedHeun(40.0, 0.05, 50.0))
    a, b = (sample(model, s, grid, shape=(9,), seed=1, dtype=torch.float64).x for s in (edm_stochastic(), published))
    assert torch.equal(a, b)


# Likelihood


def nats(model, x, **how):
    return log_likelihood(model, x, dtype=torch.float64, **how).nats


HOW = {
    "default": {},
    "Hutchinson": {"divergence": Hutchinson(2)},
    "refined": {"quadrature": Refined()},
    "detail": {"nfe": 30},
    "PerSample": {"solver": probability_flow(PerSample("bosh3", rtol=1e-4))},
    "TorchDiffEq": {"solver": probability_flow(TorchDiffEq(rtol=1e-4)), "divergence": ExactTrace()},
    "Joint": {"solver": probability_flow(PerSample(rtol=1e-4)), "quadrature": Joint()},
    "richardson": {"richardson": True},
}


@pytest.mark.parametrize("how", HOW, ids=str)
@pytest.mark.parametrize(
    ("sde", "unit"), [(VPSDE(), UNITS[0]), (EDMSDE(), UNITS[1]), (FlowMatching(), UNITS[0])], ids=name
)
def test_log_densities_lose_the_logarithm_of_the_unit(sde, how, unit):
    if isinstance(sde, FlowMatching) and how in ("PerSample", "TorchDiffEq", "Joint"):
        pytest.skip("λ is infinite at t=1")
    x = mixture(sde, 1.0).draw(5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = []
    for u in (1.0, unit):
        detail = {"detail": 0.1 * u} if how == "detail" else {}
        found.append(nats(mixture(sde, u), u * x, **HOW[how], **detail))
    same(found[1] + 2 * math.log(unit), found[0])


@every_unit
def test_differences_are_as_long_as_the_unit_asks(unit):
    """In single precision: what is left of the rounding in the unit 1 is left in every other."""
    x = mixture(VPSDE(), 1.0).draw(20, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    how = {"divergence": ExactTrace(mode=finite_differences)}
    exact = nats(mixture(VPSDE(), 1.0), x)
    one, other = (
        log_likelihood(mixture(VPSDE(), u), u * x, dtype=torch.float32, **how).nats.double() for u in (1.0, unit)
    )
    error = (one - exact).square().mean().sqrt()
    assert (other + 2 * math.log(unit) - exact).square().mean().sqrt() < 2 * error


@pytest.mark.parametrize("sde", [VPSDE(), EDMSDE(), FlowMatching()], ids=name)
@every_unit
def test_bounds_lose_the_logarithm_of_the_unit(sde, unit):
    x, found = mixture(sde, 1.0).draw(5, generator=torch.Generator().manual_seed(3), dtype=torch.float64), []
    for u in (1.0, unit):
        model, end = mixture(sde, u), 1e-3
        grid = grids.uniform(model.sde, 12, end=end)
        found.append(
            [
                variational_bound(model, u * x, draws=4, end=end, dtype=x.dtype),
                discrete_bound(model, u * x, grid, repeats=2, dtype=x.dtype),
                discrete_bound(model, u * x, grid, draws=4, dtype=x.dtype),
            ]
        )
    for one, other in zip(*found, strict=True):
        same(other.nats + 2 * math.log(unit), one.nats)
        same(other.standard_error, one.standard_error)


@every_unit
def test_log_densities_of_a_network(unit):
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    a, b = (nats(network(VPSDE(), u, "epsilon"), u * x) for u in (1.0, unit))
    same(b + 2 * math.log(unit), a)


# Calibration


CALIBRATED = {
    "default solvers": (None, {}),
    "two solvers": ([Solver("edm", 0.0, Corrected(Multistep(3))), Solver("ipndm", 0.0, AdamsBashforth(3))], {}),
    "one step of order two": (Solver("two", 0.0, Corrected(Multistep(2))), {"strategy": "search"}),
    "the SDE": (Solver("sde", 1.0, Exponential()), {"n": 128}),
}


@functools.cache
def calibrated(which, sde, unit):
    solver, options = CALIBRATED[which]
    how = {"n": 24, "effort": 0.01, "reference_steps": 20, "time_limit": 1e9, **options}
    return calibrate(mixture(sde, unit, size=0.4), solver, 6, **how)


@pytest.mark.parametrize(
    ("which", "sde", "unit"),
    [
        ("two solvers", VPSDE(), UNITS[0]),
        ("default solvers", VESDE(), UNITS[1]),
        ("one step of order two", VESDE(), UNITS[0]),
        ("the SDE", VPSDE(), UNITS[1]),
    ],
    ids=name,
)
def test_calibration(which, sde, unit):
    one, other = calibrated(which, sde, 1.0), calibrated(which, sde, unit)
    assert one.record["start"]["grid"] == other.record["start"]["grid"]
    assert (one.improved, one.tweedie, one.nfe) == (other.improved, other.tweedie, other.nfe)
    same(other.grid, one.grid, rtol=1e-4)  # hundreds of steps of a descent stand on each other
    of_error = unit if one.solver.eta == 0 else 1.0  # distances of distributions have no unit
    for found, expected in ((other.before, one.before), (other.after, one.after)):
        same([found.value, found.error], [expected.value, expected.error], of_error, rtol=1e-3)
    ends = [c.sample(mixture(sde, u, size=0.4), **RUN).x for c, u in ((one, 1.0), (other, unit))]
    same(ends[1], ends[0], unit, rtol=1e-3)


@every_unit
def test_what_a_calibration_measures_against(unit):
    problems = [
        Problem(mixture(sde, u), 0.0, 0, (2,), torch.float64, torch.device("cpu"))
        for sde in (VPSDE(), EDMSDE())
        for u in (1.0, unit)
    ]
    for one, other in zip(problems[::2], problems[1::2], strict=True):
        same(other.times, one.times)
        same(other.noise_set(8).target, one.noise_set(8).target, unit)


# Evaluation


@functools.cache
def measured(unit):
    model, grid, solver = mixture(VPSDE(), unit), grids.uniform(VPSDE(), 5), probability_flow(Exponential())
    return local_errors(model, solver, grid, n=6, dtype=torch.float64), flow_endpoint(model, 2, check=1)


@every_unit
def test_references_and_local_errors(unit):
    (one, one_end), (other, other_end) = measured(1.0), measured(unit)
    same(other.errors, one.errors, unit)
    same(other.shares, one.shares)
    assert one_end.nfe == other_end.nfe
    same(other_end.x, one_end.x, unit)


@functools.cache
def compared(unit):
    model = mixture(VPSDE(), unit)
    real = model.draw(200, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    judges = [
        Judge(real, 64, features, metrics=features.usual_metrics(projections=16), splits=2)
        for features in (exact_features(model, real), flat_features(model.transform, real))
    ]
    solvers = {"auto": auto, "heun": probability_flow(), "edm": edm_stochastic()}
    return judges, compare_solvers(model, solvers, [6], n=64, endpoint_n=0)


@every_unit
def test_comparisons(unit):
    (judges, one), (others_judges, other) = compared(1.0), compared(unit)
    for a, b in zip(judges, others_judges, strict=True):
        same_scores(b.floor, a.floor, unit)
        for ours, theirs in zip(one.samples, other.samples, strict=True):
            same_scores(b(theirs), a(ours), unit)


def same_scores(found, expected, unit):
    assert found.keys() == expected.keys()
    for metric, b in expected.items():
        of = unit if metric == "sliced_wasserstein" else 1.0
        same([found[metric].value, found[metric].error], [b.value, b.error], of, rtol=1e-3)


# Training


@every_unit
@pytest.mark.parametrize("sde", [VPSDE(), VESDE(), FlowMatching()], ids=name)
def test_training_times_and_weights_follow_the_unit_as_their_pages_say(sde, unit):
    """The same times are drawn, and the same losses are weighted alike, once the numbers stated per unit are moved."""
    moved, log_unit = InUnits(sde, unit), math.log(unit)
    u = torch.linspace(0.0005, 0.9995, 200, dtype=torch.float64)
    t_min = sde.likelihood_end
    for plain, other in (
        (losses.Uniform(), losses.Uniform()),
        (losses.LogitNormal(), losses.LogitNormal()),
        (losses.LogNormal(-1.2, 1.2), losses.LogNormal(-1.2 + log_unit, 1.2)),
        (losses.LikelihoodTimes(-3.0), losses.LikelihoodTimes(-3.0 - log_unit)),
        (losses.Cosine(), losses.Cosine(unit)),
    ):
        for one, two in zip(plain(sde, u, t_min), other(moved, u, t_min), strict=True):
            same(two, one, rtol=1e-5)
    t = torch.linspace(t_min, 1.0, 50, dtype=torch.float64)[:-1]
    for plain, other in (
        (losses.MinSNR(5.0), losses.MinSNR(5.0 / unit**2)),
        (losses.P2(1.0, 0.5), losses.P2(unit**-2, 0.5)),
        (losses.SigmoidWeighting(2.0), losses.SigmoidWeighting(2.0 - 2 * log_unit)),
        (losses.EDMWeighting(0.5), losses.EDMWeighting(0.5 * unit)),
    ):
        one, two = plain(sde, t), other(moved, t)
        same(two / two[0], one / one[0], rtol=1e-9)
