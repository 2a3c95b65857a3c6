"""Fixtures of all tests."""

import sys

import devices
import pytest
import torch
from forks import Forks

USED = pytest.StashKey[object]()


def pytest_configure(config):
    devices.choose(config.getoption("device"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """Draws without a generator are the same whatever has been run before, and in whichever worker."""
    torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call():
    """Fixtures may have drawn, or another test has set them up."""
    torch.manual_seed(0)


@pytest.fixture
def device(request):
    """Where ``pytest --device`` says; the CPU by default. On a device, the package must make a tensor there."""
    found = devices.found_device()
    request.node.stash[USED] = devices.used_by_the_package()
    return found


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem):
    passed = yield
    if not pyfuncitem.stash.get(USED, lambda: True)():
        pytest.fail(f"{pyfuncitem.name} asks for the device and computes nothing there")
    return passed


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs ``sde-toolkit`` in this process, in an empty folder: (exit status, what it printed, what it complained)."""
    from hydra._internal.hydra import Hydra

    from sde_toolkit.cli.main import main

    # Hydra composes every configuration twice, at first only to see whether it sets hydra.mode. None of ours does.
    monkeypatch.setattr(Hydra, "get_mode", lambda *_, **__: None)
    # Figures as PDF and SVG take a second for each report. tests/evaluation/test_comparison_report.py has them.
    monkeypatch.setattr("sde_toolkit.evaluation.page.VECTORS", ())

    def run(*words):
        assert not any("hydra.mode" in word for word in words)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["sde-toolkit"])
        try:
            main(list(words))
            status = 0
        except SystemExit as stop:
            status = stop.code
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


@pytest.fixture(scope="session")
def forks(tmp_path_factory):
    """Starts processes that begin at once (forks.py)."""
    forks = Forks(tmp_path_factory.mktemp("forks"))
    yield forks
    forks.close()
