"""Laws of the norm with SiLU after it that is computed again in the backward pass, and of checkpointing."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import group_norm, silu

from sde_toolkit.networks import PublishedUNet, UNet
from sde_toolkit.networks.attention import attend
from sde_toolkit.networks.normalisation import activated, normalisation

LAYOUTS = {
    "vectors": ((3, 8), torch.contiguous_format),
    "signals": ((3, 8, 5), torch.contiguous_format),
    "images": ((3, 8, 5, 4), torch.contiguous_format),
    "images, channels last": ((3, 8, 5, 4), torch.channels_last),
    "volumes": ((2, 8, 3, 2, 2), torch.contiguous_format),
    "volumes, channels last": ((2, 8, 3, 2, 2), torch.channels_last_3d),
}


@pytest.fixture(params=LAYOUTS.values(), ids=LAYOUTS.keys())
def case(request):
    shape, layout = request.param
    torch.manual_seed(0)
    norm = normalisation(8, 4).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(shape, dtype=torch.float64).contiguous(memory_format=layout)
    return norm, x.requires_grad_()


def plain(norm, x):
    return silu(group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps))


@pytest.mark.parametrize("train", [True, False])
def test_value_and_gradients_are_those_of_the_two_in_a_row(case, train):
    norm, x = case
    norm.train(train)
    cotangent = torch.randn_like(x)
    leaves = (x, norm.weight, norm.bias)
    found, expected = activated(norm, x), plain(norm, x)
    assert torch.equal(found, expected)
    for one, other in zip(
        torch.autograd.grad(found, leaves, cotangent), torch.autograd.grad(expected, leaves, cotangent), strict=True
    ):
        torch.testing.assert_close(one, other)
    with torch.no_grad():
        assert torch.equal(activated(norm, x), expected)


@pytest.mark.parametrize(
    ("shape", "strides"),
    [
        ((1, 8, 4, 4), (8, 1, 32, 8)),
        ((1, 8, 4, 4), (1, 16, 4, 1)),
        ((2, 8, 1, 1), (8, 1, 8, 8)),
        ((2, 8, 1, 4), (32, 1, 5, 8)),
    ],
)
def test_axes_of_length_one_may_have_any_stride(shape, strides):
    """By which torch's own kernel mistakes the layout."""
    x = torch.randn(128, dtype=torch.float64).as_strided(shape, strides).requires_grad_()
    norm = normalisation(8, 4).double().train()
    found, expected = activated(norm, x), plain(norm, x.contiguous().flatten().view(shape))
    torch.testing.assert_close(found, expected)
    cotangent = torch.randn(shape, dtype=torch.float64)
    for one, other in zip(
        torch.autograd.grad(found, (x, norm.weight), cotangent),
        torch.autograd.grad(expected, (x, norm.weight), cotangent),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_second_derivatives_are_those_of_the_two_in_a_row(case):
    norm, x = case
    leaves = (x, norm.weight, norm.bias)
    found = []
    for function in (activated, plain):
        torch.manual_seed(1)
        first = torch.autograd.grad(function(norm, x), leaves, torch.randn_like(x), create_graph=True)
        mixed = sum((gradient * torch.randn_like(gradient)).sum() for gradient in first)
        found.append((*first, *torch.autograd.grad(mixed, leaves[:2])))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_transforms_of_training_networks(case):
    """vmap, grad and jvp see the plain operations."""
    norm, x = case
    data, direction = x.detach(), torch.randn_like(x)

    def loss(x):
        return activated(norm, x).square().sum()

    gradient = torch.func.grad(loss)(data)
    _, slope = torch.func.jvp(loss, (data,), (direction,))
    torch.testing.assert_close((gradient * direction).sum(), slope)
    singly = torch.func.vmap(torch.func.grad(lambda row: loss(row.unsqueeze(0))))(data)
    torch.testing.assert_close(singly, gradient)


@pytest.mark.parametrize("piece", [2**20, 700, 1])
def test_half_precision_rounds_only_the_result(piece, monkeypatch):
    """However many samples are widened at a time."""
    monkeypatch.setattr("sde_toolkit.networks.normalisation.PIECE", piece)
    norm = normalisation(8, 4).bfloat16()
    x = torch.randn(5, 8, 6, 6).bfloat16().requires_grad_()
    exact = x.detach().float().requires_grad_()
    cotangent = torch.randn_like(x)
    wide = copy.deepcopy(norm).float()
    expected = silu(group_norm(exact, 4, wide.weight, wide.bias, norm.eps))
    wanted = torch.autograd.grad(expected, (exact, wide.weight, wide.bias), cotangent.float())
    for train in (True, False):
        found = activated(norm.train(train), x)
        assert torch.equal(found, expected.bfloat16())
        for one, other in zip(torch.autograd.grad(found, (x, norm.weight, norm.bias), cotangent), wanted, strict=True):
            assert one.dtype == torch.bfloat16
            torch.testing.assert_close(one.float(), other, rtol=0.01, atol=0.01)
    with torch.no_grad():
        assert torch.equal(activated(norm, x), expected.bfloat16())
    torch.testing.assert_close(norm(x).float(), group_norm(exact, 4, eps=norm.eps), rtol=0.01, atol=0.01)


def kept_bytes(call):
    """Bytes that autograd keeps for the backward pass, a storage counted once."""
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        out = call()
    del out
    return sum(storages.values())


def test_training_keeps_two_thirds():
    """x and the result are kept; the norm between them is not."""
    norm = normalisation(64, 8)
    x = torch.randn(4, 64, 32, 32, requires_grad=True)
    leave = nn.Conv2d(64, 64, 1)
    kept = {train: kept_bytes(lambda t=train: leave(activated(norm.train(t), x))) for train in (True, False)}
    assert 0.6 < kept[True] / kept[False] < 0.7


NETS = {
    "UNet": lambda **more: UNet(3, (8, 12), 2, (1,), dropout=0.3, **more),
    "PublishedUNet": lambda **more: PublishedUNet(
        3, widths=(8, 12), groups=4, dropout=0.3, input_pyramid="residual", **more
    ),
}


@pytest.mark.parametrize("name", NETS)
def test_checkpointing_gives_the_same_gradients_and_keeps_less(name, stir):
    """With dropout: what is computed again meets the same random numbers."""
    x, time = torch.randn(2, 3, 16, 16), torch.rand(2)
    gradients, kept, state = [], [], torch.get_rng_state()
    for checkpointing in (False, True):
        torch.manual_seed(0)
        net = stir(NETS[name](checkpointing=checkpointing)).train()
        torch.set_rng_state(state)
        net(x, time).square().sum().backward()
        gradients.append([p.grad for p in net.parameters()])
        kept.append(kept_bytes(lambda net=net: net(x, time)))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert kept[1] < 0.6 * kept[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_attention_is_softmax_of_the_products(dtype):
    q, k, v = torch.randn(3, 2, 4, 9, 8).unbind()
    expected = (q @ k.mT / 8**0.5).softmax(-1) @ v
    found = attend(*(tensor.to(dtype) for tensor in (q, k, v)))
    assert found.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    torch.testing.assert_close(found.float(), expected, rtol=tolerance, atol=tolerance)
