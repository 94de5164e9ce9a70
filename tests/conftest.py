"""Options and fixtures of every test: which kvit, which device, and where random numbers come from."""

import functools
import importlib.util
import os
import sys
import sysconfig
import zlib
from pathlib import Path

import numpy as np
import pytest

# tests/support by its place: with tests/ on sys.path, tests/kvit would hide a kvit installed by `pip install -e`.
_spec = importlib.util.spec_from_file_location("support", Path(__file__).parent / "support" / "__init__.py")
support = sys.modules["support"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(support)

from support import hunts  # noqa: E402


def pytest_configure(config):
    """Test the kvit that is installed: `python -m pytest` would find the bare sources of this folder first."""
    if not list((support.ROOT / "kvit" / "_native").glob("*.so")):
        sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != support.ROOT]
    kvit = importlib.util.find_spec("kvit")
    if kvit is None or kvit.origin is None:
        raise pytest.UsageError("kvit is not installed; run: pip install '.[test]'")
    config.pluginmanager.register(hunts.Hunts(config, lambda: missing_gpu() is not None), "hunts")


@pytest.fixture(scope="session", autouse=True)
def _children_import_the_same_kvit(tmp_path_factory):
    kvit = importlib.util.find_spec("kvit")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(kvit.origin).parents[1]), prepend=os.pathsep)
        if sysconfig.get_config_var("Py_GIL_DISABLED"):  # each child would warn that kvit turns the GIL on
            patch.setenv("PYTHONWARNINGS", "ignore:The global interpreter lock", prepend=",")
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))  # `python -c` looks in the working directory before all else
        patch.setenv("KVIT_TUNING", "none")  # what was measured on this machine must not change what is tested
        yield


def pytest_addoption(parser):
    parser.addoption("--require-gpu", action="store_true", help="fail, instead of skipping, where a GPU is missing")
    hunts.add_options(parser)


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
