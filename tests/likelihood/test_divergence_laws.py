"""Traces: exact ones are exact, random ones unbiased, and their intervals say what they claim."""

import math

import pytest
import torch
from densities import F64, asked, full_covariance, mixture, name, points

from sde_toolkit import VPSDE, GaussianMixture, gaussian, log_likelihood
from sde_toolkit.likelihood import (
    ExactTrace,
    Hutchinson,
    HutchPlusPlus,
    Quadrature,
    finite_differences,
    forward,
    reverse,
)

OFF = {(): 1e-10, (2,): 1e-10, (3, 4, 4): 2e-7}  # by central differences at their best step, of these very fields
MODES = [reverse, forward, finite_differences]
EVENTS = [(), (2,), (3, 4, 4)]


def mixing_field(event, low_rank=False):
    """A smooth field whose Jacobian is full, not symmetric, and differs from row to row; or close to rank 3."""
    D = math.prod(event)
    generator = torch.Generator().manual_seed(5)
    A, B = (torch.randn(D, D, generator=generator, dtype=torch.float64) for _ in range(2))
    if low_rank:
        A[:, 3:] *= 0.02
        return lambda x: torch.tanh(x.reshape(len(x), D) @ A / D**0.5).mul(3) @ A.T.clone() / D**0.5
    return lambda x: (torch.tanh(x.reshape(len(x), D) @ A) @ B + x.reshape(len(x), D) ** 2).reshape(x.shape)


def states(event, n=5):
    return torch.randn(n, *event, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def traces_of_jacobian(field, x):
    """Row by row, from the whole matrix."""
    rows = [torch.autograd.functional.jacobian(lambda row: field(row[None])[0], row) for row in x]
    D = math.prod(x.shape[1:])
    return torch.stack([matrix.reshape(D, D).trace() for matrix in rows])


def traces(divergence, field, x, mode, directions):
    _, products = mode(field, x, False)
    return divergence.traces(products, x, directions)


@pytest.mark.parametrize("mode", MODES, ids=name)
@pytest.mark.parametrize("event", EVENTS, ids=str)
def test_the_exact_trace_is_the_trace_of_the_jacobian(event, mode):
    field, x = mixing_field(event), states(event)
    found = traces(ExactTrace(), field, x, mode, ExactTrace().directions(tuple(x.shape), 0, 0))
    assert found.shape == (1, len(x))
    bar = OFF[event] if mode is finite_differences else 1e-12
    torch.testing.assert_close(found[0], traces_of_jacobian(field, x), rtol=bar, atol=bar)


@pytest.mark.parametrize("mode", MODES, ids=name)
@pytest.mark.parametrize("event", EVENTS, ids=str)
def test_the_trace_over_all_basis_probes_is_the_exact_trace(event, mode):
    field, x, D = mixing_field(event), states(event), math.prod(event)
    basis = torch.eye(D, dtype=torch.float64).reshape(D, 1, *event).expand(D, *x.shape)
    found = traces(Hutchinson(D), field, x, mode, basis)
    assert found.shape == (D, len(x))
    bar = OFF[event] if mode is finite_differences else 1e-12
    torch.testing.assert_close(found.sum(0), traces_of_jacobian(field, x), rtol=bar, atol=bar)


@pytest.mark.parametrize("event", EVENTS, ids=str)
def test_every_mode_gives_products_with_the_same_matrix(event):
    """wᵀ J v read from Jᵀ w (reverse), and from J v (the others)."""
    field, x = mixing_field(event), states(event)
    v, w = (torch.randn(3, *x.shape, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in (7, 8))
    backward = (reverse(field, x)[1](w) * v).reshape(3, len(x), -1).sum(-1)
    for mode in (forward, finite_differences):
        output, products = mode(field, x)
        torch.testing.assert_close(output, field(x))
        torch.testing.assert_close((products(v) * w).reshape(3, len(x), -1).sum(-1), backward, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
@pytest.mark.parametrize("event", [(2,), (3, 4, 4)], ids=str)
def test_random_probes_give_the_trace_within_their_error(event, distribution):
    divergence, field, x = Hutchinson(2000, distribution), mixing_field(event), states(event, 2)
    found = traces(divergence, field, x, reverse, divergence.directions(tuple(x.shape), 0, 0).double())
    error = (found.mean(0) - traces_of_jacobian(field, x)).abs()
    assert (error < 4 * found.std(0) / math.sqrt(2000)).all()
    assert (found.std(0) > 0).all()


def test_probes_have_unit_covariance_and_belong_to_their_sample():
    for distribution in ("rademacher", "gaussian"):
        v = Hutchinson(20_000, distribution).directions((1, 3), 0, 0)[:, 0]
        assert torch.allclose(v.T @ v / len(v), torch.eye(3), atol=0.04)
        drawn = Hutchinson(3, distribution).directions((6, 30), 5, 0)
        assert torch.equal(drawn[:, 2:], Hutchinson(3, distribution).directions((4, 30), 5, 2))
        assert not torch.equal(drawn, Hutchinson(3, distribution).directions((6, 30), 6, 0))
        assert len(drawn.flatten(2).unique(dim=1)[0]) == 6  # no two samples share theirs


def variance_and_bias(divergence, field, x, copies):
    """Of the estimate (the mean of its replicates), over copies of one point; the bias in standard errors."""
    many = x.expand(copies, -1)
    found = traces(divergence, field, many, reverse, divergence.directions(tuple(many.shape), 0, 0).double()).mean(0)
    bias = (found.mean() - traces_of_jacobian(field, x)[0]) / (found.std() / math.sqrt(copies))
    return found.var(), bias.abs()


def test_hutch_plus_plus_is_unbiased_and_varies_less_at_equal_products_where_the_rank_is_low():
    D, copies = 48, 2000
    field, x = mixing_field((D,), low_rank=True), states((D,), 1)
    sketched, plain = HutchPlusPlus(rank=4, probes=4), Hutchinson(12)
    assert sketched.products(D) == plain.products(D)
    (less, bias), (more, plain_bias) = (variance_and_bias(d, field, x, copies) for d in (sketched, plain))
    assert less < more / 20
    assert bias < 4
    assert plain_bias < 4
    assert variance_and_bias(HutchPlusPlus(1, 2), mixing_field((D,)), x, copies)[1] < 4  # nor where it is not


@pytest.mark.parametrize("mode", [reverse, forward], ids=name)
def test_hutch_plus_plus_is_exact_where_the_sketch_spans_everything(mode):
    """A Jacobian of rank 3: three directions catch it, and nothing is left to chance."""
    generator = torch.Generator().manual_seed(5)
    A, B = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((12, 3), (3, 12)))

    def field(x):
        return torch.tanh(x @ A / 3) @ B

    x, divergence = states((12,)), HutchPlusPlus(rank=3, probes=4)
    found = traces(divergence, field, x, mode, divergence.directions(tuple(x.shape), 0, 0).double())
    torch.testing.assert_close(found, traces_of_jacobian(field, x).expand(4, -1), rtol=1e-10, atol=1e-10)


def copies_of_one_point(D, copies, divergence, **how):
    """(estimates for copies of one point, the exact trace's answer there), both on one coarse path."""
    model = gaussian(torch.linspace(-1, 1, D, dtype=torch.float64), VPSDE(), covariance=full_covariance(D))
    x = points(model, 1)
    coarse = {"nfe": 12, "end": 1e-3, "quadrature": Quadrature(6), "prior": model.log_prob, **how}
    exact = log_likelihood(model, x, divergence=ExactTrace(), **coarse, **F64)
    found = log_likelihood(
        model, x.expand(copies, *x.shape[1:]).float(), divergence=divergence, batch_size=1000, **coarse
    )
    return found, exact.nats


@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
@pytest.mark.parametrize("probes", [4, 8])
def test_intervals_cover_what_they_claim(probes, distribution):
    """In 48 dimensions with a full covariance, where vᵀ J v is a sum of many terms and so nearly normal.

    In two dimensions a Rademacher probe takes two values: four agree by chance, one time in eight, and their interval
    has no width. There the exact trace costs less than the probes.
    """
    found, exact = copies_of_one_point(48, 5000, Hutchinson(probes, distribution, mode=reverse))
    low, high = found.interval(0.95)
    assert 0.93 < ((low <= exact) & (exact <= high)).double().mean() < 0.97
    low, high = found.interval(0.5)
    assert 0.47 < ((low <= exact) & (exact <= high)).double().mean() < 0.53
    error = found.nats.mean() - exact
    assert error.abs() < 4 * found.nats.std() / math.sqrt(5000) + 1e-3  # unbiased; 1e-3: rounding in float32
    ratio = found.standard_error.square().mean() / found.nats.var()
    assert ratio == pytest.approx(1.0, abs=0.1)


def test_an_interval_of_hutch_plus_plus_covers_too():
    found, exact = copies_of_one_point(48, 4000, HutchPlusPlus(rank=4, probes=6, mode=reverse))
    low, high = found.interval()
    assert 0.93 < ((low <= exact) & (exact <= high)).double().mean() < 0.97


def test_one_probe_knows_nothing_of_its_error_and_the_exact_trace_has_none():
    model = mixture(VPSDE())
    x = points(model, 3)
    one = log_likelihood(model, x, nfe=20, divergence=Hutchinson(1), **F64)
    assert one.standard_error.isnan().all()
    assert all(end.isnan().all() for end in one.interval())
    exact = log_likelihood(model, x, nfe=20, **F64)
    assert (exact.standard_error == 0).all()
    assert all(torch.equal(end, exact.nats) for end in exact.interval())


def test_the_replicates_are_the_answers_of_every_probe_by_itself():
    model = mixture(VPSDE())
    x = points(model, 5)
    found = log_likelihood(model, x, nfe=20, divergence=Hutchinson(6), **F64)
    assert found.replicates.shape == (6, 5)
    torch.testing.assert_close(found.replicates.mean(0), found.nats)
    torch.testing.assert_close(found.prior + found.integral + found.log_abs_det, found.nats)
    torch.testing.assert_close(found.replicates.std(0) / math.sqrt(6), found.standard_error)
    first = log_likelihood(model, x, nfe=20, divergence=Hutchinson(1), seed=0, **F64)
    assert not torch.allclose(found.replicates[1], first.nats)


@pytest.mark.parametrize("event", [(), (2,), (3, 8, 8)], ids=str)
@pytest.mark.parametrize("mode", MODES, ids=name)
def test_modes_and_event_shapes_through_the_whole(event, mode):
    """Gaussian data of independent elements: every element adds its own log density."""
    means = torch.stack([torch.linspace(-1, 1, math.prod(event) + 1)[1:].reshape(event), torch.zeros(event)]).double()
    model = GaussianMixture(means, VPSDE(), std=0.5, weights=[0.4, 0.6])
    x = points(model, 2)
    how = {"nfe": 60, "end": 1e-4, "detail": 0.5, "prior": model.log_prob, **F64}
    found = log_likelihood(model, x, divergence=ExactTrace(mode=mode), **how)
    assert found.mode == mode.__name__
    assert found.mode_seconds == {}
    assert (found.nats - model.log_prob(x, 1e-4)).abs().max() / math.prod(event) < 1e-4
    if math.prod(event) > 8:
        estimate = log_likelihood(model, x, divergence=Hutchinson(8, mode=mode), **how)
        assert ((estimate.nats - found.nats).abs() < 8 * estimate.standard_error).all()


def test_the_default_is_exact_in_few_dimensions_and_hutchinson_in_many():
    few, many = (gaussian(torch.zeros(D), VPSDE(), std=0.5) for D in (64, 65))
    assert isinstance(log_likelihood(few, torch.zeros(1, 64), nfe=4).divergence, ExactTrace)
    assert log_likelihood(many, torch.zeros(1, 65), nfe=4).divergence == Hutchinson()


def test_probes_are_frozen_for_a_whole_solve():
    """The trace at every node is that of the same probe: a linear field's integral is one number times vᵀ C v."""
    model = asked(gaussian([0.5, -0.5], VPSDE(), covariance=[[1.0, 0.6], [0.6, 0.5]]))
    x = torch.zeros(64, 2, dtype=torch.float64)
    found = log_likelihood(model, x, nfe=20, divergence=Hutchinson(1), **F64)
    assert len(found.integral.round(decimals=9).unique()) == 2  # v₁ v₂ = ±1, and nothing between
