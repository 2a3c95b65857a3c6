"""The likelihood of a guided model is that of its flow, and the result says so."""

import math

import numpy as np
import pytest
import torch
from gaussian_truth import class_model, guided_moments, line

from sde_toolkit import VESDE, VPSDE, SubVPSDE, clip_x0, gaussian, log_likelihood, reschedule
from sde_toolkit.guidance import Guided, autoguidance, classifier, classifier_free
from sde_toolkit.likelihood import ExactTrace, Hutchinson, Quadrature

LABELS = torch.zeros(5, dtype=torch.long)
X = torch.linspace(-1.5, 1.8, 10, dtype=torch.float64).reshape(5, 2)
WIDE = VESDE(1e-3, 1e3)


def normal(x, variance):
    return -0.5 * ((x**2).sum(-1) / variance + x.shape[-1] * math.log(2 * math.pi * variance))


@pytest.mark.parametrize("divergence", [ExactTrace(), Hutchinson(2)], ids=["exact", "hutchinson"])
@pytest.mark.parametrize("scale", [0.0, 1.0, 2.0, 3.0])
def test_the_guided_flow_of_gaussians_has_variance_two_to_the_one_minus_scale(scale, divergence):
    """Of p(x | c) = N(0, 1) and p(x) = N(0, 2), where noise begins far above the data. The tilted law has 2/(γ + 1)."""
    free, given = (gaussian(torch.zeros(2, dtype=torch.float64), WIDE, std=s) for s in (2**0.5, 1.0))
    model = type(class_model(WIDE)).of([given], no_class=free)
    guided = classifier_free(model, scale)
    options = {"condition": LABELS, "divergence": divergence, "nfe": 120, "detail": 0.3}
    found = log_likelihood(guided, X, **options)
    torch.testing.assert_close(found.nats, normal(X, 2 ** (1 - scale)), rtol=1e-4, atol=1e-4)
    if scale not in (0.0, 1.0):
        assert (found.nats - normal(X, 2 / (scale + 1))).abs().min() > 0.01


def test_scales_of_their_own_and_batches():
    model, scales = class_model(VPSDE()), torch.linspace(0, 3, 5, dtype=torch.float64)
    together = log_likelihood(classifier_free(model, 9.0), X, condition=Guided(LABELS, scales), nfe=20, batch_size=2)
    for i, scale in enumerate(scales.tolist()):
        alone = log_likelihood(classifier_free(model, scale), X[i : i + 1], condition=LABELS[:1], nfe=20)
        torch.testing.assert_close(together.nats[i : i + 1], alone.nats, rtol=1e-9, atol=1e-9)


def test_an_interval_counts_in_the_likelihood():
    """The moments go through three pieces of the flow: above the interval, in it and below."""
    sde, scale, (low, high) = VPSDE(), 2.5, (0.4, 3.0)
    first, last = ((sde.sigma(t) / sde.alpha(t)).item() for t in (1.0, 0.01))
    mean, variance = np.zeros(2), first**2
    for begin, end, of_piece in ((first, high, 1.0), (high, low, scale), (low, last, 1.0)):
        mean, variance = guided_moments(line(of_piece), 0, begin, end, mean, variance)
    alpha = sde.alpha(0.01).item()
    expected = normal(X - alpha * torch.tensor(mean), alpha**2 * variance)
    nodes = Quadrature(400)  # the divergence jumps at both ends of the interval, which few nodes do not see
    guided, options = classifier_free(class_model(sde), scale, (low, high)), {"condition": LABELS, "end": 0.01}
    found = log_likelihood(guided, X, nfe=400, quadrature=nodes, **options)
    torch.testing.assert_close(found.nats, expected, rtol=0.01, atol=0.01)


def test_a_path_that_misses_the_interval_is_named_in_a_warning():
    guided = classifier_free(class_model(VPSDE()), 2.0, (1000.0, 2000.0))
    with pytest.warns(UserWarning, match=r"interval=\(1000\.0, 2000\.0\)"):
        log_likelihood(guided, X, condition=LABELS, nfe=6)


def test_the_result_says_whose_density_it_is():
    model = class_model(VPSDE())
    weak = autoguidance(gaussian([0.0, 0.0], VPSDE(), std=1.0), gaussian([0.0, 0.0], VPSDE(), std=2.0), 2.0)
    by_classifier = classifier(gaussian([0.0, 0.0], VPSDE(), std=1.0), lambda x, t, c: -(x**2).sum(1), 0.5)
    said = {
        "the model": (model, LABELS),
        "the model, guided by a class at scale 3": (reschedule(classifier_free(model, 3), SubVPSDE()), LABELS),
        "the model, guided by a class at scale 2, for σ/α from 0.1 to 3": (classifier_free(model, 2, (0.1, 3)), LABELS),
        "the model, guided by a weaker model at scale 2": (weak, None),
        "the model, guided by a classifier at scale 0.5": (by_classifier, None),
        "the model, changed by Thresholded": (clip_x0(model, -90, 90), LABELS),
    }
    for words, (asked, condition) in said.items():
        assert log_likelihood(asked, X, condition=condition, nfe=6).density_of == f"the probability flow of {words}"
