"""kvit.iterators.own_compiler: which compiler and which headers a probe of one's own is made with."""

import shutil
import subprocess
import sys

import pytest

from kvit.errors import HostBackendError, LayoutError
from kvit.iterators import kv_layout, kv_thread_map, own_compiler, own_probe, probe_own
from kvit.iterators.own_tile import OwnTile
from support import ROOT

LAYOUT, THREADS = kv_layout(16, 64, 64), kv_thread_map(16, 64, 64, 4)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The package as it is installed, but for what is compiled."""
    folder = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "kvit"


def test_the_package_has_the_program_and_all_headers_of_the_kernels(installed):
    assert (installed / "iterators" / "own_probe.cpp").read_bytes() == own_compiler._PROGRAM.read_bytes()
    kinds = {".h", ".cuh", ".hpp", ".cpp"}
    wanted = {path.relative_to(ROOT / "kernels") for path in (ROOT / "kernels").rglob("*") if path.suffix in kinds}
    headers = installed / "include" / "kernels"
    found = {path.relative_to(headers) for path in headers.rglob("*") if path.is_file()}
    assert found == wanted and len(found) > 100


def test_a_probe_is_made_from_the_installed_headers(installed, monkeypatch):
    monkeypatch.setattr(own_compiler, "_PACKAGE", installed)
    monkeypatch.setattr(own_compiler, "_PROGRAM", installed / "iterators" / "own_probe.cpp")
    assert own_compiler.find_headers() == installed / "include" / "kernels"
    assert probe_own(LAYOUT, THREADS, 16).is_same


def test_a_source_checkout_has_its_own_headers(monkeypatch):
    monkeypatch.setattr(own_compiler, "_PACKAGE", ROOT / "kvit")
    assert own_compiler.find_headers() == ROOT / "kernels"


def test_headers_that_are_nowhere_are_said_to_be(tmp_path, monkeypatch):
    monkeypatch.setattr(own_compiler, "_PACKAGE", tmp_path / "kvit")
    with pytest.raises(HostBackendError, match="headers of the kernels are neither in .*include/kernels nor in"):
        probe_own(LAYOUT, THREADS, 16)


def test_a_compiler_is_looked_for_in_order(monkeypatch):
    gxx = shutil.which("g++")
    monkeypatch.delenv("CXX", raising=False)
    assert own_compiler.find_compiler(False) == [gxx]
    monkeypatch.setenv("CXX", f"{gxx} -Wall")
    assert own_compiler.find_compiler(False) == [gxx, "-Wall"]
    monkeypatch.setenv("CXX", "/nowhere/g++")
    assert own_compiler.find_compiler(False) == [gxx]
    assert own_compiler.find_compiler(False, "sh -e") == [shutil.which("sh"), "-e"]


@pytest.mark.parametrize(
    ("is_for_gpu", "words"),
    [
        (
            False,
            r"no compiler for a probe on the host: there is no /nowhere/cxx, g\+\+, c\+\+. Install g\+\+ 11 or newer",
        ),
        (True, "no compiler for a probe on a GPU: there is no nvcc, /nowhere/cuda/bin/nvcc. Install CUDA's nvcc"),
    ],
)
def test_a_compiler_that_is_nowhere_is_said_to_be(monkeypatch, tmp_path, is_for_gpu, words):
    for name, value in (("PATH", str(tmp_path)), ("CXX", "/nowhere/cxx"), ("CUDA_HOME", "/nowhere/cuda")):
        monkeypatch.setenv(name, value)
    with pytest.raises(HostBackendError, match=words):
        own_compiler.find_compiler(is_for_gpu)
    with pytest.raises(HostBackendError, match="there is no clang-none"):
        own_compiler.find_compiler(is_for_gpu, "clang-none")


def test_a_compiler_that_is_too_old_is_said_to_be(tmp_path):
    old = tmp_path / "old-g++"
    old.write_text("#!/bin/sh\necho 'error: unrecognized command-line option -std=c++20' >&2\nexit 1\n")
    old.chmod(0o755)
    with pytest.raises(HostBackendError, match="does not compile the host backend; give g.. 11 or newer:\n.*unrecogni"):
        probe_own(LAYOUT, THREADS, 16, compiler=str(old))
    old.write_text("not a program")
    with pytest.raises(HostBackendError, match="cannot be run: .*; give another one in compiler="):
        probe_own(LAYOUT, THREADS, 16, compiler=str(old))


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is missing")
def test_nvcc_makes_the_same_program_for_a_gpu(tmp_path):
    tile = OwnTile.of(LAYOUT, THREADS, 16, 2)
    types = [
        ("OwnElement", "Half"),
        ("OwnMap", own_probe._type_of("thread_map", "map_type", None, THREADS)),
        ("OwnLayout", own_probe._type_of("layout", "layout_type", None, LAYOUT)),
    ]
    text = own_probe._text("", types, "sm80", tile, 128)
    assert own_compiler.build(tmp_path, text, (9, 0), None).is_file()
    with pytest.raises(LayoutError, match="cp.async"):  # which came with compute capability 8.0
        own_compiler.build(tmp_path, text, (7, 5), None)
