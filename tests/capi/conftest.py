"""The C API under test: its table, and the example hosts, built as their readers build them."""

import importlib.util
import subprocess
import sys

import pytest

from support import ROOT, capi


@pytest.fixture(scope="session")
def api():
    return capi.Api()


def build(name, folder):
    """The extension module of examples/<name>, built by its own setup.py, loaded from where it was put."""
    command = [sys.executable, "setup.py", "build_ext", "--build-lib", folder / "lib", "--build-temp", folder / "temp"]
    source = folder / "source"
    source.mkdir()
    for path in (ROOT / "examples" / name).iterdir():
        if path.is_file():
            (source / path.name).write_bytes(path.read_bytes())  # Cython writes beside its source
    done = subprocess.run(list(map(str, command)), cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (folder / "lib").glob(f"{name}.*.so")
    return path


def load(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def c_host_file(tmp_path_factory):
    return build("c_host", tmp_path_factory.mktemp("c_host"))


@pytest.fixture(scope="session")
def c_host(c_host_file):
    return load("c_host", c_host_file)


@pytest.fixture(scope="session")
def cython_host(tmp_path_factory):
    return load("cython_host", build("cython_host", tmp_path_factory.mktemp("cython_host")))
