"""Fixtures of the data tests."""

import pytest

from tests.data.pictures import flickr8k


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return flickr8k(tmp_path_factory.mktemp("data") / "flickr8k")
