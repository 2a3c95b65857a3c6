"""What ``pytest --device`` promises."""

import devices
import pytest
import torch


def test_a_device_that_is_not_there_is_skipped_with_the_reason(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(devices, "_missing", None)
    monkeypatch.setattr(devices, "DEVICE", devices.CPU)
    devices.choose("cuda")
    assert devices.DEVICE.type == "cpu"  # constants of the files of tests are made somewhere
    with pytest.raises(pytest.skip.Exception, match=r"no cuda here: torch.cuda.is_available\(\) says False"):
        devices.found_device()


def test_a_test_that_leaves_the_device_alone_is_noticed(device):
    if device.type == "cpu":
        pytest.skip("without a device there is nothing to leave alone")
    from sde_toolkit import VPSDE

    used = devices.used_by_the_package()
    torch.zeros(3, device=device)
    VPSDE().alpha(0.5)
    if device.type == "mock":
        assert not used()  # a tensor of the test counts for nothing
    VPSDE().alpha(torch.full((3,), 0.5, device=device))
    assert used()
