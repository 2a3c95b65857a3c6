"""A graph that was exported gives what the model gives, in onnxruntime and as a program, for any number of samples."""

import logging
import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from sde_toolkit import (
    EDMSDE,
    MLP,
    SDE,
    VESDE,
    VPSDE,
    FlowMatching,
    ScoreModel,
    SubVPSDE,
    UNet,
    Wrapper,
    dpmpp_2m,
    reschedule,
    sample,
)
from sde_toolkit.errors import ArgumentError, MissingDependencyError
from sde_toolkit.interop import export_onnx, export_program
from sde_toolkit.interop.onnx_doubles import _asinh, _atan, _atan2, _searchsorted, _softplus, _tan, with_known_functions
from sde_toolkit.models.time_inputs import DiscreteIndex
from sde_toolkit.networks.convolutions import convolution
from sde_toolkit.networks.resampling import UpConvolution

ort = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

SIZES = (1, 2, 5)


@pytest.fixture(autouse=True)
def without_torchs_trace():
    """pytest would keep the hundreds of thousands of lines that torch writes for its own debugging."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


DDPM = VPSDE.from_betas(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))


class Small(nn.Module):
    """Outputs far from zero, which depend on x and on the time."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x, time):
        return torch.sin(self.linear(x) + torch.cos(time)[:, None]) + 0.5 * x


def small(sde, prediction="v", network=None, **options):
    torch.manual_seed(0)
    return ScoreModel(network or Small(), sde, prediction, event_shape=(3,), **options).eval()


def unet():
    torch.manual_seed(0)
    network = UNet(1, widths=(8, 16), blocks_per_level=1, attention_levels=(1,), attention_head_width=8, num_classes=3)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return ScoreModel(network, VPSDE(), "epsilon", time_input=DiscreteIndex(1000), event_shape=(1, 8, 8)).eval()


def mlp():
    torch.manual_seed(0)
    network = MLP((2,), 32, 2)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return ScoreModel(network, EDMSDE(), "edm", sigma_data=0.5, event_shape=(2,)).eval()


class InRuntime(nn.Module):
    """A file, read by onnxruntime anew."""

    def __init__(self, path):
        super().__init__()
        self.session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self.names = [told.name for told in self.session.get_inputs()]

    def forward(self, *tensors):
        told = {name: tensor.numpy() for name, tensor in zip(self.names, tensors, strict=True)}
        return torch.from_numpy(self.session.run(None, told)[0])


def inputs(model, n, ends=(0.0, 1.0)):
    x = 1.5 * torch.randn(n, *model.event_shape, generator=torch.Generator().manual_seed(n))
    return x, torch.linspace(*ends, n) if n > 1 else torch.tensor([0.4])


@torch.no_grad()
def check(model, run, answer="x0", *, time="t", ends=(0.0, 1.0), classes=None):
    for n in SIZES:
        x, t = inputs(model, n, ends)
        rows = () if classes is None else (torch.arange(n) % classes,)
        if time == "t":
            wanted, told = model(x, t, *rows).view(answer), t
        else:  # x is x_0 + sigma ε, α times which is the state of the path at λ = −log sigma
            t64 = t.double()
            alpha = model.sde.alpha(t64).float().reshape(-1, *[1] * len(model.event_shape))
            told = torch.exp(-model.sde.half_log_snr(t64)).float()
            inverse = model.sde.inverse_half_log_snr(-told.double().log())
            wanted = model(alpha * x, inverse, *rows).view(answer)
        found = run(x, told, *rows)
        assert found.shape == x.shape
        assert found.dtype == torch.float32
        scale = wanted.abs().flatten(1).amax(1)
        assert bool((scale > 1e-3).all())
        assert bool(((found - wanted).abs().flatten(1).amax(1) <= 1e-5 * scale).all()), (n, found - wanted, scale)


ONNX = {
    "v, DDPM's steps, to sigma": (partial(small, DDPM, "v"), "x0", "sigma", (0.01, 1.0)),
    "x0, sub-VP, score": (partial(small, SubVPSDE(), "x0"), "score", "t", (1e-2, 1.0)),
    "score, VE, epsilon": (partial(small, VESDE(), "score"), "epsilon", "t", (0.0, 1.0)),
    "velocity, flow": (partial(small, FlowMatching(), "velocity"), "x0", "t", (0.0, 1.0)),
}


@pytest.mark.parametrize("name", ONNX)
def test_onnxruntime_gives_the_answers_of_the_model(name, tmp_path):
    """At both ends of time, too, where the answer is finite there."""
    build, answer, time, ends = ONNX[name]
    model = build()
    export_onnx(model, tmp_path / "model.onnx", answer=answer, time=time)
    run = InRuntime(tmp_path / "model.onnx")
    assert run.names == ["x", time]
    check(model, run, answer, time=time, ends=ends)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    beyond = torch.tensor([1.01, 0.5] if time == "t" else [1e9, 1.0])
    assert run(torch.zeros(2, 3), beyond).isnan().all(1).tolist() == [True, False]


def test_a_unet_with_classes_is_exported(tmp_path):
    model = unet()
    export_onnx(model, tmp_path / "model.onnx", condition=torch.tensor([1]))
    run = InRuntime(tmp_path / "model.onnx")
    assert run.names == ["x", "t", "condition"]
    check(model, run, classes=4)  # the fourth means none


def test_an_exported_denoiser_is_sampled_from_again(tmp_path):
    """D(x, sigma) in a file is what ``from_denoiser`` reads: the same samples, without the network."""
    model = mlp()
    export_onnx(model, tmp_path / "model.onnx", time="sigma")
    run = InRuntime(tmp_path / "model.onnx")
    check(model, run, time="sigma")
    again = ScoreModel.from_denoiser(run, sigma_data=0.5, event_shape=(2,))
    wanted, found = (sample(m, dpmpp_2m(), nfe=12, shape=(5, 2), seed=0).x for m in (model, again))
    assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max()


PROGRAMS = {
    "score, VP": (small, VPSDE(), "score", "velocity", "t"),
    "v, flow": (small, FlowMatching(), "v", "epsilon", "sigma"),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_gives_the_answers_of_the_model(name, tmp_path):
    build, sde, prediction, answer, time = PROGRAMS[name]
    model = build(sde, prediction)
    torch.export.save(export_program(model, answer=answer, time=time), tmp_path / "model.pt2")
    run = torch.export.load(tmp_path / "model.pt2").module()
    check(model, run, answer, time=time, ends=(1e-3, 0.999))


class Wide(nn.Module):
    """Layers that compute in another way for some numbers of samples."""

    def __init__(self):
        super().__init__()
        self.mix, self.enlarge = convolution(2, 128, 128, kernel=1), UpConvolution(2, 128, 128)

    def forward(self, x, time):
        return nn.functional.avg_pool2d(self.enlarge(self.mix(x)), 2)


def test_layers_whose_way_depends_on_the_batch_are_exported_for_all():
    torch.manual_seed(0)
    model = ScoreModel(Wide(), VPSDE(), "v", event_shape=(128, 8, 8)).eval()
    check(model, export_program(model).module())


class Guided(Wrapper):
    def denoise(self, x_t, inside, condition):
        n = x_t.shape[0]
        both = inside(torch.cat([x_t, x_t]), torch.cat([condition, torch.full_like(condition, 3)]))
        return 2 * both[:n] - both[n:]


def test_wrappers_are_exported_whole():
    torch.manual_seed(0)
    inside = ScoreModel(MLP((2,), 16, 1, num_classes=3), VPSDE(), "v", event_shape=(2,)).eval()
    model = reschedule(Guided(inside), EDMSDE(0.01, 50.0))
    program = export_program(model, condition=torch.tensor([0, 1]))
    check(model, program.module(), ends=(0.0, 0.6), classes=3)


def test_conditions_of_several_parts_become_inputs():
    """Their order is that of the parts; what has no rows is part of the graph."""

    def network(x, time, condition):
        return x * condition["gain"] + condition["power"] * condition["shift"] * time[:, None]

    model = small(VPSDE(), "v", network)
    told = {"gain": torch.full((1, 3), 2.0), "power": 3.0, "shift": torch.full((1, 1), 0.5)}
    run = export_program(model, condition=told).module()
    x, t = inputs(model, 5, (0.1, 0.9))
    rows = {"gain": torch.randn(5, 3), "power": 3.0, "shift": torch.randn(5, 1)}
    torch.testing.assert_close(run(x, t, rows["gain"], rows["shift"]), model(x, t, rows).x_0)


def with_numpy(x, time):
    return torch.from_numpy(np.tanh(x.numpy()))


class Counting(nn.Module):
    """Another answer at every call."""

    calls = 0

    def forward(self, x, time):
        self.calls += 1
        return x * self.calls


class ByCoefficients(SDE):
    def f(self, t):
        return -0.5 - t

    def g(self, t):
        return 1 + t


BY_COEFFICIENTS = ByCoefficients()
REFUSED = {
    "numpy": (lambda: small(VPSDE(), network=with_numpy), {}, r"model\.network='with_numpy'.*torch's operations"),
    "a look at values": (
        lambda: small(VPSDE(), network=lambda x, time: x if float(x.sum()) > 0 else 2 * x),
        {},
        r"model\.network=",
    ),
    "memory": (lambda: small(VPSDE(), network=Counting()), {}, r"model\.network='Counting': its graph gives other"),
    "dropout": (lambda: small(VPSDE(), network=nn.Sequential(nn.Dropout())).train(), {}, r"Dropout.*eval\(\)"),
    "chance": (lambda: small(VPSDE(), network=lambda x, time: nn.functional.dropout(x)), {}, "draws random numbers"),
    "no shape": (lambda: ScoreModel(Small(), VPSDE(), "v"), {}, r"model\.event_shape=None"),
    "no model": (Small, {}, "model=.*not a ScoreModel"),
    "path of f and g": (lambda: small(BY_COEFFICIENTS), {}, r"model\.sde=.*alpha\(t\) and sigma\(t\)"),
    "no inverse": (lambda: small(BY_COEFFICIENTS), {"time": "sigma"}, r"model\.sde=.*time=\"t\""),
    "answer": (lambda: small(VPSDE()), {"answer": "noise"}, "answer='noise'.*epsilon"),
    "answer of a path": (lambda: small(VPSDE()), {"answer": "score", "time": "sigma"}, "answer='score'"),
    "time": (lambda: small(VPSDE()), {"time": "lambda"}, "time='lambda'.*\"sigma\""),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_exported_is_refused_by_name_and_nothing_is_written(name, tmp_path):
    build, options, message = REFUSED[name]
    with pytest.raises(ArgumentError, match=message):
        export_onnx(build(), tmp_path / "model.onnx", **options)
    assert not list(tmp_path.iterdir())


def test_places_and_versions_that_do_not_exist_are_refused(tmp_path):
    with pytest.raises(ArgumentError, match=r"path=.*existing folder"):
        export_onnx(small(VPSDE()), tmp_path / "nowhere" / "model.onnx")
    with pytest.raises(ArgumentError, match="opset=11"):
        export_onnx(small(VPSDE()), tmp_path / "model.onnx", opset=11)


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_without_a_package_the_extra_is_named(package, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(MissingDependencyError, match=rf"'{package}' is needed for an ONNX file.*sde-toolkit\[export\]"):
        export_onnx(small(VPSDE()), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_functions_that_onnxruntime_lacks_are_equal_to_torchs_in_float64():
    x = torch.cat([torch.logspace(-12, 12, 97, dtype=torch.float64), torch.tensor([0.0, math.inf]).double()])
    for own, torchs, most in (
        (_softplus, partial(nn.functional.softplus, threshold=500), math.inf),
        (_asinh, torch.asinh, 1e12),
        (_atan, torch.atan, math.inf),
        (_tan, torch.tan, 1.5),
    ):
        values = x[x <= most]
        values = torch.cat([values, -values])
        torch.testing.assert_close(own(values), torchs(values), rtol=1e-12, atol=1e-30)
    angle = torch.linspace(-3.1, 3.1, 63, dtype=torch.float64)
    sides = 3 * torch.sin(angle), 3 * torch.cos(angle)
    torch.testing.assert_close(_atan2(*sides), torch.atan2(*sides), rtol=1e-13, atol=1e-14)
    row, values = torch.arange(5.0), torch.tensor([-1.0, 0.0, 1.5, 4.0, 9.0])
    for right in (False, True):
        assert torch.equal(_searchsorted(row, values, right=right), torch.searchsorted(row, values, right=right))


class InFloat64(nn.Module):
    """Every function that onnxruntime lacks in float64, of angles below π/2: (B,) to (6, B)."""

    def forward(self, x):
        knots = torch.linspace(-1.0, 1.0, 9, dtype=torch.float64)
        place = torch.searchsorted(knots, x).to(torch.float64)
        softplus = nn.functional.softplus(x, threshold=500)
        return torch.stack([softplus, torch.asinh(x), torch.tan(x), torch.atan(x), torch.atan2(x, 1 - x), place])


def test_float64_stays_float64_in_the_graph(tmp_path):
    """A float32 anywhere on the way would leave 1e-7. Infinite ratios σ/α have an angle, too."""
    program = torch.export.export(InFloat64(), (torch.rand(2, dtype=torch.float64),))
    written = torch.onnx.export(with_known_functions(program), dynamo=True, verbose=False)
    written.save(str(tmp_path / "functions.onnx"))
    run = InRuntime(tmp_path / "functions.onnx")
    for x in torch.linspace(-1.5, 1.5, 32, dtype=torch.float64).reshape(-1, 2):
        found = run(x)
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, InFloat64()(x), rtol=1e-13, atol=1e-15)
    ends = torch.tensor([-math.inf, math.inf], dtype=torch.float64)
    torch.testing.assert_close(run(ends)[3], torch.atan(ends), rtol=1e-13, atol=0)
