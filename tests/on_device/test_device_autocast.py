"""What autocast converts on a device: weights, once, and no activations."""

import pytest
import torch
from noted_operations import BATCH, NETWORKS, Noted, activations, copies

from sde_toolkit.networks import attention


@pytest.mark.parametrize("name", NETWORKS)
def test_autocast_converts_no_activation(name, device, monkeypatch):
    """From the first convolution to the last, and backward. Each type of device has its list of what autocast converts.

    Without attention's products, which some devices compute in float32.
    """
    monkeypatch.setattr(attention, "scaled_dot_product_attention", lambda queries, keys, values: values * 1)
    if device.type == "cpu":
        pytest.skip("tests/networks/test_accelerators.py has it for the CPU")
    network = NETWORKS[name]().to(device)
    x, time = torch.randn(BATCH, 3, 12, 12, device=device), torch.rand(BATCH, device=device)
    with torch.autocast(device.type, torch.bfloat16), Noted() as forward:
        out = network(x, time)
    with Noted() as backward:
        out.float().square().mean().backward()
    for operations in (forward.between("convolution"), backward.between("convolution_backward")):
        assert copies(operations) == []
        for operation, _, results in operations:
            for tensor in activations(results):
                assert tensor.dtype == torch.bfloat16, operation
