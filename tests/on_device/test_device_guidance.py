"""Guided models and posteriors on a device are those of the CPU."""

import pytest
import torch
from both_places import CPU, F64, SDE, assert_the_same, mixture, network_model, points, public

from sde_toolkit import (
    classifier_free,
    ddim,
    guidance,
    inpaint,
    posterior,
    sample,
)
from sde_toolkit.guidance import sample_particles
from sde_toolkit.models import ClassMixture


def test_classifier_free(both):
    labels = torch.tensor([0, 1, 2], device=CPU)

    def run(place):
        model = classifier_free(network_model(place), 2.0, no_class=3)
        return sample(model, ddim(), steps=4, shape=(3, 2), condition=labels.to(place), **F64).x

    assert_the_same(run, both)


def test_a_mixture_of_classes(both):
    def run(place):
        means = torch.tensor([[1.0, -0.5], [-1.0, 1.0]], dtype=torch.float64, device=place)
        model = ClassMixture(means, SDE, std=0.4)
        labels = torch.tensor([0, 1, 2], device=place)
        x = sample(classifier_free(model, 1.5), ddim(), steps=4, shape=(3, 2), condition=labels, **F64).x
        parts = [model.of_class(0), model.of_class(1)]
        of = ClassMixture.of(parts, no_class=parts[0])
        return [x, model.log_prob(x, 0.0, labels), of.tilted(1, 1.5).log_prob(x), of.log_prob(x, 0.0, labels)]

    assert_the_same(run, both)


METHODS = public(guidance, guidance.PosteriorMethod)


A_ROW = torch.tensor([[1.0, 0.5]], dtype=torch.float64, device=CPU)
Y = torch.tensor([0.7], dtype=torch.float64, device=CPU)
OPERATORS = {
    "matrix": lambda place: A_ROW.to(place),
    "matrix of the CPU": lambda place: A_ROW,
    "function": lambda place: lambda x: x[:, :1] + 0.5 * x[:, 1:],
    "mask": lambda place: guidance.Mask(torch.tensor([1, 0], device=place)),
}


@pytest.mark.parametrize("method", METHODS, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("operator", OPERATORS)
def test_every_posterior_method(method, operator, both):
    if method is guidance.DiffPIR and operator == "function":
        pytest.skip("it needs an operator that can be inverted")
    made = method(torch.eye(2, dtype=torch.float64, device=CPU)) if method is guidance.JFPS else method()
    noise = 0.0 if method is guidance.DDNM else 0.3

    def run(place):
        given = posterior(mixture(place), OPERATORS[operator](place), Y.to(place), noise, method=made)
        return sample(given, ddim(), steps=4, shape=(3, 2), **F64).x

    assert_the_same(run, both)


STEPS = {
    "dps": lambda model, A, y: guidance.dps(A, y),
    "daps": lambda model, A, y: guidance.daps(model, A, y, 0.3),
    "ddrm": lambda model, A, y: guidance.ddrm(model, A, y, 0.3),
}


@pytest.mark.parametrize("solver", STEPS.values(), ids=STEPS)
def test_posterior_steps(solver, both):
    def run(place):
        model, mask = mixture(place), guidance.Mask(torch.tensor([1, 0], device=place))
        return sample(model, solver(model, mask, Y.to(place)), steps=4, shape=(3, 2), **F64).x

    assert_the_same(run, both)


def test_repaint(both):
    def run(place):
        solver = guidance.repaint(points(place, 1)[0], torch.tensor([True, False], device=place), repeats=2)
        return sample(mixture(place), solver, steps=4, shape=(3, 2), **F64).x

    assert_the_same(run, both)


IMAGE_OPERATORS = {
    "blur": lambda place: guidance.Blur(points(place, 3, 2), (1, 4, 6)),
    "downsample": lambda place: guidance.Downsample(2, (1, 4, 6)),
    "fourier": lambda place: guidance.Fourier(torch.arange(24, device=place).reshape(4, 6) % 2 == 0, (1, 4, 6)),
    "composition": lambda place: (
        guidance.Mask(torch.arange(6, device=place).reshape(1, 2, 3) % 2 == 0) @ guidance.Downsample(2, (1, 4, 6))
    ),
}


@pytest.mark.parametrize("operator", IMAGE_OPERATORS.values(), ids=IMAGE_OPERATORS)
def test_every_operator(operator, both):
    def run(place):
        A, x = operator(place), points(place, 3, 24).reshape(3, 1, 4, 6)
        y = A(x)
        return [y, A.adjoint(y)]

    assert_the_same(run, both)


def test_inpainting(both):
    def run(place):
        x = points(place, 1)[0]
        return sample(
            inpaint(mixture(place), x, torch.tensor([True, False], device=place)), ddim(), steps=4, shape=(3, 2), **F64
        ).x

    assert_the_same(run, both)


def test_particles(both):
    def run(place):
        given = posterior(mixture(place), A_ROW.to(place), Y.to(place), 0.3)
        found = sample_particles(given, particles=8, shape=(2, 2), steps=6, seed=2, **F64)
        return [found.x, found.weights, found.log_evidence]

    assert_the_same(run, both)


def test_the_posterior_of_a_mixture(both):
    for given in (lambda place: A_ROW.to(place), lambda place: lambda x: x[:, :1] + 0.5 * x[:, 1:]):

        def run(place, given=given):
            exact = mixture(place).posterior(given(place), Y.to(place), 0.3)
            return [exact.log_prob(points(place)), torch.tensor(mixture(place).log_evidence(given(place), Y, 0.3))]

        assert_the_same(run, both)
