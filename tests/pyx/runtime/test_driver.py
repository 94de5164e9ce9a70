"""pyx/runtime/driver and the import of the compiled modules, each in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import kvit

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(path.stem for path in (ROOT / "pyx").glob("*.pyx"))


def run_python(code, **environment):
    """Run code with the compiled modules alone: kvit/__init__.py may import numpy, they may not."""
    alone = f"""
import sys, types
kvit = types.ModuleType("kvit")
kvit.__path__ = {list(kvit.__path__)}
sys.modules["kvit"] = kvit
"""
    return subprocess.run(
        [sys.executable, "-c", alone + code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=60,
    )


@pytest.mark.parametrize("name", MODULES)
def test_a_module_can_be_the_first_import(name):
    result = run_python(f"import kvit._native.{name}")
    assert (result.returncode, result.stderr) == (0, "")


def test_importing_starts_no_cuda_and_imports_nothing_heavy():
    result = run_python(f"""
import importlib, time
start = time.process_time()  # of a core: a busy machine makes everything slow
for name in {MODULES}:
    importlib.import_module("kvit._native." + name)
assert time.process_time() - start < 1.0, "importing takes longer than a second"
heavy = {{"numpy", "ml_dtypes", "cuda.bindings.driver", "cuda.bindings.runtime"}} & set(sys.modules)
assert not heavy, heavy
with open("/proc/self/maps") as maps:
    assert "libcuda.so" not in maps.read(), "the driver is loaded"
""")
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize(
    "call",
    [
        "from kvit._native.context import Device; Device.of('cuda:0')",
        "from kvit._native.buffer import Buffer; Buffer.empty(3, 'float32')",
        "from kvit._native.stream import Stream; Stream()",
        "from kvit._native.event import Event; Event()",
        "from kvit._native.driver import driver_version; driver_version()",
    ],
)
def test_cuda_without_a_gpu_is_one_clear_error(call):
    # An empty CUDA_VISIBLE_DEVICES hides every GPU, so this says the same with a driver and without.
    result = run_python(call, CUDA_VISIBLE_DEVICES="")
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("kvit.errors.NoGpuError: no CUDA GPU can be used: ")
    assert (
        "libcuda.so.1" in last and "CUDA_VISIBLE_DEVICES is ''" in last and 'device="host", which needs no GPU' in last
    )


def test_a_second_attempt_fails_like_the_first():
    result = run_python(
        """
from kvit._native.context import Device
from kvit.errors import NoGpuError
messages = []
for _ in range(2):
    try:
        Device.of("cuda:0")
    except NoGpuError as error:
        messages.append(str(error))
assert len(messages) == 2 and messages[0] == messages[1], messages
""",
        CUDA_VISIBLE_DEVICES="",
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_the_interpreter_exits_silently_with_everything_alive(device):
    # Globals, a reference cycle and a lent capsule: in whatever order they are torn down, nobody hears of it.
    result = run_python(f"""
import kvit
from kvit._native.buffer import Buffer
from kvit._native.event import Event
from kvit._native.stream import Stream
stream = Stream({device!r})
event = Event({device!r})
event.record(stream)
buffer = Buffer.empty((3, 4), "bfloat16", {device!r}, stream)
capsule = buffer.__dlpack__(stream=-1)
cycle = [buffer[0], stream, event]
cycle.append(cycle)
kvit.kept_by_the_package = buffer
""")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.gpu
def test_the_driver_tells_its_version_and_gpus():
    from kvit._native.driver import driver_version, num_gpus

    assert driver_version() >= 12000
    assert num_gpus() >= 1
