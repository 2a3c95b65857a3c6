"""Laws of the norm with SiLU after it that is computed again in the backward pass, and of checkpointing."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import group_norm, silu

from sde_toolkit.networks import PublishedUNet, UNet
from sde_toolkit.networks.attention import attend
from sde_toolkit.networks.normalisation import activated, group_norm_for

LAYOUTS = {
    "vectors": ((3, 8), torch.contiguous_format),
    "signals": ((3, 8, 5), torch.contiguous_format),
    "images": ((3, 8, 5, 4), torch.contiguous_format),
    "images, channels last": ((3, 8, 5, 4), torch.channels_last),
    "volumes": ((2, 8, 3, 2, 2), torch.contiguous_format),
    "volumes, channels last": ((2, 8, 3, 2, 2), torch.channels_last_3d),
}


class Case(NamedTuple):
    """A norm, what it is given, and its scale and shift: the norm's own, (8,), or a sample's own, (B, 8)."""

    norm: nn.GroupNorm
    x: torch.Tensor
    scale: torch.Tensor
    shift: torch.Tensor

    @property
    def leaves(self):
        return self.x, self.scale, self.shift

    def fused(self, x, *film):
        return activated(self.norm, x, *(film or (self.scale, self.shift) if self.scale.ndim == 2 else ()))

    def plain(self, x):
        scale, shift = (p.reshape(p.shape + (1,) * (x.ndim - 2)) for p in (self.scale, self.shift))
        return silu(torch.addcmul(shift, group_norm(x, self.norm.num_groups, eps=self.norm.eps), scale))


@pytest.fixture(params=LAYOUTS.values(), ids=LAYOUTS.keys())
def placed(request):
    shape, layout = request.param
    torch.manual_seed(0)
    return torch.randn(shape, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()


@pytest.fixture(params=["own", "film"])
def case(request, placed):
    if request.param == "film":
        scale, shift = torch.randn(2, len(placed), 8, dtype=torch.float64)
        return Case(group_norm_for(8, 4, affine=False), placed, scale.requires_grad_(), shift.requires_grad_())
    norm = group_norm_for(8, 4).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return Case(norm, placed, norm.weight, norm.bias)


def plain(norm, x):
    return silu(group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps))


@pytest.mark.parametrize("train", [True, False])
def test_value_and_gradients_are_those_of_the_operations_in_a_row(case, train):
    case.norm.train(train)
    cotangent = torch.randn_like(case.x)
    found, expected = case.fused(case.x), case.plain(case.x)
    torch.testing.assert_close(found, expected)
    gradients = (torch.autograd.grad(out, case.leaves, cotangent) for out in (found, expected))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
    before = case.x.detach().clone()
    with torch.no_grad():
        assert torch.equal(case.fused(case.x), found)
    assert torch.equal(case.x, before)


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
    norm = group_norm_for(8, 4).double().train()
    found, expected = activated(norm, x), plain(norm, x.contiguous().flatten().view(shape))
    torch.testing.assert_close(found, expected)
    cotangent = torch.randn(shape, dtype=torch.float64)
    for one, other in zip(
        torch.autograd.grad(found, (x, norm.weight), cotangent),
        torch.autograd.grad(expected, (x, norm.weight), cotangent),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_second_derivatives_are_those_of_the_operations_in_a_row(case):
    found = []
    for function in (case.fused, case.plain):
        torch.manual_seed(1)
        first = torch.autograd.grad(function(case.x), case.leaves, torch.randn_like(case.x), create_graph=True)
        mixed = sum((gradient * torch.randn_like(gradient)).sum() for gradient in first)
        found.append((*first, *torch.autograd.grad(mixed, case.leaves[:2])))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_transforms_of_training_networks(case):
    """vmap, grad and jvp see the plain operations."""
    data, direction = case.x.detach(), torch.randn_like(case.x)
    film = (case.scale.detach(), case.shift.detach()) if case.scale.ndim == 2 else ()

    def loss(x, *film):
        return case.fused(x, *film).square().sum()

    gradient = torch.func.grad(loss)(data, *film)
    _, slope = torch.func.jvp(lambda x: loss(x, *film), (data,), (direction,))
    torch.testing.assert_close((gradient * direction).sum(), slope)
    alone = torch.func.grad(lambda *row: loss(*(value.unsqueeze(0) for value in row)))
    torch.testing.assert_close(torch.func.vmap(alone)(data, *film), gradient)


def test_a_tangent_of_the_scale_alone_is_carried(placed):
    """As when only the time moves: what is normalised in the first block does not depend on it."""
    norm, x = group_norm_for(8, 4, affine=False), placed.detach()
    scale, shift, tangent = torch.randn(3, len(x), 8, dtype=torch.float64)
    _, slope = torch.func.jvp(lambda scale: activated(norm, x, scale, shift), (scale,), (tangent,))
    step = 1e-6
    ends = [activated(norm, x, scale + sign * step * tangent, shift) for sign in (1, -1)]
    torch.testing.assert_close(slope, (ends[0] - ends[1]) / (2 * step), rtol=1e-6, atol=1e-8)
    with forward_ad.dual_level():
        out = activated(norm.train(), x, forward_ad.make_dual(scale, tangent), shift)
        torch.testing.assert_close(forward_ad.unpack_dual(out).tangent, slope)


@pytest.mark.parametrize("film", [False, True])
@pytest.mark.parametrize("piece", [2**20, 700, 1])
def test_half_precision_rounds_only_the_result(piece, film, monkeypatch):
    """However many samples are widened at a time."""
    monkeypatch.setattr("sde_toolkit.networks.normalisation.PIECE", piece)
    x, cotangent = torch.randn(2, 5, 8, 6, 6).bfloat16()
    affine = torch.randn(2, *((5, 8) if film else (8,))).bfloat16()
    norm = group_norm_for(8, 4, affine=not film).bfloat16()
    if not film:
        norm.load_state_dict({"weight": affine[0], "bias": affine[1]})
    scale, shift = affine.unbind() if film else (norm.weight, norm.bias)
    leaves = [x.requires_grad_(), *(leaf.detach().requires_grad_() if film else leaf for leaf in (scale, shift))]
    wide = [leaf.detach().float().requires_grad_() for leaf in leaves]
    expected = Case(norm, *wide).plain(wide[0])
    wanted = torch.autograd.grad(expected, wide, cotangent.float())
    case = Case(norm, *leaves)
    for train in (True, False):
        norm.train(train)
        found = case.fused(x)
        torch.testing.assert_close(found, expected.bfloat16(), rtol=0.005, atol=1e-4)
        for one, other in zip(torch.autograd.grad(found, leaves, cotangent), wanted, strict=True):
            assert one.dtype == torch.bfloat16
            torch.testing.assert_close(one.float(), other, rtol=0.01, atol=0.01)
    with torch.no_grad():
        assert torch.equal(case.fused(x), found)


def test_a_norm_alone_rounds_only_the_result():
    x = torch.randn(5, 8, 6, 6).bfloat16()
    expected = group_norm(x.float(), 4, eps=1e-5)
    torch.testing.assert_close(group_norm_for(8, 4).bfloat16()(x), expected.bfloat16())


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


@pytest.mark.parametrize(("film", "share"), [(False, 2 / 3), (True, 1 / 2)])
def test_training_keeps_what_goes_in_and_what_comes_out(film, share):
    """The norm between them is not kept, nor its product with the scale."""
    norm, film = group_norm_for(64, 8, affine=not film), torch.randn(2, 4, 64, requires_grad=True) if film else ()
    x = torch.randn(4, 64, 32, 32, requires_grad=True)
    leave = nn.Conv2d(64, 64, 1)
    kept = {train: kept_bytes(lambda t=train: leave(activated(norm.train(t), x, *film))) for train in (True, False)}
    assert share - 0.06 < kept[True] / kept[False] < share + 0.06


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
