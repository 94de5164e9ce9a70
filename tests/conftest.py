"""Options and fixtures of every test: which device it runs on, and where its random numbers come from."""

import functools
import zlib

import numpy as np
import pytest


def pytest_addoption(parser):
    parser.addoption("--require-gpu", action="store_true", help="fail, instead of skipping, where a GPU is missing")


@functools.cache
def missing_gpu():
    """Why no test can use a GPU, or None. Asked of the driver: a fault of kvit must not look like a missing GPU."""
    from cuda.bindings import driver

    try:
        status, *_ = driver.cuInit(0)
        if status == driver.CUresult.CUDA_SUCCESS:
            status, count = driver.cuDeviceGetCount()
            return None if count else "the driver sees no GPU"
        return f"cuInit returned {status.name}"
    except RuntimeError:  # how cuda.bindings says that there is no libcuda
        return "no NVIDIA driver"


def need_gpu(request):
    reason = missing_gpu()
    if reason is not None:
        (pytest.fail if request.config.getoption("--require-gpu") else pytest.skip)(f"needs a GPU: {reason}")


@pytest.fixture(autouse=True)
def _gpu_marker(request):
    if request.node.get_closest_marker("gpu"):
        need_gpu(request)


@pytest.fixture(params=["host", pytest.param("cuda:0", marks=pytest.mark.gpu)])
def device(request):
    """Every device a user may name: the host backend, and a GPU where there is one."""
    return request.param


@pytest.fixture
def rng(request):
    """A numpy Generator seeded from the test's name: the same numbers in every run and any order of tests."""
    return np.random.default_rng(zlib.crc32(request.node.nodeid.encode()))
