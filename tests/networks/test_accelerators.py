"""Laws of what the networks do on an accelerator, on the CPU: with its code called directly, or with meta tensors."""

from __future__ import annotations

import importlib.util
import itertools
import os
import subprocess
import sys

import pytest
import torch
from noted_operations import BATCH, LAST, NETWORKS, Noted, activations, copies
from torch import nn
from torch.nn.functional import group_norm, silu

from sde_toolkit.networks import attention, convolutions, normalisation, resampling
from sde_toolkit.networks.fused_norm import normalised, per_channel, traced

GROUPS, EPS = 4, 1e-5
SHAPES = {"images": (3, 8, 5, 4), "volumes": (2, 8, 3, 2, 2), "points": (3, 8, 1, 1), "groups of 3": (2, 12, 4, 4)}


def leaves_of(shape, film, offset, dtype=torch.float64):
    """x, w, b and perhaps an offset."""
    torch.manual_seed(0)
    x = (torch.randn(shape, dtype=torch.float64) + 2).to(dtype).contiguous(memory_format=LAST[len(shape)])
    rows = torch.randn(3, *shape[:2], dtype=torch.float64).to(dtype)
    weight, bias = (rows[:2] if film else rows[:2, 0]).unbind()
    return [leaf.requires_grad_() for leaf in (x, weight.clone(), bias.clone(), *([rows[2].clone()] if offset else []))]


def plain(activate, x, weight, bias, offset=None):
    x = x if offset is None else x + per_channel(offset, x)
    y = group_norm(x, GROUPS, eps=EPS) * per_channel(weight, x) + per_channel(bias, x)
    return silu(y) if activate else y


def given(leaves, activate):
    return (*leaves, *[None] * (4 - len(leaves)), GROUPS, EPS, activate)


cases = pytest.mark.parametrize(
    ("shape", "film", "offset", "activate"),
    [
        (shape, film, offset, activate)
        for shape in SHAPES.values()
        for film, offset, activate in itertools.product((False, True), repeat=3)
    ],
)


WAYS = {
    "one operation": lambda leaves, activate: normalised(*given(leaves, activate)),
    "for compilers": lambda leaves, activate: traced(*given(leaves, activate)),
    "in a row": lambda leaves, activate: plain(activate, *leaves),
}


@cases
@pytest.mark.parametrize("way", ["one operation", "for compilers"])
def test_value_and_gradients_are_those_of_the_operations_in_a_row(way, shape, film, offset, activate):
    leaves, found = leaves_of(shape, film, offset), []
    for function in (WAYS[way], WAYS["in a row"]):
        torch.manual_seed(1)
        out = function(leaves, activate)
        found.append([out, *torch.autograd.grad(out, leaves, torch.randn_like(leaves[0]))])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)
        assert one.stride() == other.stride()


@pytest.mark.parametrize(("film", "offset", "activate"), itertools.product((False, True), repeat=3))
def test_second_derivatives_are_those_of_the_operations_in_a_row(film, offset, activate):
    shape = SHAPES["images"]
    leaves, found = leaves_of(shape, film, offset), []
    for function in (WAYS["one operation"], WAYS["in a row"]):
        torch.manual_seed(1)
        cotangent = torch.randn(shape, dtype=torch.float64)
        first = torch.autograd.grad(function(leaves, activate), leaves, cotangent, create_graph=True)
        mixed = sum((gradient * torch.randn_like(gradient)).sum() for gradient in first)
        found.append((*first, *torch.autograd.grad(mixed, leaves[:2])))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("way", ["one operation", "for compilers"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_only_the_result_is_rounded_to_half_precision(way, dtype):
    """Numbers far from zero: a mean rounded to bfloat16 would be wrong by a fifth of a standard deviation."""
    leaves = [leaf.detach() for leaf in leaves_of((3, 8, 16, 16), False, False, dtype)]
    leaves[0].mul_(0.5).add_(40)
    with torch.no_grad():
        found, expected = WAYS[way](leaves, False), plain(False, *(leaf.double() for leaf in leaves))
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=torch.finfo(dtype).eps, atol=5e-3)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_the_kernels_compute_the_same_when_triton_interprets_them():
    """On the CPU: what a GPU computes with is run by numpy."""
    script = """
import contextlib, itertools, torch
from sde_toolkit.networks import fused_norm, norm_kernels
torch.cuda.device = lambda device: contextlib.nullcontext()
fused_norm._kernels_for = lambda x, groups: norm_kernels if x.dtype != torch.float64 else None
norm_kernels._TILE = 256
shapes = [(2, 8, 5, 4), (1, 12, 3, 3), (1, 64, 4, 4), (1, 8, 2, 3, 4)]
for shape, film, activate in itertools.product(shapes, *[(False, True)] * 2):
    moved = film == activate
    torch.manual_seed(0)
    last = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    x, cotangent = (part.contiguous(memory_format=last) for part in (torch.randn(2, *shape) + 3).unbind())
    rows = torch.randn(3, *shape[:2])
    leaves = [x, *(rows[:2] if film else rows[:2, 0]), *([rows[2]] if moved else [])]
    found = []
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        own = [leaf.to(dtype if k == 0 else torch.promote_types(dtype, torch.float32)) for k, leaf in enumerate(leaves)]
        own = [leaf.detach().requires_grad_() for leaf in own]
        out = fused_norm.normalised(*own, *[None] * (not moved), 4, 1e-5, activate)
        assert out.dtype == dtype and out.stride() == x.stride()
        found.append([out, *torch.autograd.grad(out, own, cotangent.to(dtype))])
    for exact, single, half in zip(*found):
        torch.testing.assert_close(single.double(), exact, rtol=1e-4, atol=2e-4)
        assert (half.double() - exact).norm() < 0.02 * exact.norm() + 0.02
"""
    subprocess.run([sys.executable, "-c", script], check=True, env={**os.environ, "TRITON_INTERPRET": "1"})


# Whole networks


@pytest.fixture
def flash(monkeypatch):
    """Attention notes the strides of what it is given, and is a fused kernel's."""
    strides = []

    def attended(*tensors):
        strides.append([(tensor.stride(), tensor.untyped_storage()._cdata) for tensor in tensors])
        return torch.ops.aten._scaled_dot_product_flash_attention(*tensors)[0]

    monkeypatch.setattr(attention, "scaled_dot_product_attention", attended)
    return strides


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("train", [False, True])
def test_no_activation_is_copied_converted_or_laid_out_anew(name, train, flash):
    """From the first convolution to the last, and backward. Gradients of concatenated tensors are copied by cuDNN."""
    net = NETWORKS[name]().to("meta", torch.bfloat16).train(train)
    x = torch.empty(BATCH, 3, 12, 12, device="meta", dtype=torch.bfloat16)
    time = torch.empty(BATCH, device="meta")
    with torch.set_grad_enabled(train):
        with Noted() as forward:
            out = net(x, time)
        parts = [forward.between("convolution")]
        if train:
            with Noted() as backward:
                out.backward(torch.empty_like(out))
            parts.append(backward.between("convolution_backward"))
    for operations in parts:
        assert copies(operations) == []
        for operation, _, results in operations:
            for tensor in activations(results):
                assert tensor.dtype == torch.bfloat16 or "flash" in operation, operation
                image = tensor.ndim == 4 and tensor.shape[2] == tensor.shape[3]  # (B, C, 12, 12) or (B, C, 6, 6)
                assert not image or tensor.stride(1) == 1, operation
    assert len(flash) == sum(isinstance(part, nn.Module) and hasattr(part, "heads") for part in net.modules())
    for queries, keys, values in flash:
        assert queries[0][-1] == keys[0][-1] == values[0][-1] == 1
        assert queries[1] == keys[1] == values[1]


@pytest.fixture
def as_on_an_accelerator(monkeypatch):
    """The CPU takes the accelerators' ways: autocast exists for devices that compute."""
    monkeypatch.setattr(normalisation, "fuses", lambda x: x.ndim == 4 and x.is_contiguous(memory_format=LAST[4]))
    for module in (normalisation, attention, resampling):
        monkeypatch.setattr(module, "slow_in_half", lambda x: False)
    monkeypatch.setattr(convolutions, "suits_convolution", lambda rows, width: False)
    monkeypatch.setattr(resampling.UpConvolution, "WORTH_FOLDING", 10**9)


@pytest.mark.usefixtures("as_on_an_accelerator")
@pytest.mark.parametrize("name", NETWORKS)
def test_autocast_converts_every_weight_once_and_no_activation(name):
    """But the data, before the first convolution."""
    net = NETWORKS[name]()
    x, time = torch.randn(BATCH, 3, 12, 12).contiguous(memory_format=LAST[4]), torch.rand(BATCH)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), Noted() as noted:
        net(x, time)
    operations = noted.between("convolution")
    assert copies(operations) == []
    assert all(tensor.dtype == torch.bfloat16 for _, _, out in operations for tensor in activations(out))
    places = {parameter.data_ptr(): own for own, parameter in net.named_parameters()}
    converted = [args[0].data_ptr() for name, args, _ in noted.operations if name == "_to_copy" and args[0].numel() > 1]
    weights = [places[place] for place in converted if place in places]
    assert len(set(weights)) == len(weights) > 20
    assert not any(own.split(".")[-2].endswith("norm") for own in weights)
