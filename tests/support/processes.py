"""Programs in processes of their own: with their own end, or with a driver that returns at once."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from support import ROOT

_BENCHMARKS = str(ROOT / "benchmarks")
_ON_THE_IDLE_DRIVER = f"""
import ctypes, json, sys
from pathlib import Path
sys.path.append({_BENCHMARKS!r})
import idle_driver
idle_driver.pretend_kernels(Path(sys.argv[1]), **json.loads(sys.argv[2]))
del sys.argv[2]
library = ctypes.CDLL("libcuda.so.1")
def count(name):
    return ctypes.c_int.in_dll(library, f"idle_{{name}}").value
found = []
"""


def run_python(program: str, *arguments: str) -> tuple[int, str, str]:
    """Exit status, and what the program wrote to stdout and stderr."""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # numpy's own threads: Python warns of them at a fork
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    return done.returncode, done.stdout.strip(), done.stderr.strip()


def run_idle(
    folder: Path, program: str, *arguments: str, kernels: dict[str, Any] | None = None, **environment: str
) -> Any:
    """What a program leaves in `found`, as JSON has it, on benchmarks/idle_driver.c: no GPU is needed, none computes.

    folder       may be written
    program      may ask for count("launches") and the driver's other counts
    arguments    its sys.argv[2:]
    kernels      what idle_driver.pretend_kernels is told besides the folder
    environment  besides the usual one
    """
    sys.path.append(_BENCHMARKS)
    import idle_driver

    whole = f"{_ON_THE_IDLE_DRIVER}{program}\nprint(json.dumps(found))"
    command = [sys.executable, "-c", whole, str(folder), json.dumps(kernels or {})]
    environment = idle_driver.build(folder) | environment
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, env=environment, timeout=120)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return json.loads(done.stdout)


# Counts what 1000 calls of a method of host_calls.Case do, and times it. For run_idle with the method's name.
CALLS = """
import host_calls
case = host_calls.Case("cuda:0")
call = getattr(case, sys.argv[2])
call()
def so_far():
    return [*map(count, ("launches", "graph_launches", "graphs", "allocations")), sys.getallocatedblocks()]
before = so_far()
for _ in range(1000):
    call()
after = so_far()
burst = host_calls.burst_of("call()", case.stream.synchronize, call=call)
us = min(burst() for _ in range(100))
found = [*(b - a for a, b in zip(before, after)), us]
"""
