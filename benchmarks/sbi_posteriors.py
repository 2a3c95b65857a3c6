"""Posteriors of sbi, trained here: 20 evaluations of our solvers against its own 500 steps, and both densities.

    python benchmarks/sbi_posteriors.py            # ten minutes; pip install sbi pyro-ppl

Two tasks of sbi whose posterior is known: the linear Gaussian model and the Gaussian mixture. For each observation a
classifier (sbi's own two-sample test: 0.5 is perfect, 1 is always told apart) compares samples with the true posterior.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from report import Report, parser
from sbi.inference import FMPE, NPSE
from sbi.simulators.gaussian_mixture import (
    SIM_PARAMS,
    gaussian_mixture,
    uniform_prior_gaussian_mixture,
)
from sbi.simulators.linear_gaussian import linear_gaussian, true_posterior_linear_gaussian_mvn_prior
from sbi.utils import BoxUniform
from sbi.utils.metrics import c2st
from torch import Tensor
from torch.distributions import MultivariateNormal

from sde_toolkit import auto, log_likelihood, sample
from sde_toolkit.interop import from_sbi, sbi_density
from sde_toolkit.likelihood import Quadrature

D = 2
SHIFT, COVARIANCE = -torch.ones(D), 0.3 * torch.eye(D)
ETA = {"FlowMatchingEstimator": 0.0}  # the flow, as its own; the SDE for scores
EVALUATIONS = {"VEScoreEstimator": (60, 20), "FlowMatchingEstimator": (20, 8)}  # of the field, of the divergence
USUAL = (28, 15)


class Task(NamedTuple):
    """A prior, a simulator, and draws of the true posterior: (x, n) to (n, D)."""

    prior: Any
    simulate: Callable[[Tensor], Tensor]
    truth: Callable[[Tensor, int], Tensor]


def linear() -> Task:
    prior = MultivariateNormal(torch.zeros(D), torch.eye(D))

    def truth(x: Tensor, n: int) -> Tensor:
        return true_posterior_linear_gaussian_mvn_prior(x, SHIFT, COVARIANCE, torch.zeros(D), torch.eye(D)).sample((n,))

    return Task(prior, lambda theta: linear_gaussian(theta, SHIFT, COVARIANCE), truth)


def mixture() -> Task:
    bound = uniform_prior_gaussian_mixture(D).base_dist
    prior = BoxUniform(bound.low, bound.high)

    scales, weights = (torch.tensor(SIM_PARAMS[name]) for name in ("mixture_scales", "mixture_weights"))

    def truth(x: Tensor, n: int) -> Tensor:
        """θ = x + noise of one of the scales, inside the prior's box; both locations are θ itself."""
        scale = scales[torch.multinomial(weights, 50 * n, replacement=True)]
        drawn = x + scale[:, None] * torch.randn(50 * n, D)
        return drawn[inside(prior, drawn)][:n]

    return Task(prior, gaussian_mixture, truth)


class Counted:
    """Counts the calls of an estimator."""

    def __init__(self, estimator: Any) -> None:
        self.calls, self._forward = 0, estimator.forward
        estimator.forward = self

    def __call__(self, *arguments: Any, **named: Any) -> Tensor:
        self.calls += 1
        answer: Tensor = self._forward(*arguments, **named)
        return answer


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--observations", type=int, default=10)
    arguments.add_argument("--n", type=int, default=500, help="samples of each posterior")
    arguments.add_argument("--simulations", type=int, default=4000)
    arguments.add_argument("--epochs", type=int, default=100)
    options = arguments.parse_args()
    warnings.filterwarnings("ignore")
    report = Report(options.results, "sbi-posteriors", "Posteriors of sbi: ours with 20 evaluations, its own", ["sbi"])
    report.table(
        *("task", "method", "C2ST ours, 20", "C2ST its own", "log p: apart"),
        *("ours − exact", "its own − exact", "evaluations ours", "its own"),
    )
    methods = {
        "NPSE vp": lambda prior: NPSE(prior, sde_type="vp"),
        "NPSE ve": lambda prior: NPSE(prior, sde_type="ve"),
        "FMPE": FMPE,
    }
    for task_name, task in {"linear Gaussian": linear(), "Gaussian mixture": mixture()}.items():
        for name, method in methods.items():
            report.row(task_name, name, *measured(task, method, options))
    report.line(
        "C2ST: the mean over observations, ± the standard error of the paired difference. Samples of ours: auto with "
        "η = 1 for NPSE and η = 0 for FMPE. Samples of its own: 500 steps of Euler-Maruyama for NPSE, the flow to its "
        "tolerances for FMPE. Log densities, in nats: the largest difference over 5 points of each observation; exact "
        "is ours with 400 evaluations of the field and 60 of the divergence. Evaluations: those of one density, field "
        "and divergence together."
    )
    report.save()


def measured(task: Task, method: Callable[[Any], Any], options: Any) -> list[str]:
    """One row of the table, without its names."""
    torch.manual_seed(0)
    theta = task.prior.sample((options.simulations,))
    inference = method(task.prior)
    inference.append_simulations(theta, task.simulate(theta)).train(max_num_epochs=options.epochs)
    posterior = inference.build_posterior()
    rows = []
    for k, x in enumerate(task.simulate(task.prior.sample((options.observations,)))):
        posterior.set_default_x(x)
        rows.append(compared(task, posterior, k, x, options.n))
    ours, own, apart, our_error, its_error, evaluations, its_evaluations = torch.tensor(rows).T
    error = (ours - own).std().item() / len(rows) ** 0.5
    return [
        f"{ours.mean():.3f} ± {error:.3f}",
        f"{own.mean():.3f}",
        *(f"{largest.max():.1e}" for largest in (apart, our_error, its_error)),
        *(f"{count.mean():.0f}" for count in (evaluations, its_evaluations)),
    ]


def compared(task: Task, posterior: Any, seed: int, x: Tensor, n: int) -> list[float]:
    """Of one observation: both C2ST, three differences of log densities, and both numbers of evaluations."""
    model, truth, estimator = from_sbi(posterior), task.truth(x, n), posterior.vector_field_estimator
    family = type(estimator).__name__
    plan = auto(model, 20, ETA.get(family, 1.0))
    drawn = sample(model, plan.solver, plan.grid, tweedie=plan.tweedie, seed=seed, shape=(3 * n, D)).data
    drawn = drawn[inside(task.prior, drawn)][:n]  # as its own: samples outside of the prior are rejected
    theirs = posterior.sample((n,), show_progress_bars=False)
    points, calls = truth[:5], Counted(estimator)
    expected = posterior.log_prob(points)
    estimator.forward = calls._forward
    named = {"detail": 0.5 * drawn.std(0).min().item(), **sbi_density(posterior)}
    nfe, nodes = EVALUATIONS.get(family, USUAL)
    found = log_likelihood(model, points, nfe=nfe, quadrature=Quadrature(nodes), **named).nats
    exact = log_likelihood(model, points, nfe=400, quadrature=Quadrature(60), **named).nats
    apart = [(a - b).abs().max().item() for a, b in ((found, expected), (found, exact), (expected, exact))]
    scores = [float(c2st(truth, samples, seed=seed)) for samples in (drawn, theirs)]
    return [*scores, *apart, nfe + nodes, calls.calls]


def inside(prior: Any, theta: Tensor) -> Tensor:
    """Which samples are in the support of the prior."""
    held: Tensor = prior.support.check(theta)
    return held


if __name__ == "__main__":
    main()
