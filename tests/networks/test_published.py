"""Laws of the published networks: their size, their outputs, their beginnings, and the symmetries they have."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
import yaml
from published_reference import Recipe, evaluate, in_order, parameters
from torch import nn

from sde_toolkit import VPSDE, ScoreModel
from sde_toolkit.errors import ArgumentError
from sde_toolkit.networks import PublishedUNet, ddpm_cifar10, ddpmpp_cifar10, ncsnpp_cifar10

WIDTHS = (128, 256, 256, 256)
SMALL = (8, 12, 16)
CONFIGS = Path(__file__).parents[2] / "configs" / "network"
PUBLISHED = {
    "ddpm": (ddpm_cifar10, {}, Recipe(WIDTHS, 2, (1,), song=False)),
    "ddpmpp": (ddpmpp_cifar10, {}, Recipe(WIDTHS, 4, (1,), song=True)),
    "ddpmpp_deep": (ddpmpp_cifar10, {"deep": True}, Recipe(WIDTHS, 8, (1,), song=True)),
    "ncsnpp": (ncsnpp_cifar10, {}, Recipe(WIDTHS, 4, (1,), song=True, filtered=True, fourier=16.0)),
    "ncsnpp_deep": (ncsnpp_cifar10, {"deep": True}, Recipe(WIDTHS, 8, (1,), song=True, filtered=True, fourier=16.0)),
}
PRINTED = {"ddpm": 35_746_307}
"""What diffusers' google/ddpm-cifar10-32 has; the paper says 35.7 million."""
FORMS = {
    "ddpm": (ddpm_cifar10, {}, {"song": False}),
    "ddpmpp": (ddpmpp_cifar10, {}, {"song": True}),
    "ncsnpp": (ncsnpp_cifar10, {"embedding_width": 16}, {"song": True, "filtered": True, "fourier": 16.0}),
    "ncsnpp of large images": (
        ncsnpp_cifar10,
        {"embedding_width": 16, "input_pyramid": "skip", "output_pyramid": "skip"},
        {"song": True, "skip_pyramids": True, "fourier": 16.0},
    ),
    "wide groups": (ddpmpp_cifar10, {"group_width": 4}, {"song": True, "group_width": 4}),
    "groups of one": (ddpm_cifar10, {"groups": 12, "group_width": 1}, {"song": False, "groups": 12, "group_width": 1}),
}


def small(form, blocks=1, **more):
    """A network of that form, small, and the paper's recipe for it."""
    build, changes, recipe = FORMS[form]
    torch.manual_seed(0)
    own = {"widths": SMALL, "blocks_per_level": blocks, "groups": 4, "dropout": 0.0}
    net = build(**{**own, **changes, **more})
    return net, Recipe(SMALL, blocks, (1,), **{"groups": 4, **recipe})


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_are_the_papers(name):
    build, arguments, recipe = PUBLISHED[name]
    with torch.device("meta"):
        net = build(**arguments)
    count = sum(parameter.numel() for parameter in net.parameters())
    assert count == parameters(recipe)
    assert count == PRINTED.get(name, count)
    page = (CONFIGS.parents[1] / "docs" / "networks.md").read_text(encoding="utf-8")
    assert f"{count:,}".replace(",", " ") in page


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("form", FORMS)
def test_outputs_are_those_of_the_papers_networks(form, blocks, stir):
    net, recipe = small(form, blocks)
    net = stir(net).double()
    x, time = torch.randn(2, 3, 16, 24, dtype=torch.float64), torch.tensor([0.3, 0.9], dtype=torch.float64) * 4
    frequencies = getattr(net.conditioning.embedding, "frequencies", None)
    weights = in_order(net)
    expected = evaluate(recipe, x, time, weights, frequencies)
    assert next(weights, None) is None
    assert expected.std() > 0.1
    torch.testing.assert_close(net(x, time), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", PUBLISHED)
def test_configurations_are_the_named_networks(name):
    build, arguments, _ = PUBLISHED[name]
    found = {}

    def read(file):
        content = yaml.safe_load((CONFIGS / f"{file}.yaml").read_text(encoding="utf-8"))
        for base in content.pop("defaults", ["_self_"]):
            found.update(content) if base == "_self_" else read(base)

    read(name)
    assert found.pop("_target_") == "sde_toolkit.networks.PublishedUNet"
    given = {"${event_shape[0]}": 3, "${model.embedding_scale}": 1.0}
    values = {key: given.get(value, value) if isinstance(value, str) else value for key, value in found.items()}
    with torch.device("meta"):
        assert PublishedUNet(**values).hyperparameters == build(**arguments).hyperparameters


@pytest.mark.parametrize("form", FORMS)
def test_a_checkpoint_rebuilds_the_network(form, stir, tmp_path):
    net, _ = small(form, num_classes=3, augmentation_width=2, out_channels=3)
    model = ScoreModel(stir(net), VPSDE(), "v", event_shape=(3, 8, 8))
    model.save_pretrained(tmp_path)
    again = ScoreModel.from_pretrained(tmp_path)
    assert isinstance(again.network, PublishedUNet)
    assert again.network.hyperparameters == net.hyperparameters
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(again(x, 0.5, torch.tensor([0, 1])).x_0, model.eval()(x, 0.5, torch.tensor([0, 1])).x_0)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("form", FORMS)
def test_any_size_in_any_dimension(form, dims, stir):
    net, _ = small(form, dims=dims, in_channels=2, out_channels=5)
    net = stir(net)
    for size in ((7, 5, 4), (1, 1, 1), (8, 4, 8)):
        x = torch.randn(2, 2, *size[:dims])
        out = net(x, torch.rand(2))
        assert out.shape == (2, 5, *size[:dims])
        assert out.isfinite().all()
        assert out.is_contiguous()


@pytest.mark.parametrize("form", FORMS)
def test_data_that_are_not_centred_are_centred_first(form, stir):
    """Also those of each pyramid, and before anything is padded."""
    torch.manual_seed(0)
    net, other = stir(small(form)[0]), stir(small(form, centred=False)[0])
    other.load_state_dict(net.state_dict())
    x, time = torch.rand(2, 3, 7, 9), torch.rand(2)
    torch.testing.assert_close(other(x, time), net(2 * x - 1, time))
    assert (other(x, time) - net(x, time)).std() > 0.01


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("form", ["ddpmpp", "ncsnpp", "ncsnpp of large images"])
def test_mirrored_kernels_act_on_mirrored_data(form, dims, stir):
    """Every layer of these treats both directions alike; DDPM's strided convolution does not."""
    net, _ = small(form, dims=dims)
    net = stir(net).double()
    mirrored = copy.deepcopy(net)
    for axis in range(dims):
        with torch.no_grad():
            for parameter in mirrored.parameters():
                if parameter.ndim == dims + 2:
                    parameter.copy_(parameter.flip(2 + axis))
        net, mirrored = mirrored, net
        x, time = torch.randn(1, 3, *(8,) * dims, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
        torch.testing.assert_close(net(x.flip(2 + axis), time), mirrored(x, time).flip(2 + axis))
        mirrored.load_state_dict(net.state_dict())


@pytest.mark.parametrize("form", FORMS)
def test_a_new_network_speaks_as_softly_as_published(form):
    """Ho et al.: the last convolution has the gain 1e-10; E[SiLU(z)²] = 0.3557 for a standard normal z."""
    net, _ = small(form, widths=(32, 32, 32), groups=8)
    x, time = torch.randn(8, 3, 32, 32), torch.rand(8)
    with torch.no_grad():
        out = net.eval()(x, time)
    one = math.sqrt(1e-10 * 2 * 32 / (32 + 3) * 0.3557)
    voices = 1 + (
        1 + 1 / 4 if "large" in form else 0
    )  # smaller images are doubled, which leaves less of their variance
    assert 0.6 * one < out.std() < 1.4 * math.sqrt(voices) * one


def test_initial_weights_have_glorots_variance():
    """Uniform, with variance 2 gain/(fan in + fan out), each of queries, keys and values by itself; biases zero."""
    net = ddpmpp_cifar10(widths=(64, 64), attention_levels=(0,), blocks_per_level=1)
    block, attention = net.down[0][0]
    q, k, v = attention.enter.weight.chunk(3)
    cases = [(block.enter, 1.0), (block.leave, 1e-10), (block.shift, 1.0), (attention.leave, 1e-10)]
    cases += [(net.conditioning.enter, 1.0), (net.conditioning.leave, 1.0), (net.up[0][0][0].skip, 1.0)]
    for weight, gain in [(layer.weight, gain) for layer, gain in cases] + [(q, 0.1), (k, 0.1), (v, 0.1)]:
        fans = sum(weight.shape[:2]) * weight[0, 0].numel()
        deviation = math.sqrt(2 * gain / fans)
        # the kurtosis of a uniform is 1.8, so that its variance is known to √(0.8/N)
        assert abs(weight.var() / deviation**2 - 1) < 5 * math.sqrt(0.8 / weight.numel())
        assert weight.abs().max() <= math.sqrt(3) * deviation * (1 + 1e-6)
    biases = [p for n, p in net.named_parameters() if n.endswith("bias")]
    assert not any(bias.any() for bias in biases)


@pytest.mark.parametrize("up", ["every", "last"])
def test_attention_on_the_way_up_sits_where_it_is_asked_for(up):
    net, _ = small("ddpm", 2, attention_up=up)
    assert [len(stage) for stage in net.up[1]] == ([2, 2, 2] if up == "every" else [1, 1, 2])
    assert [len(stage) for stage in net.down[1]] == [2, 2]
    assert {len(stage) for k in (0, 2) for path in (net.down, net.up) for stage in path[k]} == {1}


def test_dropout_acts_in_training_alone(stir):
    net, _ = small("ddpm", dropout=0.5)
    net = stir(net)
    x, time = torch.randn(2, 3, 8, 8), torch.rand(2)
    assert torch.equal(net(x, time), net(x, time))
    net.train()
    assert not torch.equal(net(x, time), net(x, time))


@pytest.mark.parametrize("rate", [0.2, 0.6])
def test_dropout_hides_the_share_that_was_asked_for_in_every_block(rate, stir):
    """Before the last convolution of each residual block; what is left is scaled so that the mean stays."""
    net, _ = small("ddpm", dropout=rate)
    net = stir(net).train()
    shares, seen = [], {}
    for name, layer in net.named_modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.register_forward_hook(lambda layer, given, out, name=name: seen.update({name: (given[0], out)}))
    net(torch.randn(16, 3, 8, 8), torch.rand(16))
    assert len(seen) == sum(hasattr(layer, "enter_norm") for layer in net.modules()) > 3
    for given, out in seen.values():
        kept = out != 0
        torch.testing.assert_close(out[kept], given[kept] / (1 - rate))
        shares.append((1 - kept.double().mean().item(), kept.numel()))
    for share, count in shares:
        assert abs(share - rate) < 5 * (rate * (1 - rate) / count) ** 0.5 + 1e-12


@pytest.mark.parametrize("form", FORMS)
def test_training_mode_changes_neither_values_nor_gradients(form, stir):
    """Without dropout: the norms that are computed again for the backward pass are the same norms."""
    net, _ = small(form, dropout=0.0)
    net = stir(net).double()
    time, found = torch.rand(2, dtype=torch.float64), []
    start = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    for train in (False, True):
        net.train(train)
        net.zero_grad()
        x = start.clone().requires_grad_()
        value = net(x, time)
        value.square().sum().backward()
        found.append([value.detach(), x.grad, *(p.grad for p in net.parameters())])
    assert sum(bool(part.any()) for part in found[0]) > 0.9 * len(found[0])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    push = torch.randn(start.shape, dtype=torch.float64)  # and the gradient is that of the value
    with torch.no_grad():
        ahead, behind = (net(start + step * push, time).square().sum() for step in (1e-5, -1e-5))
    torch.testing.assert_close((push * found[1][1]).sum(), (ahead - behind) / 2e-5, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("widths", ()),
        ("widths", (8, 1)),
        ("attention_levels", (4,)),
        ("attention_up", "first"),
        ("attention_head_width", 0),
        ("attention_gain", 0.0),
        ("resampling", "pool"),
        ("taps", (1, 2, 1)),
        ("taps", ()),
        ("taps", (1, -1)),
        ("taps", (1.0, float("nan"))),
        ("skip_scale", 0.0),
        ("skip_scale", float("inf")),
        ("input_pyramid", "cat"),
        ("output_pyramid", "residual"),
        ("embedding", "learned"),
        ("embedding_width", 7),
        ("embedding_width", 0),
        ("time_width", 7),
        ("num_classes", 0),
        ("augmentation_width", 0),
        ("dims", 4),
        ("dropout", 1.0),
        ("groups", 0),
        ("group_width", 0),
        ("eps", -1.0),
        ("in_channels", 0),
        ("out_channels", 0),
        ("blocks_per_level", 0),
        ("enter_width", 0),
        ("label_place", "time"),
    ],
)
def test_a_network_that_cannot_be_built_is_refused(argument, value):
    with pytest.raises(ArgumentError) as caught:
        PublishedUNet(**{argument: value})
    assert caught.value.argument == argument


def test_nothing_in_a_network_depends_on_torchs_default_norms():
    """All group norms have Ho et al.'s eps, and at most 32 groups."""
    with torch.device("meta"):
        norms = [m for m in ncsnpp_cifar10().modules() if isinstance(m, nn.GroupNorm)]
    assert {norm.eps for norm in norms} == {1e-6}
    assert {norm.num_groups for norm in norms} == {32}
