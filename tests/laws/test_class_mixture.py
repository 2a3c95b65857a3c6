"""Exact class-conditional models: every class is a mixture of its own, and together they are the mixture of all."""

import math

import pytest
import torch
from catalogue import SDES, doubles, name

from sde_toolkit import VESDE, VPSDE, GaussianMixture, Wrapper, ddim, ddpm, gaussian, grids, sample
from sde_toolkit.errors import ArgumentError
from sde_toolkit.models import ClassMixture

MEANS = doubles(-1.5, -1.0, 0.5, 1.2, 0.0, 0.7, 1.6, -0.4).reshape(4, 2)
WEIGHTS = doubles(0.1, 0.2, 0.3, 0.4)
LABELS = torch.tensor([0, 2, 0, 1])
COVARIANCES = torch.diag_embed(doubles(0.2, 0.5, 0.3, 0.1, 0.4, 0.4, 0.1, 0.2).reshape(4, 2)) + 0.1


def model_under(sde, full=False):
    spread = {"covariances": COVARIANCES} if full else {"std": doubles(0.3, 0.5, 0.4, 0.6)}
    return ClassMixture(MEANS, sde, weights=WEIGHTS, labels=LABELS, **spread)


def alone(sde, label, full=False):
    """The class built from its own components."""
    own = label == LABELS
    spread = {"covariances": COVARIANCES[own]} if full else {"std": doubles(0.3, 0.5, 0.4, 0.6)[own]}
    return GaussianMixture(MEANS[own], sde, weights=WEIGHTS[own], **spread)


def points(n=6, seed=0):
    return 1.5 * torch.randn((n, 2), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.on_device
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("sde", SDES, ids=name)
def test_a_class_is_the_mixture_of_its_components(sde, full):
    model, x, label = model_under(sde, full), points(), torch.tensor([0, 1, 2, 2, 1, 0])
    for t in (0.05, 0.6):
        said = model(x, t, label)
        for c in range(3):
            own, rows = alone(sde, c, full), label == c
            for kind in ("x0", "epsilon", "score", "v"):
                expected = own(x[rows], t).view(kind)
                torch.testing.assert_close(said.view(kind)[rows], expected, rtol=1e-10, atol=1e-10)
            density = model.log_prob(x, t, label)[rows]
            torch.testing.assert_close(density, own.log_prob(x[rows], t), rtol=1e-10, atol=1e-10)
            of_class = model.of_class(c).log_prob(x[rows], t)
            torch.testing.assert_close(of_class, density, rtol=1e-10, atol=1e-10)


@pytest.mark.on_device
def test_no_class_is_the_law_of_total_probability():
    model, x = model_under(VPSDE()), points()
    whole = GaussianMixture(MEANS, VPSDE(), std=doubles(0.3, 0.5, 0.4, 0.6), weights=WEIGHTS)
    shares = torch.zeros(3, dtype=torch.float64).index_add(0, LABELS, WEIGHTS)
    for t in (0.0, 0.3):
        classes = torch.stack([model.log_prob(x, t, torch.full((6,), c)) for c in range(3)])
        total = torch.logsumexp(classes + shares.log()[:, None], dim=0)
        none = torch.full((6,), 3)
        for found in (model.log_prob(x, t), model.log_prob(x, t, none), model.of_class(3).log_prob(x, t)):
            torch.testing.assert_close(found, total, rtol=1e-12, atol=1e-12)
        assert torch.equal(model.score(x, t), whole.score(x, t))
        assert torch.equal(model(x, t, none).x_0, whole(x, t).x_0)
    assert model.sigma_data == whole.sigma_data


@pytest.mark.on_device
def test_score_at_no_noise_is_that_of_the_class():
    model, x, label = model_under(VPSDE()), points(3), torch.tensor([0, 1, 2])
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(model.log_prob(x, 0.0, label).sum(), x)
    torch.testing.assert_close(model(x.detach(), 0.0, label).score, gradient, rtol=1e-9, atol=1e-9)


@pytest.mark.on_device
@pytest.mark.parametrize("solver", [ddim(), ddpm()], ids=name)
def test_samples_under_labels_are_those_of_the_classes_alone(solver):
    model, label = model_under(VESDE()), torch.tensor([0, 1, 2, 3, 1])
    grid, asked = grids.uniform_lambda(model.sde, 8), {"shape": (5, 2), "seed": 3, "dtype": torch.float64}
    drawn = sample(model, solver, grid, condition=label, **asked).x
    alone = [sample(model.of_class(c), solver, grid, **asked).x for c in range(4)]
    expected = torch.stack([alone[c][i] for i, c in enumerate(label.tolist())])
    torch.testing.assert_close(drawn, expected, rtol=1e-9, atol=1e-9)
    in_batches = sample(model, solver, grid, condition=label, batch_size=2, **asked).x
    assert torch.equal(in_batches, drawn)
    assert (alone[0] - alone[1]).norm(dim=1).min() > 0.01


def test_draws_have_the_moments_of_their_class():
    n, generator = 4000, torch.Generator().manual_seed(0)
    model, label = model_under(VPSDE(), full=True), torch.arange(n) % 4
    drawn = model.draw(n, condition=label, generator=generator, dtype=torch.float64)
    for c in range(4):
        own = model.of_class(c)
        part, other = drawn[label == c], own.draw(4000, generator=generator, dtype=torch.float64)
        error = (other.var(0) * (1 / len(part) + 1 / len(other))).sqrt()
        assert ((part.mean(0) - other.mean(0)).abs() < 4 * error).all()
        assert ((part.var(0) / other.var(0)).log().abs() < 0.25).all()


@pytest.mark.on_device
def test_posterior_and_classes_change_places():
    model, A, y = model_under(VPSDE(), full=True), [[1.0, -0.5]], [0.4]
    posterior, x = model.posterior(A, y, 0.3), points()
    assert posterior.num_classes == 3
    evidence = doubles(*(model.of_class(c).log_evidence(A, y, 0.3) for c in range(3)))
    for c in range(4):
        expected = model.of_class(c).posterior(A, y, 0.3).log_prob(x, 0.1)
        torch.testing.assert_close(posterior.log_prob(x, 0.1, torch.full((6,), c)), expected, rtol=1e-9, atol=1e-9)
    # Bayes for the class: p(c | y) ∝ p(c) p(y | c).
    shares = torch.zeros(3, dtype=torch.float64).index_add(0, LABELS, WEIGHTS)
    assert model.log_evidence(A, y, 0.3) == pytest.approx((shares * evidence.exp()).sum().log().item(), rel=1e-9)


@pytest.mark.on_device
def test_classes_from_their_laws():
    sde, x, label = VPSDE(), points(), torch.tensor([0, 1, 2, 3, 3, 0])
    laws = [alone(sde, 0), alone(sde, 1, full=True), gaussian([1.0, 0.0], sde, std=doubles(0.2, 0.9))]
    model, total = ClassMixture.of(laws, weights=[1.0, 2.0, 1.0]), 0
    for c, share in enumerate((0.25, 0.5, 0.25)):
        rows, total = label == c, total + share * laws[c].log_prob(x, 0.2).exp()
        torch.testing.assert_close(model.log_prob(x, 0.2, label)[rows], laws[c].log_prob(x[rows], 0.2))
    torch.testing.assert_close(model.log_prob(x, 0.2), total.log(), rtol=1e-10, atol=1e-10)
    # "no class" may be any law: the mean over infinitely many classes N(m, 1) with m ~ N(0, 1), say.
    model = ClassMixture.of([gaussian([0.3, 0.0], sde, std=1.0)], no_class=gaussian([0.0, 0.0], sde, std=math.sqrt(2)))
    assert model.num_classes == 1
    torch.testing.assert_close(model.of_class(1).log_prob(x), gaussian([0.0, 0.0], sde, std=math.sqrt(2)).log_prob(x))
    torch.testing.assert_close(model.log_prob(x), model.log_prob(x, 0.0, torch.ones(6, dtype=torch.long)))
    torch.testing.assert_close(model.log_prob(x, 0.0, 0 * label), gaussian([0.3, 0.0], sde, std=1.0).log_prob(x))
    assert model.sigma_data == pytest.approx(math.sqrt(2))  # the size of data without a class


@pytest.mark.on_device
def test_a_wrapper_passes_classes_on():
    model, x, label = model_under(VPSDE()), points(), torch.tensor([0, 1, 2, 3, 1, 0])
    assert Wrapper(model).num_classes == model.num_classes == 3
    torch.testing.assert_close(Wrapper(model)(x, 0.3, label).x_0, model(x, 0.3, label).x_0)
    assert GaussianMixture(MEANS, VPSDE(), std=1.0).num_classes is None


@pytest.mark.parametrize(
    "label",
    [
        torch.tensor([0, 1, 4]),
        torch.tensor([0, -1, 2]),
        torch.tensor([0.0, 1.0, 2.0]),
        torch.tensor([0, 1]),
        torch.tensor([[0, 1, 2]]),
        "dog",
    ],
    ids=str,
)
def test_bad_labels_are_refused(label):
    with pytest.raises(ArgumentError) as caught:
        model_under(VPSDE())(points(3), 0.3, label)
    assert caught.value.argument == "condition"


LAW = gaussian([0.0, 1.0], VPSDE(), std=1.0)
BAD = {
    "labels": lambda: ClassMixture(MEANS, VPSDE(), std=1.0, labels=[0, 1, 2]),
    "labels that leave a class out": lambda: ClassMixture(MEANS, VPSDE(), std=1.0, labels=[0, 1, 3, 3]),
    "labels below 0": lambda: ClassMixture(MEANS, VPSDE(), std=1.0, labels=[0, 1, -1, 2]),
    "labels that are not whole": lambda: ClassMixture(MEANS, VPSDE(), std=1.0, labels=[0.0, 1.0, 1.0, 2.0]),
    "classes, of which there are none": lambda: ClassMixture.of([]),
    "classes[1] of another shape": lambda: ClassMixture.of([LAW, gaussian([0.0], VPSDE(), std=1.0)]),
    "no_class under another SDE": lambda: ClassMixture.of([LAW], no_class=gaussian([0.0, 1.0], VESDE(), std=1.0)),
    "no_class that is a number": lambda: ClassMixture.of([LAW], no_class=2.0),
    "weights beside no_class": lambda: ClassMixture.of([LAW], no_class=LAW, weights=[1.0]),
    "weights of others": lambda: ClassMixture.of([LAW], weights=[1.0, 2.0]),
    "label of no class": lambda: model_under(VPSDE()).of_class(4),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_classes_are_refused_by_name(case):
    with pytest.raises(ArgumentError) as caught:
        BAD[case]()
    assert caught.value.argument == case.split()[0].strip(",")
    assert caught.value.remedy
