"""The U-Net of denoising-diffusion-pytorch as a trunk. ``tests/interop`` compares its numbers with the package's."""

from __future__ import annotations

import json

import pytest
import torch

from sde_toolkit.errors import ArgumentError
from sde_toolkit.networks import LinearAttentionUNet

SMALL = {"in_channels": 2, "enter_width": 6, "widths": (6, 8), "embedding_width": 4, "heads": 2, "head_width": (3, 4)}
VARIANTS = {
    "images": SMALL,
    "signals": {**SMALL, "dims": 1, "memory": 0, "norms": "group", "groups": 2},
    "standardised": {**SMALL, "norms": "standardised", "groups": 2, "full_attention_levels": (0,)},
    "self-conditioned": {**SMALL, "self_conditioning": True, "out_channels": 4},
}


@pytest.fixture(params=VARIANTS, ids=VARIANTS)
def trunk(request):
    torch.manual_seed(0)
    return LinearAttentionUNet(**VARIANTS[request.param])


def data(trunk, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 2, *(7, 6)[: trunk.dims], generator=generator, dtype=dtype)
    return x, torch.rand(3, generator=generator, dtype=dtype)


def test_any_size_and_every_parameter_counts(trunk):
    x, time = data(trunk)
    out = trunk(x, time)
    assert out.shape == (3, trunk.hyperparameters["out_channels"] or 2, *x.shape[2:])
    out.square().sum().backward()
    silent = [name for name, p in trunk.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent


def test_samples_do_not_see_their_batch(trunk):
    x, time = data(trunk.double(), torch.float64)
    torch.testing.assert_close(trunk(x[1:2], time[1:2]), trunk(x, time)[1:2])


def test_hyperparameters_and_state_rebuild_the_trunk(trunk):
    again = LinearAttentionUNet(**json.loads(json.dumps(trunk.hyperparameters)))
    again.load_state_dict(trunk.state_dict())
    assert again.hyperparameters == trunk.hyperparameters
    x, time = data(trunk)
    assert torch.equal(again(x, time), trunk(x, time))


def test_the_tangent_is_that_of_differences(trunk):
    """Likelihoods differentiate forward, which fused attention cannot."""
    x, time = data(trunk.double(), torch.float64)
    direction = torch.randn_like(x)
    _, tangent = torch.func.jvp(lambda x: trunk(x, time), (x,), (direction,))
    h = 1e-5
    differences = (trunk(x + h * direction, time) - trunk(x - h * direction, time)) / (2 * h)
    torch.testing.assert_close(tangent, differences, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "value"),
    [("widths", ()), ("heads", (2,)), ("full_attention_levels", (2,)), ("norms", "batch"), ("dims", 3), ("memory", -1),
     ("dropout", 1.0), ("enter_width", 0), ("embedding_width", 3)],
)  # fmt: skip
def test_impossible_arguments_are_refused_by_name(name, value):
    with pytest.raises(ArgumentError, match="dim=3" if name == "embedding_width" else f"{name}="):
        LinearAttentionUNet(**{**SMALL, name: value})


def test_conditions_that_it_cannot_take_are_refused():
    x = torch.zeros(2, 2, 4, 4)
    labels = torch.tensor([0, 1])
    with pytest.raises(ArgumentError, match=r"condition=.*no classes"):
        LinearAttentionUNet(**SMALL)(x, torch.zeros(2), labels)
    with pytest.raises(ArgumentError, match=r"condition=.*earlier estimate"):
        LinearAttentionUNet(**SMALL, self_conditioning=True)(x, torch.zeros(2), labels)
    with pytest.raises(ArgumentError, match="one time per sample"):
        LinearAttentionUNet(**SMALL)(x, torch.zeros(3))


def test_one_graph_holds_it():
    trunk = LinearAttentionUNet(enter_width=4, widths=(4,), embedding_width=4, heads=1, head_width=4, groups=2).eval()
    x, time = torch.randn(2, 3, 4, 4), torch.rand(2)
    compiled = torch.compile(trunk, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, time), trunk(x, time), rtol=1e-5, atol=1e-5)
