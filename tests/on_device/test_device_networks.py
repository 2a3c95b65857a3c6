"""Trunks on a device are those of the CPU: forwards, backwards, channels last, half precision."""

import pytest
import torch
from both_places import CPU, assert_the_same, points
from small_trunks import ADM, EDM2, NCSNPP, PUBLISHED

from sde_toolkit import UNet, networks

SMALL = {"widths": (6, 8), "attention_levels": (0, 1), "attention_head_width": 4, "groups": 4}
TRUNKS = {
    "unet": lambda: UNet(**SMALL, in_channels=3, num_classes=3),
    "published": lambda: networks.PublishedUNet(**PUBLISHED, num_classes=3),
    "ncsnpp": lambda: networks.PublishedUNet(**PUBLISHED, **NCSNPP, num_classes=3),
    "adm": lambda: networks.ADMUNet(**ADM, num_classes=3),
    "edm2": lambda: networks.EDM2UNet(**EDM2, num_classes=3),
    "linear attention": lambda: networks.LinearAttentionUNet(
        3, widths=(8, 8), enter_width=8, heads=2, head_width=4, groups=4
    ),
}


def stirred(trunk):
    """A new trunk returns zero: its weights are moved a little."""
    torch.manual_seed(0)
    network = trunk()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, device=CPU)
    return network.eval()


@pytest.mark.parametrize("trunk", TRUNKS.values(), ids=TRUNKS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_every_trunk_forwards_and_backwards(trunk, channels_last, both):
    x = points(CPU, 2, 3 * 64, torch.float32).reshape(2, 3, 8, 8)
    time = torch.tensor([0.2, 0.7], device=CPU)

    def run(place):
        network, layout = stirred(trunk).to(place), torch.channels_last if channels_last else torch.contiguous_format
        network = network.to(memory_format=layout)
        told = x.to(place, memory_format=layout, copy=True).requires_grad_()
        out = network(told, time.to(place))
        out.square().mean().backward()
        return [out, told.grad, *(p.grad for p in network.parameters() if p.grad is not None)]

    assert_the_same(run, both, 1e-3)


@pytest.mark.parametrize("trunk", TRUNKS.values(), ids=TRUNKS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("how", ["autocast", "weights"])
def test_half_precision_is_float32_to_its_rounding(trunk, dtype, how, both):
    x = points(CPU, 2, 3 * 64, torch.float32).reshape(2, 3, 8, 8)
    time = torch.tensor([0.2, 0.7], device=CPU)
    with torch.no_grad():
        wanted = stirred(trunk)(x, time)
        network, place = stirred(trunk).to(both[1]), both[1]
        if how == "weights":
            found = network.to(dtype)(x.to(place, dtype), time.to(place))
        else:
            with torch.autocast(place.type, dtype):
                found = network(x.to(place), time.to(place))
    error = (found.cpu().float() - wanted).norm() / wanted.norm()
    assert error < 16 * torch.finfo(dtype).eps
