"""What goes through the network along a path, for which sample, how often, and that it is the path's own divergence."""

import pytest
import torch
from densities import (
    F64,
    PUBLIC_SDES,
    RandomNetwork,
    asked,
    mixture,
    model_of,
    name,
    points,
    signal_at_the_end,
    truth,
)
from torch import nn

from sde_toolkit import (
    VPSDE,
    CosineVPSDE,
    FlowMatching,
    ScoreModel,
    gaussian,
    grids,
    heun,
    log_likelihood,
    probability_flow,
    rk4,
    sample,
)
from sde_toolkit.integrators import PerSample, TorchDiffEq
from sde_toolkit.likelihood import ExactTrace, Hutchinson, Quadrature, reverse

PER_SAMPLE = probability_flow(PerSample(rtol=1e-5, atol=1e-5))


@pytest.mark.parametrize("sde", [*PUBLIC_SDES], ids=name)
def test_a_generated_sample_has_the_log_probability_that_its_own_path_gave_it(sde):
    """log p(x_e) = log p(x_T) − D log(α_e/α_T) + ∫ σ² tr ∂s/∂x dλ over the trajectory, by Simpson's rule.

    The network is a random one: there is no density to compare with but the flow's own.
    """
    network = RandomNetwork(3)

    def of_unit_size(x, time):
        return network(x / (sde.alpha(time) ** 2 + sde.sigma(time) ** 2).sqrt()[:, None], time)

    model = model_of(of_unit_size, sde)
    grid = grids.uniform_lambda(sde, 120, start=1.0 if signal_at_the_end(sde) else 0.99, end=1e-3)
    made = sample(model, rk4(), grid, shape=(3, 3), trajectory=True, **F64)
    times = grid.repeat_interleave(3)
    jacobian = torch.func.jacrev(lambda y: model.score(y, times).sum(0))(made.trajectory.flatten(0, 1))
    values = torch.einsum("ini->n", jacobian).reshape(-1, 3) * sde.sigma(grid)[:, None] ** 2  # rows do not mix
    lambdas = sde.half_log_snr(grid)
    simpson = torch.ones(len(grid), 1, dtype=torch.float64)
    simpson[1:-1:2], simpson[2:-1:2] = 4, 2
    integral = (simpson * values).sum(0) * (lambdas[1] - lambdas[0]) / 3
    volume = 3 * (sde.log_alpha(grid[-1]) - sde.log_alpha(grid[0]))
    start = sde.prior_logp(made.trajectory[0], grid[0].item())
    found = log_likelihood(model, made.x, solver=rk4(), grid=grid, quadrature=Quadrature(120), **F64)
    torch.testing.assert_close(found.latent, made.trajectory[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.nats, start - volume - integral, rtol=0, atol=1e-4)
    assert integral.abs().mean() > 0.1


@pytest.mark.parametrize(
    "how",
    [{"nfe": 24}, {"solver": PER_SAMPLE, "end": 1e-4}, {"nfe": 24, "richardson": True}],
    ids=["fixed", "per sample", "richardson"],
)
def test_a_sample_is_independent_of_its_batch(how):
    """To 1e-11 in float64: a matrix product may round differently for another number of rows."""
    model = mixture(VPSDE())
    x = points(model, 7)
    divergence = Hutchinson(4, mode=reverse)
    whole = log_likelihood(model, x, divergence=divergence, **how, **F64)
    for size in (1, 3):
        parts = log_likelihood(model, x, divergence=divergence, batch_size=size, **how, **F64)
        for field in ("nats", "standard_error", "latent", "quadrature_error", "truncation", "prior_cost", "replicates"):
            torch.testing.assert_close(getattr(parts, field), getattr(whole, field), rtol=1e-11, atol=1e-11)
        if whole.statistics is not None:
            assert torch.equal(parts.statistics.evaluations, whole.statistics.evaluations)
        if whole.solver_error is not None:
            torch.testing.assert_close(parts.solver_error, whole.solver_error, rtol=1e-8, atol=1e-11)


def test_shards_add_up_to_the_whole():
    model = mixture(VPSDE())
    x = points(model, 9)
    how = {"nfe": 16, "divergence": Hutchinson(3, mode=reverse), "seed": 4, **F64}
    whole = log_likelihood(model, x, **how)
    first, second = (log_likelihood(model, part, first_index=at, **how) for part, at in ((x[:4], 0), (x[4:], 4)))
    torch.testing.assert_close(torch.cat([first.nats, second.nats]), whole.nats, rtol=1e-11, atol=1e-11)
    again = log_likelihood(model, x, **how)
    assert torch.equal(again.replicates, whole.replicates)
    for changed in ({"seed": 5}, {"first_index": 1}):
        other = log_likelihood(model, x, **{**how, **changed})
        assert ((other.replicates - whole.replicates).abs().amax(0) > 1e-6).any()
        assert torch.equal(other.latent, whole.latent)  # only probes are random


class Classes(nn.Module):
    """v = α ε − σ x̂_0 of a Gaussian whose mean and variance are the class's: so is the trace of its Jacobian."""

    def __init__(self, sde, means, variances):
        super().__init__()
        self.sde, self.means, self.variances = sde, means, variances

    def forward(self, x, time, condition):
        label = condition["label"] if isinstance(condition, dict) else condition
        assert len(label) == len(x) == len(time)
        alpha, sigma = (schedule(time.double())[:, None] for schedule in (self.sde.alpha, self.sde.sigma))
        d, variance = x - alpha * self.means[label], self.variances[label][:, None]
        spread = alpha**2 * variance + sigma**2
        return alpha * sigma * d / spread - sigma * (self.means[label] + alpha * variance * d / spread)


@pytest.mark.parametrize(
    "form", [lambda label: label, lambda label: {"label": label, "scale": 3.0}], ids=["it", "dict"]
)
def test_every_row_has_its_own_condition_at_every_node(form):
    sde, means = VPSDE(), torch.tensor([[2.0, -1.0], [-2.0, 0.5], [0.0, 3.0]], dtype=torch.float64)
    variances = torch.tensor([0.1, 0.4, 0.9], dtype=torch.float64)
    model = ScoreModel(Classes(sde, means, variances), sde, "v")
    label = torch.tensor([2, 0, 1, 1, 0, 2, 2])
    x = means[label] + 0.5 * torch.randn(7, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    alone = [gaussian(mean, sde, std=variance.sqrt()) for mean, variance in zip(means, variances, strict=True)]
    expected = torch.stack([alone[k].log_prob(row[None], 1e-5)[0] for k, row in zip(label.tolist(), x, strict=True)])

    def prior(latent, t):
        return torch.cat([alone[k].log_prob(row[None], t) for k, row in zip(labels, latent, strict=True)])

    for size in (None, 3, 1):
        batches = iter(label.split(size or 7))
        found = []
        for first in range(0, 7, size or 7):
            labels = next(batches).tolist()
            rows = slice(first, first + len(labels))
            found.append(log_likelihood(model, x[rows], nfe=100, condition=form(label[rows]), prior=prior, **F64).nats)
        assert (torch.cat(found) - expected).abs().max() < 1e-5
    whole, parts = (
        log_likelihood(model, x, nfe=20, condition=form(label), batch_size=size, **F64).nats for size in (None, 3)
    )
    torch.testing.assert_close(whole, parts, rtol=1e-11, atol=1e-11)


def test_every_row_has_its_own_condition_where_a_batch_is_too_large_for_all_nodes_at_once():
    sde, D = VPSDE(), 800
    means = torch.randn(2, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    variances = torch.tensor([0.1, 0.4], dtype=torch.float64)
    model = ScoreModel(Classes(sde, means, variances), sde, "v")
    label = torch.tensor([1, 0, 1, 1, 0, 0, 1, 0, 1])  # 7,200 numbers: two nodes at once, and one left over
    x = means[label] + 0.1
    found = log_likelihood(model, x, nfe=40, condition=label, divergence=Hutchinson(2), quadrature=Quadrature(9), **F64)
    for k in (0, 1):
        alone = gaussian(means[k], sde, std=variances[k].sqrt())
        alone.sigma_data = model.sigma_data  # the same grid and nodes
        one = log_likelihood(alone, x[label == k], nfe=40, divergence=Hutchinson(2), quadrature=Quadrature(9), **F64)
        torch.testing.assert_close(found.nats[label == k], one.nats, rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize("sde", [VPSDE(), FlowMatching(), CosineVPSDE()], ids=name)
@pytest.mark.parametrize("richardson", [False, True])
@pytest.mark.parametrize("how", [{"nfe": 20}, {"solver": heun(), "steps": 10}, {"solver": rk4(), "steps": 6}], ids=str)
def test_counts_are_those_of_the_network(sde, how, richardson):
    model, n = asked(mixture(sde)), 11
    x = points(mixture(sde), n)
    how, steps = dict(how), how.get("steps")
    if how.pop("steps", None):
        how["grid"] = grids.uniform_lambda(sde, steps, start=1.0 if signal_at_the_end(sde) else 0.99, end=1e-3)
    divergence, quadrature = ExactTrace(mode=reverse), Quadrature(13)
    found = log_likelihood(
        model, x, divergence=divergence, quadrature=quadrature, richardson=richardson, batch_size=4, **how, **F64
    )
    probe = 8  # rows on which it was seen that the network is differentiable
    assert model.network.rows(followed=True) - probe == found.divergence_nfe * n
    assert model.network.rows(followed=False) == found.nfe * n
    assert found.divergence_nfe == 13 * (1 + richardson)


@pytest.mark.parametrize("integrator", [PerSample(), TorchDiffEq()], ids=name)
def test_counts_of_adaptive_solvers_are_those_of_the_network(integrator):
    model, n = asked(mixture(VPSDE())), 11
    x = points(mixture(VPSDE()), n)
    how = {"solver": probability_flow(integrator), "divergence": ExactTrace(mode=reverse), **F64}
    found = log_likelihood(model, x, **how)
    assert model.network.rows(followed=True) - 8 == found.divergences.sum()
    assert found.divergence_nfe == found.divergences.max()
    model.network.calls.clear()
    found = log_likelihood(model, x, quadrature=Quadrature(25), **how)
    assert model.network.rows(followed=True) - 8 == 25 * n == found.divergence_nfe * n
    assert model.network.rows(followed=False) == found.statistics.evaluations.sum()
    assert found.nfe == found.statistics.evaluations.max()
    assert found.tolerances == (integrator.rtol, integrator.atol)
    assert torch.equal(found.rejected, found.statistics.rejected) or found.rejected.isnan().all()


def test_the_divergence_is_evaluated_at_the_nodes_and_nowhere_else():
    """Nodes do not depend on the steps, nor steps on nodes: the path is the same bits for any quadrature."""
    latents = []
    for Q in (5, 17):
        model = asked(mixture(VPSDE()))
        found = log_likelihood(
            model, points(mixture(VPSDE()), 9), solver=PER_SAMPLE, divergence=ExactTrace(mode=reverse),
            quadrature=Quadrature(Q), **F64,
        )  # fmt: skip
        seen = [times for _, times, followed in model.network.calls[1:] if followed]
        assert len(torch.cat(seen).unique()) == Q
        latents.append((found.latent, found.nfe))
    assert torch.equal(latents[0][0], latents[1][0])
    assert latents[0][1] == latents[1][1]


def test_the_nodes_of_one_batch_go_through_the_network_together():
    model = asked(mixture(VPSDE()))
    log_likelihood(model, points(mixture(VPSDE()), 9), nfe=20, divergence=ExactTrace(mode=reverse), **F64)
    followed = [rows for rows, _, by_autograd in model.network.calls if by_autograd]
    assert followed == [8, 25 * 9]


@pytest.mark.parametrize("divergence", [Hutchinson(2, mode=reverse), ExactTrace(mode=reverse)], ids=name)
def test_memory_for_derivatives_does_not_grow_with_the_batch(divergence):
    """What autograd is to follow at a time is a number of rows that depends on their size alone."""
    D = 500
    A = torch.randn(D, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64) / D**0.5
    model = asked(ScoreModel(lambda x, time: torch.tanh(x @ A), VPSDE(), "v"))
    most = []
    for n in (50, 200):
        model.network.calls.clear()
        x = 0.5 * torch.randn(n, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        how = {"divergence": divergence, "nfe": 6, "quadrature": Quadrature(2), **F64}
        whole = log_likelihood(model, x, **how)
        most.append(max(rows for rows, _, by_autograd in model.network.calls if by_autograd))
        assert model.network.rows(followed=True) - 8 == 2 * n
        alone = log_likelihood(model, x[-1:], first_index=n - 1, **how)
        torch.testing.assert_close(whole.nats[-1:], alone.nats, rtol=1e-11, atol=1e-9)
    assert most[0] == pytest.approx(most[1], rel=0.2)
    assert 16 <= most[1] <= 40


def test_a_network_in_another_precision_and_a_state_in_this_one():
    model = mixture(VPSDE())
    x = points(model)
    found = log_likelihood(model, x.half().double(), nfe=60, prior=model.log_prob)
    assert (found.nats - truth(model, x.half().double(), 1e-5)).abs().max() < 1e-3
