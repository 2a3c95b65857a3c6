"""Every example in the README, in docs/ and in docstrings is run as part of the tests."""

import gc
import os
import signal
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small tensors: one thread is faster, here and in subprocesses
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # so a shell starts what it runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests of Ctrl-C need it, here and in subprocesses

import pytest
from hypothesis import settings
from sybil import Sybil
from sybil.document import PythonDocStringDocument
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser
from sybil.parsers.rest import DocTestParser
from sybil.sybil import SybilCollection

_cache = tempfile.TemporaryDirectory(prefix="sde_toolkit_tests_")  # removed when the tests end
os.environ.setdefault("SDE_TOOLKIT_CACHE", _cache.name)  # nothing is written to the cache of who runs the tests
os.fsync = os.fstat  # nobody cuts the power during a test; what is refused for a bad descriptor still is

settings.register_profile("same", deadline=None, derandomize=True)  # a loaded machine is slow, not wrong
settings.register_profile("fresh", deadline=None)  # other examples each time: pytest --hypothesis-profile=fresh
settings.load_profile("same")


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="where to run the laws that have a meaning on a device: cuda")


def pytest_collection_modifyitems(config, items):
    """On a device only the tests that ask for it are run: those with the fixture ``device``."""
    if config.getoption("device") != "cpu":
        left_out = [item for item in items if "device" not in getattr(item, "fixturenames", ())]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if "device" in getattr(item, "fixturenames", ())]


def pytest_collection_finish():
    """What the modules and the list of tests hold is never looked through again: two million objects, half a second."""
    gc.collect()
    gc.freeze()


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
