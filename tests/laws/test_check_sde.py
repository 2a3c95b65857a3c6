"""A user's SDE is looked at once, before anything is computed with it: it runs from data to noise, or is refused."""

import math

import numpy as np
import pytest
import torch
from catalogue import SDES, Flow, doubles, name

from sde_toolkit import SDE, VPSDE, BrownianPath, LogSNRSDE, ScoreModel, gaussian, grids, reschedule
from sde_toolkit.errors import ArgumentError, DefinitionError, SDEToolkitError
from sde_toolkit.losses import LogNormal
from sde_toolkit.sde import check_sde


def of(**schedules):
    """An SDE with these functions of t."""
    return type("Mine", (SDE,), {key: lambda self, t, f=f: f(t) for key, f in schedules.items()})()


def backwards():
    return of(alpha=lambda t: t, sigma=lambda t: 1 - t)


@pytest.mark.parametrize("sde", [*SDES, Flow()], ids=name)
def test_what_is_an_sde_passes(sde):
    check_sde(sde)


WRONG = {
    "time reversed": (backwards, ["backwards", "1 - t"]),
    "α negative": (lambda: of(alpha=lambda t: 1 - 2 * t, sigma=lambda t: t), ["α is", "positive before t=1"]),
    "α infinite": (lambda: of(alpha=lambda t: 1 / (1 - t), sigma=lambda t: 2 * t / (1 - t) ** 3), ["α is inf", "t=1"]),
    "σ not a number": (lambda: of(alpha=lambda t: 1 - t, sigma=lambda t: torch.sqrt(t - 1e-6)), ["σ is nan", "clamp"]),
    "σ negative": (lambda: of(alpha=lambda t: 1 - t, sigma=lambda t: -t), ["σ is -"]),
    "no noise at first": (
        lambda: of(alpha=lambda t: 1 - t, sigma=lambda t: (t - 0.5).clamp(min=0)),
        ["σ is 0 at t=0.0"],
    ),
    "standing still": (
        lambda: of(alpha=lambda t: 1.0, sigma=lambda t: t.clamp(max=0.5)),
        ["strictly decrease", "t=0.5"],
    ),
    "turning back": (lambda: of(alpha=lambda t: 1.0, sigma=lambda t: 2 * t - t**4), ["strictly decrease", "t=0.79"]),
    "data scaled": (lambda: of(alpha=lambda t: 0.18 * (1 - t), sigma=lambda t: t), ["α(0) is 0.18"]),
    "λ of another path": (
        lambda: of(alpha=lambda t: 1 - t, sigma=lambda t: t, half_log_snr=lambda t: -torch.log(t)),
        ["half_log_snr is"],
    ),
    "f of the other sign": (
        lambda: of(alpha=lambda t: torch.exp(-t), sigma=lambda t: t, f=lambda t: 1 + 0 * t),
        ["f and g do not belong", "f α"],
    ),
    "g² for g": (
        lambda: of(alpha=lambda t: 1.0, sigma=lambda t: t, f=lambda t: 0.0, g=lambda t: 2 * t),
        ["f and g do not belong", "g²"],
    ),
    "no derivative": (
        lambda: of(alpha=lambda t: torch.cos(t.detach()), sigma=lambda t: torch.sin(t)),
        ["f and g do not belong"],
    ),
    "numpy functions": (
        lambda: of(alpha=lambda t: np.cos(t.numpy()), sigma=lambda t: np.sin(t.numpy())),
        ["class Mine", "torch operations"],
    ),
}


@pytest.mark.parametrize(("make", "words"), WRONG.values(), ids=WRONG.keys())
def test_what_is_none_is_refused_with_the_reason(make, words):
    with pytest.raises((ArgumentError, DefinitionError)) as caught:
        check_sde(make())
    assert not [word for word in words if word not in str(caught.value)], str(caught.value)


ENTRANCES = {
    "ScoreModel": lambda sde: ScoreModel(lambda x, t: x, sde, "v"),
    "gaussian": lambda sde: gaussian([0.0], sde, std=1.0),
    "reschedule": lambda sde: reschedule(gaussian([0.0], VPSDE(), std=1.0), sde),
    "grids": lambda sde: grids.uniform(sde, 3),
    "from_sigmas": lambda sde: grids.from_sigmas(sde, [1.0, 0.5]),
    "BrownianPath": lambda sde: BrownianPath().values(sde, doubles(0.5), (1, 2)),
    "training times": lambda sde: LogNormal()(sde, torch.rand(3), 1e-3),
}


@pytest.mark.parametrize("enter", ENTRANCES.values(), ids=ENTRANCES.keys())
def test_an_sde_is_looked_at_wherever_it_enters(enter):
    enter(VPSDE())
    with pytest.raises(ArgumentError, match="backwards"):
        enter(backwards())
    with pytest.raises(ArgumentError, match="not an SDE"):
        enter("vp")


def test_each_sde_is_looked_at_once():
    calls = []

    def sigma(t):
        calls.append(t)
        return t

    sde = of(alpha=lambda t: 1 - t, sigma=sigma)
    check_sde(sde)
    seen = len(calls)
    for _ in range(3):
        check_sde(sde)
        reschedule(gaussian([0.0], VPSDE(), std=1.0), VPSDE())
    assert len(calls) == seen > 0


NUMBERS = [1.0, 1, np.float64(1.0), np.float32(1.0), np.int64(1), torch.tensor(1.0), torch.tensor(1), np.array(1.0)]


@pytest.mark.parametrize("one", NUMBERS, ids=lambda v: f"{type(v).__name__} {getattr(v, 'dtype', '')}")
@pytest.mark.parametrize("t", [0.3, doubles(0.3), doubles(0.1, 0.3).reshape(2, 1), torch.tensor(0.3)], ids=str)
def test_a_number_is_the_value_at_every_time(one, t):
    sde, written_out = (
        of(alpha=lambda t: one, sigma=lambda t: 50 * t),
        of(alpha=torch.ones_like, sigma=lambda t: 50 * t),
    )
    for schedule in ("alpha", "log_alpha", "sigma", "half_log_snr", "f", "g", "d_alpha", "d_sigma"):
        found, expected = getattr(sde, schedule)(t), getattr(written_out, schedule)(t)
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    check_sde(sde)


def test_whole_arrays_and_narrow_tensors_are_taken():
    for ones in (
        lambda t: np.ones(tuple(t.shape)),
        lambda t: torch.ones(t.shape),
        lambda t: torch.ones(t.shape).long(),
    ):
        sde = of(alpha=ones, sigma=lambda t: 50 * t)
        check_sde(sde)
        assert sde.alpha(torch.rand(3)).dtype == torch.float32


@pytest.mark.parametrize("wrong", [None, "one", True, 1j, [1.0, 2.0], torch.ones(7), torch.ones(3, dtype=torch.bool)])
def test_other_answers_are_refused_by_class_and_method(wrong):
    for method in ("alpha", "sigma", "f", "g", "half_log_snr"):
        Mine = type("Mine", (VPSDE,), {method: lambda self, t: wrong})
        with pytest.raises(DefinitionError) as caught:
            getattr(Mine(), method)(torch.rand(3))
        assert "class Mine" in str(caught.value)
        assert "(3,)" in str(caught.value)


def almost_nothing(exponent):
    """α(1) is 0 up to rounding."""
    return {
        "cos": lambda t: torch.cos(torch.pi / 2 * t),
        "√(1 − σ²)": lambda t: torch.sqrt(1 - torch.sin(torch.pi / 2 * t) ** 2),
        "√(1 − σ²), rounded": lambda t: torch.sqrt(1 - torch.sin(torch.pi / 2 * t) ** 2 + 1.2e-16),
        "cos + 1e-16": lambda t: torch.cos(torch.pi / 2 * t) - 2e-16 * t,
    }[exponent]


@pytest.mark.parametrize("how", ["cos", "√(1 − σ²)", "√(1 − σ²), rounded", "cos + 1e-16"])
def test_a_signal_of_rounding_errors_is_none(how):
    sde = of(alpha=almost_nothing(how), sigma=lambda t: torch.sin(torch.pi / 2 * t))
    assert sde.loses_signal
    for kind in ("epsilon", "score"):
        with pytest.raises(ArgumentError, match=r"α\(1\) = 0"):
            ScoreModel(lambda x, t: x, sde, kind)
    ScoreModel(lambda x, t: x, sde, "v")


def test_rounding_at_the_end_is_taken_from_the_value_and_not_from_the_slope():
    sde = of(alpha=almost_nothing("cos"), sigma=lambda t: torch.sin(torch.pi / 2 * t))
    assert sde.alpha(1.0).item() == 0
    assert sde.half_log_snr(1.0).item() == -math.inf
    assert sde.d_alpha(1.0).item() == pytest.approx(-math.pi / 2, rel=1e-14)


@pytest.mark.parametrize("sde", [VPSDE(0.1, 80.0), VPSDE(0.1, 300.0)], ids=name)
def test_a_small_signal_is_one(sde):
    assert not sde.loses_signal
    ScoreModel(lambda x, t: x, sde)


class Curve(torch.nn.Module):
    """λ from ``start`` down to −5."""

    def __init__(self):
        super().__init__()
        self.start = torch.nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def forward(self, t):
        return self.start - (self.start + 5.0) * t


def test_a_learned_curve_is_never_out_of_date():
    curve, t = Curve(), torch.linspace(0, 1, 7).double()
    sde = LogSNRSDE(curve)
    new_path = reschedule(gaussian([0.0], sde, std=1.0), VPSDE())
    x = doubles(0.3, -0.2).reshape(2, 1)
    for start in (2.0, 0.5, 4.0):
        with torch.no_grad():
            curve.start.fill_(start)
        fresh = LogSNRSDE(lambda t, start=start: start - (start + 5.0) * t)
        assert sde.alpha(0.0).item() == 1
        for schedule in ("alpha", "sigma", "f", "g", "half_log_snr"):
            torch.testing.assert_close(getattr(sde, schedule)(t), getattr(fresh, schedule)(t), rtol=1e-12, atol=0)
        expected = reschedule(gaussian([0.0], fresh, std=1.0), VPSDE())(x, 0.6).score
        torch.testing.assert_close(new_path(x, 0.6).score, expected, rtol=1e-10, atol=0)


def test_gradients_reach_a_learned_curve_through_all_of_it():
    curve, t = Curve(), doubles(0.2)
    found = torch.autograd.grad(LogSNRSDE(curve).alpha(t).sum(), curve.start)[0]
    h = 1e-6
    ends = [LogSNRSDE(lambda u, s=2.0 + e: s - (s + 5.0) * u).alpha(t) for e in (h, -h)]
    torch.testing.assert_close(found, (ends[0] - ends[1]).squeeze() / (2 * h), rtol=1e-7, atol=0)


def test_refusals_are_typed():
    assert issubclass(DefinitionError, SDEToolkitError)
