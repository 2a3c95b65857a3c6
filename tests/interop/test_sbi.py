"""Estimators of sbi as score models: what they say, their samplers and their densities, for every family."""

from importlib.util import find_spec

import pytest
import torch

from sde_toolkit import auto, ddim, euler_maruyama, grids, heun, log_likelihood, probability_flow, sample
from sde_toolkit.errors import ArgumentError
from sde_toolkit.integrators import PerSample
from sde_toolkit.interop import from_sbi, sbi_density
from sde_toolkit.interop.sbi_estimators import NoisyFlowMatching
from sde_toolkit.likelihood import Quadrature

pytestmark = pytest.mark.skipif(find_spec("sbi") is None, reason="sbi is not installed")
FAMILIES = ["vp", "subvp", "ve", "flow"]
D, OBSERVED = 3, 4
every_family = pytest.mark.parametrize("family", FAMILIES)


def estimator(family, **options):
    """Random weights; parameters of mean 1 and standard deviation 2."""
    from sbi.neural_nets.net_builders.vector_field_nets import build_vector_field_estimator

    torch.manual_seed(0)
    theta, x = 1 + 2 * torch.randn(200, D), torch.randn(200, OBSERVED)
    kind = {"estimator_type": "flow"} if family == "flow" else {"estimator_type": "score", "sde_type": family}
    found = build_vector_field_estimator(theta, x, hidden_features=16, num_layers=2, **kind, **options)
    for weight in found.net.parameters():  # they begin at 0, and the network would say nothing
        weight.data.normal_(std=0.3)
    return found


def posterior(family, **options):
    from sbi.inference.posteriors.vector_field_posterior import VectorFieldPosterior

    prior = torch.distributions.MultivariateNormal(torch.ones(D), 4 * torch.eye(D))
    return VectorFieldPosterior(estimator(family, **options), prior)


def told(posterior, x):
    """The posterior with an observation, ready to be asked by its own functions."""
    posterior.set_default_x(x)
    posterior.potential_fn.set_x(x[None], x_is_iid=False)
    return posterior


X = torch.tensor([0.3, -1.0, 0.5, 2.0])


@every_family
@pytest.mark.parametrize("shape", [(1,), (7,), (2, 5)], ids=str)
def test_the_score_and_the_velocity_are_those_of_the_estimator(family, shape):
    """At 20 times, with one observation for each sample."""
    found = estimator(family)
    model = from_sbi(found)
    n = torch.Size(shape).numel()
    theta, x = 3 * torch.randn(n, D), torch.randn(n, OBSERVED)
    for t in torch.linspace(0.01, 0.99, 20):
        expected = found(theta, x, t.expand(n))
        said = model(theta, t, condition=x).view("velocity" if family == "flow" else "score")
        assert (said - expected).norm() < 1e-5 * expected.norm()
        assert expected.norm() > 0.01


@every_family
def test_x_0_is_that_of_the_path_of_the_estimator(family):
    """α and σ as the estimator computes them, and Tweedie's formula; the drift of the flow as it computes that."""
    found = estimator(family)
    model = from_sbi(found, X)
    theta = 3 * torch.randn(9, D)
    for t in torch.linspace(0.05, 0.95, 10):
        times = t.expand(9)
        alpha, sigma = (float(part(times).flatten()[0]) for part in (found.mean_t_fn, found.std_fn))
        assert float(model.sde.alpha(t)) == pytest.approx(alpha, rel=1e-5)
        assert float(model.sde.sigma(t)) == pytest.approx(sigma, rel=1e-4)  # theirs is float32
        flow = found.ode_fn(theta, X[None], times)
        drift = model.sde.f(t) * theta - model.sde.g(t) ** 2 / 2 * model(theta, t).view("score")
        assert (drift.float() - flow).norm() < 1e-3 * flow.norm()


@pytest.mark.parametrize("family", ["vp", "subvp", "ve"])
def test_euler_maruyama_is_its_own_sampler(family):
    own = told(posterior(family), X)
    model, n = from_sbi(own), 6
    times = own.vector_field_estimator.solve_schedule(20)
    torch.manual_seed(3)
    expected = own._sample_via_diffusion((n,), steps=20, show_progress_bars=False)
    base = torch.randn(n, D, generator=torch.Generator().manual_seed(3))
    start = own.vector_field_estimator.mean_base + own.vector_field_estimator.std_base * base
    generator = torch.Generator().manual_seed(3)  # its first draw is that of the start
    found = sample(model, euler_maruyama(), times.double(), x_start=start, generator=generator)
    assert (found.x - expected[:, 0]).norm() < 1e-4 * expected.norm()


@every_family
@pytest.mark.parametrize("composed", [False, True], ids=["", "composed"])
def test_the_density_is_its_own(family, composed):
    own = told(posterior(family, **({"z_score_theta": None, "compose_standardization": True} if composed else {})), X)
    theta = 1 + torch.randn(5, D)
    expected = own.log_prob(theta, x=X)
    tight = probability_flow(PerSample(rtol=1e-6, atol=1e-6)) if family != "flow" else None
    found = log_likelihood(from_sbi(own), theta, nfe=None if tight else 100, solver=tight, **sbi_density(own))
    torch.testing.assert_close(found.nats.float(), expected, rtol=0, atol=1e-3)


@every_family
def test_samples_of_the_flow_are_its_own(family):
    """From the same start: the flow solved tightly by both, standardisation and observation included."""
    own = told(posterior(family, z_score_theta=None, compose_standardization=True), X)
    model, found = from_sbi(own), own.vector_field_estimator
    torch.manual_seed(5)
    expected = own.sample_via_ode(torch.Size((6,)))
    torch.manual_seed(5)
    start = found.mean_base + found.std_base * torch.randn(6, D)
    end = max(found.t_min, 1e-5 if family == "flow" else 0.0)
    drawn = sample(model, heun(), grids.uniform(model.sde, 300, start=0.9999, end=end), x_start=start)
    torch.testing.assert_close(drawn.data, expected.reshape(6, D), rtol=0, atol=5e-3 * expected.abs().max().item())


def test_one_observation_is_bound_and_others_may_be_given():
    own = posterior("vp")
    with pytest.raises(ArgumentError, match="needs an observation"):
        sample(from_sbi(own), ddim(), steps=2, shape=(2, D))
    bound = from_sbi(told(own, X))
    many = X.expand(5, OBSERVED)
    one, other = (sample(bound, ddim(), steps=3, shape=(5, D), seed=0, condition=c).x for c in (None, many))
    torch.testing.assert_close(one, other)
    elsewhere = sample(bound, ddim(), steps=3, shape=(5, D), seed=0, condition=many + 1).x
    assert (elsewhere - one).abs().max() > 1e-3
    assert torch.equal(
        one, sample(from_sbi(own.vector_field_estimator, X[None]), ddim(), steps=3, shape=(5, D), seed=0).x
    )


def test_what_cannot_be_read_is_refused_by_name():
    with pytest.raises(ArgumentError, match=r"posterior=.*Linear.*NPSE or FMPE"):
        from_sbi(torch.nn.Linear(2, 2))
    with pytest.raises(ArgumentError, match=r"x=\(3,\).*shape \(4,\)"):
        from_sbi(estimator("vp"), torch.zeros(3))
    with pytest.raises(ArgumentError, match=r"condition=\(2, 3\)"):
        sample(from_sbi(estimator("vp")), ddim(), steps=2, shape=(2, D), condition=torch.zeros(2, 3))
    shorter = estimator("vp")
    shorter.t_max = 0.9
    with pytest.raises(ArgumentError, match=r"t_max=0\.9"):
        from_sbi(shorter)


@pytest.mark.parametrize("noise_scale", [1e-3, 0.2])
def test_the_path_of_fmpe_inverts(noise_scale):
    path = NoisyFlowMatching(noise_scale)
    t = torch.linspace(0, 0.999, 9, dtype=torch.float64)
    torch.testing.assert_close(path.inverse_half_log_snr(path.half_log_snr(t)), t)


def linear(theta):
    return theta - 1 + 0.3**0.5 * torch.randn_like(theta)


def of_linear(x, n):
    """The posterior of :func:`linear` under N(0, I): both precisions add."""
    variance = 1 / (1 + 1 / 0.3)
    return variance * (x + 1) / 0.3 + variance**0.5 * torch.randn(n, len(x))


def mixed(theta):
    return theta + torch.where(torch.rand(len(theta), 1) < 0.5, 0.2, 1.0) * torch.randn_like(theta)


def of_mixed(x, n):
    """The posterior of :func:`mixed` under N(0, 4 I), by importance."""
    drawn = mixed(x.expand(40 * n, len(x)))
    return drawn[torch.multinomial(torch.exp(-drawn.square().sum(1) / 8), n)]


TASKS = {"linear Gaussian": (1.0, linear, of_linear), "Gaussian mixture": (4.0, mixed, of_mixed)}


@pytest.fixture(scope="module", params=TASKS)
def task(request):
    """A posterior of NPSE, the simulator, and the true posterior."""
    from sbi.inference import NPSE
    from sbi.neural_nets import posterior_score_nn

    variance, simulate, truth = TASKS[request.param]
    torch.manual_seed(0)
    prior = torch.distributions.MultivariateNormal(torch.zeros(2), variance * torch.eye(2))
    theta = prior.sample((1000,))
    network = posterior_score_nn(sde_type="vp", hidden_features=32, num_layers=2)
    inference = NPSE(prior, network, sde_type="vp", show_progress_bars=False)
    inference.append_simulations(theta, simulate(theta)).train(max_num_epochs=15, training_batch_size=100)
    return inference.build_posterior(), simulate(prior.sample((10,))), truth


def test_twenty_evaluations_are_not_worse_than_its_own_five_hundred_steps(task):
    """By the classifier two-sample test over ten observations, within three standard errors of the difference."""
    from sbi.utils.metrics import c2st

    own, observations, truth = task
    theirs, forest = own.sample_batched((200,), x=observations, show_progress_bars=False), {"n_estimators": 30}
    differences = []
    for x, its_own in zip(observations, theirs.unbind(1), strict=True):
        model, expected = from_sbi(own, x), truth(x, 200)
        plan = auto(model, 20, eta=1.0)
        drawn = sample(model, plan.solver, plan.grid, tweedie=True, shape=(200, 2))
        assert drawn.nfe == 20
        ours, its = (
            float(c2st(expected, found, n_folds=2, classifier_kwargs=forest)) for found in (drawn.data, its_own)
        )
        differences.append(ours - its)
    difference = torch.tensor(differences)
    assert difference.mean() < 3 * difference.std() / len(difference) ** 0.5


def test_half_its_evaluations_give_the_density_to_a_thousandth(task):
    """Of the exact value: its own tolerances leave more than that."""
    own, observations, truth = task
    for x in observations[:3]:
        model, theta = from_sbi(own, x), truth(x, 8)
        calls = []
        hook = own.vector_field_estimator.net.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        own.set_default_x(x).log_prob(theta)
        hook.remove()
        named = {"detail": 0.5 * truth(x, 200).std(0).min().item(), **sbi_density(own)}
        nodes = Quadrature(15)
        found = log_likelihood(model, theta, nfe=len(calls) // 2 - 15, quadrature=nodes, **named).nats
        exact = log_likelihood(model, theta, nfe=400, quadrature=Quadrature(60), **named).nats
        torch.testing.assert_close(found, exact, rtol=0, atol=1e-3)
