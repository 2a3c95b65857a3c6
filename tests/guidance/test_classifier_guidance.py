"""Classifier guidance: Bayes' rule at s = 1, wherever a model is evaluated."""

import math

import pytest
import torch
from catalogue import SDES, name, relative_error
from torch import nn

from sde_toolkit import (
    VPSDE,
    FlowMatching,
    ScoreModel,
    ddim,
    ddpm,
    dpmpp_2m,
    gaussian,
    grids,
    log_likelihood,
    pc,
    sample,
)
from sde_toolkit.errors import ArgumentError
from sde_toolkit.guidance import Guided, classifier
from sde_toolkit.models import ClassMixture

SDE = VPSDE()
GRID = grids.uniform_lambda(SDE, 5, end=0.01)
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 1])
X = torch.linspace(-2, 2, 14, dtype=torch.float64).reshape(7, 2)
MEANS = torch.tensor([[-1.5, -1.0], [0.5, 1.2], [0.0, 0.7]], dtype=torch.float64)


def classes(sde=SDE):
    return ClassMixture(MEANS, sde, std=torch.tensor([0.3, 0.5, 0.4]))


def exact(model):
    """log p(c | x_t) of an exact model, up to a constant."""
    return lambda x, t, labels: model.log_prob(x, t, labels) - model.log_prob(x, t)


def drawn(model, solver=None, **options):
    options = {"condition": LABELS, "dtype": torch.float64} | options
    return sample(model, solver or ddim(), GRID, shape=(7, 2), **options)


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_with_the_exact_classifier_it_is_the_conditional_model(sde):
    model = classes(sde)
    guided = classifier(model, exact(model))
    for t in (0.1, 0.7, torch.linspace(0.2, 0.8, 7).double()):
        x = X * sde.sigma(torch.as_tensor(t)).clamp(0.5, 3).reshape(-1, 1)
        expected = model(x, t, LABELS)
        for kind in ("x0", "epsilon", "score"):
            torch.testing.assert_close(guided(x, t, LABELS).view(kind), expected.view(kind), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("solver", [ddim(), ddpm(), dpmpp_2m(), pc()], ids=name)
def test_samples_are_those_of_the_conditional_model_and_at_scale_zero_of_the_model(solver):
    model = classes()
    guided = drawn(classifier(model, exact(model)), solver, tweedie=True)
    plain = drawn(model, solver, tweedie=True)
    assert relative_error(guided.x, plain.x) < 1e-8
    assert guided.nfe == plain.nfe
    untouched = drawn(classifier(model, untouchable, 0), solver)
    assert relative_error(untouched.x, drawn(model, solver, condition=None).x) < 1e-12


def untouchable(x, t, condition):
    raise AssertionError("the classifier was asked")


class Head(nn.Module):
    """A classifier of noisy samples with parameters, as one is trained."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3)).double()

    def forward(self, x, t, labels):
        logits = self.layers(torch.cat([x, t[:, None]], 1))
        return logits.log_softmax(1)[torch.arange(len(x)), labels]


def test_it_works_where_gradients_are_off_in_inference_mode_and_compiled():
    guided = classifier(classes(), Head().requires_grad_(False), 2.0)
    plain = drawn(guided).x
    assert not plain.requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(drawn(guided).x, plain, rtol=1e-12, atol=1e-12)
    compiled = drawn(guided, compile="aot_eager").x
    torch.testing.assert_close(compiled, plain, rtol=1e-10, atol=1e-10)


def test_samples_can_be_differentiated_through_it():
    head = Head()
    guided, start = classifier(classes(), head, 2.0), X.clone().requires_grad_()

    def end(x):
        return sample(guided, ddim(), GRID, x_start=x, condition=LABELS, differentiable=True).x

    (found,) = torch.autograd.grad(end(start).sum(), start)
    h = 1e-6
    direction = torch.randn(X.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    slope = (end(X + h * direction).sum() - end(X - h * direction).sum()) / (2 * h)
    torch.testing.assert_close((found * direction).sum(), slope.detach(), rtol=1e-6, atol=1e-8)
    (of_weight,) = torch.autograd.grad(end(X).sum(), head.layers[0].weight)
    assert of_weight.abs().sum() > 0


def test_likelihoods_through_it_are_those_of_the_conditional_model():
    model = classes()
    options = {"condition": LABELS, "nfe": 16}
    for more in ({}, {"batch_size": 3}):
        found = log_likelihood(classifier(model, exact(model)), X, **options, **more)
        torch.testing.assert_close(found.nats, log_likelihood(model, X, **options).nats, rtol=1e-6, atol=1e-6)


def test_scales_go_with_the_samples_whatever_the_batch():
    guided, scales = classifier(classes(), Head(), 9.0), torch.linspace(0, 3, 7)
    whole = drawn(guided, ddpm(), condition=Guided(LABELS, scales)).x
    assert relative_error(drawn(guided, ddpm(), condition=Guided(LABELS, scales), batch_size=3).x, whole) < 1e-12
    one = classifier(classes(), Head(), scales[2].item())
    alone = sample(one, ddpm(), GRID, shape=(1, 2), first_index=2, condition=LABELS[2:3], dtype=torch.float64).x
    torch.testing.assert_close(whole[2:3], alone, rtol=1e-10, atol=1e-10)


def test_the_model_is_told_the_class_only_if_asked_for():
    heard = []

    def network(x, time, condition=None):
        heard.append(condition)
        return x

    model = ScoreModel(network, SDE, "x0")
    classifier(model, Head())(X, 0.5, LABELS)
    classifier(model, Head(), conditional=True)(X, 0.5, LABELS)
    assert heard[0] is None
    assert heard[1] is LABELS


def test_where_no_signal_is_left_the_model_is_not_guided():
    sde = FlowMatching()
    model = gaussian([0.5, -0.5], sde, std=1.0)
    guided = classifier(model, lambda x, t, c: -(x**2).sum(1), 5.0)
    torch.testing.assert_close(guided(X, 1.0, LABELS).x_0, model(X, 1.0).x_0, rtol=1e-12, atol=1e-12)
    assert sample(guided, ddim(), grids.uniform(sde, 5, end=0.01), shape=(3, 2)).x.isfinite().all()


def test_outside_of_the_interval_the_classifier_is_not_asked():
    model = classes()
    found = drawn(classifier(model, untouchable, 2.0, (1e3, math.inf)), condition=None)
    assert torch.equal(found.x, drawn(classifier(model, untouchable, 0.0), condition=None).x)


@pytest.mark.parametrize(
    ("log_prob", "said"),
    [
        (lambda x, t, c: x, r"log_prob=\(7, 2\).*shape \(7,\).*own column"),
        (lambda x, t, c: x.sum(), r"log_prob=\(\).*shape \(7,\)"),
        (lambda x, t, c: 3.0, r"log_prob='float'.*shape \(7,\)"),
        (lambda x, t, c: x.detach().sum(1), r"log_prob=.*autograd finds no way"),
        ("resnet", r"log_prob='resnet'.*not callable"),
    ],
)
def test_classifiers_that_are_none_are_refused(log_prob, said):
    with pytest.raises(ArgumentError, match=said):
        drawn(classifier(classes(), log_prob))
