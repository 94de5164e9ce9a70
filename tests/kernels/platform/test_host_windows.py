"""The host backend compiled for Windows, by ziglang on any system. Where Wine is installed the programs run, too."""

import importlib.util
import shutil
import sys

import numpy as np
import pytest

from codegen.toolchain import compiles_for_windows
from support.host_program import HostPrograms
from support.toolkit import make_script

# Each thread hands its number to the next through memory that is poison before the wait. Fibers change at the barriers.
EXCHANGE = """
    const int thread = ThreadIndex(), neighbour = (thread + 1) % kThreads;
    CopyAsync<4>(shared + 4 * thread, params.input + 4 * thread, true);
    CopyAsyncCommit();
    CopyAsyncWait<0>();
    SyncThreads();
    const auto received = LoadShared<uint32_t>(shared + 4 * neighbour);
    SyncThreads();
    StoreGlobal(params.output + 4 * thread, received);
"""
# The last thread leaves by an exception, and all others stay where they are, on stacks that are thrown away.
FAILURE = """
    if (ThreadIndex() == kThreads - 1) LoadShared<uint32_t>(shared + kSharedBytes);
    SyncThreads();
"""


@pytest.fixture(scope="module")
def compiler(tmp_path_factory):
    """clang for Windows, as one program."""
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("no ziglang, which compiles for Windows: pip install '.[test-windows]'")
    path = tmp_path_factory.mktemp("windows") / "c++"
    return str(make_script(path, f'exec "{sys.executable}" -m ziglang c++ -target x86_64-windows-gnu "$@"'))


@pytest.fixture(scope="module")
def programs(compiler, tmp_path_factory):
    launcher = [shutil.which("wine") or "wine"]
    return HostPrograms(tmp_path_factory.mktemp("host"), compiler=compiler, launcher=launcher, suffix=".exe")


@pytest.fixture
def wine(monkeypatch, tmp_path_factory):
    """Wine with a folder of its own for what it keeps, and without its own words."""
    if shutil.which("wine") is None:
        pytest.skip("no Wine, which runs programs for Windows: apt install wine wine64")
    home = tmp_path_factory.getbasetemp() / "wine"
    monkeypatch.setenv("WINEPREFIX", str(home))
    monkeypatch.setenv("WINEDEBUG", "-all")


def test_the_compiler_is_known_to_be_for_windows_and_that_of_this_system_not(compiler):
    assert compiles_for_windows(compiler)
    assert not compiles_for_windows(shutil.which("g++"))


def test_the_host_backend_becomes_a_program_for_windows(programs):
    source = '#include "platform/host_api.h"\nint main() { return kvit_host_launch(nullptr); }\n'
    program = programs.build(source, [])
    image = program.read_bytes()
    header = int.from_bytes(image[0x3C:0x40], "little")
    # A PE image for x86-64, which switches by the fibers of Windows.
    assert image[:2] == b"MZ" and image[header : header + 6] == b"PE\0\0\x64\x86"
    assert b"SwitchToFiber" in image


@pytest.mark.parametrize("scheduler", ["fibers", "threads"])
def test_threads_of_a_cta_meet_at_barriers(programs, wine, scheduler):
    # More CTAs than OS threads, so that fibers serve several, and two warps.
    outcome = programs.run(EXCHANGE, scheduler=scheduler, threads=64, grid=9, output_bytes=256)
    assert outcome.output == np.roll(np.arange(256), -4).astype(np.uint8).tobytes()


def test_an_error_comes_back_in_words(programs, wine):
    error = programs.run(FAILURE, threads=64, grid=3).error
    assert "at shared offset 4096 is outside the CTA's 4096 bytes; CTA 0 of 3, thread 63 (warp 1, lane 31)" in error


def test_a_barrier_that_never_opens_is_told(programs, wine):
    error = programs.run("if (ThreadIndex() != 5) SyncThreads();", threads=64).error
    assert "waits for ever at SyncThreads (63 of 64 threads arrived)" in error
