"""Autoguidance: on the line through a model and a weaker one, whatever the weaker one predicts."""

import pytest
import torch
from catalogue import SDES, RandomNetwork, kinds_of, name, relative_error

from sde_toolkit import VESDE, VPSDE, Affine, ScoreModel, ddim, ddpm, dpmpp_2m, gaussian, grids, pc, reschedule, sample
from sde_toolkit.errors import ArgumentError
from sde_toolkit.guidance import Guided, autoguidance
from sde_toolkit.models import time_inputs

SDE = VPSDE()
GRID = grids.uniform_lambda(SDE, 5, end=0.01)
LABELS = torch.arange(7)
X = torch.linspace(-2, 2, 14, dtype=torch.float64).reshape(7, 2)


class Counting(torch.nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor, self.calls = factor, 0

    def forward(self, x, time, condition=None):
        self.calls += not torch.compiler.is_compiling()
        shift = 0.0 if condition is None else condition.to(x)[:, None]
        return torch.tanh(self.factor * x + shift)


def pair(sde=SDE, kind="x0"):
    weak = ScoreModel(Counting(0.5), sde, kind, time_input=time_inputs.NoiseLevel(), event_shape=(2,))
    return ScoreModel(Counting(1.5), sde, "x0", event_shape=(2,)), weak


def drawn(model, solver, **options):
    return sample(model, solver, GRID, shape=(7, 2), dtype=torch.float64, **options)


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_the_estimate_lies_on_the_line_through_both(sde):
    for kind in kinds_of(sde):
        model, weak = pair(sde, kind)
        for t in (0.3, torch.linspace(0.2, 0.8, 7))[: 1 + (kind == "v")]:
            weaker, strong = weak(X, t, LABELS).x_0, model(X, t, LABELS).x_0
            for scale in (-0.5, 0.0, 2.5):
                expected = (1 - scale) * weaker + scale * strong
                found = autoguidance(model, weak, scale)(X, t, LABELS).x_0
                torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("solver", [ddim(), ddpm(), dpmpp_2m(), pc()], ids=name)
def test_evaluations_of_both_are_counted_and_at_one_and_zero_there_is_one_model(solver):
    for scale in (0, 1, 2.0):
        model, weak = pair()
        found = drawn(autoguidance(model, weak, scale), solver, tweedie=True)
        assert found.nfe == model.network.calls + weak.network.calls
        if scale < 2:
            plain = drawn((weak, model)[scale], solver, tweedie=True)
            assert relative_error(found.x, plain.x) < 1e-12
            assert found.nfe == plain.nfe


def test_scales_and_conditions_go_with_the_samples_and_both_models_are_told():
    scales, labels = torch.linspace(0, 3, 7), LABELS
    model, weak = pair()
    whole = drawn(autoguidance(model, weak, 9.0), ddpm(), condition=Guided(labels, scales))
    parts = drawn(autoguidance(model, weak, 9.0), ddpm(), condition=Guided(labels, scales), batch_size=3)
    assert torch.equal(whole.x, parts.x)
    compiled = drawn(autoguidance(model, weak, 9.0), ddpm(), condition=Guided(labels, scales), compile="aot_eager")
    torch.testing.assert_close(compiled.x, whole.x, rtol=1e-10, atol=1e-10)
    for i in (0, 4):
        alone = autoguidance(model, weak, scales[i].item())
        one = sample(alone, ddpm(), GRID, shape=(1, 2), first_index=i, condition=labels[i : i + 1], dtype=torch.float64)
        torch.testing.assert_close(whole.x[i : i + 1], one.x, rtol=1e-10, atol=1e-10)


def test_outside_of_the_interval_it_is_the_model_bit_for_bit_by_one_evaluation():
    model, weak = pair()
    found = drawn(autoguidance(model, weak, 3.0, (0.0, 0.5)), ddim(), trajectory=True)
    plain = drawn(model, ddim(), trajectory=True)
    above = (SDE.sigma(GRID) / SDE.alpha(GRID) > 0.5)[:-1]
    steps = int(above.sum())
    assert 0 < steps < 5
    assert torch.equal(found.trajectory[: steps + 1], plain.trajectory[: steps + 1])
    assert not torch.equal(found.trajectory[steps + 1], plain.trajectory[steps + 1])
    assert found.nfe == 5 + (5 - steps)


def test_weak_models_that_do_not_fit_are_refused_with_the_remedy():
    model = gaussian([0.0, 1.0], SDE, std=1.0)
    with pytest.raises(ArgumentError, match=r"weak=VESDE.*reschedule\(weak, model\.sde\)"):
        autoguidance(model, gaussian([0.0, 1.0], VESDE(), std=2.0), 2.0)
    autoguidance(model, reschedule(gaussian([0.0, 1.0], VESDE(0.001, 200.0), std=2.0), SDE), 2.0)
    with pytest.raises(ArgumentError, match=r"weak=\(3,\).*events of shape \(2,\)"):
        autoguidance(model, gaussian([0.0, 1.0, 2.0], SDE, std=1.0), 2.0)
    with pytest.raises(ArgumentError, match=r"weak=.*seen through"):
        autoguidance(model, ScoreModel(RandomNetwork(), SDE, transform=Affine(0.5, 2.0)), 2.0)
    with pytest.raises(ArgumentError, match=r"weak=.*not a ScoreModel"):
        autoguidance(model, RandomNetwork(), 2.0)
    with pytest.raises(ArgumentError, match="scale"):
        autoguidance(model, model, "2")


def test_the_record_says_what_the_weak_model_is():
    model, weak = pair(kind="v")
    noted = autoguidance(model, weak, 2.0).description()
    assert (noted["scale"], noted["weak"]["prediction"]) == (2.0, "v")
