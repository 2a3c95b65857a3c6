"""What ``pytest --device`` promises."""

import devices
import pytest
import torch

from sde_toolkit import VPSDE


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
    used = devices.used_by_the_package()
    torch.zeros(3, device=device)
    VPSDE().alpha(0.5)
    if device.type == "mock":
        assert not used()  # a tensor of the test counts for nothing
    VPSDE().alpha(torch.full((3,), 0.5, device=device))
    assert used()


def test_two_devices_in_one_operation_are_refused(device):
    """By CUDA, and by the device that stands for it; numbers, indices and copies are welcome."""
    if device.type == "cpu":
        pytest.skip("there is one device")
    here, there = torch.ones(3, device="cpu"), torch.ones(3, device=device)
    for mixed in (
        lambda: here + there,
        lambda: there.add_(here),
        lambda: torch.stack([here, there]),
        lambda: torch.where(here > 0, there, there),
        lambda: there @ here,
        lambda: torch.nn.functional.linear(there, torch.ones(2, 3, device="cpu")),
        lambda: here[torch.zeros(1, dtype=torch.int64, device=device)],
        lambda: torch.full((), 2.0, device=device) * here,
    ):
        with pytest.raises(RuntimeError):
            mixed()
    with pytest.raises(TypeError):
        there.numpy()
    VPSDE().alpha(there)
    assert (there * torch.tensor(2.0, device="cpu")).device == there.device
    assert there[torch.tensor([0, 2], device="cpu")].shape == (2,)
    assert torch.equal(here.to(there).cpu(), here)
    assert torch.equal(here.copy_(2 * there), torch.full((3,), 2.0, device="cpu"))
