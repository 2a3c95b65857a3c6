"""Laws that every trunk obeys, whatever its architecture."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from small_trunks import ADM, EDM2, NCSNPP, PUBLISHED
from torch import nn

from sde_toolkit.errors import ArgumentError
from sde_toolkit.networks import MLP, ADMUNet, Condition, EDM2UNet, PublishedUNet, UNet

SMALL = {"widths": (6, 8), "attention_levels": (0, 1), "attention_head_width": 4, "groups": 4}


@dataclass(frozen=True)
class Trunk:
    kind: type[nn.Module]
    arguments: dict[str, Any]
    event: tuple[int, ...]
    silence: float = 0.0

    def build(self, **more: Any) -> nn.Module:
        torch.manual_seed(0)
        return self.kind(**self.arguments, **more)

    def data(self, batch: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(1)
        x = torch.randn((batch, *self.event), generator=generator, dtype=dtype)
        return x, torch.rand(batch, generator=generator, dtype=dtype)


TRUNKS = {
    "unet 1-d": Trunk(UNet, {**SMALL, "dims": 1, "in_channels": 2}, (2, 9)),
    "unet 2-d": Trunk(UNet, {**SMALL, "in_channels": 3}, (3, 7, 4)),
    "unet 3-d": Trunk(UNet, {**SMALL, "dims": 3}, (1, 4, 3, 2)),
    "unet fourier": Trunk(UNet, {**SMALL, "embedding": "fourier", "embedding_scale": 4.0}, (1, 6, 6)),
    "published 1-d": Trunk(PublishedUNet, {**PUBLISHED, "dims": 1, "in_channels": 2}, (2, 9), 1e-4),
    "published 2-d": Trunk(PublishedUNet, {**PUBLISHED, **NCSNPP}, (3, 7, 4), 1e-4),
    "published 3-d": Trunk(PublishedUNet, {**PUBLISHED, "dims": 3, "in_channels": 1}, (1, 4, 3, 2), 1e-4),
    "adm 1-d": Trunk(ADMUNet, {**ADM, "dims": 1, "in_channels": 2, "resampling": "convolution"}, (2, 9)),
    "adm 2-d": Trunk(ADMUNet, {**ADM, "attention_heads": 2}, (3, 7, 4)),
    "adm that shifts": Trunk(ADMUNet, {**ADM, "modulation": "shift", "no_class": "zero"}, (3, 6, 6)),
    "edm2 1-d": Trunk(EDM2UNet, {**EDM2, "dims": 1, "in_channels": 2}, (2, 9)),
    "edm2 2-d": Trunk(EDM2UNet, EDM2, (3, 7, 4)),
    "mlp of scalars": Trunk(MLP, {"event_shape": (), "width": 16, "depth": 2}, ()),
    "mlp of points": Trunk(MLP, {"width": 16, "depth": 2}, (2,)),
    "mlp of matrices": Trunk(MLP, {"event_shape": (3, 2), "width": 16, "embedding": "fourier"}, (3, 2)),
}


@pytest.fixture(params=TRUNKS.values(), ids=TRUNKS.keys())
def trunk(request: pytest.FixtureRequest) -> Trunk:
    return request.param


def test_a_new_trunk_is_silent(trunk):
    """Exactly, or within what the papers start with."""
    x, time = trunk.data(3)
    out = trunk.build()(x, time)
    assert out.shape == x.shape
    assert out.abs().max() <= trunk.silence


def test_every_parameter_receives_a_gradient(trunk, stir):
    net = stir(trunk.build(num_classes=2))
    x, time = trunk.data(4)
    net(x, time, torch.tensor([0, 1, 2, 1])).square().sum().backward()
    silent = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent


def test_hyperparameters_and_state_rebuild_the_trunk(trunk, stir):
    net = stir(trunk.build(num_classes=4))
    again = type(net)(**json.loads(json.dumps(net.hyperparameters))).eval()
    assert again.hyperparameters == net.hyperparameters
    again.load_state_dict(net.state_dict())
    x, time = trunk.data(3)
    label = torch.tensor([0, 4, 2])
    assert torch.equal(again(x, time, label), net(x, time, label))
    assert net(x, time, label).any()


def test_the_seed_decides_the_weights(trunk):
    one, same = trunk.build().state_dict(), trunk.build().state_dict()
    torch.manual_seed(5)
    other = trunk.kind(**trunk.arguments).state_dict()
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_time_and_label_reach_the_output(trunk, stir):
    net = stir(trunk.build(num_classes=3))
    x, time = trunk.data(3)
    label = torch.tensor([0, 1, 2])
    out = net(x, time, label).reshape(3, -1)
    assert (net(x, time, (label + 1) % 3).reshape(3, -1) != out).any(dim=1).all()
    assert (net(x, time + 0.3, label).reshape(3, -1) != out).any(dim=1).all()


def test_augmentation_reaches_the_output_and_none_is_zeros(trunk, stir):
    net = stir(trunk.build(num_classes=3, augmentation_width=4))
    x, time = trunk.data(3)
    label, augmentation = torch.tensor([0, 1, 2]), torch.eye(4)[:3]
    out = net(x, time, Condition(label, torch.zeros(3, 4))).reshape(3, -1)
    assert torch.equal(net(x, time, Condition(label)).reshape(3, -1), out)
    assert torch.equal(net(x, time, label).reshape(3, -1), out)
    assert (net(x, time, Condition(label, augmentation)).reshape(3, -1) != out).any(dim=1).all()
    assert (net(x, time, Condition(label, augmentation.roll(1, 1))).reshape(3, -1) != out).any(dim=1).all()
    assert torch.equal(net(x, time, Condition()), net(x, time))


def test_a_map_of_augmentations_learns(trunk, stir):
    net = stir(trunk.build(augmentation_width=2))
    x, time = trunk.data(3)
    net(x, time, Condition(augmentation=torch.ones(3, 2))).square().sum().backward()
    assert net.conditioning.augmentation.weight.grad.any()
    assert net.conditioning.augmentation.bias is None


@pytest.mark.parametrize(
    "augmentation", [torch.zeros(2, 3), torch.zeros(3, 2), torch.zeros(2), torch.zeros(2, 2).long()]
)
def test_a_bad_augmentation_is_refused(trunk, augmentation):
    x, time = trunk.data(2)
    with pytest.raises(ArgumentError, match="augmentation") as caught:
        trunk.build(augmentation_width=2)(x, time, Condition(augmentation=augmentation))
    assert caught.value.argument == "condition"


def test_an_augmentation_for_a_network_that_knows_none_is_refused(trunk):
    x, time = trunk.data(2)
    with pytest.raises(ArgumentError, match="augmentation_width"):
        trunk.build()(x, time, Condition(augmentation=torch.zeros(2, 2)))


@pytest.mark.parametrize("channels", [1, 2, 6])
def test_the_output_has_the_channels_that_are_asked_for(trunk, channels, stir):
    """Along the first axis of the event; a scalar event has one channel."""
    net = stir(trunk.build(out_channels=channels))
    x, time = trunk.data(2)
    out = net(x, time)
    assert out.shape == (2, channels, *trunk.event[1:])
    assert out.isfinite().all()
    assert out.any()
    again = type(net)(**json.loads(json.dumps(net.hyperparameters))).eval()
    again.load_state_dict(net.state_dict())
    assert torch.equal(again(x, time), out)


def test_no_label_is_the_last_label(trunk, stir):
    net = stir(trunk.build(num_classes=3))
    x, time = trunk.data(2)
    torch.testing.assert_close(net(x, time), net(x, time, torch.tensor([3, 3])), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(net(x, time), net(x, time, torch.tensor([0, 0])), rtol=1e-5, atol=1e-5)


def test_samples_do_not_see_each_other(trunk, stir):
    """Within 1e-5: a convolution's kernel, and so its rounding, depends on the batch size."""
    net = stir(trunk.build(num_classes=2))
    x, time = trunk.data(5)
    label = torch.tensor([0, 1, 2, 1, 0])
    together = net(x, time, label)
    singly = torch.cat([net(x[i : i + 1], time[i : i + 1], label[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(together, singly, rtol=1e-5, atol=1e-5)


def test_float64_is_kept_and_agrees_with_float32(trunk, stir):
    net = stir(trunk.build())
    x, time = trunk.data(2)
    single = net(x, time)
    double = net.double()(x.double(), time.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), single, rtol=1e-3, atol=1e-3)
    assert not torch.equal(double.float().double(), double)


def test_bfloat16_autocast_agrees_roughly(trunk, stir):
    net = stir(trunk.build())
    x, time = trunk.data(4)
    with torch.autocast("cpu", torch.bfloat16):
        out = net(x, time)
    exact = net(x, time)
    assert (out.float() - exact).norm() < 0.1 * exact.norm()


def test_forward_leaves_random_state_and_input_alone(trunk, stir):
    net = stir(trunk.build())
    x, time = trunk.data(2)
    kept, state = (x.clone(), time.clone()), torch.get_rng_state()
    net(x, time)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, kept[0])
    assert torch.equal(time, kept[1])


def test_forward_derivative_agrees_with_differences_and_with_backward(trunk, stir):
    net = stir(trunk.build()).double()
    x, time = trunk.data(2, torch.float64)
    dx, dt = torch.randn_like(x), torch.randn_like(time)
    _, slope = torch.func.jvp(net, (x, time), (dx, dt))
    h = 1e-5
    differences = (net(x + h * dx, time + h * dt) - net(x - h * dx, time - h * dt)) / (2 * h)
    torch.testing.assert_close(slope, differences, rtol=1e-6, atol=1e-6)
    cotangent = torch.randn_like(x)
    gx, gt = torch.func.vjp(net, x, time)[1](cotangent)
    torch.testing.assert_close((gx * dx).sum() + (gt * dt).sum(), (slope * cotangent).sum())


@pytest.mark.parametrize(
    "time", [torch.tensor(0.5), torch.zeros(3), torch.zeros(2, 1), torch.zeros(2, dtype=torch.long)]
)
def test_a_bad_time_is_refused(trunk, time):
    x, _ = trunk.data(2)
    with pytest.raises(ArgumentError) as caught:
        trunk.build()(x, time)
    assert caught.value.argument == "time"


def test_an_event_of_another_shape_is_refused(trunk):
    x, time = trunk.data(2)
    for bad in (x.unsqueeze(1), x.unsqueeze(-1), x.reshape(2, -1).repeat(1, 7), torch.tensor(0.0)):
        with pytest.raises(ArgumentError) as caught:
            trunk.build()(bad, time)
        assert caught.value.argument == "x"


@pytest.mark.parametrize(
    "label",
    [
        torch.tensor([0, 4]),
        torch.tensor([-1, 0]),
        torch.tensor([0]),
        torch.tensor(0),
        torch.tensor([0.0, 1.0]),
        torch.tensor([True, False]),
    ],
)
def test_a_bad_label_is_refused(trunk, label):
    x, time = trunk.data(2)
    with pytest.raises(ArgumentError) as caught:
        trunk.build(num_classes=3)(x, time, label)
    assert caught.value.argument == "condition"


def test_a_label_without_classes_is_refused(trunk):
    x, time = trunk.data(2)
    with pytest.raises(ArgumentError, match="num_classes"):
        trunk.build()(x, time, torch.tensor([0, 1]))


@pytest.mark.parametrize("kind", [UNet, MLP, PublishedUNet])
@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("embedding", "wavelet"),
        ("embedding_scale", 0.0),
        ("num_classes", 0),
        ("augmentation_width", 0),
        ("out_channels", 0),
    ],
)
def test_a_bad_conditioning_is_refused_at_construction(kind, argument, value):
    with pytest.raises(ArgumentError) as caught:
        kind(**{argument: value})
    assert caught.value.argument == argument


@pytest.mark.parametrize(
    ("name", "train"),
    [
        ("unet 2-d", False),
        ("published 2-d", False),
        ("adm 2-d", True),
        ("edm2 2-d", True),
        ("mlp of points", False),
    ],
)
def test_one_graph_holds_the_whole_trunk(name, train, stir):
    """No graph break (fullgraph), and the same numbers; the eager backend tests the capture alone."""
    trunk = TRUNKS[name]
    short = {"blocks_per_level": 1} if "widths" in trunk.arguments else {}  # tracing costs by the block
    if train:  # one level: the layers between levels are those of the published networks
        short |= {"widths": (6,), "attention_levels": (0,)}
    net = stir(trunk.kind(**{**trunk.arguments, **short, "num_classes": 2})).train(train)
    x, time = trunk.data(2)
    label = torch.tensor([0, 1])
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, time, label), net(x, time, label), rtol=1e-5, atol=1e-5)
