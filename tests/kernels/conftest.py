"""Fixtures of the tests of headers."""

import pytest

from support.cxx import Cxx
from support.host_program import HostPrograms


@pytest.fixture(scope="session")
def cxx(tmp_path_factory):
    """g++ on the headers of kernels/."""
    return Cxx(tmp_path_factory.mktemp("cxx"))


@pytest.fixture(scope="session")
def host_programs(tmp_path_factory):
    """g++ and the host backend, for kernels written in a test."""
    return HostPrograms(tmp_path_factory.mktemp("host_programs"))
