"""Fixtures of the tests of headers."""

import pytest

from kvit._native.context import Device
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


@pytest.fixture
def box_device(device):
    """`device`, where its kernels can copy by boxes."""
    if device != "host" and Device.of(device).compute_capability != (9, 0):
        pytest.skip("no GPU of compute capability 9.0, whose tensor copies the kernels are built for")
    return device
