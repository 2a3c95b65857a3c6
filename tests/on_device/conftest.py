"""The CPU and the device that are compared."""

import pytest
from both_places import CPU


@pytest.fixture
def both(device):
    """The CPU and the device."""
    if device.type == "cpu":
        pytest.skip("these laws compare a device with the CPU")
    return CPU, device
