"""Every example in the README and in docs/ is run, page by page, as part of the tests."""

import os

import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser


@pytest.fixture
def in_empty_folder(tmp_path):
    """Examples write their files here, not into the checkout."""
    before = os.getcwd()
    os.chdir(tmp_path)
    yield
    os.chdir(before)


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()],
    patterns=["README.md", "docs/*.md"],
    fixtures=["in_empty_folder"],
).pytest()
