"""``ScoreModel.check``: wrong declarations of exact networks are found, right ones never; and it leaves no trace."""

import math
import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn

from sde_toolkit import (
    EDMSDE,
    VESDE,
    VPSDE,
    Affine,
    CosineVPSDE,
    DiscreteVPSDE,
    FlowMatching,
    GaussianMixture,
    ScoreModel,
    calibrate,
    clip_x0,
    compare_solvers,
    ddim,
    gaussian,
    reschedule,
)
from sde_toolkit.batching import expand_to
from sde_toolkit.errors import ArgumentError
from sde_toolkit.evaluation import Judge, flat_features
from sde_toolkit.models.linear_denoiser import LinearDenoiser
from sde_toolkit.models.prediction import Readout
from sde_toolkit.models.time_inputs import DiscreteIndex, NoiseLevel, NoiseRatio, RemainingTime, ScaledTime

MEANS = torch.tensor([[1.0, 0.2], [-0.7, 0.8], [0.1, -1.1], [-0.9, -0.6], [0.3, 0.1]])


class Answers(nn.Module):
    """What a perfectly trained network of some convention answers: ``kind`` of a mixture, told ``time_of`` its t."""

    def __init__(self, exact, kind, time_of, sigma_data=1.0):
        super().__init__()
        self.exact, self.kind, self.time_of, self.sigma_data = exact, kind, time_of, sigma_data
        self.seen = 0

    def forward(self, x, time, condition=None):
        self.seen += len(x)
        sde, t = self.exact.sde, self.time_of(time.double()).clamp(1e-5, 1.0)
        if self.kind == "edm":
            c = torch.sqrt(sde.sigma(t) ** 2 + (sde.alpha(t) * self.sigma_data) ** 2)
            x = expand_to(c.to(x.dtype), x) * x
        v = self.exact(x, t).output
        m, n = (expand_to(c.to(x.dtype), x) for c in Readout(sde, "v", t, self.sigma_data).view(self.kind))
        return m * x + n * v


def level_of(sde):
    """t of σ/α."""
    low, high = (sde.half_log_snr(end).item() for end in (1.0, 0.0))
    return lambda ratio: sde.inverse_half_log_snr((-torch.log(ratio.clamp(min=1e-9))).clamp(low, high))


def conventions():
    """Declarations of exact networks, by name."""
    flow, edm, ve, ddpm, cosine = FlowMatching(), EDMSDE(), VESDE(), DiscreteVPSDE(), CosineVPSDE()

    def of(sde):
        return GaussianMixture(MEANS, sde, std=0.15)

    velocity = Answers(of(flow), "velocity", lambda t: t)
    raw = Answers(of(edm), "edm", lambda c: level_of(edm)(torch.exp((4 * c).clamp(-20, 20))), 0.5)
    score = Answers(of(ve), "score", level_of(ve))
    noise = Answers(of(ddpm), "epsilon", lambda i: (i + 1) / 1000)
    v = Answers(of(cosine), "v", lambda t: t / 1000)
    return {
        "flow": ScoreModel(velocity, flow, "velocity"),
        "EDM": ScoreModel(raw, edm, "edm", sigma_data=0.5),
        "VE": ScoreModel(score, ve, "score", time_input=NoiseRatio()),
        "DDPM": ScoreModel(noise, ddpm, "epsilon", time_input=DiscreteIndex(1000)),
        "v": ScoreModel(v, cosine, "v", time_input=ScaledTime(1000.0)),
    }


def declared(model, **changes):
    arguments = {
        name: getattr(model, name) for name in ("sde", "prediction", "time_input", "sigma_data", "sign", "transform")
    }
    return ScoreModel(model.network, **{**arguments, **changes})


DATA = GaussianMixture(MEANS, VPSDE(), std=0.15).draw(1500, generator=torch.Generator().manual_seed(1)).float()
RIGHT = conventions()
WRONG = [
    ("flow", {"prediction": "v"}),
    ("flow", {"prediction": "x0"}),
    ("flow", {"sign": -1}),
    ("flow", {"time_input": RemainingTime()}),
    ("flow", {"time_input": ScaledTime(1000.0)}),
    ("flow", {"sde": CosineVPSDE()}),
    ("EDM", {"prediction": "v"}),
    ("EDM", {"sign": -1}),
    ("EDM", {"sigma_data": 1.0}),
    ("EDM", {"time_input": NoiseLevel(1.0)}),
    ("EDM", {"time_input": ScaledTime()}),
    ("EDM", {"transform": Affine(-1.0, 0.5)}),
    ("VE", {"prediction": "epsilon"}),
    ("VE", {"sign": -1}),
    ("VE", {"time_input": NoiseLevel(1.0)}),
    ("VE", {"time_input": ScaledTime()}),
    ("VE", {"sde": VPSDE()}),
    ("VE", {"transform": Affine(0.0, 127.5)}),
    ("DDPM", {"prediction": "x0"}),
    ("DDPM", {"prediction": "v"}),
    ("DDPM", {"prediction": "score"}),
    ("DDPM", {"time_input": ScaledTime()}),
    ("DDPM", {"time_input": lambda sde, t: 999 * (1 - t)}),
    ("DDPM", {"sde": CosineVPSDE(end_half_log_snr=-5.0)}),
    ("v", {"prediction": "x0"}),
    ("v", {"prediction": "velocity"}),
    ("v", {"sign": -1}),
    ("v", {"time_input": ScaledTime()}),
    ("v", {"sde": VPSDE()}),
    ("v", {"transform": Affine(0.5, 2.0)}),
]


def name_of(value):
    return "-".join(f"{k}={getattr(v, '__name__', v)}" for k, v in value.items()) if isinstance(value, dict) else value


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", RIGHT)
def test_a_right_declaration_is_never_called_wrong(name, seed):
    report = RIGHT[name].check(DATA, seed=seed, n=32)
    assert report.ok, report
    assert report.better is None


@pytest.mark.parametrize(("name", "change"), WRONG, ids=name_of)
def test_a_wrong_declaration_is_found(name, change):
    report = declared(RIGHT[name], **change).check(DATA)
    assert not report.ok
    assert report.finding in str(report)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("flow", {"prediction": "v"}, 'prediction="velocity"'),
        ("VE", {"sign": -1}, 'prediction="score"'),
        ("v", {"time_input": ScaledTime()}, "time_input=ScaledTime(scale="),  # 999 or 1000: nobody can tell
        ("EDM", {"sigma_data": 1.0}, "sigma_data=0.5"),
    ],
)
def test_the_better_declaration_is_the_right_one_in_words_to_paste(name, change, words):
    report = declared(RIGHT[name], **change).check(DATA, n=64)
    assert words in report.better
    pasted = eval(report.better, {**globals(), "network": RIGHT[name].network})
    assert pasted.check(DATA, n=64).ok


def test_errors_are_those_of_the_closed_form_on_gaussian_data():
    """E|x̂_0 − x_0|²/D = mean of c σ²/(α² c + σ²) over the variances c: of both denoisers."""
    std = torch.tensor([2.0, 0.5, 0.1])
    model = gaussian([1.0, -1.0, 0.0], VPSDE(), std=std.tolist())
    data = model.draw(4000, generator=torch.Generator().manual_seed(0)).float()
    report = model.check(data, n=256)
    assert report.ok
    for row in report.rows:
        alpha, sigma = model.sde.alpha(row.t), model.sde.sigma(row.t)
        true = (std**2 * sigma**2 / (alpha**2 * std**2 + sigma**2)).mean().sqrt().item() / report.data_size
        assert row.error == pytest.approx(true, rel=0.15)
        assert row.linear == pytest.approx(row.error, rel=0.03)


def test_the_linear_denoiser_does_not_overfit_few_samples_in_many_dimensions():
    """64 samples of white noise in 4,096 dimensions: on others it is as good as the isotropic one."""
    g = torch.Generator().manual_seed(0)
    known, fresh, noise = (torch.randn(64, 1, 64, 64, generator=g, dtype=torch.float64) for _ in range(3))
    denoise = LinearDenoiser.of(known)
    for sigma in (0.1, 1.0, 10.0):
        s = torch.tensor(sigma, dtype=torch.float64)
        error = (denoise(fresh + s * noise, torch.ones_like(s), s) - fresh).square().mean().sqrt().item()
        assert error == pytest.approx(sigma / math.sqrt(1 + sigma**2), rel=0.02)


def test_dropout_in_training_mode_and_dropout_in_a_function_are_found():
    flow = RIGHT["flow"]
    layered = ScoreModel(nn.Sequential(nn.Dropout(0.1)), VPSDE(), "epsilon")
    layered.network.forward = None  # it is found before anything is evaluated
    assert "dropout" in layered.check(DATA).finding

    def dropped(x, time):
        return flow.network(nn.functional.dropout(x, 0.1, training=True), time)

    report = ScoreModel(dropped, flow.sde, "velocity").check(DATA, n=8)
    assert not report.ok
    assert "random numbers" in report.finding


@pytest.mark.parametrize("around", [lambda m: clip_x0(m, -0.2, 0.2), lambda m: reschedule(m, VPSDE(beta_max=10.0))])
def test_of_a_wrapped_model_the_one_inside_is_tested(around):
    inside = RIGHT["v"]
    report = around(inside).check(DATA, n=16)
    assert report.ok
    assert report.rows == inside.check(DATA, n=16).rows
    assert not around(declared(inside, sign=-1)).check(DATA, n=16).ok


def test_data_are_the_callers_and_conditions_go_with_them():
    model = RIGHT["v"]
    grey = declared(model, transform=Affine(127.5, 1 / 127.5))
    assert grey.check(127.5 * DATA + 127.5, n=16).ok

    def shifted(x, time, condition):
        return model.network(x, time) + condition

    told = ScoreModel(shifted, model.sde, "v", time_input=model.time_input)
    zero = torch.zeros(len(DATA), 1)
    assert told.check(DATA, condition=zero, n=16).ok
    assert not told.check(DATA, condition=zero + 1, n=16).ok


def test_a_check_leaves_no_trace():
    model = RIGHT["flow"]
    torch.manual_seed(3)
    before, mode = torch.get_rng_state(), model.training
    first, second = model.check(DATA, n=16), model.check(DATA, n=16)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training == mode
    assert str(first) == str(second)
    with pytest.raises(ArgumentError, match="fewer than 16"):
        model.check(DATA[:3])
    with pytest.raises(ArgumentError, match="rows"):
        model.check(DATA, condition=torch.zeros(3))


def _compared(model):
    data = DATA[:400]
    judge = Judge(data, 100, flat_features(model.transform, data))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rows = compare_solvers(model, ddim(), [3], n=100, judge=judge, endpoint_n=0)
    return rows, [str(w.message) for w in caught if "declaration" in str(w.message)]


def test_compare_warns_once_of_a_wrong_declaration_and_computes_what_it_did(monkeypatch):
    model = declared(RIGHT["v"], event_shape=(2,))
    right, said = _compared(model)
    assert not said
    wrong = declared(model, sign=-1, event_shape=(2,))
    found, said = _compared(wrong)
    assert len(said) == 1
    assert 'prediction="v"' in said[0]
    monkeypatch.setattr("sde_toolkit.evaluation.comparison.warn_if_wrong", lambda *_, **__: None)
    for with_check, settings in ((right, model), (found, wrong)):
        without, _ = _compared(settings)
        assert torch.equal(without.samples[0], with_check.samples[0])
        assert replace(without.rows[0], seconds=0.0, network_seconds=0.0) == replace(
            with_check.rows[0], seconds=0.0, network_seconds=0.0
        )


def test_a_quick_check_of_a_right_declaration_costs_some_640_evaluations():
    from sde_toolkit.models.declaration import check_declaration

    for name in ("flow", "EDM", "VE", "DDPM"):
        before = RIGHT[name].network.seen
        assert check_declaration(RIGHT[name], DATA, quick=True).ok
        assert RIGHT[name].network.seen - before <= 20 * 32


def test_calibrate_warns_where_it_is_given_data():
    wrong = declared(RIGHT["v"], sign=-1, event_shape=(2,))
    with pytest.warns(UserWarning, match="declaration looks wrong"):
        calibrate(wrong, ddim(), 3, data=DATA, n=4, time_limit=0.1, reference_steps=8)
