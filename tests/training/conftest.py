"""Fixtures of the tests of training."""

import pytest
from forks import Forks


@pytest.fixture(scope="module")
def forks(tmp_path_factory):
    """Starts processes that begin at once (forks.py)."""
    forks = Forks(tmp_path_factory.mktemp("forks"))
    yield forks
    forks.close()
