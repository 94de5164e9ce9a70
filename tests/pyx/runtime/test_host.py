"""pyx/runtime/host: finding, loading and configuring the host backend."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import kvit
from kvit._native import host
from kvit.errors import HostBackendError
from kvit.selection import registry


@pytest.fixture
def settings():
    """Puts the settings back after a test that changes them."""
    before = host.configure()
    yield before
    host.configure(scheduler=before["scheduler"], workers=before["workers"])


def test_the_library_holds_the_kernels_of_the_index():
    assert set(host.kernels()) == {entry.symbol for entry in registry.all()}


def test_settings_stay_until_they_are_changed(settings):
    assert host.configure(scheduler="threads") == settings
    assert host.configure(workers=2) == {**settings, "scheduler": "threads"}
    assert host.configure() == {**settings, "scheduler": "threads", "workers": 2}


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"scheduler": "green"}, "choose from fibers, threads"),
        ({"workers": -1}, "0 for one per core"),
        ({"seed": 2**32}, "give 0 to 4294967295"),
    ],
)
def test_a_wrong_setting_is_refused_and_changes_nothing(settings, wrong, words):
    with pytest.raises(HostBackendError, match=words):
        host.configure(**{"scheduler": "threads", "workers": 3, **wrong})
    assert host.configure() == settings


def test_a_library_that_comes_too_late_is_refused():
    host.kernels()
    with pytest.raises(HostBackendError, match="loaded already"):
        host.configure(library="/nowhere/libkvit_host.so")


@pytest.mark.parametrize(
    ("library", "words"),
    [
        ("/nowhere/libkvit_host.so", "does not load: .*nowhere.*Reinstall"),
        ("libc.so.6", "has no function kvit_host_kernels; .*Reinstall"),
    ],
)
def test_a_library_that_is_not_the_host_backend_is_named(tmp_path, library, words):
    # In a process of its own: this one has its library already. Away from the source tree, which may not be built.
    code = f"from kvit._native import host; host.configure(library={library!r}); host.kernels()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    last = result.stderr.strip().splitlines()[-1]
    assert re.search(f"^kvit.errors.HostBackendError: .*{words}", last)


def test_the_library_takes_little_of_what_threads_have_to_spare(tmp_path):
    # glibc keeps some 1.5 KB in each thread's block for all libraries that are loaded late and want to lie there. With
    # more than that the library does not load; with much of it, another library of the process does not.
    library = Path(kvit.__file__).parent / "_kernels" / "libkvit_host.so"
    for i in range(16):
        (tmp_path / f"copy{i}.so").write_bytes(library.read_bytes())
    code = f"import ctypes\nfor i in range(16): ctypes.CDLL(f'{tmp_path}/copy{{i}}.so')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_package_without_the_library_says_how_to_build_it(tmp_path):
    # The package's folders are searched, so an empty one in their place is a package that was not built.
    code = f"import kvit; from kvit._native import host; kvit.__path__ = [{str(tmp_path)!r}]; host.kernels()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert f"HostBackendError: the host backend is not built: {tmp_path}" in result.stderr
    assert "pip install ." in result.stderr
