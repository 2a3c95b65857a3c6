"""``ScoreModel.check``: wrong declarations are found, right ones never, not even of undertrained networks."""

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
from sde_toolkit.errors import ArgumentError
from sde_toolkit.evaluation import Judge, flat_features
from sde_toolkit.models.declaration import DeclarationWarning, check_declaration
from sde_toolkit.models.evidence import Evidence
from sde_toolkit.models.linear_denoiser import LinearDenoiser
from sde_toolkit.models.perturbed_trial import Manner, Outcome, Trial
from sde_toolkit.models.prediction import Readout
from sde_toolkit.models.time_inputs import DiscreteIndex, NoiseLevel, NoiseRatio, RemainingTime, ScaledTime

MEANS = torch.tensor([[1.0, 0.2], [-0.7, 0.8], [0.1, -1.1], [-0.9, -0.6], [0.3, 0.1]])
STD = 0.15
DATA = GaussianMixture(MEANS, VPSDE(), std=STD).draw(1500, generator=torch.Generator().manual_seed(1)).float()
SPREAD = DATA.std().item()


class Answers(nn.Module):
    """What a network of some convention answers: ``kind`` of a mixture, told ``time_of`` its t.

    ``learned``: the share of the exact x̂_0. The rest is that of the best linear denoiser, which networks learn first.
    ``wobble``: the size of a smooth wrong function on top, in units of the answer.
    """

    def __init__(self, sde, kind, time_of, sigma_data=1.0, sign=1, learned=1.0, wobble=0.0):
        super().__init__()
        self.sde, self.kind, self.time_of, self.sigma_data = sde, kind, time_of, sigma_data
        self.sign, self.learned, self.wobble = sign, learned, wobble
        self.calls = self.rows = 0

    def forward(self, x, time, condition=None):
        self.calls, self.rows = self.calls + 1, self.rows + len(x)
        t = self.time_of(time.double()).clamp(1e-5, 1.0)
        alpha, sigma = (c.to(x.dtype)[:, None] for c in (self.sde.alpha(t), self.sde.sigma(t)))
        if self.kind == "edm":
            x = torch.sqrt(sigma**2 + (alpha * self.sigma_data) ** 2) * x
        x_0 = self.learned * denoised(x, alpha, sigma, MEANS, STD)
        x_0 = x_0 + (1 - self.learned) * denoised(x, alpha, sigma, MEANS[:1] * 0, SPREAD)
        m, n = (c.to(x.dtype)[:, None] for c in Readout(self.sde, "x0", t, self.sigma_data).view(self.kind))
        y = m * x + n * x_0
        size = torch.sqrt(alpha**2 * SPREAD**2 + sigma**2)
        return self.sign * (
            y + self.wobble * y.square().mean(1, keepdim=True).sqrt() * torch.sin(3 * x.flip(1) / size + 1)
        )


def denoised(x, alpha, sigma, means, std):
    """E[x_0 | x_t] of an equal mixture of N(means, std²)."""
    variance = alpha**2 * std**2 + sigma**2
    away = x[:, None] - alpha[:, :, None] * means
    each = means + (alpha * std**2 / variance)[:, :, None] * away
    weights = torch.softmax(-away.square().sum(2) / (2 * variance), dim=1)
    return (weights[:, :, None] * each).sum(1)


def level_of(sde):
    """t of σ/α."""
    low, high = (sde.half_log_snr(end).item() for end in (1.0, 0.0))
    return lambda ratio: sde.inverse_half_log_snr((-torch.log(ratio.clamp(min=1e-9))).clamp(low, high))


def conventions(**quality):
    """Right declarations of networks, by name."""
    flow, edm, ve, ddpm, cosine = FlowMatching(), EDMSDE(), VESDE(), DiscreteVPSDE(), CosineVPSDE()
    velocity = Answers(flow, "velocity", lambda t: t, **quality)
    backwards = Answers(flow, "velocity", lambda s: 1 - s, sign=-1, **quality)
    raw = Answers(edm, "edm", lambda c: level_of(edm)(torch.exp((4 * c).clamp(-20, 20))), 0.5, **quality)
    score = Answers(ve, "score", level_of(ve), **quality)
    noise = Answers(ddpm, "epsilon", lambda i: (i + 1) / 1000, **quality)
    v = Answers(cosine, "v", lambda t: t / 1000, **quality)
    return {
        "flow": ScoreModel(velocity, flow, "velocity"),
        "flow to data": ScoreModel(backwards, flow, "velocity", time_input=RemainingTime(), sign=-1),
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


RIGHT = conventions()
WRONG = [  # name, what is wrong, and words of the better declaration
    ("flow", {"prediction": "v"}, 'prediction="velocity"'),
    ("flow to data", {"sign": 1}, "sign=-1"),
    ("flow", {"time_input": RemainingTime()}, "FlowMatching()"),
    ("flow", {"time_input": ScaledTime(1000.0)}, "FlowMatching()"),
    ("flow", {"sde": CosineVPSDE()}, "FlowMatching()"),
    ("EDM", {"sign": -1}, 'prediction="edm", sigma_data=0.5)'),
    ("EDM", {"sigma_data": 1.0}, "sigma_data=0.5"),
    ("EDM", {"time_input": NoiseLevel(1.0)}, 'prediction="edm", sigma_data=0.5)'),
    ("EDM", {"transform": Affine(-1.0, 0.5)}, "Affine(0, 1)"),
    ("VE", {"prediction": "epsilon"}, 'prediction="score"'),
    ("VE", {"time_input": NoiseLevel(1.0)}, "NoiseRatio("),
    ("VE", {"sde": VPSDE()}, "VESDE()"),
    ("VE", {"transform": Affine(0.0, 127.5)}, "Affine("),
    ("DDPM", {"prediction": "v"}, 'prediction="epsilon"'),
    ("DDPM", {"prediction": "score"}, 'prediction="epsilon"'),
    ("DDPM", {"time_input": ScaledTime()}, "time_input="),  # DiscreteIndex(), ScaledTime(1000): nobody can tell
    ("DDPM", {"time_input": lambda sde, t: 999 * (1 - t)}, "time_input="),
    ("DDPM", {"sde": CosineVPSDE(end_half_log_snr=-5.0)}, ""),
    ("v", {"prediction": "x0"}, 'prediction="v"'),
    ("v", {"time_input": ScaledTime()}, "time_input="),
    ("v", {"sde": VPSDE()}, "CosineVPSDE()"),
    ("v", {"transform": Affine(0.5, 2.0)}, "Affine("),
]


def name_of(value):
    return "-".join(f"{k}={getattr(v, '__name__', v)}" for k, v in value.items()) if isinstance(value, dict) else ""


@pytest.mark.parametrize(("name", "change", "words"), WRONG, ids=lambda value: name_of(value) or str(value))
def test_a_wrong_declaration_is_found_and_the_better_one_can_be_pasted(name, change, words):
    report = declared(RIGHT[name], **change).check(DATA)
    assert not report.ok, report
    assert report.finding in str(report)
    assert words in report.better
    pasted = eval(report.better, {**globals(), "network": RIGHT[name].network})
    assert check_declaration(pasted, DATA, quick=True).ok


@pytest.mark.parametrize(
    "quality", [{"learned": 0.2, "wobble": 0.2}, {"learned": 0.0, "wobble": 0.6}], ids=["young", "poor"]
)
@pytest.mark.parametrize("name", RIGHT)
def test_a_right_declaration_of_an_undertrained_network_is_not_called_wrong(name, quality):
    report = conventions(**quality)[name].check(DATA)
    assert report.ok, report
    assert report.better is None


def test_an_unusual_time_is_found_by_the_times_of_other_levels():
    sde, usual = EDMSDE(), NoiseLevel()
    network = Answers(sde, "edm", lambda c: level_of(sde)(torch.exp((4 * (c - 0.3)).clamp(-20, 20))), 0.5)
    report = ScoreModel(network, sde, "edm", sigma_data=0.5).check(DATA)
    assert not report.ok
    assert report.better is None  # no usual time input has that 0.3
    assert "told the time of a noisier level" in report.finding
    right = ScoreModel(network, sde, "edm", sigma_data=0.5, time_input=lambda sde, t: usual(sde, t) + 0.3)
    assert right.check(DATA).ok


def test_what_is_worse_than_trivial_is_no_skill():
    """Errors of 3 and of 1.5 times the best multiple of x_t: neither declaration fits better."""
    model = RIGHT["flow"]
    trial = Trial.of(model, DATA, None, 20, 32, 0, 256)
    bad, less = (Outcome(Manner.of(model), size**2 * trial.trivial) for size in (3.0, 1.5))
    evidence = Evidence(trial, bad, less)
    assert evidence.overall == 0
    assert not evidence.is_better()
    assert Evidence(trial, bad, trial.ask(Manner.of(model))[0]).is_better()


def test_worse_than_a_linear_denoiser_is_a_note():
    for wobble, noted in ((1.0, True), (0.0, False)):
        report = check_declaration(conventions(learned=0.0, wobble=wobble)["flow"], DATA, quick=True)
        assert report.ok
        assert ("worse than a linear denoiser" in report.note) == noted


def test_errors_are_those_of_the_closed_form_on_gaussian_data():
    """E|x̂_0 − x_0|²/D = mean of c σ²/(α² c + σ²) over the variances c: of both denoisers."""
    std = torch.tensor([2.0, 0.5, 0.1])
    model = gaussian([1.0, -1.0, 0.0], VPSDE(), std=std.tolist())
    data = model.draw(4000, generator=torch.Generator().manual_seed(0)).float()
    report = model.check(data)
    assert report.ok
    for row in report.rows:
        alpha, sigma = model.sde.alpha(row.t), model.sde.sigma(row.t)
        true = (std**2 * sigma**2 / (alpha**2 * std**2 + sigma**2)).mean().sqrt().item() / report.spread
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

    for quick in (True, False):
        report = check_declaration(ScoreModel(dropped, flow.sde, "velocity"), DATA, n=8, quick=quick)
        assert not report.ok
        assert "random numbers" in report.finding


@pytest.mark.parametrize("around", [lambda m: clip_x0(m, -0.2, 0.2), lambda m: reschedule(m, VPSDE(beta_max=10.0))])
def test_of_a_wrapped_model_the_one_inside_is_tested(around):
    inside = RIGHT["v"]
    report = check_declaration(around(inside), DATA, quick=True)
    assert report.ok
    assert report == check_declaration(inside, DATA, quick=True)
    assert not around(declared(inside, sign=-1)).check(DATA, n=16).ok


def test_data_are_the_callers_and_conditions_go_with_them():
    model = RIGHT["v"]
    grey = declared(model, transform=Affine(127.5, 1 / 127.5))
    assert check_declaration(grey, 127.5 * DATA + 127.5, quick=True).ok

    def shifted(x, time, condition):
        return model.network(x, time) + condition

    told = ScoreModel(shifted, model.sde, "v", time_input=model.time_input)
    first = (torch.arange(len(DATA)) < 750).float()[:, None]
    whole, none, half = (
        [row.error for row in check_declaration(told, DATA, condition=c, quick=True).rows]
        for c in (first * 0 + 1, first * 0, first)
    )
    assert none == [row.error for row in check_declaration(model, DATA, quick=True).rows]
    assert none[10] < half[10] < whole[10]  # the condition of each sample counts


def test_a_check_leaves_no_trace_and_repeats():
    model = RIGHT["flow"]
    torch.manual_seed(3)
    before, mode = torch.get_rng_state(), model.training
    first = check_declaration(model, DATA, quick=True)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training == mode
    torch.manual_seed(4)
    second, other = (check_declaration(model, DATA, quick=True, seed=seed) for seed in (0, 1))
    assert str(first) == str(second)
    assert str(other) != str(first)


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (DATA[:3], {}, "fewer than 16"),
        (DATA.numpy(), {}, "ndarray"),
        (torch.ones(20, 2), {}, "all values are the same"),
        (torch.full((20, 2), math.nan), {}, "not finite"),
        (DATA[:, :1], {}, "shape"),
        (DATA, {"condition": torch.zeros(3)}, "rows"),
        (DATA, {"n": 2}, "at least 4"),
        (DATA, {"seed": 0.5}, "seed"),
    ],
)
def test_bad_arguments_are_refused(data, options, message):
    model = declared(RIGHT["v"])
    model.event_shape = (2,)
    with pytest.raises(ArgumentError, match=message):
        model.check(data, **options)


def compared(model, **options):
    data = DATA[:400]
    judge = Judge(data, 100, flat_features(model.transform, data))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rows = compare_solvers(model, ddim(), [3], n=100, judge=judge, endpoint_n=0, **options)
    return rows, [str(w.message) for w in caught if w.category is DeclarationWarning]


def test_compare_warns_once_of_a_wrong_declaration_and_computes_what_it_did():
    right, wrong = (ScoreModel(RIGHT["v"].network, CosineVPSDE(), "v", sign=sign, event_shape=(2,), time_input=time)
                    for sign, time in ((1, ScaledTime(1000.0)), (-1, ScaledTime(1000.0))))  # fmt: skip
    for model, warned in ((right, 0), (wrong, 1)):
        checked, said = compared(model)
        assert len(said) == warned
        assert all('prediction="v"' in words for words in said)
        unchecked, said = compared(model, check_declaration=False)
        assert not said
        assert torch.equal(checked.samples[0], unchecked.samples[0])
        assert checked.rows[0].nfe == unchecked.rows[0].nfe == 3
        rows = [
            repr(replace(found.rows[0], seconds=0.0, network_seconds=0.0, timing=None))
            for found in (checked, unchecked)
        ]
        assert rows[0] == rows[1]


def test_a_quick_check_of_a_right_declaration_is_at_most_twenty_evaluations_of_small_batches():
    for name, model in RIGHT.items():
        network = model.network
        calls, rows = network.calls, network.rows
        assert check_declaration(model, DATA, quick=True).ok
        assert network.calls - calls <= 20, name
        assert network.rows - rows <= 20 * 80, name


def test_calibrate_warns_where_it_is_given_data():
    wrong = declared(RIGHT["v"], sign=-1)
    wrong.event_shape = (2,)
    with pytest.warns(DeclarationWarning, match="declaration looks wrong"):
        calibrate(wrong, ddim(), 3, data=DATA, n=4, time_limit=0.1, reference_steps=8)
