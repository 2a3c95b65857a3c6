"""What a step operator is told is the step: one that changes nothing is the exponential integrator."""

from dataclasses import dataclass

import pytest
import torch
from catalogue import SDES, RandomNetwork, kinds_of, model_of, name, relative_error, run_on

from sde_toolkit import VPSDE, Solver, grids, sample
from sde_toolkit.guidance.step_operator import StepOperator
from sde_toolkit.integrators import Exponential, ddim_noise, eta_family


@dataclass(frozen=True)
class Unchanged(StepOperator):
    """The exponential step, from what an operator sees."""

    def move(self, step):
        return step.exponential(step.estimate())


@dataclass(frozen=True)
class ByHand(StepOperator):
    """The same from the levels, with a coefficient of its own and ε̂ apart."""

    power: float = 1.0

    def columns(self, equation, t, s):
        return {"ratio": equation.sde.alpha(s) / equation.sde.alpha(t)}

    def move(self, step):
        x_0 = step.estimate()
        kept = step.row.ratio * step.now.alpha * x_0 + step.rho * (step.x_t - step.now.alpha * x_0) / step.now.sigma
        return kept + step.kappa * step.noise() if step.eta > 0 else kept


@dataclass(frozen=True, eq=False)
class Holding(StepOperator):
    held: torch.Tensor | None = None

    def move(self, step):
        return step.exponential(step.estimate() + 0 * self.held)


@pytest.mark.parametrize("rule", [eta_family, ddim_noise])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("sde", SDES, ids=name)
def test_an_operator_that_changes_nothing_is_the_exponential_step(sde, eta, rule):
    grid = torch.tensor([0.9, 0.6, 0.3, 0.0], dtype=torch.float64)  # the last step ends at σ_s = 0, where an SDE has it
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    noises = torch.randn(3, 5, 2, generator=generator, dtype=torch.float64)
    kind = kinds_of(sde)[0]
    expected = run_on(Solver("", eta, Exponential(noise=rule)), model_of(RandomNetwork(), sde, kind), grid, x, noises)
    for operator in (Unchanged(noise=rule), ByHand(noise=rule)):
        found = run_on(Solver("", eta, operator), model_of(RandomNetwork(), sde, kind), grid, x, noises)
        assert relative_error(found, expected) < 1e-10


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_evaluations_and_noise_are_those_of_any_integrator(eta):
    calls = []

    def network(x, time, condition):
        calls.append(len(x))
        return condition[:, None] * torch.tanh(x)

    model = model_of(network, VPSDE())
    grid, options = grids.uniform(VPSDE(), 4), {"condition": torch.linspace(0, 1, 7), "seed": 3, "tweedie": True}
    whole = sample(model, Solver("", eta, Unchanged()), grid, shape=(7, 2), **options)
    assert whole.nfe == len(calls) == 5
    parts = sample(model, Solver("", eta, Unchanged()), grid, shape=(7, 2), batch_size=3, **options)
    assert torch.equal(parts.x, whole.x)
    compiled = sample(model, Solver("", eta, Unchanged()), grid, shape=(7, 2), compile="aot_eager", **options)
    assert compiled.nfe == 5
    torch.testing.assert_close(compiled.x, whole.x, rtol=1e-5, atol=1e-5)


def test_operators_are_equal_where_their_fields_are_and_those_that_hold_tensors_to_themselves_alone():
    assert ByHand() == ByHand()
    assert repr(ByHand(power=2.0)) == "ByHand(power=2.0)"  # the same in every process: records have it
    assert ByHand(power=2.0) != ByHand()
    held = Holding(held=torch.zeros(2))
    assert held == held
    assert held != Holding(held=torch.ones(2))
    assert len({held, Holding(held=torch.ones(2)), ByHand(), ByHand()}) == 3
