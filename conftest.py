"""Every example in the README, in docs/ and in docstrings is run as part of the tests."""

import contextlib
import gc
import os
import signal
import tempfile
import unittest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small tensors: one thread is faster, here and in subprocesses
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # so a shell starts what it runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests of Ctrl-C need it, here and in subprocesses

import pytest
from hypothesis import settings
from sybil import Sybil
from sybil.document import PythonDocStringDocument
from sybil.integration.pytest import SybilItem
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser
from sybil.parsers.rest import DocTestParser
from sybil.sybil import SybilCollection

gc.disable()  # until the tests are listed: nothing of what is imported is garbage
_cache = tempfile.TemporaryDirectory(prefix="sde_toolkit_tests_")  # removed when the tests end
os.environ.setdefault("SDE_TOOLKIT_CACHE", _cache.name)  # nothing is written to the cache of who runs the tests
os.fsync = os.fstat  # nobody cuts the power during a test; what is refused for a bad descriptor still is

settings.register_profile("same", deadline=None, derandomize=True)  # a loaded machine is slow, not wrong
settings.register_profile("fresh", deadline=None)  # other examples each time: pytest --hypothesis-profile=fresh
settings.load_profile("same")


def pytest_addoption(parser):
    places = "cpu, cuda, or mock, which imitates a device on a machine that has none (tests/mock_device.py)"
    parser.addoption("--device", default="cpu", help=f"where to run the laws that have a meaning on a device: {places}")


def pytest_configure(config):
    meaning = "the tests of this file, or this test, have a meaning on a device"
    config.addinivalue_line("markers", f"on_device: {meaning}")
    config.addinivalue_line("markers", "on_card(reason): this one needs a card; a mock device is not enough")


def pytest_collection_modifyitems(config, items):
    """On a device only the tests that have a meaning there are run, all with the fixture ``device``."""
    if config.getoption("device") == "cpu":
        return
    chosen, left_out = [], []
    for item in items:
        fixtures = getattr(item, "fixturenames", [])
        own = getattr(getattr(item, "callspec", None), "params", {})  # of the same name, and something else
        if item.get_closest_marker("on_device") and "device" not in fixtures:
            fixtures.insert(0, "device")
        card = item.get_closest_marker("on_card")
        if card and config.getoption("device") == "mock":
            item.add_marker(pytest.mark.skip(*card.args))
        (chosen if "device" in fixtures and "device" not in own else left_out).append(item)
    config.hook.pytest_deselected(items=left_out)
    items[:] = chosen


def pytest_collection_finish():
    """What the modules and the list of tests hold is never looked through again: two million objects, half a second."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture
def in_empty_folder(tmp_path):
    """Examples write their files here, not into the checkout."""
    before = os.getcwd()
    os.chdir(tmp_path)
    yield
    os.chdir(before)


pages = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()],
    patterns=["README.md", "docs/*.md"],
    fixtures=["in_empty_folder"],
)
docstrings = Sybil(
    parsers=[DocTestParser()], pattern="sde_toolkit/**/*.py", document_types={".py": PythonDocStringDocument}
)
pytest_collect_file = SybilCollection([pages, docstrings]).pytest()


_begun = {}  # the lines of the examples that have begun in this process, by document


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item):
    """An example needs those before it in its document: they run first where another worker has taken them."""
    if not isinstance(item, SybilItem):
        return
    begun = _begun.setdefault(item.example.path, set())
    for example in item.example.document.examples():
        if example.line < item.example.line and example.line not in begun:
            begun.add(example.line)
            with contextlib.suppress(unittest.SkipTest):
                example.evaluate()
    begun.add(item.example.line)
