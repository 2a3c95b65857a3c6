"""State and log-density solved together, with error control on both: the same answer by another way."""

from dataclasses import replace

import pytest
import torch
from densities import ALL_SDES, F64, asked, last_time, mixture, name, one_gaussian, points, truth, truth_of_one
from torch import nn

from sde_toolkit import VPSDE, FlowMatching, ScoreModel, log_likelihood, probability_flow
from sde_toolkit.integrators import PerSample, Scipy, TorchDiffEq
from sde_toolkit.likelihood import ExactTrace, Hutchinson, HutchPlusPlus, Joint, Quadrature, reverse

KINDS = [PerSample, TorchDiffEq, Scipy]


def solver(kind, tolerance):
    return probability_flow(kind(rtol=tolerance, atol=tolerance))


@pytest.mark.parametrize(
    ("sde", "make", "density"),
    [(sde, *((mixture, truth), (one_gaussian, truth_of_one))[i % 2]) for i, sde in enumerate(ALL_SDES)],
    ids=name,
)
def test_it_gives_the_closed_form(sde, make, density):
    """Every sample to 1e-5 nats per dimension at tolerance 1e-6; one solver for each SDE in turn, all for VP below."""
    model, end = make(sde), sde.likelihood_end
    x = points(model, 6)
    kind = KINDS[[name(s) for s in ALL_SDES].index(name(sde)) % 3]
    how = {"solver": solver(kind, 1e-6), "grid": [last_time(sde), end], "prior": model.log_prob, **F64}
    found = log_likelihood(model, x, quadrature=Joint(), **how)
    assert ((found.nats - density(model, x, end)).abs() / 2).max() < 1e-5, name(kind)
    assert found.quadrature_error.isnan().all()
    assert found.integral.abs().mean() > 0.05


@pytest.mark.parametrize(
    ("kind", "divergence"),
    [
        (PerSample, ExactTrace()),
        (TorchDiffEq, Hutchinson(3)),
        (Scipy, Hutchinson(5, "gaussian")),
        (PerSample, HutchPlusPlus(1, 2)),
        (TorchDiffEq, ExactTrace()),
        (PerSample, Hutchinson(3)),
    ],
    ids=str,
)
def test_it_agrees_with_path_then_quadrature_probe_by_probe(kind, divergence):
    """Of an event of any shape; three elements do not share out evenly over five probes."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 3), nn.Unflatten(1, (3, 1)))
    network.double()
    model = ScoreModel(lambda x, time: network(x), VPSDE(), "v")
    x = torch.randn(4, 3, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    how = {"solver": solver(kind, 1e-7), "divergence": replace(divergence, mode=reverse), "end": 0.01, **F64}
    joint = log_likelihood(model, x, quadrature=Joint(), **how)
    apart = log_likelihood(model, x, quadrature=Quadrature(40), **how)
    torch.testing.assert_close(joint.replicates, apart.replicates, rtol=0, atol=1e-5)
    torch.testing.assert_close(joint.latent, apart.latent, rtol=0, atol=1e-5)
    assert joint.latent.shape == x.shape
    default = log_likelihood(model, x, quadrature=Quadrature(), **how)  # the nodes of which Joint looks at some
    torch.testing.assert_close(joint.truncation, default.truncation)
    torch.testing.assert_close(joint.prior_cost, default.prior_cost, rtol=0.3, atol=1e-6)
    assert joint.finest == pytest.approx(default.finest, rel=0.2)
    assert (joint.integral - apart.integral).abs().max() > 0  # not the same sum


class Turning(nn.Module):
    """Samples stand still at the origin, while the divergence there swings with time, ``swings`` times."""

    def __init__(self, swings):
        super().__init__()
        self.swings = swings

    def forward(self, x, time):
        return (1.5 * torch.sin(self.swings * time))[:, None] * x


@pytest.mark.parametrize("kind", KINDS, ids=name)
def test_the_divergence_drives_the_steps_only_here(kind):
    """At the origin of a linear field the state does not move, whatever its divergence does."""
    x, taken = torch.zeros(2, 2, dtype=torch.float64), {}
    for swings in (1.0, 40.0):
        model = ScoreModel(Turning(swings), VPSDE(), "v")
        for rule in (Joint(), Quadrature(25)):
            how = {"solver": solver(kind, 1e-5), "end": 1e-3, "divergence": ExactTrace(mode=reverse), **F64}
            taken[swings, type(rule)] = log_likelihood(model, x, quadrature=rule, **how).nfe
    assert taken[1.0, Quadrature] == taken[40.0, Quadrature]
    assert taken[40.0, Joint] > 1.3 * taken[1.0, Joint] > taken[1.0, Quadrature]


@pytest.mark.parametrize(
    ("kind", "divergence"),
    [
        (PerSample, ExactTrace(mode=reverse)),
        (TorchDiffEq, Hutchinson(3, mode=reverse)),
        (Scipy, ExactTrace(mode=reverse)),
    ],
    ids=name,
)
def test_many_dimensions_do_not_dilute_the_control(kind, divergence):
    """Nats per dimension and their tolerance are what they were: so are the steps, however many elements x has."""
    model, taken = ScoreModel(Turning(40.0), VPSDE(), "v"), []
    for D in (2, 64):
        how = {"solver": solver(kind, 1e-5), "end": 1e-3, "divergence": divergence, **F64}
        x = torch.zeros(2, D, dtype=torch.float64)
        taken.append(log_likelihood(model, x, quadrature=Joint(), **how).nfe)
    assert taken[0] == pytest.approx(taken[1], rel=0.15)


@pytest.mark.parametrize("kind", KINDS, ids=name)
def test_the_error_follows_the_tolerance(kind):
    model = mixture(VPSDE())
    x = points(model, 16)
    errors = []
    for tolerance in (1e-4, 1e-6, 1e-8):
        found = log_likelihood(
            model, x, solver=solver(kind, tolerance), quadrature=Joint(), prior=model.log_prob, **F64
        )
        errors.append(((found.nats - truth(model, x, 1e-5)).abs() / 2).max())
        assert errors[-1] < 10 * tolerance
    assert errors[2] < errors[1] / 10 < errors[0] / 100


@pytest.mark.parametrize("kind", KINDS, ids=name)
def test_counts_are_those_of_the_network(kind):
    model, n = asked(mixture(VPSDE())), 7
    x = points(mixture(VPSDE()), n)
    how = {"solver": solver(kind, 1e-4), "divergence": ExactTrace(mode=reverse), **F64}
    found = log_likelihood(model, x, quadrature=Joint(), **how)
    apart = (found.divergences - found.statistics.evaluations).unique()  # nodes looked at for the ends
    assert len(apart) == 1
    probe, ends = 8, n * apart.item()  # rows that show the network to be differentiable, and those nodes
    assert 1 < apart.item() < 25
    assert model.network.rows(followed=True) - probe - ends == found.statistics.evaluations.sum()
    assert model.network.rows(followed=False) == 0
    assert found.nfe == found.statistics.evaluations.max()
    assert found.divergence_nfe == found.nfe + apart.item()


def test_a_sample_is_independent_of_its_batch():
    model = mixture(VPSDE())
    x = points(model, 7)
    how = {"solver": solver(PerSample, 1e-5), "quadrature": Joint(), "divergence": Hutchinson(3, mode=reverse), **F64}
    whole = log_likelihood(model, x, **how)
    for size in (1, 3):
        parts = log_likelihood(model, x, batch_size=size, **how)
        torch.testing.assert_close(parts.replicates, whole.replicates, rtol=1e-11, atol=1e-11)
        assert torch.equal(parts.statistics.evaluations, whole.statistics.evaluations)


@pytest.mark.parametrize("form", [lambda label: label, lambda label: {"label": label}], ids=["it", "dict"])
def test_every_sample_keeps_its_condition_when_others_have_arrived(form):
    """x̂_0 = x times a number that belongs to the sample: fast and slow ones leave the batch at different times."""

    def network(x, time, condition):
        factor = condition["label"] if isinstance(condition, dict) else condition
        return torch.tanh(factor[:, None] * x)

    model = ScoreModel(network, FlowMatching(), "v")
    factor = torch.tensor([0.1, 8.0, 1.0, 3.0, 0.0], dtype=torch.float64)
    x = torch.linspace(-1, 1, 10, dtype=torch.float64).reshape(5, 2)
    how = {"solver": solver(PerSample, 1e-6), "grid": [0.99, 0.01], "quadrature": Joint(), **F64}
    whole = log_likelihood(model, x, condition=form(factor), **how)
    assert len(whole.statistics.evaluations.unique()) > 1
    for i in range(5):
        alone = log_likelihood(model, x[i : i + 1], condition=form(factor[i : i + 1]), **how)
        torch.testing.assert_close(alone.nats, whole.nats[i : i + 1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS[:2], ids=name)
def test_the_gradient_by_the_data_is_the_score(kind):
    model = mixture(VPSDE())
    x = points(model, 3).requires_grad_()
    how = {"solver": solver(kind, 1e-6), "prior": model.log_prob, "differentiable": True, **F64}
    found = log_likelihood(model, x, quadrature=Joint(), **how)
    (gradient,) = torch.autograd.grad(found.nats.sum(), x)
    torch.testing.assert_close(gradient, model.score(x.detach(), 1e-5), rtol=2e-3, atol=2e-3)


def test_in_single_precision():
    model = mixture(VPSDE())
    x = points(model).float()
    found = log_likelihood(model, x, solver=solver(PerSample, 1e-5), quadrature=Joint(), prior=model.log_prob)
    assert found.latent.dtype == torch.float32
    assert ((found.nats - truth(model, x, 1e-5)).abs() / 2).max() < 1e-4
